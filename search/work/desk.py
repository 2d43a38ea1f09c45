"""The desk between an engine's thread and the database: trials in, reports out, in a thread of its own.

The engine's thread takes claimed trials from the desk and leaves its reports on it; a second thread
asks ahead, writes what lies there as one batch, and lays the verdicts out. So a slot waits neither
for a sampler nor for the database, and leases are prolonged however long an epoch takes. All
deciding is in `search.trials.placing` and `search.trials.broker`; here is who waits for whom.

What is on the way when either side ends is accounted for: trials that were not begun are given
back, those in the engine as their worker says, and what can't be written any more is left to the
leases, which run out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING

from objectives.base import TrialFailure
from search.trials import placing
from search.trials.claims import Claim, Left, Look, Patience, Reported, Verdict
from search.trials.holdings import LeasesLost
from search.work.counter import Counter, token_of
from storage.errors import DatabaseUnreachable, StorageError

if TYPE_CHECKING:
    from search.trials.broker import Broker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Between two questions to the database whether to stop, and whether the experiment has grown."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two looks for a trial while none can be had, doubling from the first to the second."""
AWAY_SECONDS = 600.0
"""For how long the database may be away before a worker ends."""


class Desk(Counter):
    """See above. `start`, then the methods of the engine's side, then `close`.

    `look` asks the database about the experiment; `interrupted` is set when the worker has to go;
    `abandon(reason)` is called, in the desk's thread, when the engine does not come back: its trials
    are in other hands then, and the process should end. A worker that gets nothing for `idle_seconds`
    is `idle`. Errors of the database are raised on the engine's side.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        look: Callable[[], Look],
        interrupted: threading.Event,
        patience: Patience,
        abandon: Callable[[str], object],
        idle_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(interrupted=interrupted, idle_seconds=idle_seconds, clock=clock)
        self._broker = broker
        self._ask = look
        self._patience = patience
        self._abandon = abandon
        self._thread: threading.Thread | None = None

        # The desk's thread alone:
        self._to_store: list[Reported] = []
        self._to_judge: list[Reported] = []
        self._next_look = clock()
        self._next_claim = clock()
        self._pause = FIRST_PAUSE
        self._away_since: float | None = None
        self._told_at: float | None = None

    def start(self) -> None:
        """Begin to work, in a thread."""
        # What the engine's thread is about, the lines of this one's log are about as well.
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="desk", daemon=True)
        self._thread.start()

    def close(self, error: BaseException | None = None) -> None:
        """Give back what is left and end the thread. `error`: what ended the engine's side, if one did.

        Raises what ended the desk's side, unless the engine's has ended by that or another error.
        """
        # Only an error is held against the trials, not that the process was asked to go.
        reason = (
            f"its worker ended: {type(error).__name__}: {error}" if isinstance(error, Exception) else None
        )
        with self._changed:
            self._busy_since = None
            self._inbox += [(claim, reason) for claim in self._engine.values()]
            self._engine.clear()
            self._stop = self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        if error is None:
            self._raise_error()

    def _run(self) -> None:
        try:
            while True:
                self.step()
                with self._changed:
                    if self._closing and not (self._inbox or self._to_store or self._to_judge):
                        break
                    if not self._inbox:
                        self._changed.wait(self._seconds_to_wait())
        except BaseException as error:  # noqa: BLE001 - a thread's errors have nowhere else to go
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def step(self) -> None:
        """Do everything that can be done now."""
        self._collect()
        try:
            if self._away_since is not None:
                self._return()
            if self._away_since is None:
                self._serve()
        except LeasesLost as lost:
            self._go_away(str(lost))
        except DatabaseUnreachable as error:
            # Not while writing: the leases last until beats fail as well.
            if not error.retryable or self._closing:
                raise
            self._next_claim = self._next_look = self._clock() + LONGEST_PAUSE
        self._announce()
        self._watch()

    def _collect(self) -> None:
        """Take what the engine left."""
        with self._changed:
            inbox, self._inbox = self._inbox, []
        for said in inbox:
            if isinstance(said, Reported):
                self._to_store.append(said)
            elif isinstance(said[1], TrialFailure):
                self._broker.fail(said[0], said[1])
            elif said[1] is not None:
                self._broker.retry(said[0], said[1])
            else:
                self._broker.release(said[0])

    def _serve(self) -> None:
        self._look()
        if not self.stopping:
            self._to_store += self._broker.sharing.replay()
        if self._to_store:
            verdicts = self._broker.store(self._to_store)
            self._to_judge += [one for one in self._to_store if one.claim.lease.token not in verdicts]
            self._to_store = []
            self._lay_out(verdicts)
        if self._to_judge:
            verdicts = self._broker.judge(self._to_judge)
            self._to_judge = []
            self._lay_out(verdicts)
        if self.stopping:
            self._give_back()
        # Endings before claims: they may open the place that the claim takes.
        self._broker.flush()
        self._claim()

    def _look(self) -> None:
        if self._clock() < self._next_look or self._closing:
            return
        seen = self._ask()
        self._next_look = self._clock() + LOOK_SECONDS
        if seen.grown is not None:
            self._broker.adopt(seen.grown)
            self._next_claim = self._clock()
            self._exhausted = False
        if seen.stop and not self._stop:
            with self._changed:
                self._stop = True
                self._changed.notify_all()

    def _claim(self) -> None:
        with self._changed:
            missing = 0 if self.stopping else self._wanted - len(self._ready)
        if missing <= 0 or (self._clock() < self._next_claim and not self._broker.sharing.has_free):
            return
        claims = self._broker.claim(missing)
        if claims:
            self._pause = FIRST_PAUSE
        else:
            self._next_claim = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        exhausted = not claims and self._broker.exhausted
        with self._changed:
            self._ready += claims
            self._exhausted = exhausted and not self._inbox
            self._changed.notify_all()

    def _give_back(self) -> None:
        """Trials that were claimed ahead and will not be begun here, and those that wait for another's."""
        with self._changed:
            claims = [*self._ready, *self._broker.sharing.leave()]
            self._ready.clear()
        for claim in claims:
            self._broker.release(claim)

    def _lay_out(self, verdicts: dict[int, Verdict]) -> None:
        if not verdicts:
            return
        # Something may have ended: look for a trial at once.
        self._next_claim = self._clock()
        self._pause = FIRST_PAUSE
        with self._changed:
            open_still = {token_of(said) for said in self._inbox}
            for token, verdict in verdicts.items():
                if token in self._engine and not (verdict is Verdict.CONTINUE and token in open_still):
                    self._verdicts[token] = verdict
            self._changed.notify_all()

    def _announce(self) -> None:
        """Tell the engine which trials it has lost, in the middle of their epochs or not yet begun."""
        lost = set(self._broker.lost())
        if not lost:
            return
        self._next_claim = self._clock()
        with self._changed:
            self._exhausted = False
            self._ready = deque(claim for claim in self._ready if claim.lease.token not in lost)
            self._verdicts |= {token: Verdict.TAKEN for token in lost if token in self._engine}
            self._changed.notify_all()

    # When the database is away

    def _go_away(self, why: str) -> None:
        logger.warning("the database is away for longer than leases last, trials are given up: %s", why)
        self._to_store, self._to_judge = [], []
        self._away_since = self._clock()
        if self._closing:
            raise DatabaseUnreachable(why)

    def _return(self) -> None:
        """Go on if the database is back. Raises `DatabaseUnreachable` after `AWAY_SECONDS`."""
        if self._clock() < self._next_claim and not self._closing:
            return
        try:
            self._broker.recover()
        except DatabaseUnreachable as error:
            away = self._clock() - (self._away_since or 0.0)
            if self._closing or not error.retryable:
                raise
            if away >= AWAY_SECONDS:
                raise DatabaseUnreachable(str(error), retryable=False) from error
            self._next_claim = self._clock() + LONGEST_PAUSE
        else:
            logger.warning("the database is back")
            self._away_since = None
            self._next_claim = self._clock()

    # When the engine is away

    def _watch(self) -> None:
        """Give the engine's trials to others if it does not come back. Raises `Left` then."""
        now = self._clock()
        if self._interrupted.is_set() and self._told_at is None:
            self._told_at = now
        with self._changed:
            busy = None if self._busy_since is None else now - self._busy_since
            limit = placing.hang_limit(self._patience.hang, self._longest)
            engine, lately = dict(self._engine), set(self._lately)
        if busy is None:
            return
        grace = self._patience.grace
        if busy > limit:
            guilty = placing.suspects(engine, lately)
            reason = f"hung: the engine did not come back for {busy:.0f} s (--hang-seconds)"
            self._part_from(engine, dict.fromkeys(guilty, reason))
            self._leave_engine(reason)
        elif grace is not None and self._told_at is not None and now - self._told_at > grace:
            self._part_from(engine, {})
            self._leave_engine(f"told to leave, and its epoch did not end within {grace:.0f} s")

    def _part_from(self, engine: dict[int, Claim], guilty: dict[int, str]) -> None:
        for token, claim in engine.items():
            if token in guilty:
                self._broker.retry(claim, guilty[token])
            else:
                self._broker.release(claim)
        self._give_back()
        with suppress(StorageError, LeasesLost):  # the leases run out by themselves
            self._broker.flush()

    def _leave_engine(self, reason: str) -> None:
        self._abandon(reason)
        raise Left(reason)

    def _seconds_to_wait(self) -> float:
        """Until there is something to do even if the engine leaves nothing."""
        now = self._clock()
        if self._away_since is not None:
            return max(0.0, self._next_claim - now)
        due = [self._next_look - now, self._broker.sharing.seconds_to_replay()]
        if self._broker.holdings:
            due.append(self._broker.holdings.seconds_to_beat())
        if self._wanted > len(self._ready) and not self.stopping:
            due.append(self._next_claim - now)
        return max(0.0, min(due))
