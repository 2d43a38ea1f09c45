"""Tests of a difference between two methods over replicates, and Holm's correction.

The tests take any number of replicates; that fewer than `REPLICATES_FOR_A_CLAIM` get no p-value is
`verdict`'s rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from search.compare.statistics.base import FloatArray, differences, number, two

RankTestName: TypeAlias = Literal["signed-rank", "Mann–Whitney"]
RankTestMethod: TypeAlias = Literal["exact", "permutation", "normal"]
"""How p was found: the textbook's exact distribution; the exact one of these very ranks, with their
ties; or the normal approximation."""

_MOST_ENUMERATED = 500
"""Differences up to which the signed-rank distribution is worked out; time grows with the cube."""
_MOST_EXACT = 50
"""Values per arm up to which Mann–Whitney's exact distribution is used."""


@dataclass(frozen=True, slots=True)
class RankTest:
    """A two-sided p-value, and which side it speaks for: 1 the first method, −1 the second, 0 none."""

    test: RankTestName
    p_value: float
    side: int
    method: RankTestMethod


def signed_rank(a_R: ArrayLike, b_R: ArrayLike) -> RankTest:
    """Wilcoxon's signed-rank test that d_r = a_r − b_r lies symmetrically about 0, two-sided.

    W+ is the sum of the ranks of |d| over positive d; ties get their mean rank; zeros are ranked
    and then left out (Pratt 1959). The null distribution is that of all 2ⁿ ways to sign these very
    ranks, counted by convolution: without ties or zeros it is the textbook's exact test, with them
    the permutation test with every permutation, so no seed moves p. Above 500 differences: normal
    approximation with continuity correction. All differences zero: p = 1.
    """
    d = differences(a_R, b_R)
    if not d.any():
        return RankTest("signed-rank", 1.0, 0, "permutation")
    ranks = stats.rankdata(np.abs(d))
    kept = d != 0
    plus, minus = number(ranks[d > 0].sum()), number(ranks[d < 0].sum())
    side = int(np.sign(plus - minus))
    if d.size > _MOST_ENUMERATED:
        result = stats.wilcoxon(d, zero_method="pratt", correction=True, method="asymptotic")
        return RankTest("signed-rank", min(1.0, number(result.pvalue)), side, "normal")
    # Mean ranks are multiples of a half, so twice the ranks are whole numbers.
    chances = _signed_rank_chances(np.round(2 * ranks[kept]).astype(np.int64))
    p_value = min(1.0, 2 * number(chances[: round(2 * min(plus, minus)) + 1].sum()))
    plain = bool(kept.all()) and np.unique(ranks).size == ranks.size
    return RankTest("signed-rank", p_value, side, "exact" if plain else "permutation")


def _signed_rank_chances(doubled_ranks: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    """The chance of each value of 2·W+, from 0, when every sign is a fair coin."""
    chances = np.zeros(int(doubled_ranks.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled_ranks:
        chances *= 0.5
        chances[rank:] += chances[:-rank].copy()
    return chances


def mann_whitney(a_R: ArrayLike, b_S: ArrayLike) -> RankTest:
    """Mann and Whitney's U test of two independent arms, two-sided.

    Exact without ties up to 50 values per arm, else the normal approximation with correction for
    ties and continuity. All values equal: p = 1.
    """
    a, b = two(a_R, b_S)
    together = np.concatenate((a, b))
    if np.ptp(together) == 0:
        return RankTest("Mann–Whitney", 1.0, 0, "normal")
    untied = np.unique(together).size == together.size
    exact = untied and max(a.size, b.size) <= _MOST_EXACT
    result = stats.mannwhitneyu(a, b, alternative="two-sided", method="exact" if exact else "asymptotic")
    side = int(np.sign(number(result.statistic) - a.size * b.size / 2))
    return RankTest("Mann–Whitney", min(1.0, number(result.pvalue)), side, "exact" if exact else "normal")


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's (1979) adjusted p-values, in the order given.

    With m values sorted upwards, adjusted p_(i) = max over j ≤ i of min(1, (m − j + 1) p_(j)). The
    chance that any true null hypothesis gets an adjusted p ≤ alpha is at most alpha.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size == 0:
        return ()
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values lie between 0 and 1.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    steps = np.arange(p.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps * p[order]))
    return tuple(number(value) for value in adjusted)
