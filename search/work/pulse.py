"""Keeps a worker's leases alive while the thread that writes for it is busy with something else.

The thread of the desk beats between its other duties, and one of these may take longer than a lease
lasts: a Gaussian process over many trials, a sampler of the user's own. Then a thread of its own beats
in its place, on a connection of its own. In ordinary running it stays silent.

It does nothing but beat, and excludes every other call of the ledger while it does, so no beat comes
after the ending of the same lease. Nor does it keep a worker's trials for ever: if the desk is silent
for `LONGEST_SECONDS`, it counts as hung, and its leases run out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from search.trials.holdings import BEATS
from storage.errors import StorageError

if TYPE_CHECKING:
    from search.trials.holdings import Holdings
    from storage.ledger import Draw, Ending, EpochWrite, Expired, Lease, Ledger, Retried, Written

logger = logging.getLogger(__name__)

LATE = 1 / 2
"""The part of a lease after which the desk is late: it beats after a third of one itself."""
LONGEST_SECONDS = 600.0
"""For so long a desk may be silent before its leases are left to run out."""


class Pulse:
    """A ledger that passes everything on to another, and beats in its own thread: see `beating`.

    `lease_seconds` as for `Holdings`; `clock` counts seconds.
    """

    def __init__(
        self, ledger: Ledger, *, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._turn = threading.Lock()
        self._over: set[int] = set()
        """Tokens that were ended or refused, as long as their holder has not taken note of it."""
        self._heard_at = clock()
        """When the desk last called."""
        self._stop = threading.Event()

    @contextmanager
    def beating(self, holdings: Holdings) -> Iterator[None]:
        """Keep these leases alive within the block."""
        thread = threading.Thread(target=self._run, args=(holdings,), name="pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            # It may be waiting for a database that is away; it does no harm, and ends by itself.
            thread.join(self._lease_seconds)

    def _run(self, holdings: Holdings) -> None:
        while not self._stop.wait(max(self.seconds_to_beat(holdings), self._lease_seconds / 20)):
            self.beat(holdings)

    def seconds_to_beat(self, holdings: Holdings) -> float:
        """Until the desk would be late."""
        if not holdings:
            return self._lease_seconds * (LATE - 1 / BEATS)
        return holdings.seconds_to_beat() + self._lease_seconds * (LATE - 1 / BEATS)

    def beat(self, holdings: Holdings) -> bool:
        """Beat for the desk if it is late; whether that was done."""
        with self._turn:
            held = holdings.leases()
            leases = [lease for lease in held if lease.token not in self._over]
            self._over &= {lease.token for lease in held}
            now = self._clock()
            if not leases or self.seconds_to_beat(holdings) > 0:
                return False
            if now - self._heard_at > LONGEST_SECONDS:
                logger.error(
                    "nothing came from the desk for %.0f s: its leases run out", now - self._heard_at
                )
                return False
            try:
                self._ledger.write(beats=leases)
            except StorageError as error:
                # Whoever holds them hears of it with the next write.
                logger.warning("the leases could not be prolonged: %s", error)
                return False
            holdings.beaten(now)
            return True

    # The ledger, one call at a time

    @contextmanager
    def _called(self) -> Iterator[None]:
        self._heard_at = self._clock()
        with self._turn:
            yield
        self._heard_at = self._clock()

    def register(self, name: str, told: Mapping[str, Any] | None = None) -> int:
        """See `Ledger`."""
        with self._called():
            return self._ledger.register(name, told)

    def retire(self, worker_id: int) -> None:
        """See `Ledger`."""
        with self._called():
            self._ledger.retire(worker_id)

    def claim(
        self,
        study_name: str,
        worker_id: int,
        *,
        waiting: int,
        new: int,
        of: int | None = None,
        among: Collection[int] | None = None,
    ) -> list[Lease]:
        """See `Ledger`."""
        with self._called():
            return self._ledger.claim(study_name, worker_id, waiting=waiting, new=new, of=of, among=among)

    def write(
        self,
        *,
        beats: Collection[Lease] = (),
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Written:
        """See `Ledger`."""
        with self._called():
            written = self._ledger.write(beats=beats, draws=draws, epochs=epochs, endings=endings)
            self._over |= {ending.lease.token for ending in endings} | written.refused.keys()
            return written

    def expire(self, experiment_id: int, *, dead_workers: Collection[int] = ()) -> list[Expired]:
        """See `Ledger`."""
        with self._called():
            return self._ledger.expire(experiment_id, dead_workers=dead_workers)

    def retry_failed(self, experiment_id: int) -> list[Retried]:
        """See `Ledger`."""
        with self._called():
            return self._ledger.retry_failed(experiment_id)
