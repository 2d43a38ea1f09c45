"""How far an experiment's studies are, as one worker knows it: what decides where it asks for trials.

Read together and seldom: what this worker does itself is kept up without reading. Numbers may be old by
the time they are acted on; whether a trial does start is decided on a reading under the study's lock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from search.trials import placing
from search.trials.study import SearchStudy, StudyDeleted, batched, limits_of, promised_epochs
from search.trials.winners import Winners

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from search.experiment.spec import ExperimentSpec
    from search.trials.placing import Limits, Load
    from search.trials.retraining import RetrainingStudy
    from storage.database import Database
    from storage.ledger import Ending
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

FRESH_SECONDS, FRESH_TIMES, STALE_SECONDS = 0.25, 10, 2.0
"""Who finds no trial reads all studies anew after the first, so many times what that took, or the last."""


class Standings:
    """The studies of one version of an experiment, without those that somebody deleted. One thread."""

    def __init__(
        self,
        database: Database,
        storage: BaseStorage,
        experiment: ExperimentRecord,
        spec: ExperimentSpec,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._spec = spec
        self._clock = clock
        self.places = {name: (method, replicate) for method, replicate, name in spec.studies()}
        """Study → its method and replicate."""
        self._limits: dict[str, Limits] = {
            name: limits_of(spec, method, replicate) for name, (method, replicate) in self.places.items()
        }
        self.winners = Winners(database, storage, experiment, spec, self._limits)
        self._waits = False
        self._studies: dict[str, SearchStudy] = {}
        self._loads: dict[str, Load] = {}
        self._stale: set[str] = set(self.places)
        self._fresh_until = clock() + FRESH_SECONDS

    @property
    def exhausted(self) -> bool:
        """Whether no study gives another trial, as far as was read last, and no winner is to be retrained."""
        return not (self._stale or self._waits) and not any(
            placing.may_ever_start(load, self._limits[name]) for name, load in self._loads.items()
        )

    def study(self, name: str) -> SearchStudy | RetrainingStudy:
        """A study of this experiment. Raises `StudyDeleted`."""
        if name in self.winners.studies:
            return self.winners.studies[name]
        if name not in self._studies:
            self._studies[name] = SearchStudy(self._storage, self._spec, *self.places[name])
        return self._studies[name]

    def shares(self, wanted: int, passed: Collection[str]) -> dict[str, int]:
        """From which studies to take so many trials, but for those of `passed`; none: nothing may start now.

        Reads what is stale; where nothing may start, from time to time everything.
        """
        while True:
            try:
                self._read(self._stale)
                self._find_winners()
                shares = self._shares_as_read(wanted, passed)
                if not shares and self._clock() >= self._fresh_until:
                    self._read(self.places)
                    self._find_winners()
                    shares = self._shares_as_read(wanted, passed)
            except StudyDeleted as gone:
                self.leave_out(gone)
            else:
                return shares

    def leave_out(self, gone: StudyDeleted) -> None:
        """Go on without a study that somebody deleted: its trials are refused. The controller tells of it."""
        logger.warning("%s; the other studies go on", gone)
        self.places.pop(gone.name, None)
        self._loads.pop(gone.name, None)
        self._stale.discard(gone.name)

    def found(self, any_trial: bool) -> None:
        """Note whether trials were found, for whether to wait for winners to retrain."""
        self._waits = not any_trial and self.winners.pending(self._loads)

    def read_locked(self, study: SearchStudy | RetrainingStudy) -> Load:
        """A study's load, read by whoever holds its lock. Raises `StudyDeleted`."""
        self._loads[study.name] = load = study.load()
        self._stale.discard(study.name)
        return load

    def begun(self, study: SearchStudy | RetrainingStudy) -> None:
        """Note that one more trial of a study runs."""
        self._loads[study.name] = placing.begun(self._loads[study.name], study.promised)

    def ended(self, ending: Ending) -> None:
        """Keep what is known of a study up with an ending of ours, where it need not be read for that."""
        name = ending.lease.study_name
        if name not in self._loads or name not in self._limits:
            return
        if ending.state in ("released", "retry") or self._limits[name].epochs is not None:
            self._stale.add(name)
        else:
            load = self._loads[name]
            self._loads[name] = replace(load, running=max(0, load.running - 1))

    def spoil(self, names: Iterable[str] | None = None) -> None:
        """Read these studies, or all, before the next trial is taken: somebody else changed them."""
        self._stale |= self.places.keys() & set(self.places if names is None else names)

    def _find_winners(self) -> None:
        """Where a search is over, retrainings of its winner may be claimed."""
        for study in self.winners.settle(self._loads, self._load):
            self.places[study.name] = (study.method, study.replicate)
            self._limits[study.name] = study.limits
            self._loads[study.name] = study.load()

    def _load(self, name: str) -> Load:
        self._loads[name] = load = self.study(name).load()
        return load

    def _shares_as_read(self, wanted: int, passed: Collection[str]) -> dict[str, int]:
        loads = {name: load for name, load in self._loads.items() if name not in passed}
        return placing.shares(loads, self._limits, wanted, promised_epochs(self._spec))

    def _read(self, names: Iterable[str]) -> None:
        """Read how far studies are."""
        names = [name for name in names if name in self.places]
        if not names:
            return
        began = self._clock()
        with batched(self._storage, names):
            for name in names:
                self._load(name)
        self._stale.difference_update(names)
        if len(names) == len(self.places):
            now = self._clock()
            self._fresh_until = now + min(max(FRESH_SECONDS, FRESH_TIMES * (now - began)), STALE_SECONDS)
