"""Samplers: Optuna's own contract, shared first trials, nothing remembered between asks."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase

from search.experiment.settings import METHODS, QmcSettings, TpeSettings
from search.sampling.samplers import SAMPLERS, PerTrialSampler, SamplingError, build_sampler, short_seed

SPACE = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "width": IntDistribution(4, 64),
    "loss": CategoricalDistribution(["a", "b", "c"]),
}
CONDITIONAL = SPACE | {"momentum": FloatDistribution(0.0, 1.0)}


class TestPerTrialRandom(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PerTrialSampler(lambda seed: RandomSampler(seed=seed), 0)


class TestPerTrialTpe(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PerTrialSampler(lambda seed: TPESampler(n_startup_trials=0, seed=seed), 0)


class TestPerTrialGroupTpe(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        settings = TpeSettings(n_startup_trials=0, group=True)
        return lambda: build_sampler("tpe", settings, {}, seed=0, replicate=0)


@pytest.mark.slow
class TestPerTrialGp(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PerTrialSampler(
            lambda seed: GPSampler(n_startup_trials=2, warn_independent_sampling=False, seed=seed), 0
        )


def _suggest(trial: optuna.Trial) -> dict[str, Any]:
    params = {
        "rate": trial.suggest_float("rate", 1e-4, 1.0, log=True),
        "width": trial.suggest_int("width", 4, 64),
        "loss": trial.suggest_categorical("loss", ["a", "b", "c"]),
    }
    if params["loss"] == "a":
        params["momentum"] = trial.suggest_float("momentum", 0.0, 1.0)
    return params


def _run(
    method: str,
    trials: int,
    *,
    restart_every: int | None = None,
    seed: int = 7,
    replicate: int = 0,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Params of the first trials of a study; the sampler is built anew every so many trials."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    for number in range(trials):
        if number % (restart_every or trials) == 0:
            study.sampler = build_sampler(
                method, METHODS[method](**settings), CONDITIONAL, seed=seed, replicate=replicate
            )
        trial = study.ask()
        params = _suggest(trial)
        study.tell(trial, -abs(params["width"] - 30) - params["rate"])
    return [trial.params for trial in study.trials]


def test_first_trials_are_shared_within_a_replicate() -> None:
    random, tpe, gp = (_run(method, 10) for method in ("random", "tpe", "gp"))
    assert random == tpe == gp
    assert _run("random", 10, replicate=1) != random
    assert _run("random", 10, seed=8) != random


@pytest.mark.parametrize("method", ["random", "qmc", "tpe"])
def test_nothing_is_remembered_between_asks(method: str) -> None:
    assert _run(method, 16, restart_every=1) == _run(method, 16)


def test_gp_remembers_nothing_between_asks() -> None:
    assert _run("gp", 12, restart_every=1) == _run("gp", 12)


def test_tpe_goes_on_where_the_process_ends() -> None:
    """With the same first trials, from the given number on the values are those of TPE."""

    def next_values(method: str, **settings: Any) -> dict[str, Any]:
        study = optuna.create_study(
            sampler=build_sampler(method, METHODS[method](**settings), SPACE, seed=7, replicate=0)
        )
        for number in range(14):
            study.enqueue_trial({"rate": 0.01 * (number + 1), "width": 4 + number, "loss": "abc"[number % 3]})
            trial = study.ask(SPACE)
            if number == 13:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, trial.params["rate"])
        return study.ask(SPACE).params

    tpe = next_values("tpe")
    assert next_values("gp", model_trials=13) == tpe
    assert next_values("gp", model_trials=14) != tpe


def test_gp_is_optunas_within_its_range() -> None:
    sampler = build_sampler("gp", METHODS["gp"](n_startup_trials=3), SPACE, seed=7, replicate=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(5):
        trial = study.ask(SPACE)
        study.tell(trial, trial.params["rate"])
    stock = GPSampler(n_startup_trials=3, seed=short_seed(7, 0, 5), warn_independent_sampling=False)
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    space = stock.infer_relative_search_space(study, trial)
    expected = stock.sample_relative(study, trial, space)
    study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
    sampler._seed_parts = (7, 0)
    other = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    other.number = 5
    assert sampler.sample_relative(study, other, space) == expected


def test_tpe_models_after_its_start() -> None:
    assert _run("tpe", 16)[10:] != _run("random", 16)[10:]


@pytest.mark.parametrize("group", [True, False])
def test_tpe_with_conditions(group: bool) -> None:
    assert len(_run("tpe", 20, group=group, n_startup_trials=3)) == 20


def test_a_trial_cut_off_while_drawn_gets_the_same_values() -> None:
    """One parameter was stored before the worker died; the others come out as if it had not."""

    def draw(cut: bool) -> dict[str, Any]:
        study = optuna.create_study(
            sampler=build_sampler("random", METHODS["random"](), SPACE, seed=7, replicate=0)
        )
        trial = study.ask()
        if cut:
            trial.suggest_float("rate", 1e-4, 1.0, log=True)
            trial = optuna.trial.Trial(study, trial._trial_id)
        return _suggest(trial)

    assert draw(cut=True) == draw(cut=False)


def test_threads_build_experimental_samplers_without_a_warning() -> None:
    """Each builds inside filters of the whole process; here warnings are errors, so a slip shows."""
    sampler = build_sampler("tpe", TpeSettings(group=True), SPACE, seed=7, replicate=0)
    assert isinstance(sampler, PerTrialSampler)
    filters = list(warnings.filters)
    barrier = threading.Barrier(8)

    def build(_: int) -> None:
        barrier.wait()
        for seed in range(200):
            sampler._build(seed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(build, range(8)))
    assert warnings.filters == filters


def test_parameters_have_streams_of_their_own() -> None:
    sampler = build_sampler("random", METHODS["random"](), SPACE, seed=7, replicate=0)
    trial = optuna.create_study(sampler=sampler).ask()
    assert trial.suggest_float("x", 0, 1) != trial.suggest_float("y", 0, 1)


class TestQmc:
    def test_every_dimension_lies_on_the_sequence_from_the_first_trial(self) -> None:
        rates = sorted(params["rate"] for params in _run("qmc", 8))
        # A scrambled Sobol sequence puts one of 2^k points into each of 2^k equal parts.
        edges = [1e-4 * 10 ** (4 * part / 8) for part in range(9)]
        assert all(low <= rate <= high for rate, low, high in zip(rates, edges, edges[1:], strict=False))

    def test_halton(self) -> None:
        assert len(_run("qmc", 4, type="halton")) == 4

    def test_replicates_differ_only_if_scrambled(self) -> None:
        assert _run("qmc", 4) != _run("qmc", 4, replicate=1)
        assert _run("qmc", 4, scramble=False) == _run("qmc", 4, replicate=1, scramble=False)

    def test_a_retried_trial_takes_no_other_point(self) -> None:
        study = optuna.create_study(sampler=build_sampler("qmc", QmcSettings(), SPACE, seed=7, replicate=0))
        trial = study.ask()
        params = _suggest(trial)
        again = optuna.trial.Trial(study, trial._trial_id)
        assert _suggest(again) == params
        attrs = study._storage.get_study_system_attrs(study._study_id)
        positions = [value for key, value in attrs.items() if key.startswith("qmc:")]
        assert positions == [0]


def test_grid_never_invents_a_point() -> None:
    study = optuna.create_study(sampler=build_sampler("grid", METHODS["grid"](), SPACE, seed=7, replicate=0))
    study.enqueue_trial({"rate": 0.1, "width": 8, "loss": "b"})
    assert _suggest(study.ask()) == {"rate": 0.1, "width": 8, "loss": "b"}
    with pytest.raises(SamplingError, match="'rate'"):
        _suggest(study.ask())


def test_every_method_has_settings_and_a_builder() -> None:
    assert list(SAMPLERS) == list(METHODS)


def test_settings_reach_the_sampler() -> None:
    settings = TpeSettings(n_startup_trials=3, multivariate=False)
    sampler = build_sampler("tpe", settings, SPACE, seed=7, replicate=0)
    assert isinstance(sampler, PerTrialSampler)
    inner = sampler._build(1)
    assert isinstance(inner, TPESampler)
    assert (inner._n_startup_trials, inner._multivariate, inner._constant_liar) == (3, False, True)


def test_seeds_fit_numpy() -> None:
    seeds = {short_seed(7, replicate, number) for replicate in range(10) for number in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**32 for seed in seeds)
