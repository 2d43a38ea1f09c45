"""What trials cost on the three axes, which replicates are compared, and best-so-far curves.

- *Trials*, *epochs*, *seconds* (device and sampler): each is a budget, and a curve has one axis.
- A pruned trial costs the epochs that it trained. A diverged trial costs what it trained, counts as
  a trial, and is worth the worst finite value of the comparison. A failed trial costs nothing: it
  is repeated with the same seed, and the repetition counts.
- A trial that was trained once for two studies costs each of them in full.
- *Counted replicates*: of an experiment that has ended, all; of one that goes on, those in which
  every method's study is over, or all while there is none.
- *Common budget*: the least that any study of a counted replicate spent, without those that have
  no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import numpy as np

from search.compare.base import Comparison, Direction, StudyOutcome, TrialOutcome
from search.compare.statistics.anytime import Band, StepCurve, align, anytime_area, band, best_so_far

Axis: TypeAlias = Literal["trials", "epochs", "seconds"]

COSTS: dict[Axis, Callable[[TrialOutcome], float]] = {
    "trials": lambda _: 1.0,
    "epochs": lambda trial: float(trial.epochs),
    "seconds": lambda trial: trial.seconds + trial.sampler_seconds,
}
"""Axis → what one finished trial costs on it, unless it failed."""

AXES: tuple[Axis, ...] = tuple(COSTS)

BAND_POSITIONS = 100
"""Most positions at which a band's intervals are worked out; its median is exact at each."""

_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnytimeMethod:
    """One method's best so far against one budget."""

    method: str
    curves: Mapping[int, StepCurve]
    """By replicate; replicates that are counted and have a value."""
    band: Band | None
    """Median over those replicates with its interval and the middle half, at up to `BAND_POSITIONS`
    positions from where the last curve begins to where the first one ends."""
    areas: Mapping[int, float]
    """By replicate, the curve's mean height from where the last curve of all methods begins to the common
    budget; empty where there is no such stretch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anytime:
    """Best so far against one budget, all methods. Figures F1 to F3 and F6."""

    axis: Axis
    declared: bool
    """Whether this is the axis that the file declared as the first."""
    budget: float | None
    """The common budget; None if no study has a value, or trials cost nothing on this axis."""
    methods: tuple[AnytimeMethod, ...]


def cost(trial: TrialOutcome, axis: Axis) -> float:
    """What the trial takes from a study's budget; nothing unless it ended, and nothing if it failed."""
    return 0.0 if not trial.finished or trial.state == "failed" else COSTS[axis](trial)


def spent(study: StudyOutcome, axis: Axis) -> float:
    """What the study's trials took in all, whatever their order."""
    return math.fsum(cost(trial, axis) for trial in study.trials)


def trained(trial: TrialOutcome) -> bool:
    """Whether the trial has a value of its own: trained to its end, diverged or not."""
    return trial.state == "complete" and trial.value is not None and math.isfinite(trial.value)


def worst_value(comparison: Comparison) -> float | None:
    """The worst value of any trained trial, which diverged trials take; None if there is no trial."""
    values = [
        trial.value
        for study in comparison.studies
        for trial in study.trials
        if trained(trial) and trial.value is not None
    ]
    if not values:
        return None
    return min(values) if comparison.direction == "maximize" else max(values)


def counted_replicates(comparison: Comparison) -> tuple[int, ...]:
    """The replicates whose values are compared (see the top of this file), in ascending order."""
    replicates = sorted({study.replicate for study in comparison.studies})
    if comparison.state == "finished":
        return tuple(replicates)
    going_on = {
        study.replicate for study in comparison.studies if not is_over(study, comparison.spec.get("budget"))
    }
    return tuple(r for r in replicates if r not in going_on) or tuple(replicates)


def is_over(study: StudyOutcome, budget: object) -> bool:
    """Whether a study has spent its budget, as far as its trials tell; `budget` as the file has it."""
    if any(not trial.finished for trial in study.trials):
        return False
    limits = budget if isinstance(budget, Mapping) else {}
    trials, epochs = limits.get("trials"), limits.get("epochs")
    return (
        (isinstance(trials, int) and len(study.trials) >= trials)
        or (isinstance(epochs, int) and spent(study, "epochs") >= epochs)
        # A grid's trials are all enqueued before the first one begins.
        or (study.method == "grid" and len(study.trials) > 0)
    )


