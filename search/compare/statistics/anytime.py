"""Best so far against a budget: step curves, bands over replicates, areas, equal-budget cuts.

A curve belongs to one study. Its axis is whatever the trials' costs were given in: 1 a trial, the
epochs trained, or seconds. A trial counts when it ends, so the curve is a step function that takes
its new value at the end of the trial that found it, and it has no value before the first eligible
trial ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.compare.base import Direction
from search.compare.statistics.base import FloatArray, Sample, finite, number
from search.compare.statistics.intervals import LEVEL, expanded_level

BAND_RESAMPLES = 1_999
"""A band is many intervals; 1,999 resamples place each end within about a tenth of its width."""
_CHUNK = 2_000_000
"""Numbers held at a time while a band is resampled."""


@dataclass(frozen=True, slots=True, eq=False)
class StepCurve:
    """A study's best value so far; `values[i]` holds from `positions[i]` until the next position."""

    positions: FloatArray
    """Budget spent, strictly increasing; the first is the end of the first eligible trial."""
    values: FloatArray
    end: float
    """Budget spent in all; the curve says nothing beyond it."""

    def __post_init__(self) -> None:
        """Refuse what isn't a best-so-far curve."""
        positions, values = finite(self.positions, "positions"), finite(self.values, "values")
        if positions.size != values.size:
            raise ValueError(f"{positions.size} positions can't have {values.size} values.")
        if (np.diff(positions) <= 0).any() or not positions[-1] <= self.end < np.inf:
            raise ValueError("Positions must increase strictly, and the curve must end at or after the last.")
        steps = np.diff(values)
        if (steps > 0).any() and (steps < 0).any():
            raise ValueError("A best-so-far curve never gets worse.")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "values", values)

    @property
    def start(self) -> float:
        """The budget spent when the curve begins."""
        return number(self.positions[0])

    def at(self, position: float) -> float | None:
        """The value after so much budget; None before the curve begins and after it ends."""
        if not self.start <= position <= self.end:
            return None
        return number(self.values[np.searchsorted(self.positions, position, side="right") - 1])

    def until(self, position: float) -> StepCurve:
        """The curve up to a position at which it has a value, as if the study had ended there."""
        kept = self.positions <= position
        return StepCurve(self.positions[kept], self.values[kept], min(position, self.end))

    def reached(self, target: float, direction: Direction) -> float | None:
        """The budget at which the curve is first as good as the target; None if it never is."""
        good = self.values >= target if direction == "maximize" else self.values <= target
        return number(self.positions[np.argmax(good)]) if good.any() else None


def best_so_far(
    values_N: ArrayLike,
    costs_N: ArrayLike,
    direction: Direction,
    eligible_N: ArrayLike | None = None,
) -> StepCurve | None:
    """The curve of a study's trials in the order in which they ended; None if none is eligible.

    Costs of all trials count, those of pruned and failed ones too; only eligible trials' values do,
    so those of others may be anything, NaN included. Trials that cost nothing share a position with
    the one before. Raises ValueError for an eligible trial without a finite value, and for costs
    below 0.
    """
    values, costs = np.asarray(values_N, dtype=np.float64), finite(costs_N, "costs")
    if values.shape != costs.shape:
        raise ValueError(f"{values.size} values can't have {costs.size} costs.")
    if (costs < 0).any():
        raise ValueError("A trial can't cost less than nothing.")
    eligible = np.ones(values.shape, bool) if eligible_N is None else np.asarray(eligible_N, dtype=bool)
    if eligible.shape != values.shape:
        raise ValueError(f"{values.size} values can't have {eligible.size} marks of eligibility.")
    if not eligible.any():
        return None
    spent = np.cumsum(costs)
    best = finite(values[eligible], "values of eligible trials")
    best = np.maximum.accumulate(best) if direction == "maximize" else np.minimum.accumulate(best)
    positions = spent[eligible]
    last_of_position = np.append(np.diff(positions) > 0, True)
    return StepCurve(positions[last_of_position], best[last_of_position], number(spent[-1]))


@dataclass(frozen=True, slots=True, eq=False)
class Traces:
    """Several replicates' curves on one axis, whose positions increase strictly."""

    axis: FloatArray
    values: FloatArray
    """One row per replicate, one column per position."""

    def __post_init__(self) -> None:
        """Refuse an axis that doesn't increase, or doesn't fit the values."""
        axis, values = finite(self.axis, "axis"), finite(self.values, "traces", dimensions=2)
        if values.shape[1] != axis.size or (np.diff(axis) <= 0).any():
            raise ValueError(f"{values.shape[1]} columns need as many increasing positions.")
        object.__setattr__(self, "axis", axis)
        object.__setattr__(self, "values", values)

    @property
    def replicates(self) -> int:
        """How many curves there are."""
        return int(self.values.shape[0])


