"""What the statistics take and give: samples over replicates, intervals, and how ties are seen.

Everything in this package is a pure function of numbers. A value belongs to one *replicate* of one
*method*; replicates are independent of each other, trials within a study aren't, so nothing here
ever treats trials as replicates (random trials in `expected_best` are the one exception).

Letters in names of arrays: R replicates of a method, S those of another, T positions on a budget
axis, N trials, B blocks (datasets), M methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.compare.base import Direction

FloatArray: TypeAlias = NDArray[np.float64]

DIGITS = 12
"""Values that agree to this many digits are tied: sums in another order differ in the 16th."""

IntervalKind: TypeAlias = Literal["bca", "percentile", "clopper_pearson", "wilson", "constant", "none"]
"""How an interval was found; `constant`: all values are equal, so it has no width; `none`: one value."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; `low` and `high` are None if there can be none."""

    estimate: float
    low: float | None
    high: float | None
    level: float
    kind: IntervalKind

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies within ± margin, ends included."""
        return self.low is not None and self.high is not None and -margin <= self.low and self.high <= margin

    def complement(self) -> Interval:
        """The interval of one minus the quantity: P(B > A) from P(A > B)."""
        low = None if self.high is None else 1 - self.high
        high = None if self.low is None else 1 - self.low
        return Interval(1 - self.estimate, low, high, self.level, self.kind)


@dataclass(frozen=True, slots=True)
class Sample:
    """One method's value in each replicate, in the metric's own unit.

    Raises ValueError for no replicate and for NaN or infinity: a failed or diverged trial must have
    been given its meaning (left out, or the metric's worst value) before it comes here.
    """

    method: str
    values: Mapping[int, float]

    def __post_init__(self) -> None:
        """Check the values and keep a copy that nobody can change."""
        if not self.values:
            raise ValueError(f"The method '{self.method}' has no replicate.")
        bad = sorted(replicate for replicate, value in self.values.items() if not math.isfinite(value))
        if bad:
            raise ValueError(f"The method '{self.method}' has no finite value in replicates {bad}.")
        ordered = {int(replicate): float(self.values[replicate]) for replicate in sorted(self.values)}
        object.__setattr__(self, "values", MappingProxyType(ordered))

    @property
    def array(self) -> FloatArray:
        """The values in the order of replicates."""
        return np.array(list(self.values.values()), dtype=np.float64)


def paired_arrays(a: Sample, b: Sample) -> tuple[FloatArray, FloatArray]:
    """Both methods' values in the replicates that both have, in the same order; may be empty."""
    both = sorted(a.values.keys() & b.values.keys())
    return np.array([a.values[r] for r in both]), np.array([b.values[r] for r in both])


def finite(values: ArrayLike, what: str, *, dimensions: int = 1) -> FloatArray:
    """The values as an array of floats.

    Raises ValueError for a wrong number of dimensions, no value, NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions:
        raise ValueError(f"{what}: {dimensions} dimensions are wanted, there are {array.ndim}.")
    if array.size == 0:
        raise ValueError(f"{what}: no value.")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {int((~np.isfinite(array)).sum())} values are NaN or infinite.")
    return array


def pair(a_R: ArrayLike, b_R: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Two arrays paired by position, checked and rounded so that equal values are equal."""
    a, b = two(a_R, b_R)
    if a.shape != b.shape:
        raise ValueError(f"Paired values must be as many: {a.size} and {b.size}.")
    return a, b


def two(a_R: ArrayLike, b_S: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Two arrays, checked and rounded to `DIGITS` digits of the largest magnitude in either."""
    a, b = finite(a_R, "first values"), finite(b_S, "second values")
    decimals = _decimals(max(float(np.abs(a).max()), float(np.abs(b).max())))
    return np.round(a, decimals), np.round(b, decimals)


def differences(a_R: ArrayLike, b_R: ArrayLike) -> FloatArray:
    """d_r = a_r − b_r in ascending order, with rounding noise removed.

    Ascending, because which replicate is called the first must not move a seeded bootstrap.
    """
    a, b = pair(a_R, b_R)
    decimals = _decimals(max(float(np.abs(a).max()), float(np.abs(b).max())))
    return np.asarray(np.sort(np.round(a - b, decimals) + 0.0), dtype=np.float64)


def _decimals(magnitude: float) -> int:
    """How many decimals keep `DIGITS` digits of a number; numpy can't take more than about 300."""
    if magnitude == 0:
        return DIGITS
    return min(300, DIGITS - 1 - math.floor(math.log10(magnitude)))


def larger_is_better(values: ArrayLike, direction: Direction) -> FloatArray:
    """The values with the sign turned if smaller ones are better."""
    array = np.asarray(values, dtype=np.float64)
    return array if direction == "maximize" else -array


def number(value: Any) -> float:
    """A plain float out of scipy's untyped results."""
    return float(value)
