"""How each method chooses the next trial's values: Optuna's samplers, made to remember nothing.

A sampler here knows only what the database knows: the study's trials, and the seed that belongs to
(experiment seed, replicate, trial number). So it makes no difference which worker asks, nor whether
a worker was started again in between; methods share their random first trials within a replicate.
Adding a method is a settings class in `search.experiment.settings`, a builder here and a line in `SAMPLERS`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler

from objectives.base import derive_seed
from search.sampling.chance import NamedRandomSampler, ParameterwiseSampler
from search.sampling.gp import GpThenTpeSampler
from search.sampling.tpe import FastTpeSampler, Observations

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from search.experiment.settings import (
        GpSettings,
        GridSettings,
        MethodSettings,
        QmcSettings,
        RandomSettings,
        TpeSettings,
    )

Space = Mapping[str, BaseDistribution]
"""Every dimension that a trial may have, conditional ones too."""


class SamplingError(Exception):
    """A sampler was asked for something that it must not invent."""


def short_seed(*parts: int | str) -> int:
    """`derive_seed` cut to the 32 bits that numpy's legacy generators take."""
    return derive_seed(*parts) % 2**32


_FILTERS = threading.Lock()


@contextmanager
def experimental_wanted() -> Iterator[None]:
    """Build samplers without Optuna's warnings of what it calls experimental: who asked for it knows.

    `catch_warnings` exchanges the filters of the whole process, so one thread at a time: else the
    one that leaves first takes the others' filter away, and the last leaves a stale one behind.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class PerTrialSampler(BaseSampler):
    """A fresh inner sampler for every trial, and for every parameter that is drawn on its own.

    `build(seed)` makes the inner sampler. The joint draw of a trial is seeded by its number, an
    independent draw by the number and the parameter's name: a trial that was cut off while its
    values were drawn gets the remaining ones as if nothing had happened. The only thing kept
    between calls is the inner sampler of the trial at hand, whose loss changes nothing, so threads
    may share one.
    """

    def __init__(self, build: Callable[[int], BaseSampler], *seed_parts: int | str) -> None:
        self._build = build
        self._seed_parts = seed_parts
        self._joint: tuple[int, BaseSampler] | None = None

    def _inner(self, *parts: int | str) -> BaseSampler:
        return self._build(short_seed(*self._seed_parts, *parts))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that the inner sampler draws together."""
        inner = self._inner(trial.number)
        self._joint = (trial.number, inner)
        return inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the dimensions in `search_space`, drawn together."""
        joint, self._joint = self._joint, None
        if joint is None or joint[0] != trial.number:
            inner = self._inner(trial.number)
            # TPE with `group` keeps what it inferred for the draw.
            inner.infer_relative_search_space(study, trial)
        else:
            inner = joint[1]
        return inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One value, drawn from a stream of chance of its own."""
        inner = self._inner(trial.number, param_name)
        return inner.sample_independent(study, trial, param_name, param_distribution)


class FixedPointSampler(ParameterwiseSampler):
    """For studies whose points are all enqueued: takes them as they are and never invents one."""

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002 (Optuna's signature)
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002 (Optuna's signature)
    ) -> Any:
        """Raises `SamplingError`: a grid point that lacks a value is not a grid point."""
        raise SamplingError(f"trial {trial.number} is not a point of the grid: it has no {param_name!r}")


class WholeSpaceQmcSampler(QMCSampler):
    """Optuna's quasi-random sampler over the whole space from the first trial on.

    Optuna's own takes its dimensions from the first trial that ended, draws that trial and all
    conditional parameters at random, and warns. Here every dimension, conditional or not, has a
    coordinate of its own; those that a trial doesn't have are not used. The position in the
    sequence is kept by Optuna in the study's attributes, so asks must hold the study's lock.
    """

    def __init__(self, space: Space, *, qmc_type: str, scramble: bool, seed: int) -> None:
        with experimental_wanted():
            super().__init__(qmc_type=qmc_type, scramble=scramble, seed=seed, warn_independent_sampling=False)
        self._space = {name: space[name] for name in sorted(space) if not space[name].single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002 (Optuna's signature)
        """The whole space."""
        return dict(self._space)


def _grid(_settings: GridSettings, _space: Space, *_seed_parts: int | str) -> BaseSampler:
    return FixedPointSampler()


def _random(_settings: RandomSettings, _space: Space, *seed_parts: int | str) -> BaseSampler:
    return NamedRandomSampler(*seed_parts)


def _qmc(settings: QmcSettings, space: Space, *seed_parts: int | str) -> BaseSampler:
    return WholeSpaceQmcSampler(
        space, qmc_type=settings.type, scramble=settings.scramble, seed=short_seed(*seed_parts, "qmc")
    )


def _tpe(settings: TpeSettings, _space: Space, *seed_parts: int | str) -> BaseSampler:
    observations = Observations()
    first = NamedRandomSampler(*seed_parts)

    def build(seed: int) -> BaseSampler:
        with experimental_wanted():
            return FastTpeSampler(
                observations,
                first,
                n_startup_trials=settings.n_startup_trials,
                n_ei_candidates=settings.n_ei_candidates,
                multivariate=settings.multivariate,
                group=settings.group,
                constant_liar=settings.constant_liar,
                seed=seed,
            )

    return PerTrialSampler(build, *seed_parts)


def _gp(settings: GpSettings, _space: Space, *seed_parts: int | str) -> BaseSampler:
    observations = Observations()
    first = NamedRandomSampler(*seed_parts)

    def build(seed: int) -> BaseSampler:
        with experimental_wanted():
            gp = GPSampler(
                independent_sampler=first,
                n_startup_trials=settings.n_startup_trials,
                deterministic_objective=settings.deterministic_objective,
                warn_independent_sampling=False,
                seed=seed,
            )
        tpe = FastTpeSampler(
            observations, first, n_startup_trials=settings.n_startup_trials, multivariate=True, seed=seed
        )
        return GpThenTpeSampler(gp, tpe, settings.model_trials)

    return PerTrialSampler(build, *seed_parts)


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "grid": _grid,
    "random": _random,
    "qmc": _qmc,
    "tpe": _tpe,
    "gp": _gp,
}
"""Method → builder from its settings, the space, and what its chance depends on."""


def build_sampler(
    method: str, settings: MethodSettings, space: Space, *, seed: int, replicate: int
) -> BaseSampler:
    """The sampler of one study. Its chance depends on `seed` and `replicate`, not on the method."""
    return SAMPLERS[method](settings, space, seed, replicate)
