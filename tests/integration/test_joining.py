"""`shoal worker`: alone, beside a Ray actor, told to go. Real processes, on one database."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.control.controller import find_or_create
from search.control.crew import EXIT_TERMINATED, Assignment
from search.experiment.spec import ExperimentSpec
from search.launch.joining import Joined
from storage import queries
from storage.attempts import Attempts
from storage.checker import check_history
from storage.curves import Curves
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.records import ExperimentRecord
from tests.contracts.experiments import small_spec
from tests.contracts.fake_engine import FAKE, SECONDS_VARIABLE
from tests.contracts.held_training import NETWORK as HELD_NETWORK
from tests.contracts.hold import Hold
from tests.contracts.processes import PATIENCE, outcome_of, start_run, until
from tests.contracts.ray_cluster import ROOT
from tests.contracts.shoal_command import Shoal, document, printed
from tests.faults.objectives import FOLDER_VARIABLE, OPEN, PACE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NETWORK: dict[str, Any] = {
    "fixed": {"epochs": 6, "optimizer": "adam", "batch_size": 32},
    "data": {"name": "digits", "limit": 400},
    "model": HELD_NETWORK,
    "allow_imports": [HELD_NETWORK.partition(":")[0]],
    "methods": {"random": {}},
    "budget": {"trials": 3},
}
"""Short trials with all that a checkpoint has to keep: 18 epochs of ten steps."""
FUNCTION: dict[str, Any] = {
    "objective": {"function": "tests.faults.objectives:trial", "direction": "maximize", "worst": 0.0},
    "data": None,
    "metric": "value",
    "allow_imports": ["tests.faults.objectives"],
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "methods": {"random": {}, "tpe": {"in_flight": 1}},
    "budget": {"trials": 8},
}
"""Trials whose pace the environment says."""
LONG_LEASE = "6000"
"""Seconds: a lease that was not given back would outlast the test."""


def created(database: Database, spec: ExperimentSpec) -> ExperimentRecord:
    """As `shoal submit` leaves it: nobody runs it yet."""
    record, _ = find_or_create(Experiments(database), spec)
    return record


@pytest.fixture
def shoal(database: Database, tmp_path: Path, shoal_home: Path) -> Shoal:
    """The command on another machine, as far as that can be: another folder, the same database."""
    environment = {
        URL_VARIABLE: database.url,
        "PYTHONPATH": str(ROOT),
        FOLDER_VARIABLE: str(tmp_path),
        "SHOAL_LEASE_SECONDS": LONG_LEASE,
    }
    return Shoal(tmp_path, os.environ | environment)


@contextmanager
def started(shoal: Shoal, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command that doesn't outlive its test."""
    process = Shoal(shoal.folder, {**shoal.environment, **environment}).start(*arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        if process.stderr is not None and not process.stderr.closed:
            process.communicate()


def serve_here(database: Database, *names: str, idle_seconds: float | None = None) -> str:
    """What the command does, in this process, which has imported all that it needs."""
    assignment = Assignment(database.url, "", "plain", "cpu")
    served = Joined(
        database,
        names,
        assignment,
        worker="here",
        interrupted=threading.Event(),
        idle_seconds=idle_seconds,
        abandon=print,
        tell=print,
    ).run()
    return served.reason


def epochs(database: Database, experiment: ExperimentRecord) -> int:
    return sum(row.epochs for row in queries.progress(database, experiment.id))


def attempts(database: Database, experiment: ExperimentRecord) -> Counter[str]:
    rows = queries.trials(database, experiment.id)
    return Counter(one.state for row in rows for one in Attempts(database).of_trial(row.trial_id))


def curves(database: Database, experiment: ExperimentRecord) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    return {
        (point.study_name.removeprefix(experiment.name), point.trial_number, point.epoch): (
            point.train_loss,
            point.validation_loss,
            point.metrics,
            point.gradient_norm,
        )
        for point in Curves(database).of_experiment(experiment.id)
    }


def test_alone_it_runs_experiments_to_their_end_the_oldest_first(database: Database) -> None:
    """Nobody runs them and no controller comes: studies are made, trials end, and that they have is said."""
    names = ("b-older", "a-newer")
    records = [created(database, small_spec(experiment=name, **NETWORK)) for name in names]
    assert serve_here(database, idle_seconds=1.0) == "idle"
    for record in records:
        assert Experiments(database).get(record.name).state == "finished"
        assert attempts(database, record) == {"complete": 3}
        assert check_history(database, record.id) == []
    begun = "SELECT array_agg(experiment_id ORDER BY id) FROM shoal.events WHERE kind = 'claimed'"
    assert database.scalar(begun) == [records[0].id] * 3 + [records[1].id] * 3
    # With a name it leaves as soon as that has ended, however patient it is.
    assert serve_here(database, "b-older") == "over"


def test_told_to_go_it_saves_and_gives_back_at_once(database: Database, shoal: Shoal, tmp_path: Path) -> None:
    """143, no lease to wait for, and curves that don't show it, bit by bit."""
    arguments = ("worker", "--trainer", "plain", "--device", "cpu", "--checkpoint-seconds", "3600")
    peace = created(database, small_spec(experiment="peace", **NETWORK))
    assert serve_here(database, "peace") == "over"
    storm = created(database, small_spec(experiment="storm", **NETWORK))
    hold = Hold(tmp_path / "hold")
    hold.at(85)  # in the ninth epoch, the third of the second trial
    with started(shoal, *arguments, "storm", **hold.environment()) as worker:
        until(lambda: epochs(database, storm) == 8, run=worker)
        worker.send_signal(signal.SIGTERM)
        hold.release()
        said = worker.communicate(timeout=PATIENCE)[1]
    assert worker.returncode == EXIT_TERMINATED, said
    assert "all trials are given back" in said
    assert attempts(database, storm)["running"] == 0
    assert Experiments(database).get("storm").state == "running"
    assert epochs(database, storm) == 9, "the one that was under way is stored"
    assert serve_here(database, "storm") == "over"
    assert Experiments(database).get("storm").state == "finished"
    assert curves(database, storm) == curves(database, peace)
    assert len(curves(database, storm)) == 18
    assert set(attempts(database, storm)) == {"complete", "released"}
    assert check_history(database, storm.id) == []
    again = "SELECT count(*) FROM shoal.epochs WHERE attempt > 1 AND epoch = 1"
    assert database.scalar(again) == 0, "each went on from its checkpoint"


def test_an_epoch_that_is_too_long_is_left(
    database: Database,
    shoal: Shoal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By `shoal drain`, which a machine calls that is taken away, and which tells nobody twice."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    record = created(database, small_spec(experiment="long", **FUNCTION))
    with started(shoal, "worker", "long", "--grace-seconds", "0.5", **{PACE_VARIABLE: "3600"}) as worker:
        until(lambda: attempts(database, record)["running"] == 1, run=worker)
        told = document(capsys, "drain", "--timeout-seconds", "240", "--database", database.url)
        assert (told["told"], told["left"]) == ([worker.pid], [])
        said = worker.communicate(timeout=PATIENCE)[1]
    assert worker.returncode == EXIT_TERMINATED, said
    assert attempts(database, record) == {"released": 1}
    assert document(capsys, "drain", "--database", database.url)["told"] == []
    assert serve_here(database, "long") == "over"
    assert Counter(row.state for row in queries.trials(database, record.id)) == {"complete": 16}
    assert check_history(database, record.id) == []


def test_a_run_in_process_leaves_within_the_grace_time(database: Database) -> None:
    run = start_run(
        database.url,
        small_spec().to_json(),
        trainer=FAKE,
        options={"grace_seconds": 0.5},
        **{SECONDS_VARIABLE: "3600", "SHOAL_LEASE_SECONDS": LONG_LEASE},
    )
    held = "SELECT count(*) FROM shoal.attempts WHERE state = 'running'"
    until(lambda: database.scalar(held) > 0, run=run)
    run.send_signal(signal.SIGTERM)
    outcome = outcome_of(run)
    assert (outcome["state"], outcome["reason"]) == ("stopped", "killed by SIGTERM")
    assert database.scalar(held) == 0
    again = outcome_of(start_run(database.url, small_spec().to_json(), trainer=FAKE))
    assert again["state"] == "finished"


def test_stopped_from_elsewhere_it_goes_on_waiting(
    database: Database, shoal: Shoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`shoal stop` reaches workers that no controller hired; they serve whatever comes next."""
    first = created(database, small_spec(experiment="first", **FUNCTION))
    with started(shoal, "worker", **{PACE_VARIABLE: "0.5"}) as worker:
        until(lambda: epochs(database, first) >= 3, run=worker)
        url = ("--database", database.url)
        assert printed(capsys, "status", "first", *url)[0].startswith("first  running, by workers alone")
        assert "asked the workers of first to stop" in printed(capsys, "stop", "first", *url)[1]
        until(lambda: Experiments(database).get("first").state == "stopped", run=worker)
        assert attempts(database, first)["running"] == 0
        (tmp_path / OPEN).touch()
        second = created(database, small_spec(experiment="second", **FUNCTION | {"budget": {"trials": 2}}))
        until(lambda: Experiments(database).get("second").state == "finished", run=worker)
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=PATIENCE)
    assert worker.returncode == 130
    assert Counter(row.state for row in queries.trials(database, second.id)) == {"complete": 4}
    assert epochs(database, first) < 48


@pytest.mark.ray
def test_it_and_a_ray_actor_serve_one_experiment(database: Database, shoal: Shoal, tmp_path: Path) -> None:
    spec = small_spec(experiment="both", **(FUNCTION | {"budget": {"trials": 20}}))
    environment = {FOLDER_VARIABLE: str(tmp_path), PACE_VARIABLE: "0.5", "SHOAL_LEASE_SECONDS": LONG_LEASE}
    run = start_run(database.url, spec.to_json(), trainer="plain", workers=1, **environment)
    held = "SELECT count(*) FROM shoal.attempts WHERE state = 'complete'"
    fewest = (
        "SELECT CASE WHEN count(*) = 2 THEN min(trials) ELSE 0 END FROM "
        "(SELECT count(*) AS trials FROM shoal.attempts GROUP BY worker_id) AS by_worker"
    )
    until(lambda: database.scalar(held) > 0, run=run)
    with started(shoal, "worker", "both", "--name", "joined", **{PACE_VARIABLE: "0.5"}) as worker:
        until(lambda: database.scalar(fewest) >= 2, run=worker)
        (tmp_path / OPEN).touch()
        outcome = outcome_of(run)
        said = worker.communicate(timeout=PATIENCE)[1]
    assert worker.returncode == 0, said
    assert (outcome["state"], outcome["ray"]) == ("finished", True)
    record = Experiments(database).get("both")
    rows = queries.trials(database, record.id)
    assert Counter(row.state for row in rows) == {"complete": 40}
    assert sum(row.epochs for row in rows) == 40 * 3
    took = Counter(one.worker for row in rows for one in Attempts(database).of_trial(row.trial_id))
    assert len(took) == 2
    assert min(took.values()) >= 2, took
    assert "joined" in took
    assert check_history(database, record.id) == []
