"""Several datasets or experiments together: normalised regret, ranks, critical difference.

A block is a dataset; its row holds each method's mean (or median) over replicates. Replicates of
one dataset aren't blocks: they share the dataset, and would pretend to many more than there are
(Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from search.compare.base import Direction
from search.compare.statistics.base import FloatArray, finite, larger_is_better, number

BLOCKS_FOR_RANKS = 6
"""Fewer datasets carry no test of ranks and no critical difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankComparison:
    """Average ranks over datasets, and what they carry."""

    methods: tuple[str, ...]
    blocks: int
    average_ranks: tuple[float, ...]
    """1 is best, in the order of `methods`."""
    friedman_p: float | None
    """That some method ranks differently; None with fewer than 6 blocks or 3 methods."""
    critical_difference: float | None
    """Ranks further apart than this differ by Nemenyi's test; None with fewer than 6 blocks."""
    alpha: float
    groups: tuple[tuple[str, ...], ...]
    """Largest sets of two or more methods not told apart, best first: the bars of a CD diagram."""


def compare_ranks(
    scores_BM: ArrayLike, methods: tuple[str, ...], direction: Direction, *, alpha: float = 0.05
) -> RankComparison:
    """Ranks, Friedman's test and Nemenyi's critical difference over datasets as blocks."""
    scores = finite(scores_BM, "scores", dimensions=2)
    blocks, columns = scores.shape
    if columns != len(methods) or columns < 2:
        raise ValueError(f"Two or more methods and a column for each: {len(methods)} and {columns}.")
    ranks = average_ranks(scores, direction)
    difference = critical_difference(columns, blocks, alpha) if blocks >= BLOCKS_FOR_RANKS else None
    return RankComparison(
        methods=methods,
        blocks=blocks,
        average_ranks=tuple(number(rank) for rank in ranks),
        friedman_p=friedman(scores) if blocks >= BLOCKS_FOR_RANKS and columns > 2 else None,
        critical_difference=difference,
        alpha=alpha,
        groups=() if difference is None else _groups(methods, ranks, difference),
    )


def average_ranks(scores_BM: ArrayLike, direction: Direction) -> FloatArray:
    """Each method's mean rank over the rows, 1 for the best; ties share their mean rank."""
    better_last = larger_is_better(finite(scores_BM, "scores", dimensions=2), direction)
    return np.asarray(stats.rankdata(-better_last, axis=1).mean(axis=0), dtype=np.float64)


def friedman(scores_BM: ArrayLike) -> float:
    """Friedman's p that all methods rank alike, with correction for ties; 1 if every row is one tie."""
    scores = finite(scores_BM, "scores", dimensions=2)
    if scores.shape[1] < 3:
        raise ValueError("Friedman's test compares three or more methods.")
    if (np.ptp(scores, axis=1) == 0).all():
        return 1.0
    return number(stats.friedmanchisquare(*scores.T).pvalue)


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's CD = q_α √(k (k + 1) / (6 B)), q_α the studentized range's quantile over √2.

    For k methods and infinitely many degrees of freedom; q_0.05 is 2.343 for three methods
    (Demšar 2006, table 5). Raises ValueError for fewer than 2 methods or 6 blocks.
    """
    if methods < 2 or blocks < BLOCKS_FOR_RANKS:
        raise ValueError(f"2 methods and {BLOCKS_FOR_RANKS} blocks are needed, not {methods} and {blocks}.")
    quantile = number(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return number(quantile * np.sqrt(methods * (methods + 1) / (6 * blocks)))


def _groups(methods: tuple[str, ...], ranks: FloatArray, difference: float) -> tuple[tuple[str, ...], ...]:
    """Runs of methods in order of rank whose ends are within the critical difference, none inside another."""
    order = np.argsort(ranks, kind="stable")
    sorted_ranks = ranks[order]
    found: list[tuple[str, ...]] = []
    reach = 0
    for first in range(len(order)):
        last = int(np.searchsorted(sorted_ranks, sorted_ranks[first] + difference, side="right"))
        if last > reach and last - first > 1:
            found.append(tuple(methods[place] for place in order[first:last]))
        reach = max(reach, last)
    return tuple(found)


def normalised_regret(
    values: ArrayLike, best_seen: float, median_random: float, direction: Direction
) -> FloatArray:
    """(best seen − value) / (best seen − median random trial): 0 the best known, 1 a typical random trial.

    `best_seen` is the best value of any method on the dataset, `median_random` the median over random
    *trials* (not incumbents). Raises ValueError where the best isn't better than the median: such a
    dataset tells nothing apart, and is to be left out by name.
    """
    points = np.atleast_1d(larger_is_better(values, direction))
    finite(points.ravel(), "values")
    best, median = (number(v) for v in larger_is_better([best_seen, median_random], direction))
    if not (np.isfinite([best, median]).all() and best > median):
        raise ValueError(f"The best value seen, {best_seen}, isn't better than the median, {median_random}.")
    if (points > best).any():
        raise ValueError(f"A value is better than the best seen, {best_seen}.")
    return np.asarray((best - points) / (best - median), dtype=np.float64)
