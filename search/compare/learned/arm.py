"""Random search's trials as arrays, and the resampling of its replicates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.compare.base import Comparison, Direction, TrialOutcome
from search.compare.space import SpaceAxis, space_axes
from search.compare.statistics.base import FloatArray, Interval, number
from search.compare.statistics.intervals import LEVEL, expanded_level

ARM = "random"
"""The method whose trials are independent draws from the whole space."""

RESAMPLES = 999


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """The trials of random search that have a value: complete, diverged (its worst value), or pruned.

    A pruned trial stands with its last report. Leaving it out would leave out just those regions
    that are poor.
    """

    axes: tuple[SpaceAxis, ...]
    """The dimensions that vary, as over the whole experiment."""
    direction: Direction
    trials: tuple[TrialOutcome, ...]
    replicate: NDArray[np.intp]
    """Per trial, the row of its replicate in `replicates`."""
    replicates: tuple[int, ...]
    values: FloatArray
    diverged: NDArray[np.bool_]
    pruned: int

    @property
    def n(self) -> int:
        """How many trials there are."""
        return len(self.trials)

    @property
    def gain(self) -> FloatArray:
        """The values with the sign turned where smaller is better."""
        return self.values if self.direction == "maximize" else -self.values

    def parts(self, axis: SpaceAxis) -> NDArray[np.intp]:
        """Per trial, the level or bin of the axis in which it lies; −1 where it doesn't have the axis."""
        return np.array(
            [axis.part(t.params[axis.name]) if axis.name in t.params else -1 for t in self.trials],
            dtype=np.intp,
        )


def random_arm(comparison: Comparison) -> Arm | None:
    """The experiment's random trials; None if it has no method `random`, or none of its trials a value."""
    found = [
        (study.replicate, trial)
        for study in comparison.studies_of(ARM)
        for trial in study.trials
        if trial.finished
        and trial.state != "failed"
        and trial.value is not None
        and math.isfinite(trial.value)
    ]
    if not found:
        return None
    replicates = sorted({replicate for replicate, _ in found})
    return Arm(
        axes=space_axes(comparison),
        direction=comparison.direction,
        trials=tuple(trial for _, trial in found),
        replicate=np.array([replicates.index(replicate) for replicate, _ in found], dtype=np.intp),
        replicates=tuple(replicates),
        values=np.array([trial.value for _, trial in found], dtype=np.float64),
        diverged=np.array([trial.diverged for _, trial in found], dtype=bool),
        pruned=sum(trial.state == "pruned" for _, trial in found),
    )


def resampled_weights(arm: Arm, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """How often each replicate is drawn: one row per resample; a single row of ones for one replicate.

    Replicates are resampled whole, for their trials share a split and initial weights.
    """
    count = len(arm.replicates)
    if count == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    return np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)


def interval(estimate: float, resampled: Sequence[float] | FloatArray, replicates: int) -> Interval:
    """The expanded percentile interval of an estimate; without ends for a single replicate."""
    kept = np.asarray(resampled, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if replicates < 2 or kept.size < 100:
        return Interval(estimate, None, None, LEVEL, "none")
    wanted = expanded_level(LEVEL, replicates)
    low, high = np.quantile(kept, ((1 - wanted) / 2, (1 + wanted) / 2))
    return Interval(estimate, number(low), number(high), LEVEL, "percentile")
