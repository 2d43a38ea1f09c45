"""The loop that keeps an engine's slots full: take, train, report, retire.

Knows no Ray, no SQL and no torch. It waits for the database in two cases alone: when it has nothing
to train, and where training on could be in vain. With one slot that is after every epoch, for an
epoch too much costs more than the verdict takes; with many the other trials go on, and a slot whose
trial was pruned meanwhile has lost one epoch at most. Where nothing is pruned there is no verdict to
wait for: short epochs are then stored many at a time. But a trial is saved once all its epochs are stored:
a file of an epoch that isn't can't be gone on from, and training on without one would cost more than the
time between two, should the database stay away. A trial that pauses at a rung is saved and leaves its slot
with that epoch, as one does whose worker is told to stop; a copy of it stays here, for its promotion.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from objectives.base import CopyingEngine, EpochEnd, EpochReport, TestScore, TrialFailure
from search.trials import placing
from search.trials.claims import Verdict
from search.trials.copies import Held

if TYPE_CHECKING:
    from objectives.base import Engine
    from search.trials.claims import Claim
    from search.trials.copies import Copies
    from search.work.saving import Saver

Ending: TypeAlias = Literal["exhausted", "stopped", "idle"]
"""Why a worker ended: nothing is left that it could begin, it was asked to, or nothing came for so long that
its machine may have something better to do."""


class TrialSource(Protocol):
    """What a worker needs of `search.work.desk.Desk`. Each method raises what ended the other side."""

    @property
    def stopping(self) -> bool:
        """Whether trials are to leave at their epochs' ends."""

    @property
    def exhausted(self) -> bool:
        """Whether `take` will never again give a trial."""

    @property
    def idle(self) -> bool:
        """Whether `wait` has waited in vain for as long as a worker may."""

    def take(self, free: int, ahead: int) -> list[Claim]:
        """Up to `free` trials, those that are ready; others are asked for."""

    def wait(self) -> None:
        """Until there is a trial, or a reason to end."""

    def training(self) -> AbstractContextManager[None]:
        """Around each call of the engine's that trains."""

    def end_epoch(
        self,
        claim: Claim,
        report: EpochReport,
        *,
        last: bool,
        leaving: bool = False,
        test: TestScore | None = None,
    ) -> None:
        """Leave an epoch's report; with `last` or `leaving` the trial has left its slot."""

    def verdict(self, claim: Claim, *, wait: bool) -> Verdict | None:
        """What becomes of a trial after its last report, or because its lease was lost."""

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        """Say that a trial raised, and left its slot."""

    def part(self, claim: Claim) -> None:
        """Say that a trial left its slot, after a verdict."""


