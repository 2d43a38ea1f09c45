"""The statistics against the truth: many simulated experiments with a known answer.

A rate found in n experiments is compared with its promise by a binomial bound: the promise and
`BOUND` standard errors of a rate of n, so that a correct program fails once in about 700 runs per
bound. Seeds are fixed; what is simulated goes through the same functions as a report. The unmarked
tests take about 10 s of CPU; the rest are `slow`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from search.compare.statistics.anytime import Traces, band
from search.compare.statistics.base import FloatArray, Interval, Sample
from search.compare.statistics.intervals import (
    mean,
    mean_difference,
    paired_superiority,
    superiority,
)
from search.compare.statistics.power import promise
from search.compare.statistics.targets import speed_up_over_random
from search.compare.statistics.verdict import PairResult, Rules, compare_pairs

BOUND = 3.0
"""Standard errors: one-sided chance 0.0013."""
RESAMPLES = 100
"""No claim depends on a bootstrap, so simulations of claims take few resamples."""


def above(rate: float, n: int) -> float:
    """The largest rate that n experiments may show if the true one is at most `rate`."""
    return rate + BOUND * math.sqrt(rate * (1 - rate) / n)


def below(rate: float, n: int) -> float:
    """The smallest rate that n experiments may show if the true one is at least `rate`."""
    return rate - BOUND * math.sqrt(rate * (1 - rate) / n)


def experiment(
    values_MR: FloatArray,
    pairs: list[tuple[str, str]] | None = None,
    *,
    paired: bool = True,
    resamples: int = RESAMPLES,
) -> tuple[PairResult, ...]:
    names = [f"m{i}" for i in range(len(values_MR))]
    samples = [
        Sample(name, dict(enumerate(row.tolist()))) for name, row in zip(names, values_MR, strict=True)
    ]
    rules = Rules(direction="maximize", smallest_difference=0.1, resamples=resamples)
    declared = list(itertools.combinations(names, 2)) if pairs is None else pairs
    return compare_pairs(samples, declared, rules, paired=paired)


def normal(rng: np.random.Generator, methods: int, replicates: int) -> FloatArray:
    """Half of the variance is the replicate's own, as with common splits and seeds."""
    return rng.normal(size=(methods, replicates)) + rng.normal(size=replicates)


def coarse(rng: np.random.Generator, methods: int, replicates: int) -> FloatArray:
    """Accuracies on 360 images near saturation: many ties, and zeros among differences."""
    return rng.binomial(360, 0.98, size=(methods, replicates)) / 360


def skewed(rng: np.random.Generator, methods: int, replicates: int) -> FloatArray:
    """Mostly good, sometimes far below, as when a study finds nothing."""
    return -(rng.exponential(size=(methods, replicates)) ** 2)


def mostly_equal(rng: np.random.Generator, methods: int, replicates: int) -> FloatArray:
    """Nine of ten replicates are exact ties."""
    return (rng.uniform(size=(methods, replicates)) < 0.05).astype(np.float64)


@pytest.mark.parametrize(
    ("draw", "replicates"),
    [
        (normal, 10),
        (coarse, 30),
        pytest.param(normal, 30, marks=pytest.mark.slow),
        pytest.param(coarse, 10, marks=pytest.mark.slow),
        pytest.param(skewed, 10, marks=pytest.mark.slow),
        pytest.param(skewed, 30, marks=pytest.mark.slow),
        pytest.param(mostly_equal, 10, marks=pytest.mark.slow),
        pytest.param(mostly_equal, 30, marks=pytest.mark.slow),
    ],
)
def test_identical_methods_are_told_apart_at_most_at_alpha(
    draw: Callable[[np.random.Generator, int, int], FloatArray], replicates: int
) -> None:
    """Three identical methods, three pairs, n = 500: any claim at all in at most 5 % of experiments.

    Bound: 0.05 + 3 √(0.05 · 0.95 / 500) = 0.079.
    """
    n = 500
    rng = np.random.default_rng(11)
    claims = sum(any(r.found for r in experiment(draw(rng, 3, replicates))) for _ in range(n))
    assert claims / n <= above(0.05, n)


