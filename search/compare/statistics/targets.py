"""How soon a method reaches a target, when some studies never do; and what a trial is worth.

A study that didn't reach the target within its budget is *right-censored*: its time is known to be
more than the budget, no more. Such times are never put into a mean as if they were the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from search.compare.base import Direction
from search.compare.statistics.anytime import StepCurve, Traces
from search.compare.statistics.base import FloatArray, Interval, finite, larger_is_better, number
from search.compare.statistics.intervals import LEVEL, RESAMPLES


def default_target(random_final_R: ArrayLike) -> float:
    """The target when none is declared: the median of random search's final values (validation)."""
    return number(np.median(finite(random_final_R, "random search's final values")))


@dataclass(frozen=True, slots=True)
class TargetTimes:
    """Per replicate, the budget at which the target was reached, or spent in vain."""

    target: float
    times: tuple[float, ...]
    reached: tuple[bool, ...]

    @property
    def n(self) -> int:
        """How many replicates there are."""
        return len(self.times)

    @property
    def successes(self) -> int:
        """How many of them reached the target."""
        return sum(self.reached)


def time_to_target(
    curves: Sequence[StepCurve | None], target: float, budget: float, direction: Direction
) -> TargetTimes:
    """T_r = the first budget at which replicate r's best is as good as the target, censored at `budget`.

    A study that ended before the budget is censored where it ended; one without an eligible trial
    (None) at the budget. Raises ValueError for no curve, or a target that isn't finite.
    """
    if not curves:
        raise ValueError("No curve to look for a target on.")
    if not np.isfinite([target, budget]).all():
        raise ValueError("The target and the budget must be finite.")
    times, reached = [], []
    for curve in curves:
        time = None if curve is None else curve.reached(target, direction)
        success = time is not None and time <= budget
        spent = budget if curve is None else min(budget, curve.end)
        times.append(time if success and time is not None else spent)
        reached.append(success)
    return TargetTimes(target, tuple(times), tuple(reached))


@dataclass(frozen=True, slots=True)
class Survival:
    """Kaplan and Meier's estimate of the share of studies that haven't reached the target yet.

    A step function: `not_reached[i]` holds from `at[i]` until the next; it begins with 1 at 0.
    """

    at: tuple[float, ...]
    not_reached: tuple[float, ...]
    median: float | None
    """The budget by which half the studies reach the target; None if fewer than half do."""


def kaplan_meier(times: TargetTimes) -> Survival:
    """S(t) = Π over reaching times t_i ≤ t of (1 − d_i / n_i), by `scipy.stats.ecdf`."""
    values, reached = np.array(times.times), np.array(times.reached)
    estimate = stats.ecdf(stats.CensoredData(uncensored=values[reached], right=values[~reached])).sf
    at = (0.0, *(number(t) for t in estimate.quantiles))
    shares = (1.0, *(number(p) for p in estimate.probabilities))
    # 1e-12: a share of exactly one half may come out of the product a rounding error above it.
    median = next((t for t, share in zip(at, shares, strict=True) if share <= 0.5 + 1e-12), None)
    return Survival(at, shares, median)


def expected_running_time(times: TargetTimes) -> float | None:
    """ERT: the budget spent by all replicates, up to success, per success (Hansen et al. 2010).

    What restarting until success would cost on average. None if no replicate reached the target.
    """
    return None if times.successes == 0 else float(np.sum(times.times)) / times.successes


