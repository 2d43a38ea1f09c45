"""Optuna's samplers and pruners, unchanged: on our storage they decide as they do in memory."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from storage.optuna.shoal_storage import ShoalStorage
from tests.storage.optuna.spaces import SIX

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "tpe": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=5),
    "tpe of one at a time": lambda: optuna.samplers.TPESampler(
        seed=1, n_startup_trials=5, multivariate=False, constant_liar=False
    ),
    "grid": lambda: optuna.samplers.GridSampler(
        {"x": [0.0, 0.5], "layers": [1, 2, 3], "flag": [True]}, seed=1
    ),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=1, scramble=True),
}
PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
}


def objective(trial: optuna.Trial) -> float:
    for name, distribution in SIX.items():
        trial._suggest(name, distribution)
    value = 0.0
    for step in range(1, 9):
        value = (trial.params["x"] - 0.3) ** 2 * step + trial.params["layers"]
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def small(trial: optuna.Trial) -> float:
    x, layers = trial.suggest_float("x", 0, 1), trial.suggest_int("layers", 1, 3)
    return x + layers + trial.suggest_categorical("flag", [True])


def decisions(study: optuna.Study) -> list[tuple[object, ...]]:
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.intermediate_values, trial.system_attrs)
        for trial in study.trials
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_decide_as_in_memory(storage: ShoalStorage, sampler: str) -> None:
    studies = [
        optuna.create_study(study_name="s", storage=place, sampler=SAMPLERS[sampler]())
        for place in (storage, optuna.storages.InMemoryStorage())
    ]
    for study in studies:
        study.optimize(small if sampler == "grid" else objective, n_trials=20)
    assert decisions(studies[0]) == decisions(studies[1])


@pytest.mark.parametrize("pruner", PRUNERS)
def test_pruners_decide_as_in_memory(storage: ShoalStorage, pruner: str) -> None:
    studies = [
        optuna.create_study(
            study_name="s",
            storage=place,
            sampler=optuna.samplers.TPESampler(seed=2, n_startup_trials=5),
            pruner=PRUNERS[pruner](),
        )
        for place in (storage, optuna.storages.InMemoryStorage())
    ]
    for study in studies:
        study.optimize(objective, n_trials=25)
    assert decisions(studies[0]) == decisions(studies[1])
    assert {trial.state for trial in studies[0].trials} == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_pool_in_batches_decides_as_one_by_one(storage: ShoalStorage, pruner: str) -> None:
    """Sixteen trials in lockstep: reported in one batch, judged in one batch, told in one batch."""
    memory = optuna.storages.InMemoryStorage()
    studies = [
        optuna.create_study(
            study_name="s",
            storage=place,
            sampler=optuna.samplers.RandomSampler(seed=3),
            pruner=PRUNERS[pruner](),
        )
        for place in (storage, memory)
    ]
    for study in studies:
        for _ in range(2):
            run_pool(study, storage if study is studies[0] else None)
    assert decisions(studies[0]) == decisions(studies[1])


def run_pool(study: optuna.Study, storage: ShoalStorage | None) -> None:
    def together(work: Callable[[], None]) -> None:
        if storage is None:
            work()
        else:
            with storage.batch():
                work()

    trials = [study.ask(fixed_distributions=SIX) for _ in range(16)]

    def epoch(step: int) -> None:
        for trial in trials:
            trial.report((trial.params["x"] - 0.3) ** 2 * step, step)

    def judge() -> None:
        stopped = [trial for trial in trials if trial.should_prune()]
        for trial in stopped:
            study.tell(trial, state=TrialState.PRUNED)
            trials.remove(trial)

    def finish() -> None:
        for trial in trials:
            study.tell(trial, trial.params["x"])

    for step in range(1, 9):
        together(lambda step=step: epoch(step))  # type: ignore[misc]  # mypy loses the default
        together(judge)
    together(finish)


@pytest.mark.slow
def test_gp_decides_as_in_memory(storage: ShoalStorage) -> None:
    studies = [
        optuna.create_study(
            study_name="s", storage=place, sampler=optuna.samplers.GPSampler(seed=1, n_startup_trials=4)
        )
        for place in (storage, optuna.storages.InMemoryStorage())
    ]
    for study in studies:
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=8)
    assert decisions(studies[0]) == decisions(studies[1])
