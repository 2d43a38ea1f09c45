"""The fast TPE against Optuna's: the same suggestions, to the last bit, for any history."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState, create_trial

from search.sampling.parzen import log_pdf
from search.sampling.samplers import experimental_wanted
from search.sampling.tpe import FastTpeSampler, Observations

DIMENSIONS: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-1.0, 3.0),
    "log": FloatDistribution(1e-5, 1.0, log=True),
    "step": FloatDistribution(0.0, 1.0, step=0.25),
    "int": IntDistribution(1, 40),
    "int_step": IntDistribution(0, 64, step=8),
    "int_log": IntDistribution(1, 512, log=True),
    "two": CategoricalDistribution(["a", "b"]),
    "many": CategoricalDistribution([None, True, 3, "x", 0.5]),
    "fixed": FloatDistribution(2.0, 2.0),
}
STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)


class TestFastTpe(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: FastTpeSampler(n_startup_trials=0, seed=0)


class TestFastTpeOfSeveralObjectives(MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: FastTpeSampler(n_startup_trials=0, seed=0)


class TestFastGroupTpe(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        def build() -> BaseSampler:
            with experimental_wanted():
                return FastTpeSampler(n_startup_trials=0, group=True, seed=0)

        return build


class Twin:
    """A study with a random history, and both samplers asked about the same trial."""

    def __init__(self, chance: random.Random, **options: Any) -> None:
        self.chance = chance
        self.options = options
        self.study = optuna.create_study(direction=chance.choice(["minimize", "maximize"]))
        names = chance.sample(sorted(DIMENSIONS), chance.randint(1, 6))
        self.shared = {name: DIMENSIONS[name] for name in names[: chance.randint(0, len(names))]}
        self.optional = {name: DIMENSIONS[name] for name in names if name not in self.shared}
        self.draw = RandomSampler(seed=chance.randint(0, 10**6))
        self.kept = Observations()

    def values(self) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        space = dict(self.shared)
        if self.optional and self.chance.random() < 0.7:
            space |= dict(
                self.chance.sample(sorted(self.optional.items()), self.chance.randint(1, len(self.optional)))
            )
        return {
            name: self.draw.sample_independent(None, None, name, dist) for name, dist in space.items()
        }, space

    def add(self, state: TrialState) -> None:
        params, space = self.values()
        digits = self.chance.choice([0, 1, 8])  # ties
        value = round(self.chance.gauss(0, 1), digits)
        reports = (
            {}
            if self.chance.random() < 0.1
            else {
                step: float("nan") if self.chance.random() < 0.1 else round(self.chance.gauss(0, 1), digits)
                for step in range(1, self.chance.randint(2, 5))
            }
        )
        attributes = {}
        if state == TrialState.RUNNING and self.chance.random() < 0.7:
            attributes = {"tpe:relative_params:0": json.dumps(params)}
            if self.chance.random() < 0.5:
                params, space = {}, {}
        elif state == TrialState.WAITING:
            params, space = {}, {}
        self.study.add_trial(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=params,
                distributions=space,
                intermediate_values=reports,
                system_attrs=attributes,
            )
        )

    def finish_one(self) -> None:
        """A trial that was running ends, so that trials end in another order than that of their numbers."""
        running = [
            t for t in self.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING and t.params
        ]
        if running:
            trial = self.chance.choice(running)
            self.study._storage.set_trial_state_values(
                trial._trial_id, TrialState.COMPLETE, [self.chance.random()]
            )

    def suggested(self, sampler: BaseSampler) -> list[Any]:
        trial_id = self.study._storage.create_new_trial(self.study._study_id)
        try:
            trial = self.study._storage.get_trial(trial_id)
            space = sampler.infer_relative_search_space(self.study, trial)
            relative = sampler.sample_relative(self.study, trial, space)
            alone = {
                name: sampler.sample_independent(self.study, trial, name, dist)
                for name, dist in (self.shared | self.optional).items()
                if name not in relative and not dist.single()
            }
            return [list(space.items()), relative, alone]
        finally:
            self.study._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def check(self) -> None:
        options = {"n_startup_trials": 5, **self.options, "seed": self.chance.randint(0, 10**6)}
        with experimental_wanted():
            stock = self.suggested(TPESampler(**options))
            assert self.suggested(FastTpeSampler(self.kept, **options)) == stock
            assert self.suggested(FastTpeSampler(**options)) == stock


@settings(max_examples=150, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 2**32 - 1),
    multivariate=st.booleans(),
    group=st.booleans(),
    constant_liar=st.booleans(),
    trials=st.sampled_from([0, 4, 8, 40, 120]),
)
def test_suggests_what_optuna_suggests(
    seed: int, multivariate: bool, group: bool, constant_liar: bool, trials: int
) -> None:
    chance = random.Random(seed)
    twin = Twin(chance, multivariate=multivariate, group=group and multivariate, constant_liar=constant_liar)
    for _ in range(trials):
        twin.add(chance.choices(STATES, (10, 4, 1, 2, 1))[0])
    twin.check()
    for _ in range(3):
        twin.finish_one()
        twin.add(chance.choice(STATES))
        twin.check()


def test_suggests_what_optuna_suggests_late() -> None:
    """Past 2,000 kernels Optuna takes another error function."""
    twin = Twin(random.Random(3), constant_liar=True)
    twin.shared, twin.optional = {n: DIMENSIONS[n] for n in ("float", "log", "int", "int_log", "two")}, {}
    for _ in range(2600):
        twin.add(TrialState.COMPLETE if twin.chance.random() < 0.7 else TrialState.PRUNED)
    for _ in range(3):
        twin.check()


def test_constraints_are_optunas_business() -> None:
    """The best trials violate one, and so are among the poor ones."""
    twin = Twin(random.Random(5), constant_liar=True)
    twin.shared, twin.optional = {"float": DIMENSIONS["float"], "two": DIMENSIONS["two"]}, {}
    for _ in range(30):
        twin.add(TrialState.COMPLETE)
    trials = twin.study.get_trials(deepcopy=False)
    minimize = twin.study.direction == optuna.study.StudyDirection.MINIMIZE
    for trial in sorted(trials, key=lambda trial: trial.values[0], reverse=not minimize)[:10]:
        trial._system_attrs["constraints"] = [1.0]
    for _ in range(5):
        twin.check()


def test_another_study_with_the_same_sampler() -> None:
    """What was learnt of one study is dropped when the next has other trials."""
    kept = Observations()
    for seed, trials in ((1, 20), (2, 40), (3, 60), (1, 20)):
        twin = Twin(random.Random(seed), constant_liar=True)
        twin.kept = kept
        for _ in range(trials):
            twin.add(TrialState.COMPLETE)
        twin.check()


def test_threads_may_share_observations() -> None:
    twin = Twin(random.Random(9), constant_liar=False)
    for _ in range(60):
        twin.add(TrialState.COMPLETE)
    trial = twin.study.get_trials(deepcopy=False)[0]
    space = {name: dist for name, dist in (twin.shared | twin.optional).items() if not dist.single()}

    def ask(seed: int) -> Mapping[str, Any]:
        sampler = FastTpeSampler(twin.kept, n_startup_trials=5, constant_liar=False, seed=seed)
        return sampler._sample(twin.study, trial, space)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(40)))
    assert together == [ask(seed) for seed in range(40)]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    dimensions=st.integers(1, 10),
    kernels=st.sampled_from([0, 1, 5, 90, 700, 2500]),
)
def test_density_is_optunas(seed: int, dimensions: int, kernels: int) -> None:
    """Also with eight and more continuous dimensions, which numpy adds up in another order."""
    chance = np.random.RandomState(seed)
    space: dict[str, BaseDistribution] = {
        f"{name}_{number}": dist
        for name, dist in DIMENSIONS.items()
        if name != "fixed"
        for number in range(2)
    }
    names = list(chance.permutation(sorted(space))[:dimensions])
    if dimensions > 8:
        names += [f"float_{number}" for number in range(2, dimensions)]
        space |= {name: DIMENSIONS["float"] for name in names if name not in space}
    space = {name: space[name] for name in names}
    draw = RandomSampler(seed=seed)
    observed = {
        name: np.array(
            [dist.to_internal_repr(draw.sample_independent(None, None, name, dist)) for _ in range(kernels)]
        )
        for name, dist in space.items()
    }
    estimator = _ParzenEstimator(observed, space, TPESampler()._parzen_estimator_parameters)
    points = estimator._transform(estimator.sample(chance, 24))
    stock = estimator._mixture_distribution.log_pdf(points)
    assert np.array_equal(log_pdf(estimator._mixture_distribution, points), stock, equal_nan=True)


def test_density_outside_the_range_is_optunas() -> None:
    """A candidate beyond its range, by a rounding: nowhere possible."""
    space = {"log": DIMENSIONS["log"]}
    observed = {"log": np.array([1e-5, 0.1, 1.0])}
    mixture = _ParzenEstimator(
        observed, space, TPESampler()._parzen_estimator_parameters
    )._mixture_distribution
    points = np.array([[1e-5 * (1 - 1e-12)], [0.5]])
    stock = mixture.log_pdf(points)
    assert np.isneginf(stock[0])
    assert np.array_equal(log_pdf(mixture, points), stock)
