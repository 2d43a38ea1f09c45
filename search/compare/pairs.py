"""The comparison of pairs: declared ones first, everything else marked exploratory (T4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.compare.primary import OutcomeKind
from search.compare.statistics.base import Sample
from search.compare.statistics.verdict import PairResult, Rules, compare_pairs
from search.compare.statistics.wording import paragraph


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFinding:
    """One pair of methods on one outcome."""

    result: PairResult
    outcome: OutcomeKind
    declared: bool
    """Declared before the run and on the primary outcome; anything else is exploratory."""
    text: str
    """The paragraph that says it."""

    @property
    def name(self) -> str:
        """`tpe – random`: the first less the second."""
        return f"{self.result.first} – {self.result.second}"


def declared_pairs(
    written: Sequence[tuple[str, str]] | None, methods: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The file's pairs of methods that were run, each once; without any, every pair, a later method first."""
    if written is None:
        return tuple((second, first) for first, second in itertools.combinations(methods, 2))
    kept: dict[frozenset[str], tuple[str, str]] = {}
    for first, second in written:
        if first != second and {first, second} <= set(methods):
            kept.setdefault(frozenset((first, second)), (first, second))
    return tuple(kept.values())


def other_pairs(declared: Sequence[tuple[str, str]], methods: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Every pair that was not declared."""
    named = {frozenset(names) for names in declared}
    return tuple(names for names in declared_pairs(None, methods) if frozenset(names) not in named)


def find_pairs(
    values: Mapping[str, Mapping[int, float]],
    pairs: Sequence[tuple[str, str]],
    rules: Rules,
    *,
    outcome: OutcomeKind,
    declared: bool,
) -> tuple[PairFinding, ...]:
    """The pairs' findings, in order; Holm's correction is taken over these pairs.

    A pair of which one method has no value at all comes out as too few replicates: none.
    """
    samples = {method: Sample(method, of_method) for method, of_method in values.items() if of_method}
    there = [names for names in pairs if set(names) <= samples.keys()]
    found = {(r.first, r.second): r for r in compare_pairs(list(samples.values()), there, rules)}
    results = [found.get(names) or _nothing(*names) for names in pairs]
    return tuple(
        PairFinding(
            result=result,
            outcome=outcome,
            declared=declared,
            text=paragraph(result, rules, exploratory=not declared),
        )
        for result in results
    )


def _nothing(first: str, second: str) -> PairResult:
    return PairResult(
        first=first,
        second=second,
        paired=True,
        replicates=0,
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
