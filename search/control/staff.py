"""The workers that a controller has hired: who is there, who waits for room, who died, who is missing.

Keeps the books of a crew; what follows from them is decided in `search.control.supervision`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from search.control.events import Listener, Trouble
from search.control.supervision import NODE_SECONDS, PENDING_SECONDS, Deaths, hirings

if TYPE_CHECKING:
    from search.control.crew import Crew, Departure

SIGNAL_SECONDS = 0.2
"""Until a signal is noticed."""


class Staff:
    """A crew's workers, by name. One thread. `name` begins the workers' names."""

    def __init__(
        self,
        crew: Crew,
        name: str,
        width: int,
        on_event: Listener,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`width`: the most workers that can be of use at once."""
        self._crew = crew
        self._name = name
        self._on_event = on_event
        self._clock = clock
        self.target = min(crew.size, width)
        """The most that are hired."""
        self.names: set[str] = set()
        """Those that were hired and have not left."""
        self.pending: frozenset[str] = frozenset()
        """Those of them for which there was no room yet."""
        self.last_death = "no worker took what was left"
        self._hired = 0
        self._pending_since: float | None = None
        self._deaths = Deaths(NODE_SECONDS)
        self._openings = 0

    @property
    def at_work(self) -> bool:
        """Whether anybody is there and has begun."""
        return bool(self.names - self.pending)

    def hire(self, count: int) -> None:
        """Hire so many. Raises `CrewError`."""
        for _ in range(count):
            self._hired += 1
            name = f"{self._name}-{os.getpid()}-{self._hired}"
            self._crew.hire(name)
            self.names.add(name)

    def hire_for(self, openings: int) -> None:
        """Hire for trials that may start and that nobody took since the last call."""
        before, self._openings = self._openings, openings
        self.hire(
            hirings(
                alive=len(self.names),
                pending=len(self.pending),
                target=self.target,
                openings=openings,
                before=before,
            )
        )

    def departures(self, seconds: float, goes_on: Callable[[], bool]) -> list[Departure]:
        """Who left: after so many seconds, or as soon as somebody leaves or `goes_on` says no."""
        left: list[Departure] = []
        until = self._clock() + seconds
        while not left and (rest := until - self._clock()) > 0 and goes_on():
            # In pieces: neither a thread's end nor Ray can be waited for until a signal comes.
            piece = min(rest, SIGNAL_SECONDS)
            if self.names:
                left = self._crew.departures(piece)
            else:
                # Workers of a controller that died are still at it; their trials end, or come back.
                time.sleep(piece)
        self.names -= {departure.worker for departure in left}
        self._note_pending()
        return left

    def _note_pending(self) -> None:
        """Who has no room yet, and say so if that lasts: a cluster may be too small, or on its way."""
        self.pending = self._crew.pending() & self.names
        now = self._clock()
        if not self.pending:
            self._pending_since = None
        elif self._pending_since is None:
            self._pending_since = now
        elif now - self._pending_since >= PENDING_SECONDS:
            self._pending_since = math.inf  # said once, until all have room
            waiting = f"{len(self.pending)} of {len(self.names)} workers wait for room on the cluster"
            self._on_event(Trouble(waiting))

    def bury(self, left: Iterable[Departure]) -> None:
        """Note those who died."""
        dead = [departure for departure in left if departure.ending is None]
        for departure in dead:
            self.last_death = departure.reason
            self._on_event(Trouble(f"worker {departure.worker} died: {departure.reason}"))
        if dead:
            self._deaths.note(self._clock(), {departure.node for departure in dead} - {""})

    def note_in_vain(self) -> None:
        """One is hired for what is left: should it leave without touching it, that counts as a death."""
        self._deaths.note(self._clock(), ())

    def note_progress(self) -> None:
        """Something was trained: what was died of before is over."""
        self._deaths.clear()

    def deaths(self) -> int:
        """Deaths in a row without progress."""
        lost = self._crew.lost_nodes() if self._deaths.on_machines else frozenset()
        return self._deaths.count(self._clock(), lost)

    def dismiss(self) -> Sequence[str]:
        """End all at once; who they were."""
        self._crew.dismiss()
        names = sorted(self.names)
        self.names.clear()
        self.pending = frozenset()
        return names