def success_rate(times: TargetTimes, *, level: float = LEVEL) -> Interval:
    """The share of replicates that reached the target, with Wilson's (1927) interval."""
    ends = stats.binomtest(times.successes, times.n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(times.successes / times.n, number(ends.low), number(ends.high), level, "wilson")


Bound: TypeAlias = Literal["exact", "at_least", "at_most"]
"""Whether a ratio is known, or only that it is so much or more, or so much or less."""

_WORDS: dict[Bound, str] = {"exact": "×", "at_least": "at least ×", "at_most": "at most ×"}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio, or a bound of it."""

    value: float
    bound: Bound = "exact"

    def __str__(self) -> str:
        """`×1.8`, `at least ×4`: a bound is never written as a number."""
        return f"{_WORDS[self.bound]}{self.value:.3g}"


@dataclass(frozen=True, slots=True)
class SpeedUp:
    """How many random trials one of the method's trials is worth."""

    ratio: Ratio
    low: Ratio | None
    high: Ratio | None
    """Ends of the percentile bootstrap interval; None with a single replicate on either side."""
    level: float

    @property
    def interval(self) -> str:
        """`×1.2 to at least ×4`; one bound where both ends are the same; empty without an interval."""
        if self.low is None or self.high is None:
            return ""
        return str(self.low) if self.low == self.high else f"{self.low} to {self.high}"

    def __str__(self) -> str:
        """`×1.8 (×1.2 to at least ×4)`; the ratio alone where both ends are the same as it."""
        return (
            str(self.ratio) if self.interval in {"", str(self.ratio)} else f"{self.ratio} ({self.interval})"
        )


def speed_up_over_random(
    method_final_R: ArrayLike,
    random: Traces,
    budget: float,
    direction: Direction,
    *,
    paired: bool,
    method: Traces | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> SpeedUp:
    """The budget at which random's median trace is as good as the method's median at `budget`, over `budget`.

    `random` holds random search's traces on the same axis, as far as they were run. A ratio below 1 says
    that random search was faster. Where random never gets so far, as in a run of equal budgets, the same is
    asked of random's own final median: its budget, over the one at which the median trace of `method` is as
    good. Without `method`'s traces, of the same studies as the final values, it is "at least ×x", with x the
    budgets that random was run for. What a method's first position has already is told as a bound as well:
    the ratio is "at most" random's first position over `budget`, or "at least" its last one over the
    method's first. `paired`: row r of the traces is the method's replicate r, and both are resampled
    together; else each by itself.

    Raises ValueError for NaN, a budget that isn't positive, and rows that don't match.
    """
    final = larger_is_better(finite(method_final_R, "final values"), direction)
    traces = larger_is_better(random.values, direction)
    own = None if method is None else larger_is_better(method.values, direction)
    _check_race(final, traces, own, budget, paired=paired)
    # In an order of their own, so that naming another replicate the first changes nothing.
    keys = [] if own is None else [*own.T]
    order = np.lexsort((*traces.T, *keys, final)) if paired else np.lexsort(traces.T)
    order_of_final = order if paired else np.lexsort((*keys, final))
    race = _Race(
        budget,
        final[order_of_final],
        Traces(random.axis, traces[order]),
        None if method is None or own is None else Traces(method.axis, own[order_of_final]),
    )
    of_final, of_random = np.arange(final.size)[None], np.arange(random.replicates)[None]
    (value,), (bound,) = race.ratios(of_final, of_random)
    estimate = race.told(number(value), str(bound))
    if min(final.size, random.replicates) == 1:
        return SpeedUp(estimate, None, None, level)
    generator = np.random.default_rng(seed)
    of_random = generator.integers(random.replicates, size=(resamples, random.replicates))
    of_final = of_random if paired else generator.integers(final.size, size=(resamples, final.size))
    values, bounds = race.ratios(of_final, of_random)
    # No interpolation: between a number and infinity there is nothing.
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2), method="inverted_cdf")
    ends = [race.told(number(end), str(bounds[np.argmax(values == end)])) for end in (low, high)]
    return SpeedUp(estimate, ends[0], ends[1], level)


def _check_race(
    final: FloatArray, traces: FloatArray, own: FloatArray | None, budget: float, *, paired: bool
) -> None:
    """Raises ValueError as `speed_up_over_random` says; larger values are better here."""
    if not 0 < budget < np.inf:
        raise ValueError(f"A budget is positive and finite, not {budget}.")
    if any((np.diff(values, axis=1) < 0).any() for values in (traces, own) if values is not None):
        raise ValueError("Traces must be best so far.")
    if paired and final.size != len(traces):
        raise ValueError(f"Paired replicates must be as many: {final.size} and {len(traces)}.")
    if own is not None and not np.array_equal(own[:, -1], final):
        raise ValueError("The method's traces must end at its final values.")


@dataclass(frozen=True, slots=True)
class _Race:
    """A method against random search; larger values are better."""

    budget: float
    final: FloatArray
    """The method's, by replicate."""
    random: Traces
    own: Traces | None
    """The method's traces, of the same replicates as `final`."""

    def ratios(
        self, rows_of_final: NDArray[np.intp], rows_of_random: NDArray[np.intp]
    ) -> tuple[FloatArray, NDArray[np.str_]]:
        """Per resample, the ratio and how it is known; infinite where nothing but a bound is known."""
        medians = np.median(self.final[rows_of_final], axis=1)
        found = _first_as_good(medians, self.random.values, rows_of_random)
        values = np.append(self.random.axis, np.inf)[found] / self.budget
        beyond = np.isinf(values)
        bounds = np.where(found == 0, "at_most", np.where(beyond, "at_least", "exact"))
        if self.own is not None and beyond.any():
            ends = np.median(self.random.values[rows_of_random[beyond], -1], axis=1)
            first = _first_as_good(ends, self.own.values, rows_of_final[beyond])
            values[beyond] = self.random.axis[-1] / self.own.axis[first]
            bounds[beyond] = np.where(first == 0, "at_least", "exact")
        return values, bounds

    def told(self, ratio: float, bound: str) -> Ratio:
        """A ratio in words; of an infinite one how often random search's budget is the method's."""
        if np.isinf(ratio):
            return Ratio(number(self.random.axis[-1]) / self.budget, "at_least")
        return Ratio(ratio, cast("Bound", bound))


def _first_as_good(
    wanted_B: FloatArray, traces_RT: FloatArray, rows_BR: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Per resample, the first position whose median trace is at least `wanted`; T if none is.

    The median of traces that never fall never falls, so bisection finds it in log2 T medians.
    """
    positions = traces_RT.shape[1]
    low = np.zeros(wanted_B.size, dtype=np.intp)
    high = np.full(wanted_B.size, positions, dtype=np.intp)
    while (low < high).any():
        middle = (low + high) // 2
        medians = np.median(traces_RT[rows_BR, np.minimum(middle, positions - 1)[:, None]], axis=1)
        good = (medians >= wanted_B) & (low < high)
        high = np.where(good, middle, high)
        low = np.where(~good & (low < high), middle + 1, low)
    return low
