"""Trials that rest, as the worker remembers them that paused them: what promotes them reads no file.

A trial that pauses is saved to a file first, which is the truth: for other workers, and after a crash. The
worker keeps a copy of what it saved in the host's memory beside it, as far as there is room. Whether a copy
is what the trial still is, the ledger decides: the copy was made under the trial's last lease before the
present one, at the last epoch that is stored. So one that another worker went on with, or ran anew, is not
used; it goes as soon as that shows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.work.host_memory import free_memory

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.base import StateCopy
    from storage.ledger import Lease

SHARE = 8
"""Copies take up to one part in so many of the memory that is free, their own counted as free. Each of W
workers of a machine then ends at one part in W + 7 of what is free without copies: one alone at an eighth,
eight at about half together, and never all."""


def usual_limit(held: int) -> int:
    """How many bytes of copies may be held, if `held` are now: what is free is looked up at each call."""
    return (free_memory() + held) // SHARE


@dataclass(frozen=True, slots=True)
class Held:
    """A copy, and what says whether it still is what its trial is."""

    copy: StateCopy
    attempt: int
    """Under which it was made."""
    path: Path | None
    """The file that says the same; None: it couldn't be written."""

    def is_of(self, lease: Lease, fingerprint: str) -> bool:
        """Whether nobody has had the trial between the attempt that made the copy and this lease."""
        return (
            lease.attempt == self.attempt + 1
            and lease.last_step == self.copy.report.epoch
            and fingerprint == self.copy.fingerprint
        )


class Copies:
    """At most `limit(bytes held)` bytes of copies, those made longest ago dropped first. Any threads."""

    def __init__(self, limit: Callable[[int], int] = usual_limit) -> None:
        self._limit = limit
        self._held: OrderedDict[int, Held] = OrderedDict()
        """By trial; each is used once, so the order in which they came is that of their last use."""
        self._size = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._size

    def __len__(self) -> int:
        """How many trials have a copy."""
        return len(self._held)

    def put(self, trial_id: int, held: Held) -> None:
        """Keep a copy in the place of the trial's former one, unless it takes more than all may."""
        with self._lock:
            self._drop(trial_id)
            limit = self._limit(self._size)
            if held.copy.size <= limit:
                self._held[trial_id] = held
                self._size += held.copy.size
            while self._size > limit:
                self._drop(next(iter(self._held)))

    def take(self, lease: Lease, fingerprint: str) -> Held | None:
        """The copy of a leased trial, which is held no more; None if none still is the trial."""
        with self._lock:
            held = self._drop(lease.trial_id)
        return held if held is not None and held.is_of(lease, fingerprint) else None

    def drop(self, trial_id: int) -> None:
        """Let go of a trial that is over."""
        with self._lock:
            self._drop(trial_id)

    def _drop(self, trial_id: int) -> Held | None:
        held = self._held.pop(trial_id, None)
        if held is not None:
            self._size -= held.copy.size
        return held
