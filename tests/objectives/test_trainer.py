"""The plain engine keeps the engine contract, trains every combination, and learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from objectives.base import (
    Choice,
    DataSpec,
    EpochEnd,
    ObjectiveError,
    Task,
    TrialConfig,
    TrialFailure,
    derive_seed,
)
from objectives.devices import resolve_device
from objectives.metrics import METRICS, worst_metrics
from objectives.trainer import PlainEngine, score_on_test
from objectives.training import Training
from tests.contracts.engine_contract import (
    DIVERGING,
    GOOD,
    TASK,
    EngineContract,
    MakeEngine,
    run,
    trial,
)

CPU = torch.device("cpu")


class TestPlainEngine(EngineContract):
    @pytest.fixture
    def make_engine(self) -> MakeEngine:
        return lambda task: PlainEngine(task, "cpu")


USERS_TASK = dataclasses.replace(TASK, allow_imports=("users_own",))
USERS_MODEL = dataclasses.replace(GOOD, model=Choice("users_own:model"), batch_size=32)


def only_failure(config: TrialConfig, task: Task = USERS_TASK) -> TrialFailure:
    engine = PlainEngine(task, "cpu")
    engine.admit(trial(1, config))
    (failure,) = engine.advance()
    assert isinstance(failure, TrialFailure)
    return failure


def test_digits_are_learnt_in_a_few_epochs() -> None:
    config = TrialConfig(optimizer=Choice("adam"), learning_rate=0.003, batch_size=32, epochs=5)
    engine = PlainEngine(Task(data=DataSpec(name="digits")), "cpu")
    reports = run(engine, [trial(1, config)])[1]
    assert reports[-1].metrics["accuracy"] >= 0.95


# A user's own module


def test_a_users_module_sees_the_epochs_seed(user_module: ModuleType) -> None:
    seen = set()

    class Curious(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.add(torch.initial_seed())
            return super().forward(images.flatten(1))

    user_module.model = lambda shape, classes: Curious(64, classes)  # type: ignore[attr-defined]
    run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])
    assert seen == {derive_seed(1, "module", epoch) for epoch in (1, 2, 3)}


def test_a_users_module_gives_the_same_curve_whatever_came_before(user_module: ModuleType) -> None:
    """`nn.Dropout` draws from the process's random numbers, which are seeded for every epoch."""
    user_module.model = lambda shape, classes: nn.Sequential(  # type: ignore[attr-defined]
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, classes)
    )
    first = run(PlainEngine(USERS_TASK, "cpu"), [trial(1, USERS_MODEL)])[1]
    torch.rand(10)
    assert run(PlainEngine(USERS_TASK, "cpu"), [trial(2, USERS_MODEL), trial(1, USERS_MODEL)])[1] == first


def test_a_users_module_that_raises_fails_its_trial(user_module: ModuleType) -> None:
    class Broken(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("my own mistake")
            return super().forward(images.flatten(1))

    user_module.model = lambda shape, classes: Broken(64, classes)  # type: ignore[attr-defined]
    failure = only_failure(USERS_MODEL)
    assert failure.reason == "ValueError: my own mistake"
    assert 'raise ValueError("my own mistake")' in failure.traceback
    assert not failure.retryable


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("memory"), False),
    ],
)
def test_only_lack_of_memory_is_worth_another_try(
    user_module: ModuleType, error: Exception, retryable: bool
) -> None:
    def model(shape: object, classes: int) -> nn.Module:
        raise error

    user_module.model = model  # type: ignore[attr-defined]
    assert only_failure(USERS_MODEL).retryable is retryable


def test_an_allocation_that_no_machine_can_serve_is_lack_of_memory(user_module: ModuleType) -> None:
    user_module.model = lambda shape, classes: nn.Linear(2**40, 2**10)  # type: ignore[attr-defined]
    assert only_failure(USERS_MODEL).retryable


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_curve_twice() -> None:
    first = run(PlainEngine(TASK, "cuda"), [trial(1)])
    assert run(PlainEngine(TASK, "cuda"), [trial(2), trial(1)])[1] == first[1]


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
