"""An experiment on a server of its own, with real workers, for tests that break things."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from search.control.controller import Controller
from search.control.events import Outcome
from search.experiment.spec import ExperimentSpec
from storage import queries
from storage.attempts import Attempts
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.experiments import Experiments
from storage.records import AttemptRecord, TrialRow
from tests.contracts.experiments import Running, prepared
from tests.contracts.processes import PATIENCE, until
from tests.faults import objectives
from tests.faults.worker_process import Job, ProcessCrew, WorkerProcess

FINAL = ("complete", "pruned", "failed")


def spec_of(*kinds: str, points: int = 3, function: str = "trial", **changes: Any) -> ExperimentSpec:
    """A grid of `points` trials of each kind, of three epochs each."""
    grid = [round((place + 0.5) / points, 3) for place in range(points)]
    space: dict[str, Any] = {"x": {"low": 0.0, "high": 1.0, "grid": grid}}
    fixed: dict[str, Any] = {"epochs": 3}
    if len(kinds) > 1:
        space["kind"] = list(kinds)
    else:
        fixed["kind"] = kinds[0] if kinds else "steady"
    sections: dict[str, Any] = {
        "experiment": "faults",
        "seed": 7,
        "objective": {
            "function": f"tests.faults.objectives:{function}",
            "direction": "maximize",
            "worst": -1.0,
        },
        "metric": "value",
        "allow_imports": ["tests.faults.objectives"],
        "fixed": fixed,
        "space": space,
        "methods": {"grid": {}},
        "replicates": 1,
        "comparison": {"retrain": {"seeds": 0}},
        "budget": {"trials": points * max(1, len(kinds))},
    }
    return ExperimentSpec.model_validate(sections | changes)


def digits_spec(**changes: Any) -> ExperimentSpec:
    """Four small CNNs on scikit-learn's digits, of twelve epochs each."""
    sections: dict[str, Any] = {
        "experiment": "digits",
        "seed": 3,
        "data": {"name": "digits", "limit": 300},
        "model": {"name": "cnn", "depth": 1, "width": 4, "dense": 8, "dropout": 0.2},
        "fixed": {"epochs": 12, "optimizer": "adam", "batch_size": 64},
        "space": {"learning_rate": {"low": 1e-3, "high": 1e-1, "log": True}},
        "methods": {"random": {}},
        "replicates": 1,
        "comparison": {"retrain": {"seeds": 0}},
        "budget": {"trials": 4},
    }
    return ExperimentSpec.model_validate(sections | changes)


@dataclass
class Run:
    """A controller at work in a thread, with a crew of processes."""

    crew: ProcessCrew
    events: list[Any] = field(default_factory=list)
    outcome: Outcome | None = None
    error: BaseException | None = None
    thread: threading.Thread | None = None

    def result(self, seconds: float = PATIENCE) -> Outcome:
        """Wait for its end. Raises what the controller raised."""
        assert self.thread is not None
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"it does not end: {self.events[-3:]}"
        if self.error is not None:
            raise self.error
        assert self.outcome is not None
        return self.outcome


