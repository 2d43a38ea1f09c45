"""Runs an experiment from its spec to its end: makes the studies, hires workers, watches.

One controller per experiment, by a lock in the database. It holds no result: it may die at any
time, and running the same experiment again goes on where the database says it is.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from search.broker import is_over, recover, study_lock
from search.crew import Assignment, Crew, CrewError, Departure, ThreadCrew
from search.environment import environment
from search.events import Listener, Outcome, Preparing, Progress, Started, Stopping, Trouble
from search.spec import ExperimentSpec
from search.study import SearchStudy, create_study, limits_of, may_ever_start, quiet_optuna, study_exists
from storage import queries
from storage.database import Database, open_database
from storage.errors import ExperimentExists, StorageError
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from storage.records import ExperimentRecord, StudyProgress

Ended: TypeAlias = Literal["finished", "stopped", "failed"]

LOOK_SECONDS = 1.0
"""Between two looks at the database."""
SIGNAL_SECONDS = 0.2
"""Until a signal is noticed."""
RECOVER_LOOKS = 5
"""Looks between two searches for trials that dead workers left, while nobody is seen dying."""
MAX_DEATHS = 3
"""Times in a row that workers may die without any progress in between."""


def run_experiment(
    spec: ExperimentSpec,
    database_url: str | None = None,
    *,
    workers: int | None = None,
    in_process: bool = False,
    device: str = "auto",
    trainer: str = "plain",
    ray_address: str | None = None,
    on_event: Listener = lambda _event: None,
) -> Outcome:
    """Run an experiment to its end, or go on with it if it exists.

    `workers`: how many at once; None: one per device. `in_process`: train in this process, without
    Ray. `on_event` is called in this thread. In the main thread, the first SIGINT or SIGTERM lets
    the workers end their epochs and give their trials back; the second kills them.

    Raises `ExperimentExists` if the name is taken by an experiment that differs in what may not
    change, `ExperimentBusy` if another controller runs it, `CrewError` if Ray can't be started,
    and what `open_database` raises.
    """
    with open_database(database_url, application_name="shoal controller") as database:
        experiments = Experiments(database)
        experiment, resumed = find_or_create(experiments, spec)
        with experiments.control(experiment):
            if resumed:
                experiment = experiments.grow(experiment.id, spec.to_json(), spec.studies())
            storage = open_optuna_storage(database.url)
            assignment = Assignment(database.url, experiment.name, trainer, device)
            try:
                return Controller(
                    database, storage, experiment, spec, resumed=resumed, on_event=on_event
                ).run(lambda: _crew(assignment, workers, ray_address, on_event, in_process))
            finally:
                close_optuna_storage(storage)


def _crew(
    assignment: Assignment, workers: int | None, address: str | None, on_event: Listener, in_process: bool
) -> Crew:
    if in_process:
        return ThreadCrew(assignment)
    on_event(Preparing("starting Ray" if address is None else f"joining Ray at {address}"))
    from search.cluster import RayCrew

    return RayCrew(assignment, workers, address=address)


def find_or_create(experiments: Experiments, spec: ExperimentSpec) -> tuple[ExperimentRecord, bool]:
    """The experiment's record, and whether it was there before.

    Raises `ExperimentExists` if it was and differs in what may not change.
    """
    try:
        return experiments.create(
            spec.experiment, spec.to_json(), spec.space_hash(), environment(), spec.studies()
        ), False
    except ExperimentExists as exists:
        existing = exists.existing
    problems = spec.conflicts(ExperimentSpec.from_json(existing.spec))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ExperimentExists(f"experiment {spec.experiment!r} exists and differs:\n{listed}", existing)
    return existing, True


def make_studies(database: Database, storage: BaseStorage, spec: ExperimentSpec) -> None:
    """Make the studies that aren't there, and put in the queue what a grid lacks.

    May be called again at any time, and in a thread of its own.
    """
    missing = [place for place in spec.studies() if not study_exists(storage, place[2])]
    if missing:
        # Late, because it imports torch.
        from objectives.metrics import METRICS

        direction = METRICS[spec.metric].direction
        for method, replicate, _ in missing:
            create_study(storage, spec, method, replicate, direction)
    for method, replicate, name in spec.studies():
        if method == "grid":
            with database.lock(study_lock(name)):
                SearchStudy(storage, spec, method, replicate).enqueue_grid()
    storage.remove_session()


class Interruption:
    """Counts the signals that ask this process to end."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM meanwhile; elsewhere than in the main thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.count += 1
        self.name = signal.Signals(number).name


