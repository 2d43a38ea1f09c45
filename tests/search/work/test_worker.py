"""The worker's loop, with a source and an engine in memory; nothing here waits for anybody."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from objectives.base import DataSpec, EpochReport, Task, TestScore, TrialFailure
from search.trials.claims import Claim, Verdict
from search.work.saving import Saver
from search.work.worker import Worker
from tests.contracts.claims import claim_of
from tests.contracts.fake_engine import FakeEngine, FourSlotEngine

TASK = Task(data=DataSpec(name="digits"))
NEVER = 1e9
"""Seconds between two checkpoints of a trial, where a test wants none but those of a stop."""


@dataclass
class Source:
    """Trials 0 … `trials` − 1; `verdicts` overrides what is said at (trial, epoch), `late` when it is heard.

    `ready`: trials that are ready at once, the others come when one waits for them; None: all.
    """

    trials: int
    folder: Path
    losses: dict[int, str] = field(default_factory=dict)
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)
    late: bool = False
    stop_after: int | None = None
    """Reports after which one is asked to stop."""
    stopping: bool = False
    idle_after: int | None = None
    """Times that one waits in vain before one is idle."""
    lost_at: dict[int, int] = field(default_factory=dict)
    """Calls of `training` → the trial whose lease is lost meanwhile."""
    said: list[tuple[str, int, int]] = field(default_factory=list)
    asked_ahead: list[int] = field(default_factory=list)
    waits: int = 0
    trained: int = 0
    given: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    _open: dict[int, Verdict] = field(default_factory=dict)
    _heard: dict[int, Verdict] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        return self.given == self.trials and not self.again

    @property
    def idle(self) -> bool:
        return self.idle_after is not None and self.waits >= self.idle_after

    def take(self, free: int, ahead: int) -> list[Claim]:
        self.asked_ahead.append(ahead)
        numbers = []
        while len(numbers) < free and not self.exhausted:
            if self.again:
                numbers.append(self.again.popleft())
            else:
                numbers.append(self.given)
                self.given += 1
        return [self.claim(number) for number in numbers]

    def claim(self, number: int) -> Claim:
        attempt = self.attempts[number] = self.attempts.get(number, 0) + 1
        loss = self.losses.get(number, "cross_entropy")
        return claim_of(number, self.folder, loss=loss, token=number + 100 * attempt, attempt=attempt)

    def wait(self) -> None:
        self.waits += 1
        assert self.waits < 100

    @contextmanager
    def training(self) -> Iterator[None]:
        self.trained += 1
        yield
        # Between two epochs what was decided meanwhile is heard.
        self._heard |= self._open
        self._open.clear()
        if self.trained in self.lost_at:
            number = self.lost_at[self.trained]
            self._heard[number + 100 * self.attempts[number]] = Verdict.TAKEN
            self.again.append(number)

    def end_epoch(
        self,
        claim: Claim,
        report: EpochReport,
        *,
        last: bool,
        leaving: bool = False,
        test: TestScore | None = None,
    ) -> None:
        number = claim.lease.number
        self.said.append(("epoch", number, report.epoch))
        if leaving:
            self.said.append(("leaves", number, report.epoch))
        if not (last or leaving or report.diverged):
            verdict = self.verdicts.get((number, report.epoch), Verdict.CONTINUE)
            (self._open if self.late else self._heard)[claim.lease.token] = verdict
        self.stopping = self.stopping or len(self.said) == self.stop_after

    def verdict(self, claim: Claim, *, wait: bool) -> Verdict | None:
        found = self._heard.pop(claim.lease.token, None)
        if found is None and wait:
            self.said.append(("waited", claim.lease.number, 0))
            found = self._open.pop(claim.lease.token)
        return found

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        self.said.append(("fail", claim.lease.number, 0))

    def part(self, claim: Claim) -> None:
        self.said.append(("parts", claim.lease.number, 0))

    def of(self, number: int) -> list[tuple[str, int]]:
        return [(what, epoch) for what, who, epoch in self.said if who == number and what != "waited"]


ALL = [("epoch", 1), ("epoch", 2), ("epoch", 3)]
ENDED = ("parts", 0)


def _worker(source: Source, engine: FakeEngine, saver: Saver | None = None) -> Worker:
    return Worker(source, engine, saver or Saver(NEVER))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("engine", [FakeEngine, FourSlotEngine])
def test_runs_everything_once(engine: type[FakeEngine], late: bool, tmp_path: Path) -> None:
    source = Source(6, tmp_path, late=late)
    made = engine(TASK)
    assert _worker(source, made).run() == "exhausted"
    assert [source.of(number) for number in range(6)] == [ALL] * 6
    assert made.free_slots == made.slots


def test_slots_are_refilled_as_trials_end(tmp_path: Path) -> None:
    source = Source(6, tmp_path, verdicts={(0, 1): Verdict.PRUNE})
    _worker(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1), ENDED]
    # The slot that became free is taken before the others' second epoch.
    assert source.said.index(("epoch", 4, 1)) < source.said.index(("epoch", 1, 3))
    assert source.of(4) == ALL


def test_with_one_slot_the_verdict_comes_before_the_next_epoch(tmp_path: Path) -> None:
    source = Source(1, tmp_path, verdicts={(0, 1): Verdict.PRUNE}, late=True)
    _worker(source, FakeEngine(TASK)).run()
    assert source.said == [("epoch", 0, 1), ("waited", 0, 0), ("parts", 0, 0)]
    assert source.trained == 1


def test_with_many_slots_a_late_prune_costs_one_epoch_of_one_slot(tmp_path: Path) -> None:
    source = Source(4, tmp_path, verdicts={(0, 1): Verdict.PRUNE}, late=True)
    _worker(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1), ENDED], "what it trained beyond its verdict is never told"
    assert all(source.of(number) == ALL for number in (1, 2, 3))
    assert source.trained == 3, "nobody waited"


def test_a_second_report_waits_for_the_first_verdict(tmp_path: Path) -> None:
    """Else a trial could be two epochs ahead of its verdict."""
    source = Source(2, tmp_path, verdicts={(0, 1): Verdict.PRUNE}, late=True)

    @contextmanager
    def nobody_hears() -> Iterator[None]:
        yield

    source.training = nobody_hears  # type: ignore[method-assign]
    _worker(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1), ENDED]
    assert source.said.count(("waited", 0, 0)) == 1
    assert source.of(1) == ALL


@pytest.mark.parametrize(("seconds", "waits"), [(NEVER, 0), (0.0, 2)])
def test_where_nothing_is_pruned_only_a_checkpoint_waits_for_what_was_reported(
    tmp_path: Path, seconds: float, waits: int
) -> None:
    source = Source(1, tmp_path, late=True)

    @contextmanager
    def nobody_hears() -> Iterator[None]:
        yield

    source.training = nobody_hears  # type: ignore[method-assign]
    Worker(source, FakeEngine(TASK), Saver(seconds), judged=False).run()
    assert source.of(0) == ALL
    # The first epoch and the second are saved once they are stored; the last never is.
    assert source.said.count(("waited", 0, 0)) == waits


def test_what_is_saved_is_stored(tmp_path: Path) -> None:
    """A file of an epoch that isn't would be of no use, and the one before may be an interval older."""
    source = Source(1, tmp_path, late=True)
    said: list[tuple[tuple[str, int, int], int]] = []

    class Watched(FakeEngine):
        def save(self, trial_id: int, path: Path) -> None:
            said.append((source.said[-1], self._held[trial_id][1]))
            super().save(trial_id, path)

    Worker(source, Watched(TASK), Saver(0.0), judged=False).run()
    assert said == [(("waited", 0, 0), 1), (("waited", 0, 0), 2)]
    assert [epoch for what, _, epoch in source.said if what == "epoch"] == [1, 2, 3]


