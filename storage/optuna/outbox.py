"""Writes on their way: what may wait, what must go now, and who sends them.

Reports, parameters and attributes of a trial that this process runs may wait for `INTERVAL` seconds:
Optuna's contract lets them be lost in a crash, as long as they are stored before any change of the
trial's state is. Changes of state are urgent: whoever makes one waits until it is stored, together with
all that waited. While one thread is sending, the urgent writes of the others gather and go out together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial
from sqlalchemy.exc import DBAPIError

from storage.errors import StorageError
from storage.optuna.queue import TrialWrites, Writes, merged
from storage.optuna.wire import Wire
from storage.optuna.writes import Outcome, store

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Seconds that a write may wait."""
IDLE = 5.0
"""Seconds without a write after which the background thread ends; the next write starts another."""

Sent = Callable[[Writes, dict[int, Outcome] | None], None]
"""Told, under the lock, what was sent and what became of it; None: it could not be sent."""


@dataclass(slots=True)
class _Urgent:
    """What a thread waits for."""

    writes: Writes
    done: bool = False
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    error: Exception | None = None


class Outbox:
    """All writes of a storage that are not stored yet. May be shared by threads.

    `lock` is the storage's: it guards these fields together with the cache, and is never held while
    something is sent.
    """

    def __init__(self, wire: Wire, lock: threading.RLock, sent: Sent) -> None:
        self._wire = wire
        self._lock = lock
        self._sent = sent
        self._sending = threading.Lock()
        self._in_flight: Writes = {}
        self._pending: Writes = {}
        self._held: list[Writes] = []
        self._waiting: list[_Urgent] = []
        self._thread: threading.Thread | None = None
        self._dirty = threading.Event()

    def overlay(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial as it will be once everything is stored. Call it under the lock."""
        for layer in (self._in_flight, self._pending, *self._held):
            writes = layer.get(trial._trial_id)
            if writes is not None:
                trial = writes.laid_over(trial)
        return trial

    def hold(self) -> Writes:
        """A place for writes that wait until their owner sends them with `flush`. Call it under the lock."""
        held: Writes = {}
        self._held.append(held)
        return held

    def put(self, trial_id: int, writes: TrialWrites) -> None:
        """Let writes wait for the background thread. Call it under the lock."""
        self._pending.setdefault(trial_id, TrialWrites()).add(writes)
        self._dirty.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shoal optuna flusher", daemon=True)
            self._thread.start()

    def drop(self, trial_id: int) -> None:
        """Give up what waits of a trial that is no longer ours. Call it under the lock."""
        for layer in (self._pending, *self._held):
            layer.pop(trial_id, None)

    def flush(self, urgent: Writes | None = None) -> dict[int, Outcome]:
        """Store what waits and `urgent` with it; what became of the urgent writes.

        Raises `StorageError`; then what may wait goes on waiting, and changes of state are given up.
        """
        mine = _Urgent(urgent if urgent is not None else {})
        with self._lock:
            self._waiting.append(mine)
        with self._sending:
            if not mine.done:
                self._send(mine)
        if mine.error is not None:
            raise mine.error
        return mine.outcomes

    def _send(self, mine: _Urgent) -> None:
        with self._lock:
            taken = self._take(mine)
            sending = merged([self._pending, *(one.writes for one in taken)])
            self._pending, self._in_flight = {}, sending
        outcomes: dict[int, Outcome] | None = None
        error: Exception | None = None
        try:
            outcomes = store(self._wire, sending) if sending else {}
        except (StorageError, DBAPIError) as caught:
            error = caught
        finally:
            # Whatever stopped it, an interrupt too: nothing that was accepted is forgotten.
            with self._lock:
                self._settle(taken, sending, outcomes, error)

    def _settle(
        self,
        taken: list[_Urgent],
        sending: Writes,
        outcomes: dict[int, Outcome] | None,
        error: Exception | None,
    ) -> None:
        self._in_flight = {}
        for one in taken:
            self._held = [held for held in self._held if held is not one.writes]
            one.error = error
            one.outcomes = {} if outcomes is None else {i: outcomes[i] for i in one.writes}
            # After an interrupt, which is this thread's alone, the others send theirs themselves.
            one.done = outcomes is not None or error is not None
        if outcomes is None:
            self._pending = merged([_unended(sending), self._pending])
            self._dirty.set()
        self._sent(sending, outcomes)

    def _take(self, mine: _Urgent) -> list[_Urgent]:
        """`mine` and whoever else waits and doesn't write the same trials: those compare and set."""
        taken, rest = [mine], []
        trial_ids = set(mine.writes)
        for other in self._waiting:
            if other is mine:
                continue
            if trial_ids.isdisjoint(other.writes):
                trial_ids |= other.writes.keys()
                taken.append(other)
            else:
                rest.append(other)
        self._waiting = rest
        return taken

    def _run(self) -> None:
        """Store what waits, again and again, until nothing has come for a while."""
        complained = False
        while True:
            if not self._dirty.wait(IDLE):
                with self._lock:
                    if not self._dirty.is_set():
                        self._thread = None
                        return
            time.sleep(INTERVAL)
            self._dirty.clear()
            try:
                self.flush()
                complained = False
            except (StorageError, DBAPIError) as error:
                if not complained:
                    logger.warning("reports wait for the database: %s", error)
                complained = True


def _unended(writes: Writes) -> Writes:
    return {trial_id: of_trial.without_ending() for trial_id, of_trial in writes.items()}