def test_the_claims_on_identical_methods_are_not_simply_never_made() -> None:
    """One pair, n = 500: the exact test claims nearly at alpha (0.048 is the largest p ≤ 0.05 it can give).

    Bounds: 0.048 and 0.05 with 3 standard errors, 0.019 to 0.079.
    """
    n = 500
    rng = np.random.default_rng(12)
    claims = sum(experiment(normal(rng, 2, 10))[0].found for _ in range(n))
    assert below(0.048, n) <= claims / n <= above(0.05, n)


@pytest.mark.slow
@pytest.mark.parametrize("methods", [2, 5, 8])
def test_the_number_of_methods_adds_no_false_claims(methods: int) -> None:
    """Each against the first over 20 replicates, n = 500: any claim in at most 5 %, bound 0.079."""
    n = 500
    rng = np.random.default_rng(13)
    pairs = [("m0", f"m{i}") for i in range(1, methods)]
    claims = sum(any(r.found for r in experiment(normal(rng, methods, 20), pairs)) for _ in range(n))
    assert claims / n <= above(0.05, n)


@pytest.mark.slow
def test_arms_without_common_replicates_keep_alpha() -> None:
    """Mann and Whitney's test, n = 500, bound 0.079."""
    n = 500
    rng = np.random.default_rng(14)
    claims = sum(experiment(rng.normal(size=(2, 20)), paired=False)[0].found for _ in range(n))
    assert claims / n <= above(0.05, n)


def test_fewer_than_ten_replicates_never_claim_anything() -> None:
    rng = np.random.default_rng(15)
    for replicates in range(1, 10):
        values = rng.normal(size=(2, replicates)) + np.array([[100.0], [0.0]])
        assert experiment(values)[0].verdict == "too_few"


@pytest.mark.parametrize(
    ("replicates", "pairs"),
    [
        (10, 1),
        (30, 1),
        pytest.param(20, 1, marks=pytest.mark.slow),
        pytest.param(10, 3, marks=pytest.mark.slow),
        pytest.param(30, 3, marks=pytest.mark.slow),
    ],
)
def test_a_planted_difference_is_found_at_the_promised_power(replicates: int, pairs: int) -> None:
    """The difference that `promise` says is found with power 0.8, planted in n = 500 experiments.

    At least the promise, less 3 standard errors (0.746). At most 0.10 above it, with 3 standard
    errors: Noether's formula is cautious for few replicates, and Holm's later steps are easier than
    the first, which the promise counts on. Other pairs have no difference.
    """
    n = 500
    planted = promise(replicates, pairs=pairs, sd=1.0)
    assert planted.difference is not None
    rng = np.random.default_rng(16)
    declared = [("m0", f"m{i}") for i in range(1, pairs + 1)]
    found = 0
    for _ in range(n):
        # Differences have sd 1: the first method carries half a unit of variance, like the others.
        values = rng.normal(0, math.sqrt(0.5), (pairs + 1, replicates)) + rng.normal(size=replicates)
        values[1] -= planted.difference
        first = experiment(values, declared)[0]
        found += first.found and first.better == "m0"
    assert below(planted.power, n) <= found / n <= above(planted.power + 0.10, n)


@pytest.mark.slow
def test_unpaired_arms_keep_the_promise_too() -> None:
    """Mann and Whitney's test, for which the formula was made: 0.8 less 3 standard errors, to 0.9."""
    n = 500
    planted = promise(20, sd=math.sqrt(2))
    assert planted.difference is not None
    rng = np.random.default_rng(17)
    found = 0
    for _ in range(n):
        values = rng.normal(size=(2, 20)) + np.array([[planted.difference], [0.0]])
        found += experiment(values, paired=False)[0].better == "m0"
    assert below(planted.power, n) <= found / n <= above(planted.power + 0.10, n)


@pytest.mark.slow
def test_the_power_at_the_published_number_of_replicates() -> None:
    """29 replicates find P = 0.75 with power 0.95 one-sidedly (two-sided alpha 0.10), n = 1,000."""
    n = 1000
    rng = np.random.default_rng(18)
    difference = stats.norm.ppf(0.75)
    p = [experiment(np.stack([rng.normal(difference, 1, 29), np.zeros(29)]))[0].test for _ in range(n)]
    found = np.mean([test is not None and test.p_value <= 0.10 and test.side > 0 for test in p])
    assert below(0.95, n) <= found <= 0.99


