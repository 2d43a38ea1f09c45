"""Bootstrap intervals: known values, degenerate values, and what must not move them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from search.compare.statistics.base import Interval
from search.compare.statistics.intervals import (
    describe,
    expanded_level,
    mean,
    mean_difference,
    paired_superiority,
    superiority,
)

RNG = np.random.default_rng(5)
A = 0.9 + RNG.normal(0, 0.01, 30)
B = 0.89 + RNG.normal(0, 0.01, 30)
small = st.lists(st.integers(0, 4).map(lambda i: i / 4), min_size=2, max_size=8)


def ends(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def test_expansion_is_that_of_hesterberg() -> None:
    """t_9 at 0.975 is 2.262157; times √(10/9) it is 2.384526, whose normal tail is 0.008551."""
    assert expanded_level(0.95, 10) == pytest.approx(1 - 2 * 0.008551, abs=2e-6)
    assert expanded_level(0.95, 100_000) == pytest.approx(0.95, abs=1e-5)
    assert expanded_level(0.95, 2) < 1


def test_the_interval_is_scipys_bca_at_the_expanded_level() -> None:
    found = mean_difference(A, B, seed=3)
    theirs = stats.bootstrap(
        (np.sort(A - B),),
        np.mean,
        n_resamples=9_999,
        confidence_level=expanded_level(0.95, 30),
        method="BCa",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found.kind == "bca"
    assert found.estimate == pytest.approx((A - B).mean())
    assert ends(found) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_agrees_with_students_on_normal_values() -> None:
    theirs = stats.ttest_1samp(A - B, 0).confidence_interval(0.95)
    low, high = ends(mean_difference(A, B))
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))


def test_pairing_removes_what_replicates_share() -> None:
    shared = RNG.normal(0, 1, 30)
    paired = ends(mean_difference(A + shared, B + shared))
    unpaired = ends(mean_difference(A + shared, B + shared, paired=False))
    assert paired[1] - paired[0] < 0.1 * (unpaired[1] - unpaired[0])


def test_arms_that_share_replicates_are_resampled_together() -> None:
    shared = RNG.normal(0, 0.02, 30)
    together = ends(superiority(A + shared, B + shared, paired=True))
    apart = ends(superiority(A + shared, B + shared, paired=False))
    assert together[1] - together[0] < 0.8 * (apart[1] - apart[0])


@pytest.mark.parametrize("paired", [True, False])
def test_constant_values_give_an_interval_without_width(paired: bool) -> None:
    found = mean_difference([0.3] * 12, [0.1] * 12, paired=paired)
    assert (found.kind, found.estimate) == ("constant", pytest.approx(0.2))
    assert ends(found) == pytest.approx((0.2, 0.2))


def test_one_outlier_among_equal_values_warns_of_nothing() -> None:
    for values in ([0.0] * 9 + [1.0], [0.0, 1.0], [0.0, 0.0, 1e-9]):
        low, high = ends(mean(values))
        assert min(values) <= low <= np.mean(values) <= high <= max(values)


def test_where_bca_is_undefined_the_percentiles_of_the_same_resamples_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Undefined:
        confidence_interval = stats.bootstrap(
            ([0.0, 1.0],), np.mean, n_resamples=9
        ).confidence_interval._replace(low=np.nan)
        bootstrap_distribution = np.linspace(0.0, 1.0, 1001)

    monkeypatch.setattr(stats, "bootstrap", lambda *args, **kwargs: Undefined)
    found = mean(A)
    level = expanded_level(0.95, 30)
    assert found.kind == "percentile"
    assert ends(found) == pytest.approx(((1 - level) / 2, (1 + level) / 2))


@pytest.mark.parametrize(
    "interval",
    [
        lambda: mean([0.9]),
        lambda: mean_difference([0.9], [0.8]),
        lambda: mean_difference([0.9], [0.8, 0.7], paired=False),
        lambda: paired_superiority([0.9], [0.8]),
        lambda: superiority([0.9], [0.8], paired=True),
        lambda: superiority([0.9, 1.0], [0.8], paired=False),
    ],
)
def test_one_replicate_has_an_estimate_and_no_interval(interval: Callable[[], Interval]) -> None:
    found = interval()
    assert (found.low, found.high, found.kind) == (None, None, "none")
    assert found.estimate > 0


@pytest.mark.parametrize("function", [mean_difference, paired_superiority])
def test_nan_is_refused(function: Callable[..., Interval]) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        function([0.9, np.nan], [0.8, 0.7])
    with pytest.raises(ValueError, match="NaN or infinite"):
        superiority([0.9, 0.8], [np.inf, 0.7], paired=False)


def test_superiority_counts_wins_and_half_of_ties() -> None:
    """Within replicates: win, tie, loss, win. Over all 16 pairs: a beats b in 10 and ties in 1."""
    a, b = [4.0, 2.0, 1.0, 5.0], [3.0, 2.0, 3.5, 0.0]
    assert paired_superiority(a, b).estimate == 2.5 / 4
    wins = sum(x > y for x in a for y in b)
    ties = sum(x == y for x in a for y in b)
    assert (wins, ties) == (10, 1)
    assert superiority(a, b, paired=True).estimate == (10 + 0.5) / 16
    assert superiority(a, b, paired=False).estimate == stats.mannwhitneyu(a, b).statistic / 16


@given(small, small)
@settings(max_examples=50)
def test_the_two_sides_add_up_to_one(a: list[float], b: list[float]) -> None:
    one, other = superiority(a, b, paired=False, resamples=99), superiority(b, a, paired=False, resamples=99)
    assert one.estimate + other.estimate == pytest.approx(1)
    n = min(len(a), len(b))
    one, other = (
        paired_superiority(a[:n], b[:n], resamples=99),
        paired_superiority(b[:n], a[:n], resamples=99),
    )
    assert one.estimate + other.estimate == pytest.approx(1)
    assert ends(one)[0] <= one.estimate <= ends(one)[1]


@given(st.permutations(range(30)))
@settings(max_examples=10)
def test_the_order_of_replicates_changes_nothing(order: list[int]) -> None:
    for interval in (
        lambda a, b: mean_difference(a, b, resamples=199),
        lambda a, b: mean_difference(a, b, paired=False, resamples=199),
        lambda a, b: paired_superiority(a, b, resamples=199),
        lambda a, b: superiority(a, b, paired=True, resamples=199),
        lambda a, b: superiority(a, b, paired=False, resamples=199),
    ):
        assert interval(A[order], B[order]) == interval(A, B)


def test_winning_every_time_keeps_clopper_and_pearsons_doubt() -> None:
    """10 of 10: the lower end p solves p¹⁰ = 0.025."""
    found = paired_superiority(np.arange(10) + 1.0, np.arange(10))
    assert found.kind == "clopper_pearson"
    assert ends(found) == pytest.approx((0.025**0.1, 1.0))
    found = superiority(np.arange(10), np.arange(10) + 100.0, paired=False)
    assert ends(found) == pytest.approx((0.0, 1 - 0.025**0.1))


def test_ties_everywhere_leave_one_half() -> None:
    for found in (paired_superiority([1.0] * 5, [1.0] * 5), superiority([1.0] * 5, [1.0] * 5, paired=False)):
        assert (found.estimate, ends(found), found.kind) == (0.5, (0.5, 0.5), "constant")


def test_larger_values_never_lower_the_probability() -> None:
    shifts = [-0.02, -0.01, 0.0, 0.005, 0.02]
    for paired in (True, False):
        chances = [superiority(A + shift, B, paired=paired, resamples=99).estimate for shift in shifts]
        assert chances == sorted(chances)
        assert chances[0] < chances[-1]


def test_a_distribution_of_known_values() -> None:
    found = describe([4.0, 1.0, 3.0, 2.0, 10.0], "minimize")
    assert (found.n, found.median, found.low_quartile, found.high_quartile) == (5, 3.0, 2.0, 4.0)
    assert (found.best, found.worst) == (1.0, 10.0)
    assert found.mean.estimate == 4.0
    assert found.interquartile_mean == 3.0
    assert describe([1.0, 2.0], "maximize").best == 2.0