def trials_given(study: StudyOutcome, comparison: Comparison) -> int:
    """How long a study was meant to be, in trials: what decides whether it is a demonstration.

    Of a study that has all its trials that is the budget: a grid takes as many points as fit into it,
    and a trial that failed for good makes it no shorter. Of any other, the trials that count.
    """
    counting = sum(trial.finished and trial.state != "failed" for trial in study.trials)
    limits = comparison.spec.get("budget")
    budget = limits.get("trials") if isinstance(limits, Mapping) else None
    if not isinstance(budget, int) or any(not trial.finished for trial in study.trials):
        return counting
    whole = len(study.trials) >= budget or (study.method == "grid" and counting > 0)
    return max(counting, budget) if whole else counting


def study_curve(
    study: StudyOutcome, axis: Axis, direction: Direction, worst: float | None
) -> StepCurve | None:
    """A study's best so far, at the positions where it gets better; None without a trained trial.

    Trials count in the order in which they ended, ties by number; those without an end time
    (imported ones) come last.
    """
    trials = sorted(
        (trial for trial in study.trials if trial.finished),
        key=lambda trial: (trial.ended_at or _LAST, trial.number),
    )
    eligible = [trained(trial) for trial in trials]
    if not any(eligible):
        return None
    values = [_worth(trial, worst) if has else math.nan for trial, has in zip(trials, eligible, strict=True)]
    curve = best_so_far(values, [cost(trial, axis) for trial in trials], direction, eligible)
    return None if curve is None else _turns(curve)


def _worth(trial: TrialOutcome, worst: float | None) -> float:
    """What the trial is worth: its value, or the worst there is if it diverged."""
    assert trial.value is not None
    return trial.value if not trial.diverged or worst is None else worst


def _turns(curve: StepCurve) -> StepCurve:
    """The same curve without positions at which nothing changes."""
    kept = np.append(True, np.diff(curve.values) != 0)
    return StepCurve(curve.positions[kept], curve.values[kept], curve.end)


def anytime(
    comparison: Comparison, axis: Axis, replicates: tuple[int, ...], *, declared: bool, resamples: int
) -> Anytime:
    """All methods' curves on one axis, over the counted replicates."""
    counted = [study for study in comparison.studies if study.replicate in set(replicates)]
    worst = worst_value(comparison)
    curves: dict[str, dict[int, StepCurve]] = {method: {} for method in comparison.methods}
    for study in counted:
        curve = study_curve(study, axis, comparison.direction, worst)
        if curve is not None:
            curves[study.method][study.replicate] = curve
    everyone = [curve for found in curves.values() for curve in found.values()]
    # None as well where trials cost nothing on this axis: shares of nothing can't be compared.
    budget = min((curve.end for curve in everyone), default=0.0) or None
    start = max((curve.start for curve in everyone), default=0.0)
    return Anytime(
        axis=axis,
        declared=declared,
        budget=budget,
        methods=tuple(
            AnytimeMethod(
                method=method,
                curves=found,
                band=_band(found, resamples),
                areas=_areas(found, start, budget),
            )
            for method, found in curves.items()
        ),
    )


def _band(curves: Mapping[int, StepCurve], resamples: int) -> Band | None:
    if not curves:
        return None
    traces = align(list(curves.values()))
    if traces is not None and traces.axis.size > BAND_POSITIONS:
        places = np.unique(np.linspace(0, traces.axis.size - 1, BAND_POSITIONS).round().astype(int))
        traces = align(list(curves.values()), traces.axis[places])
    return None if traces is None else band(traces, resamples=resamples)


def _areas(curves: Mapping[int, StepCurve], start: float, budget: float | None) -> dict[int, float]:
    if budget is None or budget <= start:
        return {}
    return {r: anytime_area(curve, start=start, end=budget) for r, curve in curves.items()}
