"""Shows samplers the trials that rest at a rung as pruned ones, which is what most of them will be.

To Optuna a trial that rests is one that waits, and its samplers learn nothing from those: of a study in
which few trials are trained to their end, they would learn next to nothing. TPE ranks pruned trials by how
far they came, then by their last value, so what rests is no better to it than what was promoted. In the
tables they stay what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.sampling.shown import Shown


class Resting:
    """Remembers what it rewrote: a trial that still rests is the same object. One thread at a time."""

    def __init__(self, rests: Callable[[FrozenTrial], bool]) -> None:
        self._rests = rests
        self._rewritten: dict[int, FrozenTrial] = {}

    def of(self, study: Study) -> Study:
        """The study as samplers are to see it."""
        return Shown(study, self._shown)

    def _shown(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [self._as_pruned(trial) if self._rests(trial) else trial for trial in trials]

    def _as_pruned(self, trial: FrozenTrial) -> FrozenTrial:
        step = trial.last_step
        assert step is not None
        known = self._rewritten.get(trial.number)
        if known is None or known.intermediate_values != trial.intermediate_values:
            known = copy.copy(trial)
            known.state = TrialState.PRUNED
            known.value = trial.intermediate_values[step]
            self._rewritten[trial.number] = known
        return known
