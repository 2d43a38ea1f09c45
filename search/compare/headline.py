"""The headline: each study's winner, what it is worth when trained again, and what is compared first.

- *Incumbent*: a study's best trial among those trained to their end that didn't diverge; ties go to
  the lower number. A pruned trial is never one: it was not trained as far as its rivals.
- *Retrained score*: the mean over fresh seeds of the test metric of that incumbent. Readings of
  another trial (an incumbent of the past) and readings made by hand don't count.
- *Selection bias*: the incumbent's value in the search less the mean validation value of its
  retraining, turned so that a positive number flatters the method.
- A study whose trained trials all diverged is worth the worst finite value, unless those of all
  studies did: then none is worth anything, and nothing is compared. One without any trained
  trial is missing, and the report says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from search.compare.base import Comparison, Direction, Reading, StudyOutcome, TrialOutcome
from search.compare.budgets import Axis
from search.compare.statistics.anytime import StepCurve
from search.compare.statistics.intervals import Distribution, describe

OutcomeKind: TypeAlias = Literal["retrained", "searched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """A study's incumbent trained again with fresh seeds."""

    trial: int
    seeds: tuple[int, ...]
    test: tuple[float, ...]
    """The experiment's metric on the sealed test set, one per seed."""
    validation: tuple[float, ...]

    @property
    def test_mean(self) -> float:
        """What the study is worth."""
        return statistics.fmean(self.test)

    @property
    def validation_mean(self) -> float:
        """What the validation value would have been without selection."""
        return statistics.fmean(self.validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """One study's winner."""

    study: StudyOutcome
    counted: bool
    """Whether its replicate is compared (see `budgets`)."""
    incumbent: TrialOutcome | None
    searched: float | None
    """The incumbent's value on the validation images; the worst value if every trial diverged."""
    at_budget: float | None
    """The same after the primary budget (`Primary.budget`)."""
    retrained: Retrained | None
    selection_bias: float | None

    @property
    def method(self) -> str:
        """The study's method."""
        return self.study.method

    @property
    def replicate(self) -> int:
        """The study's replicate."""
        return self.study.replicate


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodResult:
    """One method over the counted replicates that have a value."""

    method: str
    replicates: int
    """Counted replicates of the method, with or without a value."""
    score: Distribution | None
    """The primary outcome."""
    searched: Distribution | None
    """Best validation values of whole studies, selected among many: they flatter."""
    selection_bias: Distribution | None
    best: StudyResult | None
    """The study with the best primary outcome; ties go to the lower replicate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The outcome that the declared comparison is about."""

    kind: OutcomeKind
    axis: Axis
    """What the budget below is counted in."""
    budget: float | None
    """At which budget values are taken; None: of whole studies, or nothing has been spent."""
    values: Mapping[str, Mapping[int, float]]
    """Method → replicate → value, in the metric's own unit; every method, some without a value."""
    missing: tuple[str, ...]
    """Names of counted studies without a value."""
    retrained: int
    """Counted studies whose incumbent has been retrained with all seeds."""
    to_retrain: int
    """Counted studies that have an incumbent."""
    title: str
    """What the values are, in a few words, for headings and axes."""
    text: str
    """How they came about, in one or two sentences."""


def incumbent(trials: Iterable[TrialOutcome], direction: Direction) -> TrialOutcome | None:
    """The best eligible trial, ties to the lower number; None if no trial is eligible."""
    best: TrialOutcome | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if not trial.eligible or trial.value is None or not math.isfinite(trial.value):
            continue
        if best is None or best.value is None or better(trial.value, best.value, direction):
            best = trial
    return best


def better(value: float, other: float, direction: Direction) -> bool:
    """Whether the first value is better than the second."""
    return value > other if direction == "maximize" else value < other


def study_result(
    study: StudyOutcome,
    comparison: Comparison,
    curve: StepCurve | None,
    budget: float | None,
    *,
    counted: bool,
) -> StudyResult:
    """A study's winner; `curve` is its best so far on the primary axis."""
    direction = comparison.direction
    best = incumbent(study.trials, direction)
    searched = None
    if best is not None:
        searched = best.value
    elif curve is not None:  # every trained trial diverged
        searched = float(curve.values[-1])
    retrained = None if best is None else _retrained(study, best, comparison)
    bias = None
    if retrained is not None and searched is not None:
        bias = searched - retrained.validation_mean
        bias = bias if direction == "maximize" else -bias
    return StudyResult(
        study=study,
        counted=counted,
        incumbent=best,
        searched=searched,
        at_budget=None if curve is None or budget is None else curve.at(budget),
        retrained=retrained,
        selection_bias=bias,
    )


def _retrained(study: StudyOutcome, best: TrialOutcome, comparison: Comparison) -> Retrained | None:
    """The incumbent's readings by seed; of a seed that was read twice, the first."""
    found: dict[int, Reading] = {}
    for reading in comparison.readings:
        if (
            reading.purpose == "retraining"
            and (reading.method, reading.replicate, reading.trial)
            == (study.method, study.replicate, best.number)
            and _has(reading.metrics, comparison.metric)
            and _has(reading.validation, comparison.metric)
        ):
            found.setdefault(reading.seed, reading)
    if not found:
        return None
    seeds = sorted(found)
    return Retrained(
        trial=best.number,
        seeds=tuple(seeds),
        test=tuple(found[seed].metrics[comparison.metric] for seed in seeds),
        validation=tuple(found[seed].validation[comparison.metric] for seed in seeds),
    )


def _has(metrics: Mapping[str, float], name: str) -> bool:
    return name in metrics and math.isfinite(metrics[name])


def budget_axis(declared: Axis, pruner: str) -> Axis:
    """The axis of the primary equal budget.

    As declared, but for the default: epochs stands for trials where nothing is pruned. Without
    pruning every trial is trained to its end, and equal trials are equal efforts; equal epochs
    would cut every other study where one study's trials diverged early.
    """
    return "trials" if declared == "epochs" and pruner == "none" else declared


def primary(
    studies: tuple[StudyResult, ...],
    comparison: Comparison,
    axis: Axis,
    budget: float | None,
    *,
    seeds: int,
    worst: float | None,
) -> Primary:
    """The outcome to compare: retrained test scores if every winner has them, else search-time values."""
    counted = [study for study in studies if study.counted]
    winners = [study for study in counted if study.incumbent is not None]
    done = sum(_is_done(study, seeds) for study in winners)
    retrained = 0 < len(winners) == done
    values: dict[str, dict[int, float]] = {method: {} for method in comparison.methods}
    # Where everything diverged there is nothing to compare, and least of all to call equivalent.
    for study in counted if winners else []:
        value = _score(study, worst) if retrained else study.at_budget
        if value is not None:
            values[study.method][study.replicate] = value
    kind: OutcomeKind = "retrained" if retrained else "searched"
    return Primary(
        kind=kind,
        axis=axis,
        budget=None if retrained else budget,
        values=values,
        missing=tuple(s.study.name for s in counted if s.replicate not in values[s.method]),
        retrained=done,
        to_retrain=len(winners),
        title=(
            f"{comparison.scored} of retrained winners"
            if retrained
            else f"best {comparison.judged} in the search"
        ),
        text=_trained_again(seeds, function=comparison.is_function)
        if retrained
        else _selected(comparison.judged, axis, budget if winners else None, _why(done, len(winners), seeds)),
    )


def _is_done(study: StudyResult, seeds: int) -> bool:
    return study.retrained is not None and len(study.retrained.seeds) >= max(1, seeds)


def _score(study: StudyResult, worst: float | None) -> float | None:
    """The retrained score; a study whose trials all diverged has none, and is worth the worst value."""
    if study.retrained is not None:
        return study.retrained.test_mean
    return worst if study.searched is not None else None


_SPENT: dict[Axis, str] = {
    "trials": "{:g} trials",
    "epochs": "{:,.0f} epochs",
    "seconds": "{:,.4g} device and sampler seconds",
}


def in_words(axis: Axis, amount: float) -> str:
    """`60 trials`, `1,200 epochs`: an amount of one budget."""
    return _SPENT[axis].format(amount)


def _trained_again(seeds: int, *, function: bool) -> str:
    fresh = "1 fresh seed" if seeds <= 1 else f"{seeds} fresh seeds"
    where = "" if function else " and scored on the sealed test set"
    return (
        f"Each study's winner was trained again with {fresh}{where}; a study counts with the mean over them."
    )


def _selected(judged: str, axis: Axis, budget: float | None, why: str) -> str:
    if budget is None:
        return "No study has a trial that was trained to its end without diverging."
    return (
        f"Each study counts with its best {judged} after {in_words(axis, budget)}, the largest budget that "
        f"all of them spent. It was selected among many values, so it flatters every method: {why}."
    )


def _why(done: int, winners: int, seeds: int) -> str:
    if done:
        return f"only {done} of {winners} winners have been retrained"
    return "the file asks for no retraining" if seeds == 0 else "winners have not been retrained"


def method_result(
    method: str, studies: tuple[StudyResult, ...], outcome: Primary, direction: Direction, *, resamples: int
) -> MethodResult:
    """One method over the counted replicates."""
    counted = [study for study in studies if study.counted and study.method == method]

    def over(values: Iterable[float | None]) -> Distribution | None:
        there = [value for value in values if value is not None]
        return describe(there, direction, resamples=resamples) if there else None

    values = outcome.values[method]
    best: StudyResult | None = None
    for study in sorted(counted, key=lambda study: study.replicate):
        if study.replicate in values and (
            best is None or better(values[study.replicate], values[best.replicate], direction)
        ):
            best = study
    return MethodResult(
        method=method,
        replicates=len(counted),
        score=over(values.values()),
        searched=over(study.searched for study in counted),
        selection_bias=over(study.selection_bias for study in counted),
        best=best,
    )
