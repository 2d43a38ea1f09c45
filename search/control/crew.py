"""Who does the work: what a worker is told, how it starts, and a crew of one in this process.

A crew hires workers and says which have left. `search.cluster` has the one that hires Ray actors;
the one here trains in the calling process and needs no Ray.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from search.experiment.spec import ExperimentSpec
from search.trials.broker import Broker
from search.trials.claims import Look, Patience
from search.trials.copies import Copies
from search.trials.placing import HANG_SECONDS
from search.work.desk import Desk
from search.work.engines import make_engine, told_of
from search.work.programs import StoredChoices
from search.work.pulse import Pulse
from search.work.saving import CHECKPOINT_SECONDS, Saver, checkpoint_folder
from search.work.worker import Ending, Worker
from storage.database import Database
from storage.errors import DatabaseFull, StorageError
from storage.experiments import Experiments
from storage.ledger import lease_seconds
from storage.ledgers import ledger_of
from storage.optuna_storage import opened_optuna_storage

if TYPE_CHECKING:
    from objectives.base import Engine
    from storage.records import ExperimentRecord

logger = logging.getLogger(__name__)

BLIND_SECONDS = 60.0
"""For so long a worker does without knowing whether to stop, where the server has no connection left."""
JOIN_SECONDS = 0.2
"""Between two looks at a thread."""
EXIT_ABANDONED = 70
"""Exit code of a process whose engine did not come back (EX_SOFTWARE)."""
EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that was told to go."""
GUARD_SECONDS = 5.0
"""After the grace: what gives leases back may itself hang, on a database that is away."""


class CrewError(Exception):
    """Workers can't be started; trying again may help."""


@dataclass(frozen=True, slots=True, repr=False)
class Assignment:
    """What a worker is told. It finds everything else in the database. Not to be logged."""

    database_url: str
    """With its password: handed over in memory, never as an argument or in the environment."""
    experiment: str
    trainer: str
    """A key of `search.work.engines.TRAINERS`, or ``module:class``."""
    device: str
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    hang_seconds: float = HANG_SECONDS
    grace_seconds: float | None = None
    """For the end of an epoch after an interruption; None: as long as it takes."""
    idle_seconds: float | None = None
    """After which a worker ends that gets no trial; None: it waits as long as there may be one."""
    joined: bool = False
    """It came by itself, and goes on whether there is a controller or not."""
    precision: str = "auto"
    """See `search.trials.precisions`."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A worker that works no more."""

    worker: str
    ending: Ending | None
    """None: it did not end by itself; `reason` says why."""
    reason: str = ""
    final: bool = False
    """Nobody can be hired in its place: the run has failed."""
    node: str = ""
    """The machine that it ran on, by a name that `Crew.lost_nodes` knows; empty: no matter."""


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

    def pending(self) -> frozenset[str]:
        """Workers that were hired and have not begun: there is no place for them yet."""

    def lost_nodes(self) -> frozenset[str]:
        """Machines that are known to be gone: what ran there died with them, and of nothing else."""

    def dismiss(self) -> None:
        """End all workers at once, in the middle of whatever they do."""

    def close(self) -> None:
        """Give back everything that the crew holds."""


class Lookout:
    """Asks the database whether to stop, and whether the experiment has another version by now."""

    def __init__(self, experiments: Experiments, experiment: ExperimentRecord) -> None:
        self._experiments = experiments
        self._experiment = experiment
        self._seen_at = time.monotonic()

    def __call__(self) -> Look:
        """One small statement, and the whole record only when it has changed.

        On a server that is full nobody waits for that: who gets a connection for something else looks
        with it. Only who has not seen anything for `BLIND_SECONDS` waits.
        """
        known = self._experiment
        waits = time.monotonic() - self._seen_at > BLIND_SECONDS
        try:
            stop, changed_at = self._experiments.pulse(known.id, waits=waits)
        except DatabaseFull:
            if waits:
                raise
            return Look(stop=False)
        self._seen_at = time.monotonic()
        if changed_at == known.updated_at:
            return Look(stop)
        self._experiment = self._experiments.get(known.name)
        if self._experiment.spec == known.spec:
            return Look(stop)
        return Look(stop, ExperimentSpec.from_json(self._experiment.spec))


