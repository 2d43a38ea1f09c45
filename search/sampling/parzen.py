"""The density of a Parzen estimator of Optuna's, worked out with fewer passes over memory.

Bit for bit what `_MixtureOfProductDistribution.log_pdf` says: every number comes from the same
operations in the same order. Where Optuna builds arrays of candidates × kernels × dimensions, and
masks for values outside their range, this goes dimension by dimension in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _log_gauss_mass_unique,
    _MixtureOfProductDistribution,
    _unique_inverse_2d,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAIRWISE = 8
"""From so many terms on numpy adds in another order than from left to right."""


def log_pdf(mixture: _MixtureOfProductDistribution, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the density at each row of `x`."""
    dense = np.zeros((len(x), len(mixture.weights)))
    continuous = []
    for column, distribution in zip(x.T, mixture.distributions, strict=True):
        if isinstance(distribution, _BatchedCategoricalDistributions):
            _add_categorical(dense, column, distribution.weights)
        elif distribution.step != 0.0:
            _add_discrete(dense, column, distribution)
        else:
            continuous.append((np.log(column) if distribution.is_log else column, distribution))
    if continuous:
        if any(_leaves_range(column, distribution) for column, distribution in continuous):
            return mixture.log_pdf(x)
        _add_continuous(dense, continuous)
    dense += np.log(mixture.weights)
    highest = dense.max(axis=1)
    highest[np.isneginf(highest)] = 0
    dense -= highest[:, np.newaxis]
    np.exp(dense, out=dense)
    with np.errstate(divide="ignore"):  # log(0) is right
        return np.asarray(np.log(dense.sum(axis=1)) + highest)


def _leaves_range(column: NDArray[np.float64], distribution: Any) -> bool:
    """Whether a candidate lies outside its range, as exp(log(x)) may by a rounding."""
    low, high = distribution.adapted_low, distribution.adapted_high
    return not bool(np.all((low <= column) & (column <= high)))


def _add_categorical(dense: NDArray[np.float64], column: NDArray[np.float64], weights: Any) -> None:
    choices, which = np.unique(column.astype(np.int64), return_inverse=True)
    logs = np.log(np.ascontiguousarray(weights[:, choices].T))
    for row, choice in enumerate(which):
        dense[row] += logs[choice]


def _add_discrete(dense: NDArray[np.float64], column: NDArray[np.float64], distribution: Any) -> None:
    step = distribution.step
    values, which = np.unique(column, return_inverse=True)
    mus, sigmas, kernel = _unique_inverse_2d(distribution.mu, distribution.sigma)
    left, right = values - step / 2, values + step / 2
    if distribution.is_log:
        left, right = np.log(left), np.log(right)
    masses = _log_gauss_mass_unique(
        (left[:, np.newaxis] - mus) / sigmas, (right[:, np.newaxis] - mus) / sigmas
    )
    whole = _truncnorm._log_gauss_mass(
        (distribution.adapted_low - mus) / sigmas, (distribution.adapted_high - mus) / sigmas
    )[kernel]
    spread = masses[:, kernel]
    for row, value in enumerate(which):
        dense[row] += spread[value]
        dense[row] -= whole


def _add_continuous(dense: NDArray[np.float64], continuous: list[tuple[NDArray[np.float64], Any]]) -> None:
    mus = np.asarray([distribution.mu for _, distribution in continuous])
    sigmas = np.asarray([distribution.sigma for _, distribution in continuous])
    lows = np.asarray([[distribution.adapted_low] for _, distribution in continuous])
    highs = np.asarray([[distribution.adapted_high] for _, distribution in continuous])
    # One call for all dimensions, since how exact its erf is depends on how many it is asked for.
    masses = _truncnorm._log_gauss_mass((lows - mus) / sigmas, (highs - mus) / sigmas)
    scales = np.log(sigmas)
    columns = np.asarray([column for column, _ in continuous])
    if len(continuous) >= _PAIRWISE:
        terms = (columns.T[:, :, np.newaxis] - mus) / sigmas
        terms = -(terms**2) / 2.0 - _truncnorm._norm_pdf_logC - masses - scales
        dense += np.ascontiguousarray(terms.transpose(0, 2, 1)).sum(axis=-1)
        return
    term, total = np.empty(dense.shape[1]), np.empty(dense.shape[1])
    for row, candidate in enumerate(columns.T):
        for dimension, value in enumerate(candidate):
            out = term if dimension else total
            np.subtract(value, mus[dimension], out=out)
            out /= sigmas[dimension]
            np.multiply(out, out, out=out)
            out *= -0.5
            out -= _truncnorm._norm_pdf_logC
            out -= masses[dimension]
            out -= scales[dimension]
            if dimension:
                total += term
        dense[row] += total
