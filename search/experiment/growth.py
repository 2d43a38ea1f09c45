"""An experiment that grows: more trials, replicates, methods, and more values of a dimension.

What has been tried stays as it is. A dimension may get further choices behind those it has, and
wider bounds; every value that was ever drawn is then still a value of it. Optuna wants the choices
of a study's categorical dimension to stay the same, for two reasons that don't bind us: a stored
value is an index into the choices stored beside it (kept per trial, so old trials read as before),
and its samplers leave out of a joint draw what differs between trials. For the second, samplers are
shown the study with its old trials written in today's space: `Widening`. In the tables each trial
keeps the distribution that it was drawn from.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search.experiment.dimensions import Choices, Dimension, Range, same
from search.experiment.problems import Problem
from search.sampling.history import History
from search.sampling.shown import Shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from search.experiment.spec import ExperimentSpec

KEEP_POINTS = "write the levels of every dimension as its `grid`, the old ones among them"
"""The remedy where a grid would lose points."""


def grown(old: Dimension, new: Dimension) -> bool:
    """Whether a dimension is an earlier one with more choices at the end, or wider bounds, or as it was."""
    if old.when != new.when:
        return False
    if isinstance(old, Choices) and isinstance(new, Choices):
        return len(new.values) >= len(old.values) and all(
            same(before, now) for before, now in zip(old.values, new.values, strict=False)
        )
    if isinstance(old, Range) and isinstance(new, Range):
        alike = (old.log, old.integer, old.step) == (new.log, new.integer, new.step)
        steps = 0.0 if old.step is None else (float(old.low) - float(new.low)) / float(old.step)
        return alike and new.low <= old.low and new.high >= old.high and abs(steps - round(steps)) < 1e-9
    return False


def conflicts(spec: ExperimentSpec, stored: ExperimentSpec) -> list[Problem]:
    """What of `stored` a new version changes though it may not: everything but growth."""
    kept = dict(spec.space)
    for name, dimension in stored.space.items():
        if name in kept and grown(dimension, kept[name]):
            kept[name] = dimension
    return spec.model_copy(update={"space": kept}).conflicts(stored) + _lost_points(spec, stored)


def _lost_points(spec: ExperimentSpec, stored: ExperimentSpec) -> list[Problem]:
    """A grid may get more points, never lose some: they may have been evaluated, or be in the queue."""
    if "grid" not in spec.methods or "grid" not in stored.methods or spec.space == stored.space:
        return []
    for replicate in range(min(spec.replicates, stored.replicates)):
        points = {json.dumps(point, sort_keys=True) for point in spec.grid_points(replicate)}
        lost = [p for p in stored.grid_points(replicate) if json.dumps(p, sort_keys=True) not in points]
        if lost:
            return [Problem("space", f"the grid would lose {len(lost)} of its points", KEEP_POINTS)]
    return []


class Widening:
    """Shows a study's trials in today's space; remembers what it rewrote. One thread at a time."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = space
        self._history = History()
        self._generation = self._looked_at = 0
        self._rewritten: dict[int, FrozenTrial] = {}

    def of(self, study: Study) -> Study:
        """The study as samplers are to see it; the same object unless a dimension has grown."""
        history = self._history
        history.update(study.get_trials(deepcopy=False))
        if history.generation != self._generation:
            self._generation, self._looked_at, self._rewritten = history.generation, 0, {}
        for _, trial in history.finished[self._looked_at :]:
            self._look_at(trial, self._rewritten)
        self._looked_at = len(history.finished)
        still_open: dict[int, FrozenTrial] = {}
        for trial in history.open.values():
            self._look_at(trial, still_open)
        rewritten = self._rewritten | still_open if still_open else self._rewritten
        if not rewritten:
            return study
        return Shown(study, lambda trials: [rewritten.get(trial.number, trial) for trial in trials])

    def _look_at(self, trial: FrozenTrial, rewritten: dict[int, FrozenTrial]) -> None:
        if any(kind != self._space.get(name, kind) for name, kind in trial.distributions.items()):
            fitting = copy.copy(trial)
            fitting.distributions = {
                name: self._today(name, kind, trial.params[name])
                for name, kind in trial.distributions.items()
            }
            rewritten[trial.number] = fitting

    def _today(self, name: str, kind: BaseDistribution, value: Any) -> BaseDistribution:
        today = self._space.get(name, kind)
        try:
            return today if today._contains(today.to_internal_repr(value)) else kind
        except ValueError:
            return kind  # another client's trial