class Worker:
    """Runs trials of one source on one engine until none is left or it is asked to stop. One thread.

    `judged`: whether an epoch's report may end a trial (it is pruned); `copies`: where those are remembered
    that pause.
    """

    def __init__(
        self,
        source: TrialSource,
        engine: Engine,
        saver: Saver,
        *,
        judged: bool = True,
        copies: Copies | None = None,
    ) -> None:
        self._judged = judged
        self._copies = copies
        self._source = source
        self._engine = engine
        self._saver = saver
        self._slots = engine.free_slots
        self._claims: dict[int, Claim] = {}
        self._epochs: dict[int, int] = {}
        self._unsettled: set[int] = set()
        self._unforeseen = 0
        """Slots that got free since the last look for free slots, before their trials' last epochs."""
        self._bursts: deque[int] = deque(maxlen=placing.BURST_FILLS)

    def run(self) -> Ending:
        """Work. What the source or the engine raises leaves this method, the trials with it."""
        while True:
            if not self._source.stopping:
                self._fill()
            if self._claims:
                with self._source.training():
                    events = self._engine.advance()
                for event in events:
                    self._handle(event)
                self._settle()
            elif self._source.stopping:
                return "stopped"
            elif self._source.exhausted:
                return "exhausted"
            elif self._source.idle:
                return "idle"
            else:
                self._source.wait()

    def _fill(self) -> None:
        ending = sum(
            self._epochs[trial_id] + 1 >= claim.leaves_after for trial_id, claim in self._claims.items()
        )
        self._bursts.append(self._unforeseen)
        self._unforeseen = 0
        ahead = placing.ahead(self._slots, ending, max(self._bursts))
        for claim in self._source.take(self._engine.free_slots, ahead):
            if claim.trial_id in self._claims:
                # Its lease was lost, and the trial came back to us before we heard of it.
                self._retire(claim.trial_id)
            self._claims[claim.trial_id] = claim
            self._epochs[claim.trial_id] = 0
            self._saver.begin(claim)
            self._engine.admit(claim.start)

    def _handle(self, event: EpochEnd | TrialFailure) -> None:
        trial_id = event.trial_id
        claim = self._claims[trial_id]
        if isinstance(event, TrialFailure):
            # The engine has already freed the slot.
            self._forget(trial_id)
            self._source.fail(claim, event)
        elif not self._judged or self._is_settled(trial_id):
            self._end_epoch(claim, event)

    def _end_epoch(self, claim: Claim, end: EpochEnd) -> None:
        trial_id, report = end.trial_id, end.report
        self._epochs[trial_id] = report.epoch
        over = end.last or report.diverged
        leaving = not over and (report.epoch == claim.until or self._source.stopping)
        due = not (over or leaving) and self._saver.is_due(claim)
        if leaving:
            if not self._is_settled(trial_id):
                return
            # Before it is given back: whoever takes it next begins with this file.
            saved = self._save(claim, report.epoch)
            if report.epoch == claim.until:
                self._remember(claim, report.epoch, saved)
        if over or leaving:
            self._engine.retire(trial_id)
            self._forget(trial_id)
        self._source.end_epoch(claim, report, last=end.last, leaving=leaving, test=end.test)
        if over or leaving:
            return
        self._unsettled.add(trial_id)
        waits = due or (self._judged and self._slots == 1)
        if waits and self._goes_on(trial_id, wait=True) and due:
            self._save(claim, report.epoch)

    def _save(self, claim: Claim, epoch: int) -> bool:
        return self._saver.save(claim, epoch, lambda path: self._engine.save(claim.trial_id, path))

    def _remember(self, claim: Claim, epoch: int, saved: bool) -> None:
        """Keep what a trial is that pauses."""
        if self._copies is None or not isinstance(self._engine, CopyingEngine):
            return
        attempt = claim.lease.attempt
        path = claim.folder.path_of(epoch, attempt) if saved else None
        self._copies.put(claim.trial_id, Held(self._engine.copy_of(claim.trial_id), attempt, path))

    def _settle(self) -> None:
        """Retire trials of which it has been decided meanwhile that they end here."""
        for trial_id in list(self._claims):
            self._goes_on(trial_id, wait=False)

    def _is_settled(self, trial_id: int) -> bool:
        """Wait until all that a trial reported is stored and judged; whether it goes on."""
        return trial_id not in self._unsettled or self._goes_on(trial_id, wait=True)

    def _goes_on(self, trial_id: int, *, wait: bool) -> bool:
        verdict = self._source.verdict(self._claims[trial_id], wait=wait)
        if verdict is None:
            return True
        self._unsettled.discard(trial_id)
        if verdict is Verdict.CONTINUE:
            return True
        self._retire(trial_id)
        return False

    def _retire(self, trial_id: int) -> None:
        self._engine.retire(trial_id)
        self._source.part(self._claims[trial_id])
        self._forget(trial_id)

    def _forget(self, trial_id: int) -> None:
        claim = self._claims.pop(trial_id)
        self._saver.end(claim)
        self._unforeseen += self._epochs.pop(trial_id, 0) < claim.leaves_after
        self._unsettled.discard(trial_id)