def leave_at_once(reason: str, code: int = EXIT_ABANDONED) -> None:
    """End this process although its engine is in the middle of something; its trials are given away."""
    logger.error("this worker ends: %s", reason)
    logging.shutdown()
    os._exit(code)


def leave_when_told(interrupted: threading.Event, grace_seconds: float) -> None:
    """Have SIGTERM end this process within the grace time, whatever it is doing. In the main thread.

    `interrupted` is set; who works at a desk ends its epoch, or gives its trials back without. Should even
    that not come to an end (an import, a download, a database that is away), the process ends a little later.
    """

    def tell(_number: int, _frame: object) -> None:
        if not interrupted.is_set():
            guard = threading.Timer(
                grace_seconds + GUARD_SECONDS,
                leave_at_once,
                ("told to leave, and did not come to an end", EXIT_TERMINATED),
            )
            guard.daemon = True
            guard.start()
        interrupted.set()

    signal.signal(signal.SIGTERM, tell)


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
    # Late: commands that only look at experiments do without what counts and clocks a worker.
    from search.observe.watching import watching

    with (
        Database(assignment.database_url, application_name=f"shoal {worker}") as database,
        ExitStack() as watch,
    ):
        experiments = Experiments(database)
        experiment = experiments.get(assignment.experiment)
        spec = ExperimentSpec.from_json(experiment.spec)
        choices = StoredChoices(database, experiment.id)
        engine = make_engine(spec, assignment.trainer, assignment.device, choices, assignment.precision)
        with opened_optuna_storage(database.url) as storage:
            told = told_of(spec, assignment.trainer, assignment.device, engine)
            if assignment.joined:
                told["joined"] = True
            folder = checkpoint_folder(experiment)
            watched = watch.enter_context(watching(worker, experiment.name, told, engine, folder))
            ledger = Pulse(watched.ledger(ledger_of(database, storage)), lease_seconds=lease_seconds())
            worker_id = ledger.register(worker, told)
            copies = Copies()
            broker = Broker(
                database, storage, experiment, spec, ledger=ledger, worker_id=worker_id, copies=copies
            )
            desk = Desk(
                broker,
                look=Lookout(experiments, experiment),
                interrupted=interrupted,
                patience=Patience(hang=assignment.hang_seconds, grace=assignment.grace_seconds),
                abandon=abandon,
                idle_seconds=assignment.idle_seconds,
            )
            try:
                with ledger.beating(broker.holdings):
                    saver = watched.saver(assignment.checkpoint_seconds)
                    return run_at(desk, engine, saver, judged=spec.pruner.stops, copies=copies)
            finally:
                # What is still held goes back to the queue at once, unless the database is away.
                with suppress(StorageError):
                    ledger.retire(worker_id)


def run_at(
    desk: Desk, engine: Engine, saver: Saver, *, judged: bool = True, copies: Copies | None = None
) -> Ending:
    """Run a worker at a desk that is opened for it and closed behind it."""
    desk.start()
    try:
        ending = Worker(desk, engine, saver, judged=judged, copies=copies).run()
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
        except BaseException as error:  # a thread's errors have nowhere else to go
            logger.info("worker %s died", worker, exc_info=error)
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

    def pending(self) -> frozenset[str]:
        """A thread begins at once."""
        return frozenset()

    def lost_nodes(self) -> frozenset[str]:
        """There is this machine alone."""
        return frozenset()

    def dismiss(self) -> None:
        """A thread can't be ended from outside: it ends with the process, or at its next epoch."""
        self._interrupted.set()

    def close(self) -> None:
        """Nothing is held."""
