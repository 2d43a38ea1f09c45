"""The headline: each study's winner, what it is worth when trained again, and what is compared first.

- *Incumbent*: a study's best trial among those trained to their end that didn't diverge; ties go to
  the lower number. A pruned trial is never one: it was not trained as far as its rivals.
- *Retrained score*: the mean over fresh seeds of the test metric of that incumbent. Readings of
  another trial (an incumbent of the past) and readings made by hand don't count. Which outcome is
  compared, and with how many seeds a winner counts, is decided in `primary`.
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

from search.compare.base import Comparison, Direction, Reading, StudyOutcome, TrialOutcome
from search.compare.statistics.anytime import StepCurve
from search.compare.statistics.intervals import Distribution, describe


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


def method_result(
    method: str,
    studies: tuple[StudyResult, ...],
    values: Mapping[int, float],
    direction: Direction,
    *,
    resamples: int,
) -> MethodResult:
    """One method over the counted replicates; `values`: its primary outcome by replicate."""
    counted = [study for study in studies if study.counted and study.method == method]

    def over(values: Iterable[float | None]) -> Distribution | None:
        there = [value for value in values if value is not None]
        return describe(there, direction, resamples=resamples) if there else None

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
