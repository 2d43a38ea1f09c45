"""Functions of the user's own as objectives: the engine's contract, and what a function may be and give."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from objectives.base import (
    Engine,
    EpochEnd,
    EpochReport,
    FunctionTask,
    TrialConfig,
    TrialError,
    TrialFailure,
    TrialStart,
    derive_seed,
)
from objectives.plugin import FunctionEngine, judged, keywords_of
from tests.contracts.engine_contract import (
    DIVERGING,
    GOOD,
    TASK,
    EngineContract,
    MakeEngine,
    advance_to_end_of,
    run,
    trial,
)

WORST = 9.0
LEARNING = FunctionTask(
    function="scratch_objective:learning",
    metric="log_loss",
    direction="minimize",
    worst=WORST,
    allow_imports=("scratch_objective",),
)

calls: list[tuple[object, ...]] = []
"""What `learning` was called with and asked for."""


def learning(config: Mapping[str, object], *, seed: int, split_seed: int, epochs: int) -> Iterator[float]:
    """Falls with every epoch, by noise that comes from the seeds alone."""
    calls.append((dict(config), seed, split_seed, epochs))
    if config["behaviour"] == "fails":
        raise TrialError("nowhere to be found")
    for epoch in range(1, epochs + 1):
        noise = derive_seed(seed, split_seed, epoch) / 2**63
        yield math.nan if config["behaviour"] == "diverges" else 2.0**-epoch * (1 + 0.1 * noise)


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module from which tests take their functions."""
    module = ModuleType("scratch_objective")
    module.learning = learning  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scratch_objective", module)
    calls.clear()
    return module


class TestFunctionEngine(EngineContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda _task: FunctionEngine(LEARNING)

    def test_reports_are_complete_and_finite(self, engine: Engine) -> None:
        engine.admit(trial(1))
        report = advance_to_end_of(engine, 1).report
        assert set(report.metrics) == {"log_loss"}
        assert 0.5 <= report.metrics["log_loss"] <= 0.55
        assert (report.train_loss, report.validation_loss, report.gradient_norm) == (None, None, None)
        assert report.seconds > 0
        assert not report.diverged

    def test_divergence_ends_a_trial_at_the_worst(self, engine: Engine) -> None:
        engine.admit(trial(1, DIVERGING))
        end = advance_to_end_of(engine, 1)
        assert end.last
        assert (end.report.epoch, end.report.diverged) == (1, True)
        assert end.report.metrics == {"log_loss": WORST}

    def test_a_resumed_trial_is_called_again_from_its_beginning(
        self, make_engine: MakeEngine, tmp_path: Path
    ) -> None:
        first = make_engine(TASK)
        first.admit(trial(1))
        advance_to_end_of(first, 1)
        first.save(1, tmp_path / "checkpoint")
        resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "checkpoint")
        said = run(make_engine(TASK), [resumed])[1]
        assert [report.epoch for report in said if isinstance(report, EpochReport)] == [2, 3]
        assert calls == [({"behaviour": "learns"}, 1, 5, 3)] * 2


def start(epochs: int = 1, **values: float) -> TrialStart:
    return TrialStart(trial_id=1, config=TrialConfig(epochs=epochs, values=values), seed=11, split_seed=12)


def outcome(function: Callable[..., object], epochs: int = 1, **values: float) -> list[object]:
    """What a trial of a function says: its metrics epoch by epoch, or why it failed."""
    sys.modules["scratch_objective"].tried = function  # type: ignore[attr-defined]
    engine = FunctionEngine(dataclasses.replace(LEARNING, function="scratch_objective:tried", metric="loss"))
    engine.admit(start(epochs, **values))
    said: list[object] = []
    while events := engine.advance():
        for event in events:
            if isinstance(event, TrialFailure):
                said.append(event.reason)
            else:
                assert isinstance(event, EpochEnd)
                said.append(dict(event.report.metrics))
    return said


