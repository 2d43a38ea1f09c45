"""The retraining of an experiment's winners, as one worker sees it: what is over, and what is to be trained.

See `search.trials.retraining` for what a retraining is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from search.trials.placing import is_decided
from search.trials.retraining import RetrainingStudy
from search.trials.study import study_lock
from storage.experiments import Experiments
from storage.failpoints import failpoint
from storage.ledger import lease_seconds
from storage.workers import trials_held

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from search.experiment.spec import ExperimentSpec
    from search.trials.placing import Limits, Load
    from storage.database import Database
    from storage.records import ExperimentRecord


class Winners:
    """Finds searches that are over, and puts the retraining of their winners in the queue. One thread."""

    def __init__(
        self,
        database: Database,
        storage: BaseStorage,
        experiment: ExperimentRecord,
        spec: ExperimentSpec,
        limits: Mapping[str, Limits],
    ) -> None:
        """`limits`: of every search, by its study's name."""
        self._database = database
        self._storage = storage
        self._experiment = experiment
        self._spec = spec
        self._limits = dict(limits)
        wanted = spec.comparison.retrain.seeds > 0
        self._places = {name: (m, r) for m, r, name in spec.studies()} if wanted else {}
        self._settled: dict[str, Load] = {}
        self.studies: dict[str, RetrainingStudy] = {}
        """Those that hold retrainings, by name; of searches that are over and have a winner."""

    def settle(self, loads: Mapping[str, Load], read: Callable[[str], Load]) -> list[RetrainingStudy]:
        """See to it that the winner of every search that is over has its retrainings; where it was looked at.

        `loads` may be old; `read` reads one anew, under the study's lock. A search that somebody else
        looks at now is left for the next time.
        """
        opened: list[RetrainingStudy] = []
        for name, (method, replicate) in self._places.items():
            if not self._is_unsettled(name, loads) or not is_decided(loads[name], self._limits[name]):
                continue
            frees = 2 * lease_seconds()  # should this process be stopped (SIGSTOP) in the middle
            with self._database.lock(study_lock(name), wait=False, idle_seconds=frees) as held:
                if held and is_decided(load := read(name), self._limits[name]):
                    opened += self._open(method, replicate)
                    self._settled[name] = load
        return opened

    def _open(self, method: str, replicate: int) -> list[RetrainingStudy]:
        study = RetrainingStudy(self._storage, self._spec, method, replicate)
        lacking = study.lacking()
        if lacking:
            Experiments(self._database).add_study(
                self._experiment.id, method, replicate, study.name, role="retraining"
            )
            failpoint("retraining.noted")
            study.enqueue(lacking)
        if study.winner is None:
            return []
        self.studies[study.name] = study
        return [study]

    def pending(self, loads: Mapping[str, Load]) -> bool:
        """Whether retrainings may come up that nobody has put in the queue yet.

        That is while a search that may not start anything has trials under a lease, or somebody else
        is just looking at one. Trials that another Optuna client runs are not waited for.
        """
        unsettled = [name for name in self._places if self._is_unsettled(name, loads)]
        if any(is_decided(loads[name], self._limits[name]) for name in unsettled):
            return True
        return bool(unsettled) and trials_held(self._database, self._experiment.id) > 0

    def _is_unsettled(self, name: str, loads: Mapping[str, Load]) -> bool:
        return name in loads and loads[name] != self._settled.get(name)
