"""The Gaussian process within its range, TPE beyond it."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase
from optuna.trial import TrialState, create_trial

from search.sampling.gp import GpThenTpeSampler
from search.sampling.tpe import FastTpeSampler

SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-3, 1, log=True),
}


def _both(model_trials: int, seed: int = 1) -> GpThenTpeSampler:
    gp = GPSampler(n_startup_trials=2, warn_independent_sampling=False, seed=seed)
    return GpThenTpeSampler(gp, FastTpeSampler(n_startup_trials=2, seed=seed), model_trials)


class TestBeyondItsRange(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: GpThenTpeSampler(
            GPSampler(warn_independent_sampling=False, seed=0), FastTpeSampler(n_startup_trials=0, seed=0), 0
        )


@pytest.mark.slow
class TestWithinItsRange(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: _both(1000)


def _study(complete: int, pruned: int) -> optuna.Study:
    study = optuna.create_study()
    for number in range(complete + pruned):
        state = TrialState.COMPLETE if number < complete else TrialState.PRUNED
        values = {"x": (0.1 + 0.37 * number) % 1, "y": 0.01 + 0.07 * number}
        study.add_trial(
            create_trial(
                state=state,
                value=values["x"],
                params=values,
                distributions=SPACE,
                intermediate_values={1: values["x"]},
            )
        )
    return study


def _asked(study: optuna.Study, sampler: BaseSampler) -> dict[str, float]:
    study.sampler = sampler
    trial = study.ask(SPACE)
    study.tell(trial, state=TrialState.FAIL)
    return trial.params


def test_complete_trials_alone_decide() -> None:
    """Pruned ones tell the process nothing, so they don't end its turn either."""
    study = _study(complete=5, pruned=4)
    gp = _asked(study, GPSampler(n_startup_trials=2, warn_independent_sampling=False, seed=1))
    tpe = _asked(study, FastTpeSampler(n_startup_trials=2, seed=1))
    assert gp != tpe
    assert _asked(study, _both(6)) == gp
    assert _asked(study, _both(5)) == tpe


def test_a_joint_draw_stays_with_whom_it_began() -> None:
    """Another trial completes between what is asked of one trial."""

    def drawn(sampler: BaseSampler) -> dict[str, float]:
        study = _study(complete=5, pruned=0)
        trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
        space = sampler.infer_relative_search_space(study, trial)
        study.add_trial(study.trials[0])
        return sampler.sample_relative(study, trial, space)

    gp = drawn(GPSampler(n_startup_trials=2, warn_independent_sampling=False, seed=1))
    assert drawn(_both(6)) == gp
    assert drawn(_both(5)) == drawn(FastTpeSampler(n_startup_trials=2, seed=1)) != gp
