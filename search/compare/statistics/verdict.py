"""What may be said of two methods, decided from the numbers by rules that were declared before.

The rules, in this order:

1. Fewer than `REPLICATES_FOR_A_CLAIM` replicates in common: no p-value, *too few for a claim*.
2. A difference is *found* if Holm's adjusted p over the declared pairs is at most alpha. The test
   is Wilcoxon's signed-rank on paired replicates, Mann–Whitney's for arms that share none. Nothing
   else makes a claim, so alpha bounds the chance of any false one, and `power.promise` holds.
3. A found difference whose 95 % interval lies within ± the smallest difference that matters is
   *negligible*.
4. Else P(A > B) sorts it as Bouthillier et al. (2021) do: the interval's upper end at most 0.75 is
   *not meaningful*, above it *meaningful*. If the interval reaches ½, or the mean difference points
   the other way, the finding is *weak*: sizes and wins disagree.
5. No difference found: *equivalent* if the interval of the difference lies within ± the smallest
   difference that matters, else *no difference found*, which isn't evidence of equality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from search.compare.base import Direction
from search.compare.statistics.base import (
    FloatArray,
    Interval,
    Sample,
    larger_is_better,
    paired_arrays,
)
from search.compare.statistics.hypothesis_tests import RankTest, holm, mann_whitney, signed_rank
from search.compare.statistics.intervals import (
    LEVEL,
    RESAMPLES,
    mean_difference,
    paired_superiority,
    superiority,
)
from search.compare.statistics.power import ALPHA, POWER
from search.evidence import REPLICATES_FOR_A_CLAIM

Verdict: TypeAlias = Literal[
    "too_few", "meaningful", "not_meaningful", "weak", "negligible", "equivalent", "no_difference"
]
FOUND: frozenset[str] = frozenset({"meaningful", "not_meaningful", "weak", "negligible"})
"""Verdicts that claim a difference."""

Label: TypeAlias = Literal["no_evidence", "not_meaningful", "meaningful"]
"""Bouthillier et al.'s three outcomes, from the interval of P(A > B) alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What was declared before the run."""

    direction: Direction
    smallest_difference: float
    """The smallest difference that matters, in the metric's own unit: 0.005 is half a point of accuracy."""
    alpha: float = ALPHA
    meaningful: float = 0.75
    """P(A > B) that a meaningful difference must be able to exceed."""
    power: float = POWER
    """For the sentence that says what could have been found."""
    level: float = LEVEL
    resamples: int = RESAMPLES
    seed: int = 0
    scale: float = 1.0
    """What values are multiplied with in words: 100 for accuracy in points."""
    unit: str = ""
    """The unit after scaling: `points`."""

    def __post_init__(self) -> None:
        """Refuse rules that can't be applied."""
        if not 0 <= self.smallest_difference < np.inf:
            raise ValueError(
                f"The smallest difference that matters can't be {self.smallest_difference}: from 0 up."
            )
        if not (0 < self.alpha < 0.5 and 0.5 < self.meaningful < 1 and 0 < self.level < 1):
            raise ValueError(
                "alpha lies between 0 and 0.5, `meaningful` between 0.5 and 1, `level` between 0 and 1."
            )
        if not 0.5 <= self.power < 1:
            raise ValueError(f"Power lies between 0.5 and 1, not at {self.power}.")
        if self.resamples < 100:
            raise ValueError(f"{self.resamples} resamples can't place the ends of an interval.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairResult:
    """Everything that one row of the table of pairs says. Positive differences favour the first method."""

    first: str
    second: str
    paired: bool
    replicates: int
    """Replicates that both have; of arms that share none, the smaller number."""
    difference: Interval | None
    """Of the means, turned so that larger is better; None if there is no replicate in common."""
    superiority: Interval | None
    """P(first better): within replicates if paired, else over all pairs."""
    superiority_all_pairs: Interval | None
    """P(first better) for two runs that share nothing."""
    test: RankTest | None
    """None with too few replicates."""
    check: RankTest | None
    """Mann–Whitney's test beside the paired one; it makes no claim."""
    holm_p: float | None
    pairs_tested: int
    """How many pairs Holm's correction was taken over."""
    label: Label | None
    """Of P(first better), or of P(second better) if that is the larger."""
    verdict: Verdict
    better: str | None
    """The method that the test speaks for, only if a difference was found."""

    @property
    def found(self) -> bool:
        """Whether a difference is claimed."""
        return self.verdict in FOUND


def compare_pairs(
    samples: Sequence[Sample],
    pairs: Sequence[tuple[str, str]],
    rules: Rules,
    *,
    paired: bool = True,
) -> tuple[PairResult, ...]:
    """The declared pairs' results, in order; Holm's correction is taken over those that are tested.

    `paired`: methods share their replicates (split, seeds), and are compared within those that both
    have. Otherwise (two experiments) all values of each are used. Raises ValueError for a method
    without a sample, a pair of a method with itself, and a pair named twice.
    """
    by_name = {sample.method: sample for sample in samples}
    _check_pairs(by_name, len(samples), pairs)
    measured = [_measure(by_name[a], by_name[b], rules, paired=paired) for a, b in pairs]
    tested = [result.test.p_value for result in measured if result.test is not None]
    adjusted = iter(holm(tested))
    return tuple(
        result if result.test is None else _decide(result, next(adjusted), len(tested), rules)
        for result in measured
    )


def _check_pairs(by_name: dict[str, Sample], samples: int, pairs: Sequence[tuple[str, str]]) -> None:
    if len(by_name) < samples:
        raise ValueError("Two samples have the same method.")
    for a, b in pairs:
        if a == b:
            raise ValueError(f"'{a}' can't be compared with itself.")
        missing = [name for name in (a, b) if name not in by_name]
        if missing:
            raise ValueError(f"No sample of {missing}; there are {sorted(by_name)}.")
    if len({frozenset(names) for names in pairs}) < len(pairs):
        raise ValueError("A pair is named twice, which would count it twice in Holm's correction.")


def _measure(first: Sample, second: Sample, rules: Rules, *, paired: bool) -> PairResult:
    """All numbers of a pair but the correction; the verdict is `too_few` until it is decided."""
    a, b = paired_arrays(first, second) if paired else (first.array, second.array)
    empty = PairResult(
        first=first.method,
        second=second.method,
        paired=paired,
        replicates=min(a.size, b.size),
        difference=None,
        superiority=None,
        superiority_all_pairs=None,
        test=None,
        check=None,
        holm_p=None,
        pairs_tested=0,
        label=None,
        verdict="too_few",
        better=None,
    )
    if empty.replicates == 0:
        return empty
    a, b = larger_is_better(a, rules.direction), larger_is_better(b, rules.direction)
    level, resamples, seed = rules.level, rules.resamples, rules.seed
    all_pairs = superiority(a, b, paired=paired, level=level, resamples=resamples, seed=seed)
    own = paired_superiority(a, b, level=level, resamples=resamples, seed=seed) if paired else all_pairs
    measured = replace(
        empty,
        difference=mean_difference(a, b, paired=paired, level=level, resamples=resamples, seed=seed),
        superiority=own,
        superiority_all_pairs=all_pairs,
    )
    if empty.replicates < REPLICATES_FOR_A_CLAIM:
        return measured
    test, check = _tests(a, b, paired=paired)
    return replace(measured, test=test, check=check, label=label_of(own, rules.meaningful))


def _tests(a: FloatArray, b: FloatArray, *, paired: bool) -> tuple[RankTest, RankTest | None]:
    unpaired = mann_whitney(a, b)
    return (signed_rank(a, b), unpaired) if paired else (unpaired, None)


def label_of(superiority_of_first: Interval, meaningful: float) -> Label | None:
    """Bouthillier et al.'s label of P(A > B), turned to the side that wins more; None without an interval.

    Lower end at most ½: no evidence. Else upper end at most `meaningful`: real, not meaningful. Else
    real and meaningful.
    """
    p = superiority_of_first if superiority_of_first.estimate >= 0.5 else superiority_of_first.complement()
    if p.low is None or p.high is None:
        return None
    if p.low <= 0.5:
        return "no_evidence"
    return "meaningful" if p.high > meaningful else "not_meaningful"


def _decide(result: PairResult, holm_p: float, tested: int, rules: Rules) -> PairResult:
    """The verdict, by the rules at the top of this file."""
    assert result.test is not None
    assert result.difference is not None
    assert result.superiority is not None
    equal = result.difference.within(rules.smallest_difference)
    verdict: Verdict
    better = None
    if holm_p <= rules.alpha and result.test.side != 0:
        better = result.first if result.test.side > 0 else result.second
        agrees = (
            result.difference.estimate * result.test.side > 0
            and (result.superiority.estimate - 0.5) * result.test.side > 0
        )
        if equal:
            verdict = "negligible"
        elif not agrees or result.label in (None, "no_evidence"):
            verdict = "weak"
        else:
            verdict = "meaningful" if result.label == "meaningful" else "not_meaningful"
    else:
        verdict = "equivalent" if equal else "no_difference"
    return replace(result, holm_p=holm_p, pairs_tested=tested, verdict=verdict, better=better)