@pytest.mark.parametrize(
    "function",
    [
        lambda config: config["x"] + 1,
        lambda config, **_: [config["x"] + 1],
        lambda config, *, seed: (np.float32(config["x"]) + 1 for _ in range(seed)),
        lambda config, epochs, seed=0: {"loss": Decimal(int(config["x"])) + epochs},
        lambda config, *, split_seed: {"loss": config["x"] + split_seed - 11, "other": math.nan},
        lambda config: np.array([config["x"] + 1]),
    ],
)
def test_what_a_function_may_be(function: Callable[..., object]) -> None:
    assert outcome(function, x=2.0) == [{"loss": 3.0}]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda config: 1 / 0, "ZeroDivisionError"),
        (lambda config: [1.0], "gave 1 value; the trial has 2 epochs"),
        (lambda config: [], "gave 0 values; the trial has 2 epochs"),
        (lambda config: ["good"] * 2, "loss is str, not a number"),
        (lambda config: [True] * 2, "loss is bool, not a number"),
        (lambda config: None, "loss is NoneType, not a number"),
        (lambda config: [{"other": 1}] * 2, "gave ['other'], but no 'loss'"),
        (lambda: 1, "can't be called as function(config"),
        (lambda config, other: 1, "can't be called as function(config"),
    ],
)
def test_what_fails_a_trial(function: Callable[..., object], words: str) -> None:
    (reason,) = outcome(function, epochs=2)[-1:]
    assert words in str(reason)


def test_out_of_memory_may_be_tried_again() -> None:
    def greedy(config: object) -> float:
        raise MemoryError

    sys.modules["scratch_objective"].greedy = greedy  # type: ignore[attr-defined]
    engine = FunctionEngine(dataclasses.replace(LEARNING, function="scratch_objective:greedy"))
    engine.admit(start())
    (failure,) = engine.advance()
    assert isinstance(failure, TrialFailure)
    assert failure.retryable


def test_only_modules_that_are_allowed_are_imported() -> None:
    engine = FunctionEngine(dataclasses.replace(LEARNING, allow_imports=()))
    engine.admit(start())
    (failure,) = engine.advance()
    assert isinstance(failure, TrialFailure)
    assert "allow_imports" in failure.reason


def test_an_endless_generator_is_asked_for_no_more_than_the_epochs_and_closed() -> None:
    given: list[object] = []

    def endless(config: object) -> Iterator[float]:
        try:
            while True:
                given.append(1)
                yield 1.0
        finally:
            given.append("closed")

    made: list[Iterator[float]] = []  # kept, so that nothing but the engine closes them

    def kept(config: object) -> Iterator[float]:
        made.append(endless(config))
        return made[-1]

    sys.modules["scratch_objective"].endless = kept  # type: ignore[attr-defined]
    engine = FunctionEngine(
        dataclasses.replace(LEARNING, function="scratch_objective:endless", metric="loss")
    )
    engine.admit(start(epochs=3))
    for _ in range(5):
        engine.advance()
    engine.retire(1)
    assert given == [1, 1, 1, "closed"]


@pytest.mark.parametrize(
    ("direction", "value", "judgement"),
    [
        ("minimize", 3, 3.0),
        ("minimize", 10, WORST),
        ("minimize", 10**400, None),
        ("maximize", 10, 10.0),
        ("maximize", 3, WORST),
        ("maximize", -math.inf, None),
        ("minimize", math.nan, None),
    ],
)
def test_nothing_is_worse_than_the_worst(direction: str, value: float, judgement: float | None) -> None:
    task = dataclasses.replace(LEARNING, direction=direction)
    expected = None if judgement is None else {"log_loss": judgement}
    assert judged(value, task) == expected


def test_functions_take_the_keywords_that_they_name() -> None:
    assert keywords_of(learning, "m:f") == ("seed", "split_seed", "epochs")
    assert keywords_of(lambda config: 0, "m:f") == ()
    assert keywords_of(lambda config, **kw: 0, "m:f") == ("seed", "split_seed", "epochs")
    with pytest.raises(TrialError, match="m:f can't be called"):
        keywords_of(lambda config, *, rate: 0, "m:f")


def test_a_fresh_seeds_value_takes_the_place_of_a_test_set() -> None:
    engine = FunctionEngine(LEARNING)
    engine.admit(dataclasses.replace(trial(1, dataclasses.replace(GOOD, epochs=2)), score_test=True))
    first, last = advance_to_end_of(engine, 1), advance_to_end_of(engine, 1)
    assert first.test is None
    assert last.test is not None
    assert last.test.metrics == last.test.validation == last.report.metrics
    assert last.test.images == 0