def test_a_trial_that_was_taken_meanwhile_is_not_saved(tmp_path: Path) -> None:
    source = Source(1, tmp_path, late=True, verdicts={(0, 2): Verdict.TAKEN})
    _worker(source, FakeEngine(TASK), Saver(0.0)).run()
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == ["1-1.pt"]


def test_trials_are_asked_ahead_while_others_train_their_last_epoch(tmp_path: Path) -> None:
    source = Source(2, tmp_path)
    _worker(source, FakeEngine(TASK)).run()
    # Before the first trial, and before each of its epochs; the last is foreseen, the others are not.
    assert source.asked_ahead[:4] == [0, 0, 1, 0]


def test_as_many_are_asked_ahead_as_lately_left_at_once(tmp_path: Path) -> None:
    source = Source(7, tmp_path, verdicts=dict.fromkeys([(0, 1), (1, 1), (2, 1)], Verdict.PRUNE))
    _worker(source, FourSlotEngine(TASK)).run()
    # Four begin, and three leave after their first epoch. Of those that come, the fourth is before its last
    # epoch first, then the three that took the places; what was foreseen does not count.
    assert source.asked_ahead[:5] == [1, 3, 4, 4, 3]


def test_taken_trials_leave_their_slot(tmp_path: Path) -> None:
    source = Source(2, tmp_path, verdicts={(0, 2): Verdict.TAKEN})
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ENDED]
    assert source.of(1) == ALL


