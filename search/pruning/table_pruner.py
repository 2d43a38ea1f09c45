"""Rules for a whole pool as a pruner of Optuna's, for Optuna clients with hundreds of running trials.

Optuna's own pruners go through all trials of the study for every trial that they are asked about: with 256
running ones on ten thousand finished, some hundred milliseconds of every epoch. This says the same, from a
table that costs what has changed since it was last asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from search.experiment.settings import PrunerSettings
from search.pruning.pruners import Direction, build_pool_pruner
from search.pruning.rungs import RungTable
from search.pruning.stopping import PoolPruner
from storage.optuna.shoal_storage import ShoalStorage

BY_ARRIVAL = frozenset({"successive_halving", "hyperband"})
"""Rules by which a trial's verdict depends on who was asked about before it."""


@dataclass(slots=True)
class _Known:
    """What is known of a study."""

    rule: PoolPruner
    table: RungTable
    revision: int | None = None
    """Of the storage, when the table was updated, if it counts them."""


class TablePruner(BasePruner):
    """A pruner with the verdicts of the one that `settings` name (`search.pruning.pruners.build_pruner`).

        study = optuna.load_study(..., pruner=TablePruner(MedianSettings(name="median"), max_epochs=20))

    Works on every storage. On `ShoalStorage` a pool that reports and decides in a batch is looked at
    once. Not for successive halving and hyperband: in Optuna's, a trial comes to a rung when it is asked
    about, in a table when it has reported. One thread at a time.
    """

    def __init__(self, settings: PrunerSettings, max_epochs: int) -> None:
        """`max_epochs`: the most steps that a trial can report. Raises `ValueError` for other rules."""
        if settings.name in BY_ARRIVAL:
            raise ValueError(f"{settings.name} goes by the order in which trials are asked about")
        self._settings = settings
        self._max_epochs = max_epochs
        self._known: dict[str, _Known] = {}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's question: True stops the trial."""
        step = trial.last_step
        if step is None:
            return False
        known = self._of(study)
        (stops,) = known.rule.verdicts(known.table, [(trial.number, step)])
        return stops

    def _of(self, study: Study) -> _Known:
        name = study.study_name
        known = self._known.get(name)
        if known is None:
            direction: Direction = "maximize" if study.direction == StudyDirection.MAXIMIZE else "minimize"
            rule = build_pool_pruner(self._settings, self._max_epochs, name, direction)
            known = self._known[name] = _Known(rule, RungTable())
        trials: list[FrozenTrial] | None
        if isinstance(study._storage, ShoalStorage):
            known.revision, trials = study._storage.changed_trials(study._study_id, known.revision)
        else:
            trials = study.get_trials(deepcopy=False)
        if trials is not None:
            known.table.update(trials)
        return known
