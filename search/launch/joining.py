"""A worker that joins from any machine with the database's URL: `shoal worker`.

It needs no Ray and no controller. What a controller does for an experiment it does where there is none: makes
the studies of one that was created and not begun, takes trials back from workers that died, and says of an
experiment in which nothing is left that it is finished. Each of these may be done by anybody at any time, so
workers of both kinds serve one experiment together, and one that lost its controller comes to its end.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from search.control.crew import Assignment, work
from search.experiment.spec import ExperimentSpec
from search.trials.making import make_studies
from search.trials.openings import Openings
from search.trials.precisions import other_precision
from search.trials.study import StudyDeleted, quiet_optuna
from search.work.saving import checkpoint_folder
from storage import queries
from storage.errors import DatabaseUnreachable, DatabaseUnsuitable, ExperimentBusy
from storage.experiments import Experiments
from storage.ledgers import ledger_of
from storage.optuna_storage import opened_optuna_storage
from storage.workers import trials_held

if TYPE_CHECKING:
    from datetime import datetime

    from optuna.storages import BaseStorage

    from storage.database import Database
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""Between two looks for work."""
SWITCH_SECONDS = 10.0
"""Without a trial of one experiment for so long, a worker looks at the others."""
REST_SECONDS = 5.0
"""For which an experiment that gave nothing is left alone."""
BROKEN_SECONDS = 300.0
"""For which an experiment that can't be run on this machine is left alone."""
AWAY_SECONDS = 600.0
"""For how long the database may be away."""


@dataclass(frozen=True, slots=True)
class Served:
    """Why a worker joined no longer."""

    reason: str
    """``interrupted``, ``idle``, ``over``: all that it was named have ended."""