def test_a_lease_that_is_lost_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The trial may come back to the same worker at once, as another attempt."""
    source = Source(4, tmp_path, lost_at={2: 1}, late=True)
    made = FourSlotEngine(TASK)
    assert _worker(source, made).run() == "exhausted"
    assert source.of(1) == [("epoch", 1), ENDED, *ALL]
    assert source.attempts[1] == 2
    assert all(source.of(number) == ALL for number in (0, 2, 3))
    assert made.free_slots == 4


def test_a_trial_that_comes_back_before_its_loss_was_heard_of(tmp_path: Path) -> None:
    source = Source(3, tmp_path, late=True)

    @contextmanager
    def training() -> Iterator[None]:
        source.trained += 1
        yield
        if source.trained == 2:
            source.again.append(1)

    source.training = training  # type: ignore[method-assign]
    made = FourSlotEngine(TASK)
    assert _worker(source, made).run() == "exhausted"
    assert source.of(1) == [*ALL[:2], ENDED, *ALL], "the old attempt leaves its slot to the new one"
    assert made.free_slots == 4


def test_a_failure_touches_nobody_else(tmp_path: Path) -> None:
    source = Source(5, tmp_path, losses={1: "raises"})
    assert _worker(source, FourSlotEngine(TASK)).run() == "exhausted"
    assert source.of(1) == [("epoch", 1), ("fail", 0)]
    assert all(source.of(number) == ALL for number in (0, 2, 3, 4))


def test_diverged_trials_end(tmp_path: Path) -> None:
    source = Source(2, tmp_path, losses={0: "diverges"})
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == ALL[:2]
    assert source.of(1) == ALL


def _saved(folder: Path, number: int) -> list[str]:
    return sorted(path.name for path in (folder / str(number)).glob("*.pt"))


def test_stop_ends_the_epochs_and_saves(tmp_path: Path) -> None:
    source = Source(6, tmp_path, stop_after=1, late=True)
    assert _worker(source, FourSlotEngine(TASK)).run() == "stopped"
    assert source.given == 4, "nothing is claimed after a stop"
    assert source.of(0) == [("epoch", 1), ("epoch", 2), ("leaves", 2)]
    for number in (1, 2, 3):
        assert source.of(number) == [("epoch", 1), ("leaves", 1)]
        assert _saved(tmp_path, number) == ["1-1.pt"]


def test_stopped_trials_go_on_where_they_were(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stop_after=1)
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ("leaves", 2)]
    source.given, source.stopping = 0, False
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ("leaves", 2), ALL[2]]


def test_a_trial_at_its_end_does_not_leave(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stop_after=2)
    assert _worker(source, FakeEngine(TASK)).run() == "stopped"
    assert source.of(0) == ALL
    assert _saved(tmp_path, 0) == []


def test_stop_before_anything(tmp_path: Path) -> None:
    source = Source(1, tmp_path, stopping=True)
    assert _worker(source, FakeEngine(TASK)).run() == "stopped"
    assert source.given == 0


def test_waits_while_there_is_nothing(tmp_path: Path) -> None:
    source = Source(1, tmp_path)
    take, empty = source.take, iter([True, True, False])
    source.take = lambda free, ahead: [] if next(empty, False) else take(free, ahead)  # type: ignore[method-assign]
    assert _worker(source, FakeEngine(TASK)).run() == "exhausted"
    assert source.waits == 2
    assert source.of(0) == ALL


def test_leaves_when_it_has_waited_for_long(tmp_path: Path) -> None:
    """Not while it has something to train, however long that takes."""
    source = Source(2, tmp_path, idle_after=3)
    take = source.take
    source.take = lambda free, ahead: take(free, ahead) if source.given < 1 else []  # type: ignore[method-assign]
    assert _worker(source, FakeEngine(TASK)).run() == "idle"
    assert (source.waits, source.of(0)) == (3, ALL)


def test_what_the_source_raises_ends_the_worker(tmp_path: Path) -> None:
    source = Source(1, tmp_path)

    def broken(claim: Claim, *, wait: bool) -> Verdict | None:
        raise ConnectionError("the database is away")

    source.verdict = broken  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        _worker(source, FakeEngine(TASK)).run()


class TestCheckpoints:
    def _clock(self, moments: Sequence[float]) -> Saver:
        times = iter(moments)
        return Saver(30.0, lambda: next(times))

    def test_a_trial_is_saved_at_an_epochs_end_once_the_interval_has_passed(self, tmp_path: Path) -> None:
        source = Source(1, tmp_path)
        saved: list[int] = []

        class Watched(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                saved.append(self._held[trial_id][1])
                super().save(trial_id, path)

        # Begun at 0; the first epoch ends at 29, the second at 30 and is saved by 31.
        _worker(source, Watched(TASK), self._clock([0.0, 29.0, 30.0, 31.0])).run()
        assert saved == [2]

    @pytest.mark.parametrize("stop", [False, True])
    def test_a_full_disk_is_told_once_and_costs_no_trial(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: bool
    ) -> None:
        class Full(FourSlotEngine):
            def save(self, trial_id: int, path: Path) -> None:
                raise OSError(28, "No space left on device")

        source = Source(4, tmp_path, stop_after=6 if stop else None)
        with caplog.at_level(logging.WARNING):
            ending = _worker(source, Full(TASK), Saver(0.0)).run()
        assert ending == ("stopped" if stop else "exhausted")
        assert [record.message for record in caplog.records if "No space left" in record.message] != []
        assert len(caplog.records) == 1
        if not stop:
            assert [source.of(number) for number in range(4)] == [ALL] * 4

    def test_a_disk_that_is_full_again_is_told_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class FullAtTimes(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                if trial_id != 1:
                    raise OSError(28, "No space left on device")
                super().save(trial_id, path)

        with caplog.at_level(logging.WARNING):
            _worker(Source(3, tmp_path), FullAtTimes(TASK), Saver(0.0)).run()
        assert len(caplog.records) == 2, "of the trials 0 and 2, each once"

    def test_the_older_file_stays_where_a_new_one_cannot_be_written(self, tmp_path: Path) -> None:
        class FullLater(FakeEngine):
            def save(self, trial_id: int, path: Path) -> None:
                if self._held[trial_id][1] > 1:
                    path.write_text("half a fi")
                    raise OSError(28, "No space left on device")
                super().save(trial_id, path)

        _worker(Source(1, tmp_path, stop_after=2), FullLater(TASK), Saver(0.0)).run()
        assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["1-1.json", "1-1.pt"]


@pytest.mark.parametrize("judged", [True, False])
def test_a_trial_that_pauses_is_saved_and_leaves_its_slot_to_the_next(tmp_path: Path, judged: bool) -> None:
    """The second goes through where it would pause: that is where its end is."""
    pauses_after = {0: 2, 1: 3}

    class Pausing(Source):
        def claim(self, number: int) -> Claim:
            return replace(super().claim(number), until=pauses_after[number])

    source = Pausing(2, tmp_path)
    Worker(source, FakeEngine(TASK), Saver(NEVER), judged=judged).run()
    assert source.of(0) == [("epoch", 1), ("epoch", 2), ("leaves", 2)]
    assert source.of(1) == ALL
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == ["2-1.pt"]
    assert source.asked_ahead[:3] == [0, 1, 0], "ahead of a pause as of a last epoch"
