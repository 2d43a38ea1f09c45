"""The plain engine keeps the engine contract, trains every combination, and learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from objectives import checkpoints
from objectives.base import Choice, DataSpec, EpochEnd, ObjectiveError, Task, TrialConfig
from objectives.devices import resolve_device
from objectives.metrics import METRICS, worst_metrics
from objectives.trainer import PlainEngine, score_on_test
from objectives.training import Training
from tests.contracts.engine_contract import DIVERGING, GOOD, TASK, EngineContract, MakeEngine, run, trial
from tests.contracts.scoring_contract import ScoringContract
from tests.objectives.users_modules import USERS_TASK, only_failure

CPU = torch.device("cpu")


class TestPlainEngine(EngineContract, ScoringContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda task: PlainEngine(task, "cpu")


def test_digits_are_learnt_in_a_few_epochs() -> None:
    config = TrialConfig(optimizer=Choice("adam"), learning_rate=0.003, batch_size=32, epochs=5)
    engine = PlainEngine(Task(data=DataSpec(name="digits")), "cpu")
    reports = run(engine, [trial(1, config)])[1]
    assert reports[-1].metrics["accuracy"] >= 0.95


def test_missing_data_fail_the_trial(tmp_path: Path) -> None:
    failure = only_failure(GOOD, Task(data=DataSpec(name="mnist", root=tmp_path)))
    assert failure.reason.startswith("data.root: MNIST")
    assert not failure.retryable


def test_an_interrupted_epoch_can_not_be_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = PlainEngine(TASK, "cpu")
    engine.admit(trial(1))
    engine.advance()

    def interrupt(training: Training) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("objectives.trainer.train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.advance()
    with pytest.raises(ObjectiveError):
        engine.save(1, tmp_path / "checkpoint")


# Devices


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99", ""])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ObjectiveError):
        PlainEngine(TASK, name)


def test_auto_takes_what_is_there() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_number_of_threads_around_an_engine_does_not_matter() -> None:
    """One thread while it trains, the caller's own number afterwards."""
    before = torch.get_num_threads()
    curves = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            curves.append(run(PlainEngine(TASK, "cpu"), [trial(1)]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        (
            lambda: torch.set_float32_matmul_precision("medium"),
            lambda: torch.set_float32_matmul_precision("highest"),
        ),
        (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        (
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False),
        ),
        (lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.set_autocast_enabled("cpu", False)),
    ],
    ids=["dtype", "device", "precision", "gradients", "deterministic", "autocast"],
)
def test_what_other_code_made_the_default_does_not_matter(
    change: Callable[[], None], undo: Callable[[], None]
) -> None:
    """Neither for the curve, nor for the other code afterwards."""

    def defaults() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    alone = run(PlainEngine(TASK, "cpu"), [trial(1)])
    plain = defaults()
    change()
    try:
        changed = defaults()
        assert changed != plain
        assert run(PlainEngine(TASK, "cpu"), [trial(1)]) == alone
        assert defaults() == changed
    finally:
        undo()


def test_inference_mode_around_an_engine_does_not_matter() -> None:
    alone = run(PlainEngine(TASK, "cpu"), [trial(1)])
    with torch.inference_mode():
        assert run(PlainEngine(TASK, "cpu"), [trial(1)]) == alone


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_curve_twice() -> None:
    first = run(PlainEngine(TASK, "cuda"), [trial(1)])
    assert run(PlainEngine(TASK, "cuda"), [trial(2), trial(1)])[1] == first[1]


@pytest.mark.parametrize(
    "state", [{}, {"model": None}, {"model": {}, "optimizer": {}}, {"model": {}, "optimizer": None}]
)
def test_a_checkpoint_with_another_state_starts_the_trial_anew(
    tmp_path: Path, state: dict[str, object]
) -> None:
    engine = PlainEngine(TASK, "cpu")
    engine.admit(trial(1))
    (end,) = engine.advance()
    assert isinstance(end, EpochEnd)
    written = checkpoints.fingerprint(trial(1), TASK.data)
    checkpoints.save(tmp_path / "saved", checkpoints.Checkpoint(written, end.report, state))
    resumed = dataclasses.replace(trial(1), checkpoint=tmp_path / "saved")
    assert run(PlainEngine(TASK, "cpu"), [resumed]) == run(PlainEngine(TASK, "cpu"), [trial(1)])


# The sealed test set


def test_the_test_score_is_that_of_the_trials_own_training() -> None:
    reports = run(PlainEngine(TASK, "cpu"), [trial(1)])[1]
    score = score_on_test(TASK, GOOD, seed=1, split_seed=5, device="cpu")
    assert score.validation == reports[-1].metrics
    assert set(score.metrics) == set(METRICS)
    assert score.metrics != score.validation
    assert (score.epochs, score.images) == (GOOD.epochs, 359)
    assert score.seconds > 0


def test_a_diverged_config_scores_the_worst() -> None:
    score = score_on_test(TASK, DIVERGING, seed=1, split_seed=5, device="cpu")
    assert score.metrics == score.validation == worst_metrics()
    assert score.epochs == 1


def test_a_config_that_diverges_in_validation_scores_the_worst(user_module: ModuleType) -> None:
    def only_finite_in_training(logits_BK: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return logits_BK.square().mean(-1) + (0 if logits_BK.requires_grad else torch.inf)

    user_module.loss = only_finite_in_training  # type: ignore[attr-defined]
    config = dataclasses.replace(GOOD, loss=Choice("users_own:loss"), epochs=1)
    scored = score_on_test(USERS_TASK, config, 1, 5, "cpu")
    assert scored.metrics == scored.validation == worst_metrics()


def test_an_engine_never_loads_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def sealed(*_: object) -> None:
        raise AssertionError("the test set was read")

    monkeypatch.setattr("objectives.trainer.load_test", sealed)
    monkeypatch.setattr("objectives.datasets.load_test", sealed)
    ends = run(PlainEngine(TASK, "cpu"), [trial(1)])[1]
    assert len(ends) == GOOD.epochs
    with pytest.raises(AssertionError, match="was read"):
        score_on_test(TASK, GOOD, seed=1, split_seed=5, device="cpu")


@pytest.mark.slow
@pytest.mark.shared_data
def test_fashion_mnist_is_learnt(shared_data: Path) -> None:
    task = Task(data=DataSpec(name="fashion_mnist", root=shared_data, limit=6000))
    config = TrialConfig(optimizer=Choice("adam"), learning_rate=0.002, batch_size=64, epochs=3)
    engine = PlainEngine(task, "cpu")
    engine.admit(trial(1, config))
    for _ in range(3):
        (end,) = engine.advance()
    assert isinstance(end, EpochEnd)
    assert end.report.metrics["accuracy"] >= 0.8