class Joined:
    """Serves experiments one after the other, the oldest first, until told to leave. One thread.

    `names`: which; none: any that is created or running. `assignment` says how to train; its experiment is
    filled in. `idle_seconds`: after which it leaves for want of work; None: it stays. Errors of an
    experiment that was named leave `run`; one that wasn't is left alone for a while. One whose trials are
    computed in another precision than this worker's is left to others, until it is changed.
    """

    def __init__(
        self,
        database: Database,
        names: Sequence[str],
        assignment: Assignment,
        *,
        worker: str,
        interrupted: threading.Event,
        idle_seconds: float | None,
        abandon: Callable[[str], object],
        tell: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        quiet_optuna()
        self._database = database
        self._names = names
        self._assignment = assignment
        self._worker = worker
        self._interrupted = interrupted
        self._idle_seconds = idle_seconds
        self._abandon = abandon
        self._tell = tell
        self._clock = clock
        self._experiments = Experiments(database)
        self._not_before: dict[int, float] = {}
        self._views: dict[int, _View] = {}
        self._declined: dict[int, datetime] = {}
        """Experiments of another precision, and when each had changed last."""
        self._waits = False

    def run(self) -> Served:
        """Serve. Raises `ExperimentNotFound` for a name that is unknown, and what the database raises."""
        for name in self._names:
            self._experiments.get(name)
        with opened_optuna_storage(self._database.url) as storage:
            return self._run(storage)

    def _run(self, storage: BaseStorage) -> Served:
        idle_since, away_since = self._clock(), None
        while not self._interrupted.is_set():
            try:
                records = [r for r in self._experiments.list() if not self._names or r.name in self._names]
                worked = self._serve_one(storage, records)
                storage.remove_session()
            except DatabaseUnreachable as error:
                away_since = self._clock() if away_since is None else away_since
                if not error.retryable or self._clock() - away_since >= AWAY_SECONDS:
                    raise
                self._interrupted.wait(LOOK_SECONDS)
                continue
            away_since = None
            if worked:
                idle_since = self._clock()
                continue
            if self._names and over(records):
                return Served("over")
            if self._idle_seconds is not None and self._clock() - idle_since >= self._idle_seconds:
                return Served("idle")
            if not self._waits:
                self._tell("waiting for work")
                self._waits = True
            self._interrupted.wait(LOOK_SECONDS)
        return Served("interrupted")

    def _serve_one(self, storage: BaseStorage, records: Sequence[ExperimentRecord]) -> bool:
        """Work for the first experiment that has something; whether there was one."""
        resting = {number for number, until in self._not_before.items() if self._clock() < until}
        for record in serviceable(records, resting):
            if self._interrupted.is_set():
                return False
            try:
                if not self._declines(record) and self._serve(storage, record):
                    return True
            except (DatabaseUnreachable, DatabaseUnsuitable):  # the database is no experiment's matter
                raise
            except StudyDeleted:
                self._views.pop(record.id, None)  # made anew at the next look
                self._rest(record, REST_SECONDS)
            except Exception as error:
                if self._names:
                    raise
                if self._declines(record):
                    continue  # somebody else's first trial decided it since we looked
                logger.exception("experiment %s can't be served here", record.name)
                self._tell(f"{record.name} can't be served here: {error}")
                self._rest(record, BROKEN_SECONDS)
        for record in records:
            if record.state == "running" and record.stop_requested:
                self._conclude(storage, record)
        return False

    def _serve(self, storage: BaseStorage, record: ExperimentRecord) -> bool:
        view = self._view(storage, record)
        ledger_of(self._database, storage).expire(record.id)
        if view.openings.now(1):
            self._tell(f"working for {record.name}")
            self._waits = False
            patience = (
                SWITCH_SECONDS if self._idle_seconds is None else min(SWITCH_SECONDS, self._idle_seconds)
            )
            assignment = replace(self._assignment, experiment=record.name, idle_seconds=patience, joined=True)
            ending = work(assignment, self._worker, self._interrupted, abandon=self._abandon)
            if ending == "idle":
                self._rest(record, REST_SECONDS)
            return True
        if not self._is_left(view, record):
            self._conclude(storage, record)
        return False

    def _declines(self, record: ExperimentRecord) -> bool:
        """Whether its trials are computed in another precision; said once, asked again when it changes."""
        if self._names:
            return False
        if self._declined.get(record.id) == record.updated_at:
            return True
        asked = self._assignment.precision
        held = other_precision(self._database, record.id, self._assignment.device, asked)
        if held is None:
            return False
        if record.id not in self._declined:
            self._tell(f"{record.name} is computed in {held}: left to workers that don't ask for {asked}")
        self._declined[record.id] = record.updated_at
        return True

    def _rest(self, record: ExperimentRecord, seconds: float) -> None:
        self._not_before[record.id] = self._clock() + seconds

    def _view(self, storage: BaseStorage, record: ExperimentRecord) -> _View:
        """The experiment's studies, made if nobody has."""
        view = self._views.get(record.id)
        if view is None or view.spec != record.spec:
            spec = ExperimentSpec.from_json(record.spec)
            make_studies(self._database, storage, spec)
            view = self._views[record.id] = _View(record.spec, Openings(storage, spec))
        self._experiments.begin(record.id)
        return view

    def _is_left(self, view: _View, record: ExperimentRecord) -> bool:
        """Whether any trial runs, or may yet."""
        if trials_held(self._database, record.id):
            return True
        return view.openings.ever(queries.progress(self._database, record.id))

    def _conclude(self, storage: BaseStorage, record: ExperimentRecord) -> None:
        """Say how an experiment ended that nobody controls and nobody works for."""
        with suppress(ExperimentBusy), self._experiments.control(record):
            now = self._experiments.get(record.name)
            if now.state != "running" or trials_held(self._database, record.id):
                return
            if now.stop_requested:
                self._experiments.set_state(record.id, "stopped")
            elif not self._is_left(self._view(storage, now), now):
                self._experiments.set_state(record.id, "finished")
                shutil.rmtree(checkpoint_folder(now), ignore_errors=True)
                self._tell(f"{record.name} is finished")


@dataclass(frozen=True, slots=True)
class _View:
    """What is known of one version of an experiment."""

    spec: Mapping[str, object]
    openings: Openings


def serviceable(records: Sequence[ExperimentRecord], resting: Collection[int]) -> list[ExperimentRecord]:
    """The experiments that a worker may serve, the oldest first: begun or to begin, and not told to stop."""
    served = [
        record
        for record in records
        if record.state in ("created", "running") and not record.stop_requested and record.id not in resting
    ]
    return sorted(served, key=lambda record: record.id)


def over(records: Sequence[ExperimentRecord]) -> bool:
    """Whether nothing more will come of these experiments, unless somebody goes on with one."""
    return all(record.state in ("finished", "stopped", "failed") for record in records)
