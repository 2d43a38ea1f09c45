"""The fused engine keeps the engine contract, refills its slots, and lets nobody's failure reach another."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from objectives.base import Choice, Engine, EpochEnd, EpochReport, TrialFailure
from objectives.fused import FusedEngine
from objectives.fused import engine as engine_module
from objectives.fused.pool import Pool
from objectives.fused.rows import buckets
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import (
    GOOD,
    TASK,
    EngineContract,
    MakeEngine,
    advance_to_end_of,
    run,
    trial,
    what_counts,
)
from tests.contracts.parity_contract import PAIRS, tiny
from tests.contracts.scoring_contract import ScoringContract
from tests.objectives.fused.small_engines import OWN, assert_like_plain, small_engine


class TestFusedEngine(EngineContract, ScoringContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return small_engine


class TestWideFusedEngine(EngineContract):
    """The defaults, and one slot."""

    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda task: FusedEngine(task, "cpu", slots=1)


# What torch alone decides


def test_a_last_batch_of_one_image_is_refused_as_by_the_plain_trainer() -> None:
    """Of 160 images one is left by batches of 53, and on maps of 1×1 batch normalisation can't take it."""
    model = Choice("cnn", {"depth": 2, "width": 4, "dense": 8, "batch_norm": True})
    start = trial(1, dataclasses.replace(GOOD, model=model, batch_size=53))
    fused = run(small_engine(), [trial(2), start])
    (failure,) = fused[1]
    assert isinstance(failure, TrialFailure)
    assert "leave one image for an epoch's last batch" in failure.reason
    assert fused[2] == run(small_engine(), [trial(2)])[2]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": Choice("adam", {"beta1": 2.0})},
        {"augment": {"rotation": "far"}},
        {"regulariser": Choice("l1", {"what": 1})},
        {"schedule": Choice("cosine", {"finale": 1})},
    ],
)
def test_options_that_can_not_be_are_one_trials_failure(change: dict[str, object]) -> None:
    wrong = trial(9, dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    found = run(small_engine(), [trial(1), wrong, trial(2)])
    (failure,) = found[9]
    assert isinstance(failure, TrialFailure)
    assert {n: found[n] for n in (1, 2)} == run(small_engine(), [trial(1), trial(2)])


# What goes wrong in a step of many


def breaking(monkeypatch: pytest.MonkeyPatch, at_step: int, error: BaseException, times: int = 1) -> None:
    """Pools raise after the backward pass of some step, in the middle of things."""
    backward = Pool._backward
    calls = {"n": 0}

    def raising(pool: Pool, *arguments: object) -> object:
        result = backward(pool, *arguments)  # type: ignore[arg-type]
        calls["n"] += 1
        if at_step <= calls["n"] < at_step + times:
            raise error
        return result

    monkeypatch.setattr(Pool, "_backward", raising)


def test_too_little_memory_makes_steps_smaller_and_changes_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = [trial(n) for n in range(3)]
    expected = run(FusedEngine(TASK, "cpu", slots=3, rows=8, images_per_row=16), starts)
    breaking(monkeypatch, 7, torch.OutOfMemoryError("out of memory"), times=2)
    engine = FusedEngine(TASK, "cpu", slots=3, rows=8, images_per_row=16)
    assert run(engine, starts) == expected
    assert [lane.pool.capacity for lane in engine._pools.values()] == [2]


def test_memory_for_not_even_one_row_fails_its_trials_and_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaking(monkeypatch, 1, torch.OutOfMemoryError("out of memory"), times=99)
    found = run(small_engine(), [trial(1), trial(2)])
    for said in found.values():
        (failure,) = said
        assert isinstance(failure, TrialFailure)
        assert failure.retryable


@pytest.mark.parametrize("at_step", [1, 7, 12])
def test_trials_of_a_program_that_raises_go_on_alone(
    at_step: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = [trial(n) for n in range(3)]
    breaking(monkeypatch, at_step, RuntimeError("a kernel is missing"), times=99)
    engine = small_engine(TASK)
    assert_like_plain(engine, starts)
    assert "a kernel is missing" in caplog.text
    assert engine.free_slots == 4


def test_an_interrupted_engine_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(small_engine(), [trial(1), trial(2)])
    breaking(monkeypatch, 6, KeyboardInterrupt())
    engine = small_engine()
    for number in (1, 2):
        engine.admit(trial(number))
    reports: dict[int, list[EpochReport]] = {1: [], 2: []}
    interrupted = 0
    while any(len(said) < GOOD.epochs for said in reports.values()):
        try:
            events = engine.advance()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        for event in events:
            assert isinstance(event, EpochEnd)
            reports[event.trial_id].append(what_counts(event.report))
    assert interrupted == 1
    assert reports == expected


# Slots and programs


def test_programs_take_turns() -> None:
    wide = dataclasses.replace(GOOD, model=Choice("cnn", {"depth": 1, "width": 3}))
    engine = small_engine()
    starts = [trial(n, wide if n % 2 else GOOD) for n in range(4)]
    for start in starts:
        engine.admit(start)
    firsts: list[int] = []
    while len(firsts) < 8:
        firsts.extend(event.trial_id for event in engine.advance())
    assert {trial_id % 2 for trial_id in firsts[:4]} == {0, 1}
    for start in starts:
        engine.retire(start.trial_id)
    assert run(engine, starts) == {
        start.trial_id: run(small_engine(), [start])[start.trial_id] for start in starts
    }


def test_memory_of_programs_without_trials_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "EMPTY_POOLS", 2)
    engine = small_engine()
    for width in range(2, 8):
        config = dataclasses.replace(GOOD, model=Choice("cnn", {"depth": 1, "width": width}), epochs=1)
        run(engine, [trial(width, config)])
    assert len(engine._pools) == 2


def test_a_late_trial_joins_while_others_are_in_the_middle_of_an_epoch() -> None:
    quick = trial(5, dataclasses.replace(GOOD, epochs=1, batch_size=160))
    engine = small_engine()
    engine.admit(trial(1))
    engine.admit(quick)
    first = advance_to_end_of(engine, 5)
    assert first.last
    engine.retire(5)
    engine.admit(trial(2))
    reports: dict[int, list[EpochReport]] = {1: [], 2: []}
    while any(len(said) < GOOD.epochs for said in reports.values()):
        for event in engine.advance():
            assert isinstance(event, EpochEnd)
            reports[event.trial_id].append(what_counts(event.report))
    assert reports == run(small_engine(), [trial(1), trial(2)])


def test_seconds_are_shares_of_the_time_that_passed() -> None:

    engine = small_engine()
    for number in range(4):
        engine.admit(trial(number))
    engine.advance()  # builds the program
    started = time.perf_counter()
    spent = 0.0
    for _ in range(6):
        spent += sum(event.report.seconds for event in engine.advance() if isinstance(event, EpochEnd))
    assert spent > 0
    passed = time.perf_counter() - started
    assert spent <= 2 * passed  # an epoch that began before the clock ran counts whole


# Checkpoints move between trainers


@pytest.mark.parametrize("optimizer", ["gradient_descent", "nesterov", "adagrad", "rmsprop", "adamw"])
@pytest.mark.parametrize("to_fused", [False, True])
def test_a_trial_moves_between_trainers(optimizer: str, to_fused: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(GOOD, optimizer=Choice(optimizer), learning_rate=0.003)
    engines: list[Engine] = [small_engine(), PlainEngine(OWN, "cpu")]
    first, second = engines[::-1] if to_fused else engines
    first.admit(trial(1, config))
    advance_to_end_of(first, 1)
    first.save(1, tmp_path / "checkpoint")
    resumed = dataclasses.replace(trial(1, config), checkpoint=tmp_path / "checkpoint")
    expected = run(PlainEngine(OWN, "cpu"), [trial(1, config)])[1][1:]
    for one, other in zip(run(second, [resumed])[1], expected, strict=True):
        assert isinstance(one, EpochReport)
        assert isinstance(other, EpochReport)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_a_save_in_the_middle_of_an_epoch_is_that_of_the_last_epochs_end(tmp_path: Path) -> None:
    engine = small_engine()
    engine.admit(trial(1))
    advance_to_end_of(engine, 1)
    engine.save(1, tmp_path / "at the end")
    engine.admit(trial(2, dataclasses.replace(GOOD, batch_size=160)))
    advance_to_end_of(engine, 2)  # its one step comes before trial 1 is through
    engine.save(1, tmp_path / "later")
    first, later = (torch.load(tmp_path / name, weights_only=True) for name in ("at the end", "later"))
    assert first["report"] == later["report"]
    assert torch.equal(first["state"]["model"]["0.weight"], later["state"]["model"]["0.weight"])


@pytest.mark.slow
def test_two_hundred_trials_through_sixteen_slots() -> None:
    starts = [tiny(n, *PAIRS[n % len(PAIRS)], epochs=1 + n % 3) for n in range(200)]
    engine = FusedEngine(TASK, "cpu", slots=16, images_per_row=16)
    found = run(engine, starts)
    (lane,) = engine._pools.values()
    assert engine.programs_built == 1
    assert lane.pool.shapes <= {*buckets(8), 10}  # 10: a full batch that must be whole
    assert 0.9 < engine.occupancy <= 1
    for start in starts[::10]:
        single = FusedEngine(TASK, "cpu", slots=1, images_per_row=16)
        assert run(single, [start])[start.trial_id] == found[start.trial_id]
