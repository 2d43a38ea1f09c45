"""Who does the work: what a worker is told, how it starts, and a crew of one in this process.

A crew hires workers and says which have left. `search.cluster` has the one that hires Ray actors;
the one here trains in the calling process and needs no Ray.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from search.broker import Broker
from search.spec import ExperimentSpec
from search.worker import Ending, Worker
from storage.attempts import Attempts
from storage.database import Database
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage

if TYPE_CHECKING:
    from objectives.base import Engine, Task

TRAINERS = {"plain": "objectives.trainer:PlainEngine", "fused": "objectives.fused:FusedEngine"}
"""Name → class of an `Engine`, made from the task and the device. Imported by workers alone."""

STOP_SECONDS = 0.25
"""Between two questions to the database whether to stop."""


class CrewError(Exception):
    """Workers can't be started; trying again may help."""


@dataclass(frozen=True, slots=True, repr=False)
class Assignment:
    """What a worker is told. It finds everything else in the database. Not to be logged."""

    database_url: str
    """With its password: handed over in memory, never as an argument or in the environment."""
    experiment: str
    trainer: str
    """A key of `TRAINERS`, or ``module:class``."""
    device: str


@dataclass(frozen=True, slots=True)
class Departure:
    """A worker that works no more."""

    worker: str
    ending: Ending | None
    """None: it did not end by itself; `reason` says why."""
    reason: str = ""


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


class StopSign:
    """Whether a worker is to stop: told at once in this process, and in the database soon after."""

    def __init__(self, interrupted: threading.Event, requested: Callable[[], bool]) -> None:
        self._interrupted = interrupted
        self._requested = requested
        self._next_look = 0.0

    def __call__(self) -> bool:
        """Asks the database at most every `STOP_SECONDS`: epochs may take milliseconds."""
        if self._interrupted.is_set():
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + STOP_SECONDS
        return self._requested()


def work(assignment: Assignment, worker: str, interrupted: threading.Event) -> Ending:
    """One worker's life, in the calling thread. Ends at an epoch's end once `interrupted` is set."""
    with Database(assignment.database_url, application_name=f"shoal {worker}") as database:
        experiments = Experiments(database)
        experiment = experiments.get(assignment.experiment)
        spec = ExperimentSpec.from_json(experiment.spec)
        engine = trainer(assignment.trainer)(spec.task(), assignment.device)
        storage = open_optuna_storage(database.url)
        try:
            with Attempts(database).worker(worker) as live:
                return Worker(
                    Broker(database, storage, experiment, spec, live),
                    engine,
                    should_stop=StopSign(interrupted, lambda: experiments.stop_requested(experiment.id)),
                    wait=interrupted.wait,
                ).run()
        finally:
            close_optuna_storage(storage)


def trainer(name: str) -> Callable[[Task, str], Engine]:
    """The engine class of that name. Raises `KeyError` if there is none."""
    module, _, attribute = (name if ":" in name else TRAINERS[name]).partition(":")
    made: Callable[[Task, str], Engine] = getattr(import_module(module), attribute)
    return made


class ThreadCrew:
    """One worker in a thread of this process, so that the main thread can show progress."""

    size = 1

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._interrupted = threading.Event()
        self._thread: threading.Thread | None = None
        self._departures: list[Departure] = []

    def hire(self, worker: str) -> None:
        """Start the worker; there can be one at a time."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(worker,), name=worker, daemon=True)
        self._thread.start()

    def _run(self, worker: str) -> None:
        try:
            ending = work(self._assignment, worker, self._interrupted)
            self._departures.append(Departure(worker, ending))
        except BaseException as error:  # noqa: BLE001 - a thread's errors have nowhere else to go
            reason = "".join(traceback.format_exception_only(error)).strip()
            self._departures.append(Departure(worker, None, reason))

    def departures(self, timeout: float) -> list[Departure]:
        """Wait for the thread to end."""
        if self._thread is None:
            return []
        self._thread.join(timeout)
        if self._thread.is_alive():
            return []
        self._thread = None
        left, self._departures = self._departures, []
        return left

    def dismiss(self) -> None:
        """A thread can't be ended from outside: it ends with the process, or at its next epoch."""
        self._interrupted.set()

    def close(self) -> None:
        """Nothing is held."""
