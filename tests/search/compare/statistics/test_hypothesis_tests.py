"""Signed-rank, Mann–Whitney and Holm against textbooks and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from search.compare.statistics.hypothesis_tests import holm, mann_whitney, signed_rank

RNG = np.random.default_rng(6)


@pytest.mark.parametrize(
    ("n", "p"), [(5, 0.0625), (6, 0.03125), (7, 0.015625), (8, 0.0078125), (10, 2 / 1024)]
)
def test_the_smallest_p_of_so_many_replicates(n: int, p: float) -> None:
    found = signed_rank(np.arange(n) + 1.0, np.zeros(n))
    assert (found.p_value, found.side, found.method) == (pytest.approx(p), 1, "exact")


@pytest.mark.parametrize("n", [4, 10, 30, 50])
def test_without_ties_it_is_scipys_exact_test(n: int) -> None:
    a, b = RNG.normal(0.3, 1, n), RNG.normal(0, 1, n)
    found = signed_rank(a, b)
    assert found.method == "exact"
    assert found.p_value == pytest.approx(stats.wilcoxon(a - b, method="exact").pvalue)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=60)
def test_with_ties_and_zeros_it_is_every_permutation(d: list[int]) -> None:
    """Counted here the slow way: all 2ⁿ signs of the ranks of |d|, zeros ranked and left out."""
    found = signed_rank(d, np.zeros(len(d)))
    ranks = stats.rankdata(np.abs(d))
    free = [rank for rank, x in zip(ranks, d, strict=True) if x != 0]
    seen = sum(rank for rank, x in zip(ranks, d, strict=True) if x > 0)
    sums = np.array([np.dot(signs, free) for signs in itertools.product((0, 1), repeat=len(free))])
    p = min(1.0, 2 * min((sums <= seen + 1e-9).mean(), (sums >= seen - 1e-9).mean()))
    assert found.p_value == pytest.approx(p)


def test_methods_that_never_differ_have_p_one() -> None:
    assert (signed_rank([0.9] * 12, [0.9] * 12).p_value, signed_rank([0.9], [0.9]).side) == (1.0, 0)
    assert (mann_whitney([0.9] * 12, [0.9] * 9).p_value, mann_whitney([0.9], [0.9]).side) == (1.0, 0)


def test_one_replicate_is_no_evidence() -> None:
    assert signed_rank([0.9], [0.5]).p_value == 1.0
    assert mann_whitney([0.9], [0.5]).p_value == 1.0


def test_very_many_replicates_use_the_normal_approximation() -> None:
    a, b = RNG.normal(0.1, 1, 501), RNG.normal(0, 1, 501)
    many, fewer = signed_rank(a, b), signed_rank(a[:500], b[:500])
    assert (many.method, fewer.method) == ("normal", "exact")
    approximate = stats.wilcoxon(a[:500] - b[:500], correction=True, method="asymptotic").pvalue
    assert fewer.p_value == pytest.approx(approximate, rel=0.02)


@pytest.mark.parametrize(("n", "p"), [(4, 2 / 70), (5, 2 / 252)])
def test_mann_whitney_of_arms_that_are_apart(n: int, p: float) -> None:
    found = mann_whitney(np.arange(n), np.arange(n) + 100.0)
    assert (found.p_value, found.side, found.method) == (pytest.approx(p), -1, "exact")


def test_mann_whitney_with_ties_is_the_normal_approximation() -> None:
    a, b = RNG.integers(0, 5, 20), RNG.integers(1, 6, 15)
    found = mann_whitney(a, b)
    assert found.method == "normal"
    assert found.p_value == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)


@given(st.permutations(range(15)))
@settings(max_examples=20)
def test_the_order_of_replicates_and_of_arms_changes_no_p(order: list[int]) -> None:
    a, b = np.arange(15) % 4 / 10, np.arange(15) % 7 / 10
    assert signed_rank(a[order], b[order]) == signed_rank(a, b)
    assert signed_rank(b, a).p_value == signed_rank(a, b).p_value
    assert signed_rank(b, a).side == -signed_rank(a, b).side
    assert mann_whitney(a[order], b) == mann_whitney(a, b)
    assert mann_whitney(b, a).p_value == pytest.approx(mann_whitney(a, b).p_value)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.03, 0.04: 3 × 0.01, 2 × 0.03, and 0.04 raised to the one before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx((0.06, 0.03, 0.06))
    assert holm([0.02]) == (0.02,)
    assert holm([0.6, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=28))
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(x <= y <= min(1.0, len(p) * x) + 1e-12 for x, y in zip(p, adjusted, strict=True))
    assert [y for _, y in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])
