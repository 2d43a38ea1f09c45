"""Random search of another length, from one sample of trials."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.compare.statistics.expected_best import coverage, expected_best

VALUES = [0.3, 0.9, 0.1, 0.5, 0.5]


@pytest.mark.parametrize("n", range(1, 6))
def test_it_is_the_mean_over_all_subsets(n: int) -> None:
    by_hand = np.mean([max(subset) for subset in itertools.combinations(VALUES, n)])
    assert expected_best(VALUES, "maximize")[n - 1] == pytest.approx(by_hand)
    by_hand = np.mean([min(subset) for subset in itertools.combinations(VALUES, n)])
    assert expected_best(VALUES, "minimize")[n - 1] == pytest.approx(by_hand)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_plug_in_form_is_the_mean_over_all_draws_with_replacement(n: int) -> None:
    by_hand = np.mean([max(draw) for draw in itertools.product(VALUES, repeat=n)])
    assert expected_best(VALUES, "maximize", unbiased=False)[n - 1] == pytest.approx(by_hand)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.booleans())
def test_it_starts_at_the_mean_and_never_falls(values: list[float], unbiased: bool) -> None:
    found = expected_best(values, "maximize", unbiased=unbiased)
    assert found[0] == pytest.approx(np.mean(values), abs=1e-9)
    assert (np.diff(found) >= -1e-9).all()
    assert found[-1] <= max(values) + 1e-9
    if unbiased:
        assert found[-1] == pytest.approx(max(values))


def test_thousands_of_trials_overflow_nothing() -> None:
    found = expected_best(np.arange(2000.0), "maximize")
    assert found[0] == pytest.approx(999.5)
    assert found[999] == pytest.approx(
        2001 * 1000 / 1001 - 1
    )  # the largest of n of 1 … N is (N + 1) n / (n + 1)
    assert found[-1] == pytest.approx(1999)


def test_it_foretells_shorter_random_searches() -> None:
    """4,000 trials foretell the best of 10; 1,000 searches of 10 trials are then run.

    The foretold number has standard error 0.0033 (60 repetitions with 1,000 trials had sd 0.0066), the
    mean of the searches 0.083 / √1000 = 0.0026; the bound is 4 times both together.
    """
    rng = np.random.default_rng(0)
    foretold = expected_best(rng.uniform(size=4000), "maximize")[9]
    assert foretold == pytest.approx(10 / 11, abs=4 * 0.0033)
    assert foretold == pytest.approx(rng.uniform(size=(1000, 10)).max(axis=1).mean(), abs=4 * 0.0042)


def test_equal_values_and_nan() -> None:
    assert expected_best([0.7] * 9, "minimize") == pytest.approx(np.full(9, 0.7), rel=1e-14)
    with pytest.raises(ValueError, match="NaN"):
        expected_best([0.7, np.nan], "maximize")


def test_the_rule_of_59_trials() -> None:
    assert coverage(59, 0.05) >= 0.95 > coverage(58, 0.05)
    assert coverage(0, 0.05) == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage(5, 1.0)
