"""Everything that the report says, worked out once from a `Comparison`: a pure function of values.

Tables, figures, words and `report.json` are made from the `Analysis` (and the `Comparison`, for
what was measured as it stands). Nothing here reads a database or a clock, and no chance enters but
the seeded resampling of replicates.
"""

from __future__ import annotations

from dataclasses import dataclass

from search.compare.base import Comparison
from search.compare.budgets import AXES, Anytime, Axis, anytime, counted_replicates, trials_given, worst_value
from search.compare.conclusion import Conclusion, conclude
from search.compare.cuts import BudgetCuts, budget_cuts
from search.compare.efficiency import RANDOM, Efficiency, efficiency
from search.compare.headline import MethodResult, StudyResult, method_result, study_result
from search.compare.notes import Note, notes
from search.compare.outcomes import MethodOutcomes, method_outcomes
from search.compare.pairs import PairFinding, find_pairs, other_pairs
from search.compare.primary import Primary, budget_axis, primary
from search.compare.protocol import Protocol, protocol
from search.compare.regret import ExpectedBest, Regret, random_search, regret
from search.compare.statistics.anytime import BAND_RESAMPLES
from search.compare.statistics.intervals import RESAMPLES
from search.compare.statistics.verdict import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The whole report in numbers and sentences; empty parts are empty tuples or None, never absent."""

    protocol: Protocol
    """How the experiment was run and what was declared, with actual values (T1, T2)."""
    rules: Rules
    """Direction, alpha, smallest difference that matters; `scale` and `unit` turn values into points."""
    replicates: tuple[int, ...]
    """The counted replicates, ascending."""
    primary: Primary
    """What the declared comparison is about, with its values per method and replicate (F4)."""
    studies: tuple[StudyResult, ...]
    """In the order of `Comparison.studies` (T10)."""
    methods: tuple[MethodResult, ...]
    """In the order of `Comparison.methods` (T3)."""
    pairs: tuple[PairFinding, ...]
    """Declared pairs on the primary outcome first, then exploratory ones (T4)."""
    anytime: tuple[Anytime, ...]
    """Curves and bands, one entry per axis: trials, epochs, seconds (F1 to F3)."""
    cuts: tuple[BudgetCuts, ...]
    """Values at 25, 50 and 100 % of the common budget, one entry per axis (T5)."""
    efficiency: Efficiency
    """Times to the target on each axis, with Kaplan–Meier curves (T6, F5)."""
    outcomes: tuple[MethodOutcomes, ...]
    """What became of the trials and what they cost (T7)."""
    expected_best: ExpectedBest | None
    """Of n random trials; None without random trials that were all trained to their end."""
    regret: Regret | None
    """To the best value that any study found; None without a value."""
    conclusion: Conclusion
    """The verdict in words, and what it doesn't show."""
    notes: tuple[Note, ...]
    """What a reader must know before believing a number, the gravest first."""

    def curves(self, axis: Axis) -> Anytime:
        """The entry of one axis."""
        return next(entry for entry in self.anytime if entry.axis == axis)


