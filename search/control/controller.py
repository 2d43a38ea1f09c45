"""Runs an experiment from its spec to its end: makes the studies, hires workers, watches.

One controller per experiment, by a lock in the database. It holds no result: it may die at any
time, and running the same experiment again goes on where the database says it is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from search.control.controlling import patient_control
from search.control.crew import Assignment, Crew, CrewError, Departure, ThreadCrew
from search.control.events import Listener, Outcome, Preparing, Progress, Started, Stopping, Trouble
from search.control.staff import Staff
from search.control.supervision import (
    GRACE_SECONDS,
    Interruption,
    Move,
    Seen,
    deletion,
    fate,
    next_move,
    progress_mark,
)
from search.environment import environment
from search.experiment.growth import conflicts
from search.experiment.spec import ExperimentSpec
from search.formats import format_number_of
from search.trials.making import make_studies
from search.trials.openings import Openings
from search.trials.placing import HANG_SECONDS
from search.trials.study import limits_of, quiet_optuna
from search.work.desk import AWAY_SECONDS
from search.work.saving import CHECKPOINT_SECONDS, checkpoint_folder
from storage import queries
from storage.database import Database, open_database
from storage.errors import DatabaseUnreachable, ExperimentExists, StorageError
from storage.experiments import Experiments
from storage.ledgers import ledger_of
from storage.optuna_storage import opened_optuna_storage
from storage.workers import dead_on_this_host, registered_as, trials_held

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from storage.control import Control
    from storage.ledger import Ledger
    from storage.records import ExperimentRecord, StudyProgress

Ended: TypeAlias = Literal["finished", "stopped", "failed"]

LOOK_SECONDS = 1.0
"""Between two looks at the database."""
RECOVER_LOOKS = 5
"""Looks between two searches for trials that dead workers left, while nobody is seen dying."""


def run_experiment(
    spec: ExperimentSpec,
    database_url: str | None = None,
    *,
    workers: int | None = None,
    in_process: bool = False,
    device: str = "auto",
    trainer: str = "fused",
    precision: str = "auto",
    ray_address: str | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    hang_seconds: float = HANG_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
    idle_seconds: float | None = None,
    patience_seconds: float = 0.0,
    worker_logs: bool = False,
    heeds_stop: bool = False,
    on_event: Listener = lambda _event: None,
) -> Outcome:
    """Run an experiment to its end, or go on with it if it exists.

    `workers`: how many at once; None: one per device. `in_process`: train in this process, without
    Ray. `checkpoint_seconds`: between two checkpoints of a trial; `hang_seconds`: after which a
    worker whose epoch does not end is replaced; `idle_seconds`: after which a worker without work
    ends, to be hired again when there is some; None: never. `patience_seconds`: for how long a
    controller that may be dead already is waited for. `worker_logs`: write what workers log to stderr;
    `heeds_stop`: stop at once if that was asked for before this began.
    `on_event` is called in this thread. In the main thread, the first SIGINT or SIGTERM lets the
    workers end their epochs and give their trials back, after SIGTERM for `grace_seconds` at most;
    the second kills them.

    Raises `ExperimentExists` if the name is taken by an experiment that differs in what may not
    change, `ExperimentBusy` if another controller runs it, `CrewError` if Ray can't be started,
    and what `open_database` raises.
    """
    with open_database(database_url, application_name="shoal controller") as database:
        experiments = Experiments(database)
        experiment, resumed = find_or_create(experiments, spec)
        make_crew = partial(
            _crew,
            Assignment(
                database.url,
                experiment.name,
                trainer,
                device,
                checkpoint_seconds,
                hang_seconds,
                grace_seconds,
                idle_seconds,
                precision=precision,
            ),
            workers,
            ray_address,
            on_event,
            in_process=in_process,
            worker_logs=worker_logs,
        )
        with patient_control(experiments, experiment, patience_seconds, on_event) as control:
            if resumed:
                experiment = experiments.grow(experiment.id, spec.to_json(), spec.studies())
            with opened_optuna_storage(database.url) as storage:
                controller = Controller(
                    database,
                    storage,
                    experiment,
                    spec,
                    resumed=resumed,
                    on_event=on_event,
                    control=control,
                    grace_seconds=grace_seconds,
                    rehires=idle_seconds is not None,
                    heeds_stop=heeds_stop,
                )
                return controller.run(make_crew)


def _crew(
    assignment: Assignment,
    workers: int | None,
    address: str | None,
    on_event: Listener,
    *,
    in_process: bool,
    worker_logs: bool,
) -> Crew:
    if in_process:
        return ThreadCrew(replace(assignment, grace_seconds=None, idle_seconds=None))
    on_event(Preparing("starting Ray" if address is None else f"joining Ray at {address}"))
    from search.cluster import RayCrew

    return RayCrew(assignment, workers, address=address, worker_logs=worker_logs)


def find_or_create(experiments: Experiments, spec: ExperimentSpec) -> tuple[ExperimentRecord, bool]:
    """The experiment's record, and whether it was there before.

    Raises `ExperimentExists` if it was and differs in what may not change, or would shrink: what
    the file no longer asks for is there, so it can be left alone but not undone.
    """
    try:
        return experiments.create(
            spec.experiment, spec.to_json(), spec.space_hash(), environment(), spec.studies()
        ), False
    except ExperimentExists as exists:
        existing = exists.existing
    stored = ExperimentSpec.from_json(existing.spec)
    if problems := [*conflicts(spec, stored), *spec.shrinks(stored)]:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ExperimentExists(f"experiment {spec.experiment!r} exists and differs:\n{listed}", existing)
    return existing, True


class Controller:
    """One run of one experiment. Its caller holds the experiment's lock."""

    def __init__(
        self,
        database: Database,
        storage: BaseStorage,
        experiment: ExperimentRecord,
        spec: ExperimentSpec,
        *,
        resumed: bool,
        on_event: Listener,
        control: Control | None = None,
        grace_seconds: float = GRACE_SECONDS,
        rehires: bool = False,
        heeds_stop: bool = False,
    ) -> None:
        """`control` is the experiment's lock, to be kept; `rehires`: workers leave when they have no work;
        `heeds_stop`: a stop that was asked for before counts, for whoever began this was asked then.
        """
        quiet_optuna()
        self._control = control
        self._away_since: float | None = None
        self._database = database
        self._storage = storage
        self._experiment = experiment
        self._experiments = Experiments(database)
        self._spec = spec
        self._resumed = resumed
        self._on_event = on_event
        self._began = time.monotonic()
        self._interruption = Interruption()
        self._ledger: Ledger = ledger_of(database, storage)
        self._limits = {
            name: limits_of(spec, method, replicate) for method, replicate, name in spec.studies()
        }
        self._openings = Openings(storage, spec)
        self._grace_seconds = grace_seconds
        self._rehires = rehires
        self._heeds_stop = heeds_stop
        self._staff: Staff | None = None
        self._mark = (0, 0)
        self._stopping = False
        self._retrained: list[StudyProgress] = []
        self._deleted: list[str] = []

    def run(self, make_crew: Callable[[], Crew]) -> Outcome:
        """Prepare, work until nothing is left, and store how it ended."""
        if not self._heeds_stop:
            self._experiments.request_stop(self._experiment.id, flag=False)
        self._experiments.set_state(self._experiment.id, "running")
        with self._interruption.listening():
            try:
                state, reason = self._work(make_crew)
            except BaseException as error:
                # Nobody would see that the database is away as well, if that is why.
                with suppress(StorageError):
                    asked = isinstance(error, KeyboardInterrupt)
                    self._experiments.set_state(self._experiment.id, "stopped" if asked else "failed")
                raise
            self._experiments.set_state(self._experiment.id, state)
        if state == "finished":
            shutil.rmtree(checkpoint_folder(self._experiment), ignore_errors=True)
        return Outcome(self._experiment.name, state, reason, self._look(), self._seconds(), self._resumed)

    def _work(self, make_crew: Callable[[], Crew]) -> tuple[Ended, str]:
        self._on_event(Preparing(f"preparing {format_number_of(len(self._limits), 'study')}"))
        with ExitStack() as leaving:
            with ThreadPoolExecutor(max_workers=1) as pool:
                # Both take seconds, and neither needs the other.
                made = pool.submit(make_studies, self._database, self._storage, self._spec)
                crew: Crew | None = None
                try:
                    crew = make_crew()
                    leaving.callback(crew.close)
                    leaving.callback(crew.dismiss)
                except CrewError:
                    if not self._interruption.count:  # else it is the signal that broke the start off
                        raise
            if crew is None:
                self._notice_stop()
                return "stopped", "asked to stop"
            made.result()
            # Whoever ran it here before may have been killed: no need to wait for those leases.
            self._take_back(dead_on_this_host(self._database, self._experiment.id))
            self._mark = progress_mark([*self._look(), *self._retrained])
            self._notice_stop()
            if self._stopping:
                # Workers take seconds to start, and would only be told to leave.
                return "stopped", "asked to stop"
            self._staff = staff = Staff(crew, self._experiment.name, self._width(), self._on_event)
            staff.hire(staff.target)
            self._on_event(Started(self._experiment.name, len(staff.names), self._resumed))
            return self._supervise(staff)

    def _width(self) -> int:
        """The most trials that may run at once."""
        searching = sum(
            min(limits.trials, limits.in_flight or limits.trials) for limits in self._limits.values()
        )
        return max(searching, self._spec.comparison.retrain.seeds * len(self._limits))

    def _supervise(self, staff: Staff) -> tuple[Ended, str]:
        looks = 0
        left: list[Departure] = []
        while True:
            left += staff.departures(LOOK_SECONDS, self._interruption.undisturbed())
            looks += 1
            try:
                seen = self._see(staff, left, looks)
            except DatabaseUnreachable as error:
                self._wait_for_database(error)
                continue
            self._away_since = None
            departed, left = left, []
            if (mark := progress_mark([*seen.rows, *self._retrained])) != self._mark:
                self._mark = mark
                staff.note_progress()
            staff.bury(departed)
            gone = sum(departure.ending not in ("exhausted", "idle") for departure in departed)
            deaths = staff.deaths()
            move = next_move(
                signals=self._interruption.count,
                stopping=self._stopping,
                deaths=deaths,
                alive=len(staff.names),
                pending=len(staff.pending),
                overdue=self._interruption.overdue(self._grace_seconds),
                gone=gone,
                running=seen.running,
                work_left=seen.work_left,
                final=any(departure.final for departure in departed),
            )
            if move is Move.HIRE:
                if not gone and not seen.running:
                    staff.note_in_vain()
                staff.hire(max(gone, 1))
            elif move is Move.WATCH:
                if seen.openings is not None:
                    staff.hire_for(seen.openings)
            elif move is Move.FINISH:
                return ("failed", deletion(self._deleted)) if self._deleted else ("finished", "")
            elif move is Move.STOP:
                return "stopped", "asked to stop"
            elif move in (Move.KILL, Move.GIVE_UP):
                self._dismiss(staff)
                if move is Move.KILL:
                    return "stopped", f"killed by {self._interruption.name}"
                if any(departure.final for departure in departed):
                    return "failed", staff.last_death
                return "failed", f"workers died {deaths} times without progress: {staff.last_death}"

    def _see(self, staff: Staff, left: Sequence[Departure], looks: int) -> Seen:
        """Ask the database. May be asked again if it is away."""
        if self._control is not None:
            self._control.keep()
        recovers = looks % RECOVER_LOOKS == 0
        if left or not staff.names or recovers:
            self._take_back(self._ids(d.worker for d in left if d.ending is None))
        rows = self._look()
        self._notice_stop()
        if self._stopping:
            return Seen(rows)
        missing = self._rehires and len(staff.names) < staff.target
        openings = self._openings.now(staff.target) if missing and recovers else None
        if staff.at_work:
            return Seen(rows, openings=openings)
        running = trials_held(self._database, self._experiment.id)
        # What may start only when those that run have ended is left to whoever runs them, while they do.
        work_left = self._openings.now(1) > 0 or (not running and self._openings.ever(rows))
        return Seen(rows, running, work_left, openings)

    def _wait_for_database(self, error: DatabaseUnreachable) -> None:
        """Workers wait for it as well. Raises the error where that is of no use, or not wanted."""
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._on_event(Trouble(f"the database is away, waiting for it: {error}"))
        if not error.retryable or self._interruption.count or now - self._away_since >= AWAY_SECONDS:
            raise error

    def _dismiss(self, staff: Staff) -> None:
        """End all workers; that they were told to is not held against their trials."""
        for worker in self._ids(staff.dismiss()):
            self._ledger.retire(worker)

    def _ids(self, names: Iterable[str]) -> list[int]:
        """The workers of these names in the database."""
        names = list(names)
        return registered_as(self._database, names) if names else []

    def _notice_stop(self) -> None:
        if self._stopping:
            return
        if self._interruption.count:
            self._experiments.request_stop(self._experiment.id)
            self._stopping = True
            self._on_event(Stopping(self._interruption.name))
        elif self._experiments.stop_requested(self._experiment.id):
            self._stopping = True
            self._on_event(Stopping("asked to stop"))

    def _take_back(self, dead: Sequence[int] = ()) -> None:
        """Put trials whose leases ran out, or whose workers are known to be dead, back in the queue."""
        for trial in self._ledger.expire(self._experiment.id, dead_workers=dead):
            self._on_event(Trouble(fate(trial)))

    def _look(self) -> list[StudyProgress]:
        every = queries.progress(self._database, self._experiment.id, role=None)
        rows = [row for row in every if row.study.name in self._limits]
        if gone := [r.study.name for r in rows if not r.present and r.study.name not in self._deleted]:
            self._deleted += gone
            self._on_event(Trouble(f"{deletion(gone)}; the other studies go on"))
        self._retrained = [row for row in every if row.study.role == "retraining"]
        trials = sum(limits.trials for limits in self._limits.values())
        workers = len(self._staff.names) if self._staff is not None else 0
        self._on_event(Progress(rows, trials, self._seconds(), workers, self._retrained))
        return rows

    def _seconds(self) -> float:
        return time.monotonic() - self._began
