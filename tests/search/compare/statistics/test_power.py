"""Noether's formula: the numbers of Bouthillier et al. 2021, and what `shoal plan` prints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from search.compare.statistics.hypothesis_tests import signed_rank
from search.compare.statistics.power import (
    detectable_superiority,
    promise,
    replicates_needed,
    smallest_p_value,
)


@pytest.mark.parametrize(("superiority", "replicates"), [(0.75, 29), (0.70, 46), (0.65, 81), (0.60, 181)])
def test_the_published_numbers(superiority: float, replicates: int) -> None:
    assert replicates_needed(superiority, alpha=0.05, power=0.95, two_sided=False) == replicates
    assert replicates_needed(1 - superiority, alpha=0.05, power=0.95, two_sided=False) == replicates


def test_the_default_by_hand() -> None:
    """½ + (1.959964 + 0.841621) / √180 = 0.708818."""
    assert detectable_superiority(30) == pytest.approx(0.708818, abs=1e-6)
    found = promise(30, sd=0.01)
    assert found.superiority == pytest.approx(0.708818, abs=1e-6)
    assert found.difference == pytest.approx(0.01 * 0.54995, abs=1e-5)  # Φ(0.54995) = 0.708818


def test_needed_and_detectable_are_each_others_inverse() -> None:
    for replicates in (12, 30, 57, 100):
        found = detectable_superiority(replicates)
        assert replicates_needed(found) == replicates
        assert replicates_needed(found - 1e-4) == replicates + 1


def test_more_of_anything_finds_smaller_differences() -> None:
    by_replicates = [detectable_superiority(r) for r in (10, 20, 30, 100)]
    assert by_replicates == sorted(by_replicates, reverse=True)
    by_pairs = [promise(30, pairs=pairs).superiority or 9 for pairs in (1, 3, 6, 28)]
    assert all(fewer < more for fewer, more in itertools.pairwise(by_pairs))


def test_too_few_replicates_promise_nothing() -> None:
    found = promise(9, sd=0.01)
    assert (found.superiority, found.difference) == (None, None)
    assert found.text == "9 replicates are too few for a claim: 10 are needed."


def test_ten_replicates_of_eight_methods_can_find_nothing() -> None:
    """28 pairs want p ≤ 0.05 / 28 = 0.00179, and ten differences give 0.00195 at best."""
    assert smallest_p_value(10) == pytest.approx(0.001953125)
    found = promise(10, pairs=28)
    assert found.superiority is None
    assert found.text.startswith("10 replicates find no difference, however large")


@pytest.mark.parametrize(("pairs", "power"), [(2, 0.95), (3, 0.95), (1, 0.99)])
def test_what_ten_replicates_find_is_promised_where_noether_asks_for_more_than_certainty(
    pairs: int, power: float
) -> None:
    """Ten wins of ten give p = 0.00195, so P(A > B)^10 = power is found, whatever the distribution."""
    assert detectable_superiority(10, alpha=0.05 / pairs, power=power) > 1
    found = promise(10, pairs=pairs, power=power).superiority
    assert found is not None
    assert found == pytest.approx(power**0.1)
    all_won = np.arange(1.0, 11.0)
    assert signed_rank(all_won, np.zeros(10)).p_value <= 0.05 / pairs


def test_needed_replicates_can_reach_their_alpha_and_carry_a_claim() -> None:
    assert replicates_needed(0.999, power=0.5) == 10
    needed = replicates_needed(1.0, pairs=1000, power=0.5)
    assert smallest_p_value(needed) <= 0.05 / 1000
    assert promise(needed, pairs=1000, power=0.5).superiority is not None


def test_the_sentence_of_the_plan() -> None:
    assert promise(30, pairs=3, sd=0.8).text == (
        "30 replicates find P(A > B) = 0.74 (a mean difference of 0.518 if paired differences have sd 0.8) "
        "or more with power 0.8 at two-sided alpha 0.05 over 3 pairs."
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"alpha": 0.0}, "alpha"), ({"power": 1.0}, "Power"), ({"pairs": 0}, "pair")],
)
def test_rules_that_make_no_sense_are_refused(keywords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        promise(30, **keywords)  # type: ignore[arg-type]


def test_differences_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no difference"):
        replicates_needed(0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        replicates_needed(1.2)
    with pytest.raises(ValueError, match="replicate"):
        detectable_superiority(0)
