"""What an experiment has for workers: trials that may start now, and whether there will ever be another.

For whoever hires workers or is one without work; a worker that has some asks its broker. Numbers may be old
by the time they are acted on: whether a trial does start is decided under its study's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.trials import placing, retraining
from search.trials.placing import is_over, may_ever_start
from search.trials.study import SearchStudy, StudyDeleted, batched, limits_of, promised_epochs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from optuna.storages import BaseStorage

    from search.experiment.spec import ExperimentSpec
    from search.trials.placing import Load
    from storage.records import StudyProgress


class Openings:
    """Reads the studies of one version of an experiment. One thread."""

    def __init__(self, storage: BaseStorage, spec: ExperimentSpec) -> None:
        self._storage = storage
        self._spec = spec
        self._studies: dict[str, SearchStudy] = {}
        self._limits = {name: limits_of(spec, method, index) for method, index, name in spec.studies()}
        self._places = [(name, method, index) for method, index, name in spec.studies()]

    def now(self, wanted: int) -> int:
        """How many trials may start at this moment, up to `wanted`; a winner to retrain counts as one.

        One that waits for its twin in another study counts as well, and as one all that a study has left
        to end.
        """
        found = 0
        with batched(self._storage, list(self._limits)):
            for name, method, replicate in self._places:
                load = self._load(name, method, replicate)
                if load is None:
                    continue
                limits = self._limits[name]
                found += placing.starts(load, limits, wanted - found, promised_epochs(self._spec)).total
                found += placing.is_at_rest(load, limits)
                if found >= wanted:
                    return found
            return min(wanted, found + sum(self._retrainings()))

    def ever(self, rows: Iterable[StudyProgress]) -> bool:
        """Whether a trial may start now or later in any study, by the rule that workers go by."""
        for row in rows:
            name = row.study.name
            if name in self._limits and not is_over(row, self._limits[name]):
                load = self._load(name, row.study.method, row.study.replicate)
                if load is not None and may_ever_start(load, self._limits[name]):
                    return True
        return any(self._retrainings())

    def _retrainings(self) -> Iterator[bool]:
        if self._spec.comparison.retrain.seeds == 0:
            return iter(())
        return (
            retraining.is_left(self._storage, self._spec, method, replicate)
            for method, replicate, _ in self._spec.studies()
        )

    def _load(self, name: str, method: str, replicate: int) -> Load | None:
        """How far a study is; None for one that was deleted, in which nothing starts any more."""
        try:
            if name not in self._studies:
                self._studies[name] = SearchStudy(self._storage, self._spec, method, replicate)
            return self._studies[name].load()
        except StudyDeleted:
            self._studies.pop(name, None)
            return None
