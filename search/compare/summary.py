"""What the measurements say, per method and per study. Pure functions on values.

Definitions, which the report prints beside its numbers:

- *Incumbent*: the best trial that was trained to its end. A pruned trial is never one, since it
  was not trained as far as its rivals; a diverged trial is never one. Ties go to the lower number.
- *Epochs spent*: every epoch of every finished trial, the pruned, diverged and failed ones
  included. An epoch that was trained again after a machine failed counts once.
- *Best so far against epochs spent*: a study's finished trials in the order in which they ended
  (ties by number); a trial's epochs count when it ends, and the curve then takes the best value
  among eligible trials so far. It starts with the first eligible trial.
- *Over replicates*: at each number of epochs, the median and range of the replicates' curves,
  from where the last replicate has an incumbent to where the first replicate had spent all.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from search.compare.base import Comparison, Direction, StudyOutcome, TrialOutcome
from search.compare.notes import Note, notes


@dataclass(frozen=True, slots=True)
class Spread:
    """Values over replicates, at least one."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse an empty spread: a method without a value has None instead."""
        assert self.values

    @property
    def n(self) -> int:
        """How many replicates have a value."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Standard deviation over replicates (n − 1 in the denominator); None for one replicate."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Point:
    """A study's best value after so many epochs spent."""

    epochs: int
    value: float


