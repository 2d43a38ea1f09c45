"""Random values, each a function of names and numbers alone: no generator, no order, no state.

A value's chance is one hash of all that it depends on (experiment seed, replicate, trial number,
parameter), read as a number in [0, 1) and spread over its distribution as Optuna's random sampler
does. So a trial whose draw was cut off gets its remaining values as if nothing had happened,
threads share what makes them, and a draw costs microseconds, where to seed a generator for each
costs many times that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler

from objectives.base import SeedStem, derive_seed

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

MANTISSA = 53
"""Bits of a float's precision; `derive_seed` has 63."""


def unit(*parts: int | str) -> float:
    """A number in [0, 1) that depends on all parts and on their order."""
    return _share(derive_seed(*parts))


def _share(seed: int) -> float:
    return math.ldexp(seed >> (63 - MANTISSA), -MANTISSA)


def spread(share: float, kind: BaseDistribution) -> Any:
    """The value of a distribution that lies at `share` (in [0, 1)) of its width.

    Uniform, or uniform in the logarithm; each step of a stepped range and each choice is equally
    likely. Optuna's `RandomSampler` gives the same value for the same share (tested), except for
    choices, for each of which it draws a number.
    """
    if isinstance(kind, CategoricalDistribution):
        return kind.choices[int(share * len(kind.choices))]
    if isinstance(kind, FloatDistribution):
        return _float(share, kind)
    assert isinstance(kind, IntDistribution)
    return _int(share, kind)


def _float(share: float, kind: FloatDistribution) -> float:
    if kind.low == kind.high:
        return kind.low
    if kind.step is not None:
        half = 0.5 * kind.step
        place = _between(kind.low - half, kind.high + half, share)
        return min(max(round((place - kind.low) / kind.step) * kind.step + kind.low, kind.low), kind.high)
    below_high = math.nextafter(kind.high, -math.inf)
    if kind.log:
        value = math.exp(_between(math.log(kind.low), math.log(kind.high), share))
        return min(max(value, kind.low), below_high)
    return min(_between(kind.low, kind.high, share), below_high)


def _int(share: float, kind: IntDistribution) -> int:
    half = 0.5 * kind.step
    if kind.log:
        value = round(math.exp(_between(math.log(kind.low - half), math.log(kind.high + half), share)))
    else:
        place = _between(kind.low - half, kind.high + half, share)
        value = math.floor((place - kind.low) / kind.step + 0.5) * kind.step + kind.low
    return min(max(value, kind.low), kind.high)


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


class ParameterwiseSampler(BaseSampler):
    """A sampler that draws nothing of a trial together: each parameter by itself, in `sample_independent`."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002 (Optuna's signature)
        """Nothing is drawn together."""
        return {}

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002 (Optuna's signature)
        trial: FrozenTrial,  # noqa: ARG002 (Optuna's signature)
        search_space: dict[str, BaseDistribution],  # noqa: ARG002 (Optuna's signature)
    ) -> dict[str, Any]:
        """Nothing is drawn together."""
        return {}


class NamedRandomSampler(ParameterwiseSampler):
    """Draws every parameter at random, from a chance of its own: `seed_parts`, trial number, name.

    Keeps nothing, so it is the same sampler in whatever process and order it is asked.
    """

    def __init__(self, *seed_parts: int | str) -> None:
        self._stem = SeedStem(*seed_parts)

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002 (Optuna's signature)
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The parameter's value in the trial of that number."""
        return spread(_share(self._stem.derive(trial.number, param_name)), param_distribution)