class Move(Enum):
    """What a controller does after a look."""

    WATCH = "watch"
    HIRE = "hire"
    FINISH = "finish"
    STOP = "stop"
    KILL = "kill"
    GIVE_UP = "give up"


def next_move(
    *, signals: int, stopping: bool, deaths: int, alive: int, gone: int, running: int, work_left: bool
) -> Move:
    """Decide from what was seen.

    `signals` that asked for the end; `deaths` of workers in a row without progress; workers `alive`;
    workers `gone` since the last look although there was work; trials `running` anywhere;
    `work_left`: a trial may start somewhere.
    """
    if signals > 1:
        return Move.KILL
    if stopping:
        return Move.WATCH if alive else Move.STOP
    if deaths >= MAX_DEATHS:
        return Move.GIVE_UP
    if gone or (work_left and not alive):
        return Move.HIRE
    return Move.WATCH if alive or running else Move.FINISH


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
    ) -> None:
        quiet_optuna()
        self._database = database
        self._storage = storage
        self._experiment = experiment
        self._experiments = Experiments(database)
        self._spec = spec
        self._resumed = resumed
        self._on_event = on_event
        self._began = time.monotonic()
        self._interruption = Interruption()
        self._limits = {name: limits_of(spec, method) for method, _, name in spec.studies()}
        self._hired = 0
        self._alive = 0
        self._deaths = 0
        self._last_death = "no worker took what was left"
        self._mark = (0, 0)
        self._stopping = False

    def run(self, make_crew: Callable[[], Crew]) -> Outcome:
        """Prepare, work until nothing is left, and store how it ended."""
        self._experiments.request_stop(self._experiment.id, flag=False)
        self._experiments.set_state(self._experiment.id, "running")
        with self._interruption.listening():
            try:
                state, reason = self._work(make_crew)
            except BaseException:
                # Nobody would see that the database is away as well, if that is why.
                with suppress(StorageError):
                    self._experiments.set_state(self._experiment.id, "failed")
                raise
        self._experiments.set_state(self._experiment.id, state)
        return Outcome(self._experiment.name, state, reason, self._look(), self._seconds(), self._resumed)

    def _work(self, make_crew: Callable[[], Crew]) -> tuple[Ended, str]:
        self._on_event(Preparing(f"preparing {len(self._limits)} studies"))
        with ThreadPoolExecutor(max_workers=1) as pool:
            # Both take seconds, and neither needs the other.
            made = pool.submit(make_studies, self._database, self._storage, self._spec)
            try:
                crew: Crew | None = make_crew()
            except CrewError:
                if not self._interruption.count:
                    raise
                crew = None  # it is the signal that broke the start off
        if crew is None:
            self._notice_stop()
            return "stopped", "asked to stop"
        try:
            made.result()
            self._recover()
            self._mark = progress_mark(self._look())
            self._notice_stop()
            if self._stopping:
                # Workers take seconds to start, and would only be told to leave.
                return "stopped", "asked to stop"
            self._hire(crew, min(crew.size, self._width()))
            self._on_event(Started(self._experiment.name, self._alive, self._resumed))
            return self._supervise(crew)
        finally:
            crew.dismiss()
            crew.close()

    def _width(self) -> int:
        """The most trials that may run at once."""
        return sum(min(limits.trials, limits.in_flight or limits.trials) for limits in self._limits.values())

    def _hire(self, crew: Crew, count: int) -> None:
        for _ in range(count):
            self._hired += 1
            crew.hire(f"{self._experiment.name}-{os.getpid()}-{self._hired}")
            self._alive += 1

    def _supervise(self, crew: Crew) -> tuple[Ended, str]:
        looks = 0
        while True:
            left = self._departures(crew)
            self._alive -= len(left)
            looks += 1
            if left or self._alive == 0 or looks % RECOVER_LOOKS == 0:
                self._recover()
            rows = self._look()
            self._notice_stop()
            self._count_deaths(left, rows)
            gone = sum(departure.ending != "exhausted" for departure in left)
            move = next_move(
                signals=self._interruption.count,
                stopping=self._stopping,
                deaths=self._deaths,
                alive=self._alive,
                gone=gone,
                running=sum(row.running for row in rows),
                work_left=self._alive == 0 and not self._stopping and self._work_left(rows),
            )
            if move is Move.HIRE:
                # Should one hired for what is left leave without touching it, that counts as well.
                self._deaths += gone == 0
                self._hire(crew, max(gone, 1))
            elif move is Move.FINISH:
                return "finished", ""
            elif move is Move.STOP:
                return "stopped", "asked to stop"
            elif move in (Move.KILL, Move.GIVE_UP):
                crew.dismiss()
                self._alive = 0
                self._recover(interrupted=True)
                if move is Move.KILL:
                    return "stopped", f"killed by {self._interruption.name}"
                return "failed", f"workers died {self._deaths} times without progress: {self._last_death}"

    def _departures(self, crew: Crew) -> list[Departure]:
        """Who left, after `LOOK_SECONDS`, or as soon as somebody leaves or a signal comes."""
        signals = self._interruption.count
        until = time.monotonic() + LOOK_SECONDS
        while (rest := until - time.monotonic()) > 0 and self._interruption.count == signals:
            # In pieces: neither a thread's end nor Ray can be waited for until a signal comes.
            piece = min(rest, SIGNAL_SECONDS)
            if self._alive == 0:
                # Workers of a controller that died are still at it; their trials end, or come back.
                time.sleep(piece)
            elif left := crew.departures(piece):
                return left
        return []

    def _work_left(self, rows: Sequence[StudyProgress]) -> bool:
        """Whether a trial may start in any study, by the rule that workers go by."""
        for row in rows:
            limits = self._limits[row.study.name]
            if not is_over(row, limits):
                study = SearchStudy(self._storage, self._spec, row.study.method, row.study.replicate)
                if may_ever_start(study.load(), limits):
                    return True
        return False

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

    def _count_deaths(self, left: Sequence[Departure], rows: Sequence[StudyProgress]) -> None:
        """Deaths that were seen together count as one: a machine that kills may kill many."""
        mark = progress_mark(rows)
        if mark != self._mark:
            self._mark, self._deaths = mark, 0
        dead = [departure for departure in left if departure.ending is None]
        for departure in dead:
            self._last_death = departure.reason
            self._on_event(Trouble(f"worker {departure.worker} died: {departure.reason}"))
        self._deaths += bool(dead)

    def _recover(self, *, interrupted: bool = False) -> int:
        lines = recover(self._database, self._storage, self._experiment, interrupted=interrupted)
        for line in lines:
            self._on_event(Trouble(line))
        return len(lines)

    def _look(self) -> list[StudyProgress]:
        rows = [
            row
            for row in queries.progress(self._database, self._experiment.id)
            if row.study.name in self._limits
        ]
        trials = sum(limits.trials for limits in self._limits.values())
        self._on_event(Progress(rows, trials, self._seconds(), self._alive))
        return rows

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def progress_mark(rows: Sequence[StudyProgress]) -> tuple[int, int]:
    """Changes exactly when an epoch was trained for the first time, or a trial ended."""
    return sum(row.epochs for row in rows), sum(row.complete + row.pruned + row.failed for row in rows)