@dataclass(frozen=True, slots=True)
class BandPoint:
    """Median and range over replicates after so many epochs spent per study."""

    epochs: int
    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What became of trials; the first six add up to `total`."""

    complete: int
    """Trained to the end, without those that diverged."""
    pruned: int
    diverged: int
    failed: int
    running: int
    waiting: int
    retried: int
    """Attempts beyond a trial's first: a machine failed or a run was interrupted."""

    @property
    def total(self) -> int:
        """All trials, whatever their state."""
        return self.complete + self.pruned + self.diverged + self.failed + self.running + self.waiting

    @property
    def finished(self) -> int:
        """Trials that count against the budget in full."""
        return self.complete + self.pruned + self.diverged + self.failed


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best trial of a study or a method, and where to find it."""

    replicate: int
    trial: TrialOutcome

    @property
    def value(self) -> float:
        """The trial's value."""
        assert self.trial.value is not None
        return self.trial.value


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """One study in numbers."""

    study: StudyOutcome
    counts: Counts
    epochs: int
    seconds: float
    incumbent: Incumbent | None
    curve: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One method over its replicates."""

    method: str
    replicates: int
    counts: Counts
    epochs: int
    """Spent by all replicates together."""
    seconds: float
    """Device seconds of all replicates together."""
    best: Spread | None
    """The incumbents' values over the replicates that have one."""
    at_common_epochs: Spread | None
    """The same after `Summary.common_epochs` epochs, which every study has spent."""
    incumbent: Incumbent | None
    """The best of the replicates' incumbents."""
    curve: tuple[BandPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The comparison in numbers."""

    methods: tuple[MethodSummary, ...]
    studies: tuple[StudySummary, ...]
    common_epochs: int | None
    """The fewest epochs that any study spent; None while one has spent none."""
    notes: tuple[Note, ...]


def summarise(comparison: Comparison) -> Summary:
    """All numbers of the report."""
    studies = tuple(summarise_study(study, comparison.direction) for study in comparison.studies)
    spent = [study.epochs for study in studies]
    common = min(spent) if spent and min(spent) > 0 else None
    methods = tuple(
        _summarise_method(
            method, [s for s in studies if s.study.method == method], comparison.direction, common
        )
        for method in comparison.methods
    )
    return Summary(
        methods=methods,
        studies=studies,
        common_epochs=common,
        notes=notes(comparison, methods, studies, common),
    )


def summarise_study(study: StudyOutcome, direction: Direction) -> StudySummary:
    """One study's counts, costs, incumbent and curve."""
    finished = [trial for trial in study.trials if trial.finished]
    best = incumbent(study.trials, direction)
    return StudySummary(
        study=study,
        counts=count(study.trials),
        epochs=sum(trial.epochs for trial in finished),
        seconds=math.fsum(trial.seconds for trial in finished),
        incumbent=None if best is None else Incumbent(study.replicate, best),
        curve=best_so_far(study.trials, direction),
    )


def _summarise_method(
    method: str, studies: Sequence[StudySummary], direction: Direction, common: int | None
) -> MethodSummary:
    incumbents = [study.incumbent for study in studies if study.incumbent is not None]
    curves = [study.curve for study in studies if study.curve]
    at_common = [] if common is None else [v for c in curves if (v := value_at(c, common)) is not None]
    return MethodSummary(
        method=method,
        replicates=len(studies),
        counts=_total(study.counts for study in studies),
        epochs=sum(study.epochs for study in studies),
        seconds=math.fsum(study.seconds for study in studies),
        best=Spread(tuple(best.value for best in incumbents)) if incumbents else None,
        at_common_epochs=Spread(tuple(at_common)) if at_common else None,
        incumbent=_best_of(incumbents, direction),
        curve=band(curves),
    )


def _better(value: float, other: float, direction: Direction) -> bool:
    return value > other if direction == "maximize" else value < other


def _best_of(incumbents: Iterable[Incumbent], direction: Direction) -> Incumbent | None:
    """The best incumbent; ties go to the earlier one in the sequence."""
    best: Incumbent | None = None
    for candidate in incumbents:
        if best is None or _better(candidate.value, best.value, direction):
            best = candidate
    return best


def incumbent(trials: Iterable[TrialOutcome], direction: Direction) -> TrialOutcome | None:
    """The best eligible trial, ties to the lower number; None if no trial is eligible."""
    best: TrialOutcome | None = None
    for trial in sorted(trials, key=lambda trial: trial.number):
        if not trial.eligible or trial.value is None:
            continue
        if best is None or best.value is None or _better(trial.value, best.value, direction):
            best = trial
    return best


def count(trials: Iterable[TrialOutcome]) -> Counts:
    """How many trials came to which end."""
    tally = dict.fromkeys(("complete", "pruned", "diverged", "failed", "running", "waiting"), 0)
    retried = 0
    for trial in trials:
        tally["diverged" if trial.state == "complete" and trial.diverged else trial.state] += 1
        retried += max(0, trial.attempts - 1)
    return Counts(**tally, retried=retried)


def _total(counts: Iterable[Counts]) -> Counts:
    names = ("complete", "pruned", "diverged", "failed", "running", "waiting", "retried")
    rows = list(counts)
    return Counts(**{name: sum(getattr(row, name) for row in rows) for name in names})


_LAST = datetime.max.replace(tzinfo=UTC)


def best_so_far(trials: Iterable[TrialOutcome], direction: Direction) -> tuple[Point, ...]:
    """The best value against epochs spent (see the top of this file), one point per finished trial.

    Points begin with the first eligible trial. Trials without an end time (imported ones) come
    last, by number. Trials that ended without an epoch move nothing and add no point, unless
    they are the first eligible one.
    """
    points: list[Point] = []
    spent = 0
    best: float | None = None
    finished = (trial for trial in trials if trial.finished)
    for trial in sorted(finished, key=lambda trial: (trial.ended_at or _LAST, trial.number)):
        spent += trial.epochs
        if (
            trial.eligible
            and trial.value is not None
            and (best is None or _better(trial.value, best, direction))
        ):
            best = trial.value
        if best is None:
            continue
        if points and points[-1].epochs == spent:
            points[-1] = Point(spent, best)
        else:
            points.append(Point(spent, best))
    return tuple(points)


def value_at(curve: Sequence[Point], epochs: int) -> float | None:
    """A step curve's value after so many epochs; None before its first point."""
    place = bisect_right(curve, epochs, key=lambda point: point.epochs)
    return curve[place - 1].value if place else None


def band(curves: Sequence[Sequence[Point]]) -> tuple[BandPoint, ...]:
    """Median and range over replicates at every number of epochs at which a replicate moves.

    From where every curve has begun to where the first one ends; empty if there is no such
    stretch. Curves without points must be left out by the caller.
    """
    if not curves:
        return ()
    start = max(curve[0].epochs for curve in curves)
    end = min(curve[-1].epochs for curve in curves)
    moves = {point.epochs for curve in curves for point in curve if start <= point.epochs <= end}
    points = []
    for epochs in sorted(moves):
        values = [value for curve in curves if (value := value_at(curve, epochs)) is not None]
        points.append(BandPoint(epochs, statistics.median(values), min(values), max(values)))
    return tuple(points)