@dataclass(frozen=True)
class Lab:
    """An experiment whose studies are made, and what tests do to it."""

    running: Running
    folder: Path
    trainer: str = "plain"

    @property
    def database(self) -> Database:
        """The test's own connections."""
        return self.running.database

    def job(self, **options: Any) -> Job:
        """What a worker of this experiment is started with."""
        options.setdefault("trainer", self.trainer)
        return Job(self.database.url, self.running.experiment.name, self.folder, **options)

    @contextmanager
    def worker(
        self, name: str = "w", *, limits: Mapping[str, int] | None = None, **environment: str
    ) -> Iterator[WorkerProcess]:
        """A worker without a controller; killed at the block's end if it still lives."""
        process = self.job().start(name, limits=limits, **environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def run(self, workers: int = 2, **options: Any) -> Iterator[Run]:
        """A controller with so many workers; ended with the block."""
        crew = ProcessCrew(self.job(**options), workers)
        run = Run(crew)
        experiments = Experiments(self.database)

        def conduct() -> None:
            try:
                with experiments.control(self.running.experiment) as control:
                    run.outcome = Controller(
                        self.database,
                        self.running.storage,
                        self.running.experiment,
                        self.running.spec,
                        resumed=True,
                        on_event=run.events.append,
                        control=control,
                    ).run(lambda: crew)
            except BaseException as error:  # noqa: BLE001 (told by `result`)
                run.error = error

        run.thread = threading.Thread(target=conduct, daemon=True)
        run.thread.start()
        try:
            yield run
        finally:
            if run.thread.is_alive():
                experiments.request_stop(self.running.experiment.id)
                crew.dismiss()
                run.thread.join(PATIENCE)

    def finish(self, workers: int = 1, **options: Any) -> Outcome:
        """Let a controller do all that is left."""
        with self.run(workers, **options) as run:
            outcome = run.result()
        assert outcome.state == "finished", outcome.reason
        return outcome

    # What happened

    def rows(self) -> list[TrialRow]:
        """All trials."""
        return queries.trials(self.database, self.running.experiment.id)

    def attempts(self, number: int = 0) -> list[AttemptRecord]:
        """The attempts at a trial of the only study."""
        (row,) = [row for row in self.rows() if row.number == number]
        return Attempts(self.database).of_trial(row.trial_id)

    def curves(self) -> dict[tuple[int, int], tuple[Any, ...]]:
        """Trial, epoch → what the trial said, without times."""
        return {
            (point.trial_number, point.epoch): (
                point.train_loss,
                point.validation_loss,
                point.metrics,
                point.gradient_norm,
                point.learning_rate,
                point.diverged,
            )
            for point in Curves(self.database).of_experiment(self.running.experiment.id)
        }

    def epochs(self) -> int:
        """Epochs that are stored."""
        return int(self.database.scalar("SELECT count(*) FROM shoal.epochs"))

    def count(self, statement: str, **values: Any) -> int:
        """A number from the database."""
        with self.database.begin() as connection:
            return int(connection.scalar(text(statement), values) or 0)

    def events(self) -> Counter[str]:
        """How often what happened, by the event log."""
        with self.database.begin() as connection:
            rows = connection.execute(text("SELECT kind, count(*) FROM shoal.events GROUP BY kind")).all()
        return Counter(dict(map(tuple, rows)))

    def run_out(self, worker: str) -> None:
        """Let the leases of a worker run out that is dead or stopped: its time passes, and no other's."""
        with self.database.begin() as connection:
            moved = connection.execute(
                text(
                    "UPDATE shoal.attempts SET deadline = clock_timestamp() - interval '1 ms' "
                    "FROM shoal.workers WHERE workers.id = worker_id AND workers.name = :name "
                    "AND attempts.state = 'running'"
                ),
                {"name": worker},
            )
        assert moved.rowcount, f"{worker} holds nothing"

    def trained(self) -> list[str]:
        """The epochs that were trained, however often, whoever heard of it."""
        log = self.folder / objectives.LOG
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []

    def reached(self) -> list[int]:
        """The processes that came to the gate, in the middle of an epoch."""
        return [int(trace.suffix[1:]) for trace in self.folder.glob(f"{objectives.REACHED}.*")]

    def open_gate(self) -> None:
        """Let gated trials go on, now and later."""
        (self.folder / objectives.OPEN).touch()

    def sound(self, **states: int) -> None:
        """The history is without fault, the budget exact, every trial in one final state."""
        found = check_history(self.database, self.running.experiment.id, at_rest=True)
        assert not found, found
        rows = self.rows()
        assert Counter(row.state for row in rows) == states, [(row.state, row.reason) for row in rows]
        budget = self.running.spec.budget.trials * len(self.running.spec.studies())
        assert sum(states.values()) == budget
        assert set(states) <= set(FINAL)
        events = self.events()
        ends = sum(events[kind] for kind in ("completed", "pruned", "failed", "given_up"))
        assert ends == budget, events
        epochs = self.running.spec.max_epochs()
        assert all(row.epochs == epochs for row in rows if row.state == "complete" and not row.diverged)
        wrong = self.mislabelled()
        assert not wrong, wrong

    def mislabelled(self) -> list[str]:
        """Points of curves, and values of trials, that are not what the trial's own values and seed give."""
        if self.running.spec.objective is None:
            return []
        with self.database.begin() as connection:
            noted = connection.execute(
                text("SELECT trial_id, value_json FROM trial_user_attributes WHERE key = 'shoal:seed'")
            ).all()
        seeds = {trial_id: int(json.loads(value)) for trial_id, value in noted}
        by_id = {row.trial_id: row for row in self.rows()}
        wrong = []
        for point in Curves(self.database).of_experiment(self.running.experiment.id):
            row = by_id[point.trial_id]
            right = objectives.value_at(row.params["x"], seeds[row.trial_id], point.epoch)
            if point.diverged:
                right = -1.0
            place = f"{row.study_name} {row.number} epoch {point.epoch}"
            if point.metrics["value"] != right:
                wrong.append(f"{place}: {point.metrics['value']} instead of {right}")
            last = row.state in ("complete", "pruned") and point.epoch == row.epochs
            if last and (row.value != right or point.diverged != row.diverged):
                wrong.append(f"{place}: the trial has {row.value} instead of {right}")
        return wrong


@contextmanager
def lab_of(database: Database, spec: ExperimentSpec, folder: Path, trainer: str = "plain") -> Iterator[Lab]:
    """Make the experiment; the environment is to name `folder` for its trials (see `objectives`)."""
    with prepared(database, spec) as running:
        yield Lab(running, folder, trainer)


def postmaster(server: EmbeddedPostgres) -> int:
    """The process id of a server."""
    pid = server.status().pid
    assert pid is not None
    return pid


def kill_server(server: EmbeddedPostgres) -> None:
    """SIGKILL to the server and each of its processes, so that nothing is written out."""
    import psutil

    parent = psutil.Process(postmaster(server))
    family = [parent, *parent.children()]
    for process in family:
        with suppress(ProcessLookupError):  # without their parent the others end by themselves
            os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, timeout=PATIENCE)


__all__ = ["Lab", "Run", "digits_spec", "kill_server", "lab_of", "spec_of", "until"]
