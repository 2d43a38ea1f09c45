"""How the value depends on one dimension, and where trials diverge: means and shares per bin.

Random search draws each dimension independently of the others, so the mean over a bin's trials is
the partial dependence at that bin itself: no model stands between. Beside it stands the bin's best
decile, for a mean over all trials is mostly a mean over poor values of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.compare.learned.arm import Arm, interval, resampled_weights
from search.compare.space import SpaceAxis
from search.compare.statistics.base import FloatArray, Interval, number

DECILE = 0.9
"""The share of a bin's trials that its best decile is better than."""
FOR_A_DECILE = 10
"""A bin with fewer trials has no best decile."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One level or bin of a dimension."""

    part: str
    trials: int
    mean: Interval | None
    """Of the values; None for an empty bin."""
    decile: float | None
    """What the best tenth of the trials reach at least."""
    diverged: Interval | None
    """The share of trials that diverged."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """One dimension's bins."""

    axis: SpaceAxis
    bins: tuple[Bin, ...]


def dependence_on(arm: Arm, axis: SpaceAxis) -> Dependence:
    """Mean, best decile and share of diverged trials in every level or bin."""
    parts = arm.parts(axis)
    weights = resampled_weights(arm)
    bins = []
    for k, name in enumerate(axis.parts):
        member = np.flatnonzero(parts == k)
        if member.size == 0:
            bins.append(Bin(name, 0, None, None, None))
            continue
        decile = None
        if member.size >= FOR_A_DECILE:
            decile = number(np.quantile(arm.gain[member], DECILE))
            decile = decile if arm.direction == "maximize" else -decile
        mean = _mean(arm, arm.values, member, weights)
        diverged = _mean(arm, arm.diverged.astype(np.float64), member, weights)
        bins.append(Bin(name, int(member.size), mean, decile, diverged))
    return Dependence(axis, tuple(bins))


def diverged_map(arm: Arm, x: SpaceAxis, y: SpaceAxis) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Counts of all trials and of diverged ones per cell: rows are parts of `y`, columns parts of `x`."""
    shape = (len(y.parts), len(x.parts))
    everyone, diverged = np.zeros(shape, dtype=np.intp), np.zeros(shape, dtype=np.intp)
    of_x, of_y = arm.parts(x), arm.parts(y)
    has = (of_x >= 0) & (of_y >= 0)
    np.add.at(everyone, (of_y[has], of_x[has]), 1)
    has &= arm.diverged
    np.add.at(diverged, (of_y[has], of_x[has]), 1)
    return everyone, diverged


def _mean(arm: Arm, values: FloatArray, member: NDArray[np.intp], weights_BR: FloatArray) -> Interval:
    """The mean over the members with an interval that resamples replicates whole."""
    count = len(arm.replicates)
    sums = np.bincount(arm.replicate[member], weights=values[member], minlength=count)
    sizes = np.bincount(arm.replicate[member], minlength=count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights_BR @ sums) / (weights_BR @ sizes)
    return interval(number(values[member].mean()), drawn, count)
