"""The leases that a worker holds, what it still has to say of them, and what became of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from search.logs import ids
from storage.errors import DatabaseUnreachable

if TYPE_CHECKING:
    from storage.ledger import Draw, Ending, EpochWrite, Lease, Ledger

logger = logging.getLogger(__name__)

BEATS = 3
"""Heartbeats in the time that a lease lasts."""
RETRY_SECONDS = 0.1
"""Between two tries to write; each takes as long as the patience with a database that is away."""
EARLY = 9
"""A beat that is due within this part of a lease rides along with a write that goes out anyway."""


class LeasesLost(Exception):  # noqa: N818 - an event that callers handle
    """The database was away for longer than leases last: nothing that was held may be written any more."""


class Holdings:
    """Writes to the ledger in the name of the leases that it knows. One thread.

    `lease_seconds`: how long a lease lasts without being prolonged; `clock` counts seconds, `pause` waits.
    Whether a lease was lost is for the database to say; this clock only decides when to beat, and
    when to stop trying.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._pause = pause
        self._beaten_at = clock()
        self._held: dict[int, Lease] = {}
        self._endings: dict[int, Ending] = {}
        self._lost: dict[int, Lease] = {}
        self._given_up: set[int] = set()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, lease: Lease) -> bool:
        return lease.token in self._held

    def take(self, leases: Collection[Lease]) -> None:
        """Hold these from now on."""
        if not self._held:
            self._beaten_at = self._clock()
        self._held |= {lease.token: lease for lease in leases}

    def end(self, ending: Ending) -> bool:
        """Part with a trial, at the next `write`. False if it is not held, or was parted with before."""
        token = ending.lease.token
        if token not in self._held or token in self._endings:
            return False
        self._endings[token] = ending
        return True

    def leases(self) -> list[Lease]:
        """Those that are held now; for another thread, which keeps them alive."""
        return list(self._held.values())

    def beaten(self, at: float) -> None:
        """Note that somebody else prolonged all leases at that moment of the clock."""
        self._beaten_at = max(self._beaten_at, at)

    @property
    def has_to_write(self) -> bool:
        """Whether there is something to say now."""
        return bool(self._endings) or (bool(self._held) and self.seconds_to_beat() <= 0)

    def seconds_to_beat(self) -> float:
        """Until the leases have to be prolonged."""
        return self._beaten_at + self._lease_seconds / BEATS - self._clock()

    def write(
        self,
        *,
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Mapping[int, str]:
        """Write, with the endings that waited for it and the heartbeats that are due; what was refused.

        Tries again where the database is away for longer than the ledger waits for it; what that had stored
        all the same is refused then, and its trial counts as lost. Raises `LeasesLost` when it has been away
        for longer than leases last, `DatabaseUnreachable` where trying again is of no use.
        """
        all_endings = list(({one.lease.token: one for one in endings} | self._endings).values())
        if not (draws or epochs or all_endings or self._held):
            return {}
        early = self._lease_seconds / EARLY
        while True:
            began = self._clock()
            beats = list(self._held.values()) if self.seconds_to_beat() <= early else []
            try:
                written = self._ledger.write(beats=beats, draws=draws, epochs=epochs, endings=all_endings)
                break
            except DatabaseUnreachable as error:
                if not error.retryable:
                    raise
                if self._clock() - self._beaten_at >= self._lease_seconds:
                    self.forget()
                    raise LeasesLost(str(error)) from error
                self._pause(RETRY_SECONDS)
        if beats:
            self._beaten_at = began
        self._endings = {}
        for token, why in written.refused.items():
            if (lease := self._held.pop(token, None)) is not None:
                self._lost[token] = lease
                about = ids(study=lease.study_name, trial=lease.number, attempt=lease.attempt)
                logger.warning(
                    "trial %s of %s was lost: %s", lease.number, lease.study_name, why, extra=about
                )
        for ending in all_endings:
            self._held.pop(ending.lease.token, None)
        self._given_up |= written.given_up
        return written.refused

    def forget(self) -> None:
        """Every lease has run out: nothing of what was held may be written any more."""
        self._lost |= self._held
        self._held = {}
        self._endings = {}

    def lost(self) -> list[Lease]:
        """Leases that were lost since this was asked last."""
        lost, self._lost = self._lost, {}
        return list(lost.values())

    def given_up(self, token: int) -> bool:
        """Whether a trial that was to be tried again has failed for good instead. Asked once."""
        found = token in self._given_up
        self._given_up.discard(token)
        return found
