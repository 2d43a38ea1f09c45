"""The worker's loop, with a source and an engine in memory; nothing here waits for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from search.trials.claims import Claim, Verdict
from tests.contracts.fake_engine import FakeEngine, FourSlotEngine
from tests.search.work.worker_source import ALL, ENDED, TASK, Source, worker_of


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("engine", [FakeEngine, FourSlotEngine])
def test_runs_everything_once(engine: type[FakeEngine], late: bool, tmp_path: Path) -> None:
    source = Source(6, tmp_path, late=late)
    made = engine(TASK)
    assert worker_of(source, made).run() == "exhausted"
    assert [source.of(number) for number in range(6)] == [ALL] * 6
    assert made.free_slots == made.slots


def test_slots_are_refilled_as_trials_end(tmp_path: Path) -> None:
    source = Source(6, tmp_path, verdicts={(0, 1): Verdict.PRUNE})
    worker_of(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1), ENDED]
    # The slot that became free is taken before the others' second epoch.
    assert source.said.index(("epoch", 4, 1)) < source.said.index(("epoch", 1, 3))
    assert source.of(4) == ALL


def test_with_one_slot_the_verdict_comes_before_the_next_epoch(tmp_path: Path) -> None:
    source = Source(1, tmp_path, verdicts={(0, 1): Verdict.PRUNE}, late=True)
    worker_of(source, FakeEngine(TASK)).run()
    assert source.said == [("epoch", 0, 1), ("waited", 0, 0), ("parts", 0, 0)]
    assert source.trained == 1


def test_with_many_slots_a_late_prune_costs_one_epoch_of_one_slot(tmp_path: Path) -> None:
    source = Source(4, tmp_path, verdicts={(0, 1): Verdict.PRUNE}, late=True)
    worker_of(source, FourSlotEngine(TASK)).run()
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
    worker_of(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1), ENDED]
    assert source.said.count(("waited", 0, 0)) == 1
    assert source.of(1) == ALL


def test_trials_are_asked_ahead_while_others_train_their_last_epoch(tmp_path: Path) -> None:
    source = Source(2, tmp_path)
    worker_of(source, FakeEngine(TASK)).run()
    # Before the first trial, and before each of its epochs; the last is foreseen, the others are not.
    assert source.asked_ahead[:4] == [0, 0, 1, 0]


def test_as_many_are_asked_ahead_as_lately_left_at_once(tmp_path: Path) -> None:
    source = Source(7, tmp_path, verdicts=dict.fromkeys([(0, 1), (1, 1), (2, 1)], Verdict.PRUNE))
    worker_of(source, FourSlotEngine(TASK)).run()
    # Four begin, and three leave after their first epoch. Of those that come, the fourth is before its last
    # epoch first, then the three that took the places; what was foreseen does not count.
    assert source.asked_ahead[:5] == [1, 3, 4, 4, 3]


def test_taken_trials_leave_their_slot(tmp_path: Path) -> None:
    source = Source(2, tmp_path, verdicts={(0, 2): Verdict.TAKEN})
    worker_of(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ENDED]
    assert source.of(1) == ALL


def test_a_lease_that_is_lost_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """The trial may come back to the same worker at once, as another attempt."""
    source = Source(4, tmp_path, lost_at={2: 1}, late=True)
    made = FourSlotEngine(TASK)
    assert worker_of(source, made).run() == "exhausted"
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
    assert worker_of(source, made).run() == "exhausted"
    assert source.of(1) == [*ALL[:2], ENDED, *ALL], "the old attempt leaves its slot to the new one"
    assert made.free_slots == 4


def test_a_failure_touches_nobody_else(tmp_path: Path) -> None:
    source = Source(5, tmp_path, losses={1: "raises"})
    assert worker_of(source, FourSlotEngine(TASK)).run() == "exhausted"
    assert source.of(1) == [("epoch", 1), ("fail", 0)]
    assert all(source.of(number) == ALL for number in (0, 2, 3, 4))


def test_diverged_trials_end(tmp_path: Path) -> None:
    source = Source(2, tmp_path, losses={0: "diverges"})
    worker_of(source, FakeEngine(TASK)).run()
    assert source.of(0) == ALL[:2]
    assert source.of(1) == ALL


def test_waits_while_there_is_nothing(tmp_path: Path) -> None:
    source = Source(1, tmp_path)
    take, empty = source.take, iter([True, True, False])
    source.take = lambda free, ahead: [] if next(empty, False) else take(free, ahead)  # type: ignore[method-assign]
    assert worker_of(source, FakeEngine(TASK)).run() == "exhausted"
    assert source.waits == 2
    assert source.of(0) == ALL


def test_leaves_when_it_has_waited_for_long(tmp_path: Path) -> None:
    """Not while it has something to train, however long that takes."""
    source = Source(2, tmp_path, idle_after=3)
    take = source.take
    source.take = lambda free, ahead: take(free, ahead) if source.given < 1 else []  # type: ignore[method-assign]
    assert worker_of(source, FakeEngine(TASK)).run() == "idle"
    assert (source.waits, source.of(0)) == (3, ALL)


def test_what_the_source_raises_ends_the_worker(tmp_path: Path) -> None:
    source = Source(1, tmp_path)

    def broken(claim: Claim, *, wait: bool) -> Verdict | None:
        raise ConnectionError("the database is away")

    source.verdict = broken  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        worker_of(source, FakeEngine(TASK)).run()
