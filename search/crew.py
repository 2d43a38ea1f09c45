"""Who does the work: what a worker is told, how it starts, and a crew of one in this process.

A crew hires workers and says which have left. `search.cluster` has the one that hires Ray actors;
the one here trains in the calling process and needs no Ray.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from search.broker import Broker
from search.claims import Look, Patience
from search.desk import Desk
from search.engines import make_engine
from search.placing import HANG_SECONDS
from search.programs import StoredChoices
from search.saving import CHECKPOINT_SECONDS, Saver
from search.settings import NoPruner
from search.spec import ExperimentSpec
from search.worker import Ending, Worker
from storage.database import Database
from storage.errors import StorageError
from storage.experiments import Experiments
from storage.ledgers import ledger_of
from storage.optuna_storage import close_optuna_storage, open_optuna_storage

if TYPE_CHECKING:
    from objectives.base import Engine
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

GRACE_SECONDS = 20.0
"""For the end of an epoch after a worker's process was told to go; clusters kill after 30."""
JOIN_SECONDS = 0.2
"""Between two looks at a thread."""
EXIT_ABANDONED = 70
"""Exit code of a process whose engine did not come back (EX_SOFTWARE)."""


class CrewError(Exception):
    """Workers can't be started; trying again may help."""


@dataclass(frozen=True, slots=True, repr=False)
class Assignment:
    """What a worker is told. It finds everything else in the database. Not to be logged."""

    database_url: str
    """With its password: handed over in memory, never as an argument or in the environment."""
    experiment: str
    trainer: str
    """A key of `search.engines.TRAINERS`, or ``module:class``."""
    device: str
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    hang_seconds: float = HANG_SECONDS
    grace_seconds: float | None = None
    """For the end of an epoch after an interruption; None: as long as it takes."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A worker that works no more."""

    worker: str
    ending: Ending | None
    """None: it did not end by itself; `reason` says why."""
    reason: str = ""
    final: bool = False
    """Nobody can be hired in its place: the run has failed."""


class Crew(Protocol):
    """Workers that are supervised by a controller. One thread.

    Guaranteed to the controller: a worker that was hired shows up once in `departures`, however it
    ended, unless it was dismissed; nothing blocks for longer than it says.
    """

    @property
    def size(self) -> int:
        """How many workers this crew can have at once."""

    def hire(self, worker: str) -> None:
        """Start a worker of that name. Raises `CrewError`."""

    def departures(self, timeout: float) -> list[Departure]:
        """Wait up to `timeout` seconds for workers to leave; those that left since the last call."""

    def dismiss(self) -> None:
        """End all workers at once, in the middle of whatever they do."""

    def close(self) -> None:
        """Give back everything that the crew holds."""


class Lookout:
    """Asks the database whether to stop, and whether the experiment has another version by now."""

    def __init__(self, experiments: Experiments, experiment: ExperimentRecord) -> None:
        self._experiments = experiments
        self._experiment = experiment

    def __call__(self) -> Look:
        """One small statement, and the whole record only when it has changed."""
        known = self._experiment
        stop, changed_at = self._experiments.pulse(known.id)
        if changed_at == known.updated_at:
            return Look(stop)
        self._experiment = self._experiments.get(known.name)
        if self._experiment.spec == known.spec:
            return Look(stop)
        return Look(stop, ExperimentSpec.from_json(self._experiment.spec))


def leave_at_once(reason: str) -> None:
    """End this process although its engine is in the middle of something; its trials are given away."""
    logger.error("this worker ends: %s", reason)
    logging.shutdown()
    os._exit(EXIT_ABANDONED)


def work(
    assignment: Assignment,
    worker: str,
    interrupted: threading.Event,
    *,
    abandon: Callable[[str], object] = leave_at_once,
) -> Ending:
    """One worker's life, in the calling thread. Ends at an epoch's end once `interrupted` is set.

    `abandon(reason)` is called in another thread when the engine does not come back; it should end
    the process, for the calling thread can't be ended.
    """
    with Database(assignment.database_url, application_name=f"shoal {worker}") as database:
        experiments = Experiments(database)
        experiment = experiments.get(assignment.experiment)
        spec = ExperimentSpec.from_json(experiment.spec)
        choices = StoredChoices(database, experiment.id)
        engine = make_engine(spec, assignment.trainer, assignment.device, choices)
        storage = open_optuna_storage(database.url)
        try:
            ledger = ledger_of(database, storage)
            worker_id = ledger.register(worker)
            desk = Desk(
                Broker(database, storage, experiment, spec, ledger=ledger, worker_id=worker_id),
                look=Lookout(experiments, experiment),
                interrupted=interrupted,
                patience=Patience(hang=assignment.hang_seconds, grace=assignment.grace_seconds),
                abandon=abandon,
            )
            try:
                judged = not isinstance(spec.pruner, NoPruner)
                return run_at(desk, engine, Saver(assignment.checkpoint_seconds), judged=judged)
            finally:
                # What is still held goes back to the queue at once, unless the database is away.
                with suppress(StorageError):
                    ledger.retire(worker_id)
        finally:
            close_optuna_storage(storage)


def run_at(desk: Desk, engine: Engine, saver: Saver, *, judged: bool = True) -> Ending:
    """Run a worker at a desk that is opened for it and closed behind it."""
    desk.start()
    try:
        ending = Worker(desk, engine, saver, judged=judged).run()
    except BaseException as error:
        desk.close(error)
        raise
    desk.close()
    return ending


class ThreadCrew:
    """One worker in a thread of this process, so that the main thread can show progress."""

    size = 1

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._interrupted = threading.Event()
        self._abandoned = threading.Event()
        self._thread: threading.Thread | None = None
        self._departures: list[Departure] = []

    def hire(self, worker: str) -> None:
        """Start the worker; there can be one at a time."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(worker,), name=worker, daemon=True)
        self._thread.start()

    def _run(self, worker: str) -> None:
        def abandon(reason: str) -> None:
            self._departures.append(Departure(worker, None, reason, final=True))
            self._abandoned.set()

        try:
            ending = work(self._assignment, worker, self._interrupted, abandon=abandon)
            self._departures.append(Departure(worker, ending))
        except BaseException as error:  # noqa: BLE001 - a thread's errors have nowhere else to go
            reason = "".join(traceback.format_exception_only(error)).strip()
            self._departures.append(Departure(worker, None, reason))

    def departures(self, timeout: float) -> list[Departure]:
        """Wait for the thread to end, or to be given up."""
        if self._thread is None:
            return []
        until = time.monotonic() + timeout
        while self._thread.is_alive() and not self._abandoned.is_set():
            rest = until - time.monotonic()
            if rest <= 0:
                return []
            self._thread.join(min(rest, JOIN_SECONDS))
        self._thread = None
        left, self._departures = self._departures, []
        return left[:1]

    def dismiss(self) -> None:
        """A thread can't be ended from outside: it ends with the process, or at its next epoch."""
        self._interrupted.set()

    def close(self) -> None:
        """Nothing is held."""
