"""What takes turns on the device: pools of trials that train together, and trials that train alone.

A lane keeps what it throws at a trial inside that trial: `run` never raises for one of them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from objectives import checkpoints
from objectives.base import EpochEnd, StateCopy, Task, TestScore, TrialFailure, TrialStart
from objectives.datasets import TestData, load_test
from objectives.fused.member import Member
from objectives.fused.memory import Sizes, fewer, fitting
from objectives.fused.moving import to_plain
from objectives.fused.pool import Pool
from objectives.fused.scoring import Failed
from objectives.models import build
from objectives.shortage import is_out_of_memory, let_go
from objectives.trainer import PlainEngine, failure_of, test_score
from objectives.training import Training

TURN_SECONDS = 0.2
"""A pool gives others a turn after so long, if none of its trials comes to an epoch's end before."""


class BrokenError(Exception):
    """A pool can't go on; its trials are at the end of their last epochs and can go on elsewhere."""


class NoRoomError(Exception):
    """A pool that was to have fewer slots found no memory even for them; it is of no more use."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Lane(Protocol):
    """Trials that have a turn together."""

    seconds: float
    """Device seconds that it has had per trial; it starts with as many as the lane that has had least."""

    @property
    def active(self) -> int:
        """Trials that have something left to train."""

    def run(self) -> Sequence[EpochEnd | TrialFailure]:
        """Train for a turn. Trials that failed have left the lane. Raises `BrokenError`."""

    def retire(self, trial_id: int) -> None:
        """Let a trial of the lane go."""

    def save(self, trial_id: int, path: Path) -> None:
        """As `Engine.save`, of a trial of the lane."""

    def copy_of(self, trial_id: int) -> StateCopy:
        """As `CopyingEngine.copy_of`, of a trial of the lane."""


class PoolLane:
    """A `Lane` of trials that train together.

    Where memory is too short, its steps get smaller, then its slots fewer, and `remember` is told; trials
    without a slot wait for one at the end of their last epochs.
    """

    def __init__(
        self,
        make_pool: Callable[[Sizes], Pool],
        sizes: Sizes,
        task: Task,
        remember: Callable[[Sizes], None] = lambda _: None,
    ) -> None:
        self.pool, self.sizes = fitting(make_pool, sizes)
        self._asked = sizes
        self.seconds = 0.0
        self._task = task
        self._remember = remember
        self._line: list[Member] = []
        """Trials without a slot."""
        self._members: dict[int, Member] = {}
        self._test_data: TestData | None = None

    @property
    def active(self) -> int:
        return len(self.pool.active)

    @property
    def members(self) -> list[Member]:
        """All of its trials."""
        return list(self._members.values())

    @property
    def held_back(self) -> list[str]:
        """As `FusedEngine.held_back`, of this pool."""
        found = [
            f"{what} not recorded: {why}"
            for what, why in (
                ("steps are", self.pool.why_unrecorded),
                ("scores are", self.pool.why_scores_unrecorded),
            )
            if why
        ]
        if self.sizes != self._asked:
            found.append(f"too little memory: steps of {self.sizes.rows} rows, {self.sizes.slots} slots")
        return found

    def admit(self, member: Member) -> None:
        """Take a trial in; it gets the next slot that is free."""
        self._members[member.start.trial_id] = member
        self._line.append(member)
        self._seat()

    def retire(self, trial_id: int) -> None:
        member = self._members.pop(trial_id)
        if member in self._line:
            self._line.remove(member)
        else:
            self.pool.retire(member)
        self._seat()

    def _seat(self) -> None:
        while self._line and (free := self.pool.free):
            member = self._line.pop(0)
            member.slot = free[0]
            self.pool.admit(member)

    def run(self) -> Sequence[EpochEnd | TrialFailure]:
        with _clocked(self):
            until = time.perf_counter() + TURN_SECONDS
            going = self.active > 0
            while going and time.perf_counter() < until:
                try:
                    events = self._step()
                except Exception as error:  # noqa: BLE001 (a user's model may raise anything)
                    events = self._recover(error)
                    going = self.active > 0
                except BaseException:  # interrupted in the middle of things: if anybody goes on, from here
                    self.pool.rewind()
                    raise
                if events:
                    return events
        return ()

    def save(self, trial_id: int, path: Path) -> None:
        checkpoints.save(path, checkpoint_of(self._members[trial_id], self.pool, self._task))

    def copy_of(self, trial_id: int) -> StateCopy:
        return copy_of_member(self._members[trial_id], self._task)

    def _step(self) -> list[EpochEnd | TrialFailure]:
        found = self.pool.step()
        events: list[EpochEnd | TrialFailure] = [
            self._fail(item) for item in found if isinstance(item, Failed)
        ]
        due = [item for item in found if isinstance(item, Member)]
        for scored in self.pool.score(due) if due else ():
            if isinstance(scored, Failed):
                events.append(self._fail(scored))
                continue
            member = scored.member
            report = member.end(scored.scores, scored.seconds)
            self.pool.save(member)
            try:
                test = self.test_score(member)
            except Exception as error:  # noqa: BLE001 (data may be missing, a user's model may raise anything)
                events.append(self._fail(Failed(member, error)))
            else:
                events.append(EpochEnd(member.start.trial_id, report, member.ended, test))
        return events

    def test_score(self, member: Member) -> TestScore | None:
        """What a trial that has ended is worth on the test images, if it was started to be scored there.

        By the plain trainer's own scoring: what is said of the sealed images is said in one way.
        """
        if not (member.ended and member.report and member.start.score_test):
            return None
        self._test_data = self._test_data or load_test(self._task.data, self.pool.program.device)
        training = Training(
            member.config,
            member.start.seed,
            member.data,
            self._task.allow_imports,
            precision=self._task.precision,
        )
        training.restore(checkpoint_of(member, self.pool, self._task).state, member.epoch)
        return test_score(training, member.report, self._test_data)

    def _fail(self, failed: Failed) -> TrialFailure:
        trial_id = failed.member.start.trial_id
        self.retire(trial_id)
        return failure_of(trial_id, failed.error)

    def _recover(self, error: Exception) -> list[EpochEnd | TrialFailure]:
        """After a step that raised: with fewer rows where memory was short, else elsewhere."""
        short = is_out_of_memory(error)
        if short:
            let_go(error)
        self.pool.rewind()
        if not short:
            raise BrokenError from error
        smaller = fewer(self.sizes)
        if smaller is None:
            return [self._fail(Failed(member, error)) for member in self.members if not member.ended]
        if smaller.slots < self.sizes.slots:
            try:
                self._line = [*self.pool.resize(smaller.slots), *self._line]
            except Exception as again:
                raise NoRoomError(again) from again
            self._seat()
        self.pool.capacity = smaller.rows
        self.sizes = smaller
        self._remember(smaller)
        return []


class AloneLane:
    """A `Lane` of one trial, in the plain trainer. `reason` says why it is alone.

    `folder`: where the checkpoint lies that it starts from; of no more use after the first epoch.
    """

    def __init__(
        self,
        start: TrialStart,
        engine: PlainEngine,
        reason: str,
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.reason = reason
        self.seconds = 0.0
        self._engine = engine
        self._engine.admit(start)
        self._folder = folder
        self._ended = False

    @property
    def active(self) -> int:
        return 0 if self._ended else 1

    def run(self) -> Sequence[EpochEnd | TrialFailure]:
        with _clocked(self):
            events = self._engine.advance()
        self._tidy()
        self._ended = any(isinstance(event, TrialFailure) or event.last for event in events)
        return events

    def retire(self, trial_id: int) -> None:
        self._tidy()
        self._engine.retire(trial_id)

    def save(self, trial_id: int, path: Path) -> None:
        self._engine.save(trial_id, path)

    def copy_of(self, trial_id: int) -> StateCopy:
        return self._engine.copy_of(trial_id)

    def _tidy(self) -> None:
        if self._folder:
            self._folder.cleanup()
            self._folder = None


def checkpoint_of(member: Member, pool: Pool, task: Task) -> checkpoints.Checkpoint:
    """A member's state at the end of its last epoch, of which there must be one."""
    assert member.report is not None, "there is nothing to save before the first epoch's end"
    config, data = member.config, member.data
    model = build(config.model, data.input_shape, data.classes, 0, task.allow_imports)
    steps = member.epoch * member.feed.steps_per_epoch
    rate = member.report.learning_rate
    plain = to_plain(member.saved, pool.program.state.layout, config, model, steps=steps, learning_rate=rate)
    return checkpoints.Checkpoint(checkpoints.fingerprint(member.start, task.data), member.report, plain)


def copy_of_member(member: Member, task: Task) -> StateCopy:
    """What `checkpoint_of` says, in the form of its slot; on a CPU what the member remembers, not copied."""
    assert member.report is not None, "there is nothing to copy before the first epoch's end"
    row = member.saved.to(torch.device("cpu"))
    return StateCopy(checkpoints.fingerprint(member.start, task.data), member.report, row, row.size)


def alone_from(member: Member, pool: Pool, task: Task, engine: PlainEngine, reason: str) -> AloneLane:
    """A member of a pool, from the end of its last epoch on, in a lane of its own."""
    if member.report is None:
        return AloneLane(member.start, engine, reason)
    folder = tempfile.TemporaryDirectory(prefix="shoal-")
    path = Path(folder.name) / "checkpoint"
    checkpoints.save(path, checkpoint_of(member, pool, task))
    return AloneLane(replace(member.start, checkpoint=path), engine, reason, folder)


@contextmanager
def _clocked(lane: Lane) -> Iterator[None]:
    """Book the time of the block on a lane, shared among its trials."""
    trials = max(lane.active, 1)
    started = time.perf_counter()
    yield
    lane.seconds += (time.perf_counter() - started) / trials
