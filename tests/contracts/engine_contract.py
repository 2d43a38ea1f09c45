"""What every `Engine` keeps: inherit `EngineContract` and give it a `make_engine` fixture.

    class TestPlainEngine(EngineContract):
        @pytest.fixture
        def make_engine(self) -> MakeEngine:
            return PlainEngine

An engine is driven here as a worker drives it: admit while slots are free, advance, retire what has ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from objectives.base import (
    Choice,
    DataSpec,
    Engine,
    EpochEnd,
    EpochReport,
    SlotError,
    Task,
    TrialConfig,
    TrialFailure,
    TrialStart,
)
from objectives.metrics import METRICS, worst_metrics

MakeEngine: TypeAlias = Callable[[Task], Engine]

TASK = Task(data=DataSpec(name="digits", limit=200))

SMALL = Choice("cnn", {"depth": 2, "width": 4, "dense": 8, "dropout": 0.3, "batch_norm": True})

GOOD = TrialConfig(
    optimizer=Choice("adam"),
    learning_rate=0.01,
    batch_size=48,  # 160 training images: the last batch is a partial one
    schedule=Choice("cosine"),
    epochs=3,
    augment={"translation": 0.2},
    model=SMALL,
    strength=1e-3,
    values={"behaviour": "learns"},  # for engines that call a function; networks have no use for it
)

DIVERGING = dataclasses.replace(
    GOOD, optimizer=Choice("sgd"), learning_rate=1e30, values={"behaviour": "diverges"}
)

FAILING = dataclasses.replace(GOOD, model=Choice("nowhere:model"), values={"behaviour": "fails"})


def trial(
    number: int, config: TrialConfig = GOOD, *, seed: int | None = None, split_seed: int = 5
) -> TrialStart:
    return TrialStart(
        trial_id=number, config=config, seed=number if seed is None else seed, split_seed=split_seed
    )


def what_counts(report: EpochReport) -> EpochReport:
    """A report without the time it took, which no engine can promise."""
    return dataclasses.replace(report, seconds=0.0, images_per_second=0.0)


def run(engine: Engine, starts: Sequence[TrialStart]) -> dict[int, list[EpochReport | TrialFailure]]:
    """Everything each trial said, times left out, in an engine that is empty before and after."""
    waiting = list(starts)
    said: dict[int, list[EpochReport | TrialFailure]] = {start.trial_id: [] for start in starts}
    taken = 0
    while waiting or taken:
        while waiting and engine.free_slots:
            engine.admit(waiting.pop(0))
            taken += 1
        for event in engine.advance():
            if isinstance(event, TrialFailure):
                said[event.trial_id].append(event)
                taken -= 1
                continue
            said[event.trial_id].append(what_counts(event.report))
            if event.last:
                engine.retire(event.trial_id)
                taken -= 1
    return said


def advance_to_end_of(engine: Engine, trial_id: int) -> EpochEnd:
    """Advance until that trial is at the end of an epoch."""
    while True:
        for event in engine.advance():
            if event.trial_id == trial_id:
                assert isinstance(event, EpochEnd)
                return event


class EngineContract:
    """The suite; every test gets engines of its own."""

    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        raise NotImplementedError

    @pytest.fixture
    def engine(self, make_engine: MakeEngine) -> Engine:
        return make_engine(TASK)

    @pytest.fixture
    def alone(self, make_engine: MakeEngine) -> list[EpochReport | TrialFailure]:
        """The curve of trial 1 in an engine that trains nothing else."""
        return run(make_engine(TASK), [trial(1)])[1]

    # Slots

    def test_admits_until_full_and_then_refuses(self, engine: Engine) -> None:
        slots = engine.free_slots
        assert slots >= 1
        for number in range(slots):
            engine.admit(trial(number))
        assert engine.free_slots == 0
        with pytest.raises(SlotError):
            engine.admit(trial(slots))

    def test_refuses_a_trial_that_it_holds(self, engine: Engine) -> None:
        engine.admit(trial(1))
        with pytest.raises(SlotError):
            engine.admit(trial(1))

    def test_retiring_frees_the_slot(self, engine: Engine) -> None:
        slots = engine.free_slots
        engine.admit(trial(1))
        assert engine.free_slots == slots - 1
        engine.retire(1)
        assert engine.free_slots == slots

    def test_knows_only_trials_that_it_holds(self, engine: Engine, tmp_path: Path) -> None:
        engine.admit(trial(1))
        with pytest.raises(SlotError):
            engine.retire(2)
        with pytest.raises(SlotError):
            engine.save(2, tmp_path / "checkpoint")
        engine.retire(1)
        with pytest.raises(SlotError):
            engine.retire(1)

    def test_an_empty_engine_has_nothing_to_advance(self, engine: Engine) -> None:
        assert not engine.advance()

    # Reports

    def test_reports_every_epoch_and_says_which_is_the_last(self, engine: Engine) -> None:
        engine.admit(trial(1))
        ends = [advance_to_end_of(engine, 1) for _ in range(GOOD.epochs)]
        assert [end.report.epoch for end in ends] == [1, 2, 3]
        assert [end.last for end in ends] == [False, False, True]

    def test_an_ended_trial_keeps_its_slot_but_trains_no_more(self, engine: Engine) -> None:
        slots = engine.free_slots
        engine.admit(trial(1))
        while not advance_to_end_of(engine, 1).last:
            pass
        assert engine.free_slots == slots - 1
        assert not engine.advance()
        engine.retire(1)
        assert engine.free_slots == slots

    def test_reports_are_complete_and_finite(self, engine: Engine) -> None:
        engine.admit(trial(1))
        report = advance_to_end_of(engine, 1).report
        assert set(report.metrics) == set(METRICS)
        assert not report.diverged
        numbers = [
            report.train_loss,
            report.validation_loss,
            report.gradient_norm,
            report.learning_rate,
            report.seconds,
            report.images_per_second,
            *report.metrics.values(),
        ]
        assert all(number is not None and math.isfinite(number) for number in numbers)
        assert report.seconds > 0
        assert report.images_per_second > 0

    def test_training_learns(self, alone: list[EpochReport | TrialFailure]) -> None:
        first, *_, last = alone
        assert isinstance(first, EpochReport)
        assert isinstance(last, EpochReport)
        assert last.metrics["log_loss"] < first.metrics["log_loss"]

    # One trial's curve is its own

    def test_the_same_start_gives_the_same_reports(
        self, make_engine: MakeEngine, alone: list[EpochReport | TrialFailure]
    ) -> None:
        assert run(make_engine(TASK), [trial(1)])[1] == alone

    def test_earlier_trials_leave_no_trace(
        self, engine: Engine, alone: list[EpochReport | TrialFailure]
    ) -> None:
        run(engine, [trial(2), trial(3, DIVERGING), trial(4, FAILING)])
        assert run(engine, [trial(1)])[1] == alone

    def test_neighbours_leave_no_trace(self, engine: Engine, alone: list[EpochReport | TrialFailure]) -> None:
        others = [trial(number, dataclasses.replace(GOOD, batch_size=16 * number)) for number in (2, 3, 4)]
        starts = [others[0], trial(5, DIVERGING), trial(1), trial(6, FAILING), *others[1:]]
        assert run(engine, starts)[1] == alone

    def test_another_engine_and_other_work_leave_no_trace(
        self, make_engine: MakeEngine, alone: list[EpochReport | TrialFailure]
    ) -> None:
        one, other = make_engine(TASK), make_engine(TASK)
        one.admit(trial(1))
        other.admit(trial(2))
        reports = []
        for _ in range(GOOD.epochs):
            torch.manual_seed(99)
            torch.nn.Dropout(0.5)(torch.rand(64, 64) @ torch.rand(64, 64))
            advance_to_end_of(other, 2)
            reports.append(what_counts(advance_to_end_of(one, 1).report))
        assert reports == alone

    def test_training_leaves_the_processes_random_numbers_alone(self, engine: Engine) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        run(engine, [trial(1)])
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize("change", [{"seed": 7}, {"split_seed": 6}])
    def test_seeds_matter(
        self, engine: Engine, alone: list[EpochReport | TrialFailure], change: dict[str, int]
    ) -> None:
        assert run(engine, [trial(1, **{"seed": 1, **change})])[1] != alone

    # What goes wrong

    def test_a_failure_is_told_and_frees_its_slot(self, engine: Engine) -> None:
        slots = engine.free_slots
        engine.admit(trial(1, FAILING))
        (failure,) = engine.advance()
        assert isinstance(failure, TrialFailure)
        assert failure.trial_id == 1
        assert "nowhere" in failure.reason
        assert "TrialError" in failure.traceback
        assert not failure.retryable
        assert engine.free_slots == slots
        with pytest.raises(SlotError):
            engine.retire(1)

    def test_divergence_ends_a_trial_at_the_worst(self, engine: Engine) -> None:
        engine.admit(trial(1, DIVERGING))
        end = advance_to_end_of(engine, 1)
        assert end.last
        assert end.report.epoch == 1
        assert end.report.diverged
        assert end.report.metrics == worst_metrics()
        assert end.report.validation_loss is None
        for number in (end.report.train_loss, end.report.gradient_norm):
            assert number is None or math.isfinite(number)

    # Checkpoints

    def test_a_saved_trial_goes_on_as_if_it_had_not_stopped(
        self, make_engine: MakeEngine, alone: list[EpochReport | TrialFailure], tmp_path: Path
    ) -> None:
        first = make_engine(TASK)
        first.admit(trial(1))
        advance_to_end_of(first, 1)
        first.save(1, tmp_path / "checkpoint")
        resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "checkpoint")
        assert run(make_engine(TASK), [trial(2), resumed])[1] == alone[1:]

    def test_saving_changes_nothing(
        self, engine: Engine, alone: list[EpochReport | TrialFailure], tmp_path: Path
    ) -> None:
        engine.admit(trial(1))
        reports = []
        for _ in range(GOOD.epochs):
            reports.append(what_counts(advance_to_end_of(engine, 1).report))
            engine.save(1, tmp_path / "checkpoint")
        assert reports == alone
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

    def test_a_trial_saved_at_its_end_says_its_last_report_again(
        self, make_engine: MakeEngine, alone: list[EpochReport | TrialFailure], tmp_path: Path
    ) -> None:
        first = make_engine(TASK)
        first.admit(trial(1))
        while not advance_to_end_of(first, 1).last:
            pass
        first.save(1, tmp_path / "checkpoint")
        resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "checkpoint")
        assert run(make_engine(TASK), [resumed])[1] == alone[-1:]

    @pytest.mark.parametrize("what", ["absent", "garbage", "cut", "another seed", "another config"])
    def test_a_checkpoint_of_no_use_starts_the_trial_anew(
        self,
        make_engine: MakeEngine,
        alone: list[EpochReport | TrialFailure],
        tmp_path: Path,
        what: str,
    ) -> None:
        path = tmp_path / "checkpoint"
        other = trial(1, dataclasses.replace(GOOD, strength=0.5)) if what == "another config" else trial(2)
        saved = trial(1) if what == "cut" else other
        if what == "garbage":
            path.write_bytes(b"not a checkpoint")
        elif what != "absent":
            engine = make_engine(TASK)
            engine.admit(saved)
            advance_to_end_of(engine, saved.trial_id)
            engine.save(saved.trial_id, path)
        if what == "cut":
            path.write_bytes(path.read_bytes()[:-200])
        assert run(make_engine(TASK), [dataclasses.replace(trial(1), checkpoint=path)])[1] == alone

    def test_nothing_can_be_saved_before_the_first_epoch_ends(self, engine: Engine, tmp_path: Path) -> None:
        engine.admit(trial(1))
        with pytest.raises(SlotError):
            engine.save(1, tmp_path / "checkpoint")
        assert list(tmp_path.iterdir()) == []
