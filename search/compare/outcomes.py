"""What became of the trials, what they cost, and whether the best lie on the edge of the space (T7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from search.compare.base import Comparison, TrialOutcome
from search.compare.headline import StudyResult


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
        """Trials that have ended, one way or another."""
        return self.complete + self.pruned + self.diverged + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """How often winners lie on the edge of one dimension's range."""

    dimension: str
    low: int
    """Studies whose incumbent lies on the lower end."""
    high: int
    n: int
    """Studies whose incumbent has the dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOutcomes:
    """One method over all its replicates, counted or not."""

    method: str
    counts: Counts
    shared: int
    """Trials that were trained once for this and another method; their costs stand in both."""
    epochs: int
    """Trained by all finished trials, the failed ones included."""
    train_seconds: float
    """Device seconds of those epochs; in a fused program, the trials' share of them."""
    sampler_seconds: float
    idle_seconds: float | None
    """Between trials' beginnings and ends, what was neither training nor drawing values: waiting for
    a slot or a turn. None if no trial says when it began."""
    edges: tuple[Edge, ...]
    """Numeric dimensions in the order of the space."""


EDGE = 0.01
"""Share of a range of floats, in its own scale, that counts as its edge: a random winner lies on one
of both edges in 2 of 100 cases."""


def count(trials: Iterable[TrialOutcome]) -> Counts:
    """How many trials came to which end."""
    tally = dict.fromkeys(("complete", "pruned", "diverged", "failed", "running", "waiting"), 0)
    retried = 0
    for trial in trials:
        tally["diverged" if trial.state == "complete" and trial.diverged else trial.state] += 1
        retried += max(0, trial.attempts - 1)
    return Counts(**tally, retried=retried)


def method_outcomes(method: str, comparison: Comparison, studies: Sequence[StudyResult]) -> MethodOutcomes:
    """One method's outcomes; `studies` of all methods, for their winners."""
    own = [study for study in studies if study.method == method]
    finished = [trial for study in own for trial in study.study.trials if trial.finished]
    return MethodOutcomes(
        method=method,
        counts=count(trial for study in own for trial in study.study.trials),
        shared=sum(trial.shared_with is not None for trial in finished),
        epochs=sum(trial.epochs for trial in finished),
        train_seconds=math.fsum(trial.seconds for trial in finished),
        sampler_seconds=math.fsum(trial.sampler_seconds for trial in finished),
        idle_seconds=_idle(finished),
        edges=edges([s.incumbent for s in own if s.incumbent is not None], comparison.spec.get("space")),
    )


def _idle(trials: Iterable[TrialOutcome]) -> float | None:
    waits = [
        max(0.0, (trial.ended_at - trial.started_at).total_seconds() - trial.seconds)
        for trial in trials
        if trial.started_at is not None and trial.ended_at is not None
    ]
    return math.fsum(waits) if waits else None


def edges(winners: Sequence[TrialOutcome], space: object) -> tuple[Edge, ...]:
    """Per numeric dimension, how many winners lie on either edge.

    The edge of a range of floats is the outermost hundredth in its own scale; of integers and of
    listed numbers (three or more), the outermost value.
    """
    found = []
    for name, dimension in (space if isinstance(space, Mapping) else {}).items():
        ends = _ends(dimension)
        values = [float(v) for w in winners if _is_number(v := w.params.get(str(name)))]
        if ends is not None and values:
            low, high = ends
            found.append(
                Edge(
                    dimension=str(name),
                    low=sum(value <= low for value in values),
                    high=sum(value >= high for value in values),
                    n=len(values),
                )
            )
    return tuple(found)


def _ends(dimension: object) -> tuple[float, float] | None:
    """At or below the first number a value lies on the lower edge, at or above the second on the upper."""
    if not isinstance(dimension, Mapping):
        return None
    listed = dimension.get("values")
    if isinstance(listed, list | tuple):
        if len(listed) < 3 or not all(_is_number(value) for value in listed):
            return None
        return float(min(listed)), float(max(listed))
    low, high = dimension.get("low"), dimension.get("high")
    if not (_is_number(low) and _is_number(high)) or low >= high:
        return None
    if dimension.get("type") == "int" or dimension.get("step") is not None:
        return float(low), float(high)
    if dimension.get("log") and low > 0:
        inward = (high / low) ** EDGE
        return low * inward, high / inward
    inward = (high - low) * EDGE
    return low + inward, high - inward


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