def align(curves: Sequence[StepCurve], axis_T: ArrayLike | None = None) -> Traces | None:
    """The curves on one axis: that given, or every position at which one of them moves.

    The axis runs from where the last curve has begun to where the first one ends; None if there is
    no such stretch. Raises ValueError for no curve and for an axis beyond that stretch.
    """
    if not curves:
        raise ValueError("No curve to align.")
    start, end = max(curve.start for curve in curves), min(curve.end for curve in curves)
    if start > end:
        return None
    if axis_T is None:
        moves = np.unique(np.concatenate([curve.positions for curve in curves] + [np.array([start, end])]))
        axis = moves[(moves >= start) & (moves <= end)]
    else:
        axis = finite(axis_T, "axis")
        if axis.min() < start or axis.max() > end:
            raise ValueError(f"All curves have values from {start:g} to {end:g} only.")
    rows = [c.values[np.searchsorted(c.positions, axis, side="right") - 1] for c in curves]
    return Traces(axis, np.array(rows))


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Per position of the axis: median over replicates, the middle half, the median's own interval."""

    axis: FloatArray
    median: FloatArray
    low_quartile: FloatArray
    high_quartile: FloatArray
    low: FloatArray | None
    """Ends of the median's percentile interval, bootstrapped over replicates, expanded; None for one."""
    high: FloatArray | None
    level: float


def band(traces: Traces, *, level: float = LEVEL, resamples: int = BAND_RESAMPLES, seed: int = 0) -> Band:
    """What a figure of anytime curves draws. Each position has its own interval of the stated level."""
    values = traces.values
    low_quartile, median, high_quartile = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
    low = high = None
    if traces.replicates > 1:
        low, high = _median_ends(values, level, resamples, seed)
    return Band(traces.axis, median, low_quartile, high_quartile, low, high, level)


def _median_ends(
    values_RT: FloatArray, level: float, resamples: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """The ends of the median's interval, a few positions at a time to bound memory."""
    replicates, positions = values_RT.shape
    wanted = expanded_level(level, replicates)
    # In an order of their own, so that naming another replicate the first changes nothing.
    values = values_RT[np.lexsort(values_RT.T)]
    generator = np.random.default_rng(seed)
    drawn: NDArray[np.intp] = generator.integers(replicates, size=(resamples, replicates))
    ends = np.empty((2, positions))
    width = max(1, _CHUNK // drawn.size)
    for first in range(0, positions, width):
        part = slice(first, first + width)
        medians = np.median(values[:, part][drawn], axis=1)
        ends[:, part] = np.quantile(medians, ((1 - wanted) / 2, (1 + wanted) / 2), axis=0)
    return ends[0], ends[1]


def anytime_area(curve: StepCurve, *, start: float, end: float) -> float:
    """The mean height of the curve from `start` to `end`: its step integral over its length.

    Compare curves over the same stretch only: from where the last one begins to the common budget.
    Raises ValueError if the curve doesn't cover the stretch.
    """
    if not curve.start <= start < end <= curve.end:
        raise ValueError(f"The curve covers {curve.start:g} to {curve.end:g}, not {start:g} to {end:g}.")
    inside = curve.positions[(curve.positions > start) & (curve.positions < end)]
    edges = np.concatenate(([start], inside, [end]))
    heights = curve.values[np.searchsorted(curve.positions, edges[:-1], side="right") - 1]
    return number((heights * np.diff(edges)).sum() / (end - start))


@dataclass(frozen=True, slots=True)
class Cut:
    """A method's values after the same share of the budget in every replicate."""

    fraction: float
    position: float
    values: Mapping[int, float]
    """By replicate; those without a value there are left out."""
    missing: tuple[int, ...]
    """Replicates that had no eligible trial by then, or never spent so much."""

    def sample(self, method: str) -> Sample | None:
        """The values as a sample to compare; None if every replicate is missing."""
        return Sample(method, self.values) if self.values else None


def cuts(
    curves: Mapping[int, StepCurve | None],
    budget: float,
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
) -> tuple[Cut, ...]:
    """Each replicate's best value at fractions of one budget; a curve may be None (no eligible trial)."""
    if not 0 < budget < np.inf or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError("A budget is positive and finite; fractions of it lie above 0 and up to 1.")
    found = []
    for fraction in fractions:
        position = fraction * budget
        at = {r: None if curve is None else curve.at(position) for r, curve in sorted(curves.items())}
        values = {replicate: value for replicate, value in at.items() if value is not None}
        missing = tuple(replicate for replicate in at if replicate not in values)
        found.append(Cut(fraction, position, values, missing))
    return tuple(found)
