"""Ranks, critical difference and regret over several datasets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from search.compare.statistics.across_datasets import (
    average_ranks,
    compare_ranks,
    critical_difference,
    friedman,
    normalised_regret,
)


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031)],
)
def test_the_quantiles_are_those_of_demsars_table(methods: int, quantile: float) -> None:
    found = critical_difference(methods, 14)
    assert found / np.sqrt(methods * (methods + 1) / (6 * 14)) == pytest.approx(quantile, abs=1e-3)


def test_demsars_example() -> None:
    """Four classifiers on 14 datasets at 0.10: q = 2.291, CD = 1.12."""
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def test_ranks_share_ties_and_add_up() -> None:
    scores = [[0.9, 0.8, 0.8], [0.7, 0.9, 0.1]]
    assert average_ranks(scores, "maximize").tolist() == [1.5, 1.75, 2.75]
    assert average_ranks(scores, "minimize").tolist() == [2.5, 2.25, 1.25]


def test_friedman_is_scipys_and_survives_ties_everywhere() -> None:
    scores = np.random.default_rng(1).normal(size=(8, 4))
    assert friedman(scores) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert friedman(np.ones((8, 4))) == 1.0
    with pytest.raises(ValueError, match="three or more"):
        friedman(scores[:, :2])


def test_five_datasets_carry_ranks_and_no_test() -> None:
    found = compare_ranks(np.tile([3.0, 2.0, 1.0], (5, 1)), ("a", "b", "c"), "maximize")
    assert found.average_ranks == (1, 2, 3)
    assert (found.friedman_p, found.critical_difference, found.groups) == (None, None, ())
    with pytest.raises(ValueError, match="6 blocks"):
        critical_difference(3, 5)


def test_groups_are_the_bars_of_the_diagram() -> None:
    """Three methods, six datasets: CD = 2.343 · √(12 / 36) = 1.353."""
    found = compare_ranks(np.tile([3.0, 1.0, 2.0], (6, 1)), ("a", "b", "c"), "maximize")
    assert found.critical_difference == pytest.approx(1.353, abs=1e-3)
    assert found.groups == (("a", "c"), ("c", "b"))
    far = compare_ranks(np.tile([3.0, 1.0, 2.0], (40, 1)), ("a", "b", "c"), "maximize")
    assert far.groups == ()
    assert far.friedman_p is not None
    assert far.friedman_p < 1e-9
    alike = compare_ranks(np.ones((6, 3)), ("a", "b", "c"), "maximize")
    assert (alike.groups, alike.friedman_p) == ((("a", "b", "c"),), 1.0)


def test_two_methods_have_a_critical_difference_and_no_friedman() -> None:
    found = compare_ranks(np.random.default_rng(1).normal(size=(8, 2)), ("a", "b"), "minimize")
    assert found.friedman_p is None
    assert found.critical_difference is not None


def test_blocks_in_another_order_change_nothing() -> None:
    scores = np.random.default_rng(1).normal(size=(8, 4))
    names = ("a", "b", "c", "d")
    assert compare_ranks(scores, names, "maximize") == compare_ranks(scores[::-1], names, "maximize")


def test_a_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="column for each"):
        compare_ranks([[1.0, 2.0]], ("a",), "maximize")
    with pytest.raises(ValueError, match="NaN"):
        compare_ranks([[1.0, np.nan]], ("a", "b"), "maximize")


def test_on_equal_methods_friedman_finds_a_difference_at_its_rate() -> None:
    """2,000 tables of 10 × 4 without any difference; the χ² approximation's true rate is below 0.05.

    Bound: 0.05 + 3 standard errors = 0.0646.
    """
    rng = np.random.default_rng(2)
    found = np.mean([friedman(rng.normal(size=(10, 4))) <= 0.05 for _ in range(2000)])
    assert 0.02 < found <= 0.0646


def test_regret_between_the_best_and_a_typical_trial() -> None:
    assert normalised_regret([0.9, 0.7, 0.5, 0.3], 0.9, 0.5, "maximize").tolist() == pytest.approx(
        [0, 0.5, 1, 1.5]
    )
    assert normalised_regret([[0.1, 0.3]], 0.1, 0.5, "minimize")[0].tolist() == pytest.approx([0, 0.5])


def test_regret_is_refused_where_nothing_is_told_apart() -> None:
    with pytest.raises(ValueError, match="isn't better than the median"):
        normalised_regret([0.5], 0.5, 0.5, "maximize")
    with pytest.raises(ValueError, match="better than the best seen"):
        normalised_regret([0.6], 0.5, 0.4, "maximize")
    with pytest.raises(ValueError, match="NaN"):
        normalised_regret([np.nan], 0.5, 0.4, "maximize")