@pytest.mark.slow
def test_equivalence_is_claimed_wrongly_in_at_most_one_of_twenty() -> None:
    """The true difference is exactly the smallest that matters, R = 10, n = 500: 5 %, bound 0.079.

    The interval's own promise is 2.5 % at each end.
    """
    n = 500
    rng = np.random.default_rng(19)
    wrong = 0
    for _ in range(n):
        values = np.stack([rng.normal(0.1, 0.05, 10), np.zeros(10)])
        wrong += experiment(values, resamples=999)[0].verdict in {"equivalent", "negligible"}
    assert wrong / n <= above(0.05, n)


def covered(interval: Callable[[int], Interval], truth: float, n: int) -> float:
    hits = 0
    for seed in range(n):
        found = interval(seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / n


@pytest.mark.parametrize("replicates", [10, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("paired", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_intervals_of_the_difference_cover(replicates: int, paired: bool) -> None:
    """Normal values, n = 700: a true coverage of at least 93 % shows at least 0.901."""
    n = 700
    rng = np.random.default_rng(20)

    def interval(seed: int) -> Interval:
        a, b = rng.normal(0.3, 1, replicates), rng.normal(0, 1, replicates)
        return mean_difference(a, b, paired=paired, resamples=499, seed=seed)

    assert covered(interval, 0.3, n) >= below(0.93, n)


@pytest.mark.slow
def test_intervals_of_a_skewed_mean_cover_a_little_less() -> None:
    """Exponential values at R = 10, n = 700: 91 to 92 % is what any bootstrap of 10 such values gives."""
    n = 700
    rng = np.random.default_rng(21)
    found = covered(lambda seed: mean(rng.exponential(size=10), resamples=499, seed=seed), 1.0, n)
    assert below(0.90, n) <= found <= above(0.95, n)


@pytest.mark.parametrize("replicates", [10, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("truth", [0.75, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.5, 0.95))])
def test_intervals_of_superiority_cover(replicates: int, truth: float) -> None:
    """Both forms, n = 700 each: a true coverage of at least 93 % shows at least 0.901."""
    n = 700
    rng = np.random.default_rng(22)
    shift = stats.norm.ppf(truth)
    zeros = np.zeros(replicates)

    def of_paired(seed: int) -> Interval:
        return paired_superiority(rng.normal(shift, 1, replicates), zeros, resamples=499, seed=seed)

    def of_all_pairs(seed: int) -> Interval:
        a, b = rng.normal(shift * math.sqrt(2), 1, replicates), rng.normal(size=replicates)
        return superiority(a, b, paired=False, resamples=499, seed=seed)

    assert covered(of_paired, truth, n) >= below(0.93, n)
    assert covered(of_all_pairs, truth, n) >= below(0.93, n)


def test_bands_of_the_median_cover() -> None:
    """The median of 31 normal values at 600 positions, each an experiment: at least 93 %, shown 0.899."""
    values = np.random.default_rng(23).normal(size=(31, 600))
    found = band(Traces(np.arange(600.0), values), resamples=499)
    assert found.low is not None
    assert found.high is not None
    inside = (found.low <= 0) & (found.high >= 0)
    assert inside.mean() >= below(0.93, 600)


@pytest.mark.slow
@pytest.mark.parametrize("length", [200, 20])
def test_the_interval_of_the_speed_up_covers(length: int) -> None:
    """A method that is random search with twice the trials, n = 500: its speed-up is 2.

    Trials are uniform, so after k trials the best has median 2^(−1/k), and 20 of the method's trials
    are 40 of random's. At least 93 % of intervals hold 2: shown at least 0.896. Random search is run ten
    times as long as the method, or as long, where the speed-up is told at random's end.
    """
    n = 500
    rng = np.random.default_rng(24)
    axis = np.arange(1.0, 201.0)
    hits = 0
    for seed in range(n):
        random = Traces(axis[:length], np.maximum.accumulate(rng.uniform(size=(30, length)), axis=1))
        best = np.maximum.accumulate(rng.uniform(size=(30, 40)), axis=1)[:, 1::2]
        found = speed_up_over_random(
            best[:, -1],
            random,
            20,
            "maximize",
            paired=False,
            method=Traces(axis[:20], best),
            resamples=499,
            seed=seed,
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low.value <= 2 and (found.high.bound == "at_least" or found.high.value >= 2)
    assert hits / n >= below(0.93, n)
