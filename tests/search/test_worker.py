"""The worker's loop, with a source and an engine in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from objectives.base import Choice, DataSpec, EpochReport, Task, TrialConfig, TrialFailure, TrialStart
from search.broker import Claim, Verdict
from search.study import Asked
from search.worker import LONGEST_WAIT, Worker
from tests.contracts.fake_engine import FakeEngine, FourSlotEngine

TASK = Task(data=DataSpec(name="digits"))


@dataclass
class Source:
    """Trials 0 … `trials` − 1; `verdicts` overrides what is said at (trial, epoch)."""

    trials: int
    folder: Path
    losses: dict[int, str] = field(default_factory=dict)
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)
    empty_asks: int = 0
    said: list[tuple[str, int, int]] = field(default_factory=list)
    given: int = 0

    @property
    def exhausted(self) -> bool:
        return self.given == self.trials

    def claim(self) -> Claim | None:
        if self.empty_asks:
            self.empty_asks -= 1
            return None
        if self.exhausted:
            return None
        number = self.given
        self.given += 1
        return self.claim_of(number)

    def claim_of(self, number: int) -> Claim:
        config = TrialConfig(epochs=3, loss=Choice(self.losses.get(number, "cross_entropy")))
        path = self.checkpoint_path("study", number)
        start = TrialStart(
            trial_id=number,
            config=config,
            seed=number,
            split_seed=0,
            checkpoint=path if path.exists() else None,
        )
        return Claim("study", Asked(number, number, {}), 1, start)

    def end_epoch(self, claim: Claim, report: EpochReport, *, last: bool) -> Verdict:
        self.said.append(("epoch", claim.asked.number, report.epoch))
        usual = Verdict.FINISH if last or report.diverged else Verdict.CONTINUE
        return self.verdicts.get((claim.asked.number, report.epoch), usual)

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        self.said.append(("fail", claim.asked.number, 0))

    def release(self, claim: Claim) -> None:
        self.said.append(("release", claim.asked.number, 0))

    def checkpoint_path(self, study_name: str, number: int) -> Path:
        return self.folder / f"{number}.pt"

    def of(self, number: int) -> list[tuple[str, int]]:
        return [(what, epoch) for what, who, epoch in self.said if who == number]


ALL = [("epoch", 1), ("epoch", 2), ("epoch", 3)]


def _worker(
    source: Source, engine: FakeEngine, stops: Sequence[bool] = (), waits: list[float] | None = None
) -> Worker:
    asked = iter(stops)
    return Worker(
        source,
        engine,
        should_stop=lambda: next(asked, False),
        wait=(waits if waits is not None else []).append,
    )


@pytest.mark.parametrize("engine", [FakeEngine, FourSlotEngine])
def test_runs_everything_once(engine: type[FakeEngine], tmp_path: Path) -> None:
    source = Source(6, tmp_path)
    made = engine(TASK)
    assert _worker(source, made).run() == "exhausted"
    assert [source.of(number) for number in range(6)] == [ALL] * 6
    assert made.free_slots == made.slots


def test_slots_are_refilled_as_trials_end(tmp_path: Path) -> None:
    source = Source(6, tmp_path, verdicts={(0, 1): Verdict.PRUNE})
    _worker(source, FourSlotEngine(TASK)).run()
    assert source.of(0) == [("epoch", 1)]
    # The slot that became free is taken before the others' second epoch.
    assert source.said.index(("epoch", 4, 1)) < source.said.index(("epoch", 1, 3))
    assert source.of(4) == ALL


def test_taken_trials_leave_their_slot(tmp_path: Path) -> None:
    source = Source(2, tmp_path, verdicts={(0, 2): Verdict.TAKEN})
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == ALL[:2]
    assert source.of(1) == ALL


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


def test_stop_ends_the_epoch_and_saves(tmp_path: Path) -> None:
    source = Source(6, tmp_path)
    # Looked at before the first epoch, then at the first trial's first epoch end.
    assert _worker(source, FourSlotEngine(TASK), stops=[False, True]).run() == "stopped"
    assert source.given == 4, "nothing is claimed after a stop"
    for number in range(4):
        assert source.of(number) == [("epoch", 1), ("release", 0)]
        assert (tmp_path / f"{number}.pt").exists()


def test_stopped_trials_go_on_where_they_were(tmp_path: Path) -> None:
    source = Source(1, tmp_path)
    _worker(source, FakeEngine(TASK), stops=[False, False, False, True]).run()
    assert source.of(0) == [*ALL[:2], ("release", 0)]
    source.given = 0
    _worker(source, FakeEngine(TASK)).run()
    assert source.of(0) == [*ALL[:2], ("release", 0), ALL[2]]


def test_a_trial_at_its_end_is_not_released(tmp_path: Path) -> None:
    source = Source(1, tmp_path)
    stops = [False, False, False, False, False, True]
    assert _worker(source, FakeEngine(TASK), stops=stops).run() == "stopped"
    assert source.of(0) == ALL


def test_stop_before_anything(tmp_path: Path) -> None:
    source = Source(1, tmp_path)
    assert _worker(source, FakeEngine(TASK), stops=[True]).run() == "stopped"
    assert source.given == 0


def test_waits_longer_and_longer_while_there_is_nothing(tmp_path: Path) -> None:
    waits: list[float] = []
    source = Source(1, tmp_path, empty_asks=8)
    assert _worker(source, FakeEngine(TASK), waits=waits).run() == "exhausted"
    assert len(waits) == 8
    assert waits == sorted(waits)
    assert waits[0] < 0.05
    assert waits[-1] == LONGEST_WAIT
    assert source.of(0) == ALL


def test_what_the_source_raises_ends_the_worker(tmp_path: Path) -> None:
    source = Source(1, tmp_path)

    def broken(claim: Claim, report: EpochReport, *, last: bool) -> Verdict:
        raise ConnectionError("the database is away")

    source.end_epoch = broken  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        _worker(source, FakeEngine(TASK)).run()