def analyse(comparison: Comparison, *, resamples: int = RESAMPLES) -> Analysis:
    """All numbers and sentences of the report. The same comparison gives the same analysis.

    `resamples` is for tests that simulate many experiments; a report uses the default.
    """
    declared = protocol(comparison)
    replicates = counted_replicates(comparison)
    worst = worst_value(comparison)
    rules = _rules(comparison, declared, resamples)
    anytimes = _anytimes(comparison, declared, replicates, resamples)
    first = _first(anytimes, budget_axis(declared.declared_axis, declared.pruner))
    studies = _studies(comparison, replicates, first)
    outcome = primary(
        studies, comparison, first.axis, first.budget, retrain=declared.settings.retrain, worst=worst
    )
    methods = tuple(
        method_result(method, studies, outcome.values[method], comparison.direction, resamples=resamples)
        for method in comparison.methods
    )
    pairs = _pairs(comparison, declared, outcome, studies, rules)
    outcomes = tuple(method_outcomes(method, comparison, studies) for method in comparison.methods)
    fewest = min((trials_given(s.study, comparison) for s in studies if s.counted), default=0)
    said = notes(
        comparison,
        outcome,
        outcomes,
        replicates,
        fewest_trials=fewest,
        seeds=declared.settings.retrain.seeds,
    )
    return Analysis(
        protocol=declared,
        rules=rules,
        replicates=replicates,
        primary=outcome,
        studies=studies,
        methods=methods,
        pairs=pairs,
        anytime=anytimes,
        cuts=tuple(budget_cuts(entry, replicates) for entry in anytimes),
        efficiency=efficiency(
            anytimes,
            replicates,
            _searched(studies).get(RANDOM, {}),
            comparison.direction,
            resamples=min(resamples, BAND_RESAMPLES),
        ),
        outcomes=outcomes,
        expected_best=random_search(comparison, replicates, worst),
        regret=regret(comparison, studies, worst, resamples=resamples),
        conclusion=conclude(
            comparison,
            outcome,
            pairs,
            rules,
            replicates=len(replicates),
            fewest_trials=fewest,
            unequal_epochs=any(note.kind == "unequal_epochs" for note in said),
            retrained=declared.settings.retrain.seeds,
        ),
        notes=said,
    )


def _anytimes(
    comparison: Comparison, declared: Protocol, replicates: tuple[int, ...], resamples: int
) -> tuple[Anytime, ...]:
    return tuple(
        anytime(
            comparison,
            axis,
            replicates,
            declared=axis == declared.declared_axis,
            resamples=min(resamples, BAND_RESAMPLES),
        )
        for axis in AXES
    )


def _first(anytimes: tuple[Anytime, ...], wanted: Axis) -> Anytime:
    """The primary budget's curves; those over trials where trials cost nothing on the wanted axis."""
    found = {entry.axis: entry for entry in anytimes}
    return found[wanted] if found[wanted].budget is not None else found["trials"]


POINTS: frozenset[str] = frozenset({"accuracy", "error", "macro_f1"})
"""Metrics that are shares, whose differences are told in points of a hundred.

The trainer's own: what a function calls `error` may be in any unit.
"""


def _rules(comparison: Comparison, declared: Protocol, resamples: int) -> Rules:
    settings = declared.settings
    in_points = comparison.metric in POINTS and not comparison.is_function
    return Rules(
        direction=comparison.direction,
        smallest_difference=settings.smallest_difference,
        alpha=settings.alpha,
        meaningful=settings.meaningful,
        power=settings.power,
        resamples=resamples,
        scale=100.0 if in_points else 1.0,
        unit="points" if in_points else "",
    )


def _studies(comparison: Comparison, replicates: tuple[int, ...], first: Anytime) -> tuple[StudyResult, ...]:
    curves = {(entry.method, r): curve for entry in first.methods for r, curve in entry.curves.items()}
    return tuple(
        study_result(
            study,
            comparison,
            curves.get((study.method, study.replicate)),
            first.budget,
            counted=study.replicate in replicates,
        )
        for study in comparison.studies
    )


def _searched(studies: tuple[StudyResult, ...]) -> dict[str, dict[int, float]]:
    """Best validation values at the common budget, by method and replicate."""
    values: dict[str, dict[int, float]] = {}
    for study in studies:
        of_method = values.setdefault(study.method, {})
        if study.counted and study.at_budget is not None:
            of_method[study.replicate] = study.at_budget
    return values


def _pairs(
    comparison: Comparison,
    declared: Protocol,
    outcome: Primary,
    studies: tuple[StudyResult, ...],
    rules: Rules,
) -> tuple[PairFinding, ...]:
    """Declared pairs on the primary outcome; others, and search-time values of declared ones, explore."""
    others = other_pairs(declared.pairs, comparison.methods)
    found = find_pairs(outcome.values, declared.pairs, rules, outcome=outcome.kind, declared=True)
    found += find_pairs(outcome.values, others, rules, outcome=outcome.kind, declared=False)
    if outcome.kind == "retrained":
        found += find_pairs(_searched(studies), declared.pairs, rules, outcome="searched", declared=False)
    return found
