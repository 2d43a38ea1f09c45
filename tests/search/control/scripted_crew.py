"""A crew whose workers leave as a script says."""

from __future__ import annotations

import threading

from search.control.crew import Departure


class ScriptedCrew:
    """Workers that leave as a script says, one entry per look."""

    size = 2

    def __init__(self, *looks: list[str | None]) -> None:
        self.looks = list(looks)
        self.hired: list[str] = []
        self._here: list[str] = []
        self.dismissed = self.closed = False

    def hire(self, worker: str) -> None:
        self.hired.append(worker)
        self._here.append(worker)

    def departures(self, timeout: float) -> list[Departure]:
        if self.dismissed or not self.looks:
            return []
        endings = self.looks.pop(0)
        if not endings:
            threading.Event().wait(timeout)  # nobody leaves in this look
        return [
            Departure(self._here.pop(0), ending, "" if ending else "its process died") for ending in endings
        ]

    def pending(self) -> frozenset[str]:
        """A process begins at once."""
        return frozenset()

    def lost_nodes(self) -> frozenset[str]:
        """There is this machine alone."""
        return frozenset()

    def dismiss(self) -> None:
        self.dismissed = True

    def close(self) -> None:
        self.closed = True
