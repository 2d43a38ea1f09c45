"""Distance to the best value known, and what random search of another length would have found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.compare.base import Comparison, TrialOutcome
from search.compare.efficiency import RANDOM
from search.compare.headline import StudyResult, better
from search.compare.statistics.across_datasets import normalised_regret
from search.compare.statistics.base import FloatArray
from search.compare.statistics.expected_best import expected_best
from search.compare.statistics.intervals import Distribution, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRegret:
    """One method's distance to the best value known, from 0 up, over counted replicates."""

    method: str
    regret: Distribution
    """In the metric's unit."""
    normalised: Distribution | None
    """Over the distance of a median random trial: 0 the best known, 1 a typical random trial."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Of the best validation values of whole studies."""

    best_known: float
    """The best validation value of any study: itself selected, so that regrets are a little too large."""
    median_random: float | None
    """The median over random search's trials; None without any, or where it is as good as the best."""
    methods: tuple[MethodRegret, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpectedBest:
    """Of n random trials, the mean over replicates of the expected best validation value."""

    values: FloatArray
    """Element n − 1 belongs to n trials."""
    trials: int
    """Random trials per replicate that were used."""
    replicates: int

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """Numbers of trials for a table: 1, 2, 5, 10, 20, 50, … and all."""
        steps = [k * 10**e for e in range(7) for k in (1, 2, 5)]
        return (*(n for n in steps if n < self.trials), self.trials)


MOST_RANDOM_TRIALS = 1000
"""Random trials of a study that are used, the first by number: the formula takes time with the square."""


def regret(
    comparison: Comparison, studies: Sequence[StudyResult], worst: float | None, *, resamples: int
) -> Regret | None:
    """Of every method's whole studies in counted replicates; None if no study found anything."""
    direction = comparison.direction
    known = [s.searched for s in studies if s.incumbent is not None and s.searched is not None]
    if not known:
        return None
    best = max(known) if direction == "maximize" else min(known)
    drawn = [_worth(trial, worst) for study in comparison.studies_of(RANDOM) for trial in study.trials]
    values = [value for value in drawn if value is not None]
    median = float(np.median(values)) if values else None
    if median is not None and not better(best, median, direction):
        median = None
    methods = []
    for method in comparison.methods:
        found = [s.searched for s in studies if s.counted and s.method == method and s.searched is not None]
        if not found:
            continue
        distances = np.abs(best - np.array(found))
        normalised = None if median is None else normalised_regret(found, best, median, direction)
        methods.append(
            MethodRegret(
                method=method,
                regret=describe(distances, "minimize", resamples=resamples),
                normalised=None
                if normalised is None
                else describe(normalised, "minimize", resamples=resamples),
            )
        )
    return Regret(best_known=best, median_random=median, methods=tuple(methods))


def _worth(trial: TrialOutcome, worst: float | None) -> float | None:
    """A random trial's value; a pruned one's is its last report, for this is only a scale."""
    if trial.state not in {"complete", "pruned"} or trial.value is None or not math.isfinite(trial.value):
        return None
    return worst if trial.diverged else trial.value


def random_search(
    comparison: Comparison, replicates: tuple[int, ...], worst: float | None
) -> ExpectedBest | None:
    """The expected best of n random trials, from random search's own trials alone.

    The first trials by number, as many as every replicate has; None with a pruned trial among them,
    for those left over would be a selection.
    """
    rows = []
    for study in comparison.studies_of(RANDOM):
        trials = sorted(study.trials, key=lambda trial: trial.number)
        ended = [trial for trial in trials if trial.finished and trial.state != "failed"]
        if study.replicate not in replicates or not ended:
            continue
        values = [_worth(trial, worst) for trial in ended]
        if any(trial.state == "pruned" for trial in ended) or None in values:
            return None
        rows.append([value for value in values if value is not None])
    if not rows:
        return None
    length = min(MOST_RANDOM_TRIALS, *(len(row) for row in rows))
    curves = [expected_best(row[:length], comparison.direction) for row in rows]
    return ExpectedBest(values=np.mean(curves, axis=0), trials=length, replicates=len(rows))
