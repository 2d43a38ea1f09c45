"""Real processes on one database: many at once, killed, interrupted, two controllers."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from search.cli import run_command
from search.control.crew import Assignment
from search.trials.study import GRID_KEY
from storage import queries
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE, SECONDS_VARIABLE
from tests.contracts.held_training import PLAIN
from tests.contracts.hold import Hold
from tests.contracts.processes import PATIENCE, outcome_of, start_run, until, worker_process

pytestmark = pytest.mark.slow


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """For runs that are met in their midst."""
    return Hold(tmp_path / "hold")


GRID_36 = {
    "learning_rate": {"low": 1e-3, "high": 1.0, "log": True, "grid": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "lambda": {"low": 0.0, "high": 1.0, "grid": [0.0, 0.1, 0.2, 0.3, 0.5, 1.0]},
}


def _work(running: Running, workers: int, trainer: str = FAKE) -> None:
    """As many processes as said, until nothing is left."""
    assignment = Assignment(running.database.url, running.experiment.name, trainer, "cpu")
    processes = [worker_process(assignment, f"w{n}") for n in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * workers


def test_twelve_workers_run_each_point_of_a_grid_once(
    database: Database, tmp_path: Path, monkeypatch
) -> None:
    log = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    monkeypatch.setenv(SECONDS_VARIABLE, "0.02")
    spec = small_spec(space=GRID_36, methods={"grid": {}}, budget={"trials": 36})
    with prepared(database, spec) as running:
        _work(running, 12)
        trials = running.trials("grid")
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 36}
    assert len({trial.user_attrs[GRID_KEY] for trial in trials}) == 36
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 36
    assert sorted(trial.number for trial in trials) == list(range(36))
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 3 * 36


def test_sequential_studies_do_not_depend_on_the_number_of_workers(database: Database) -> None:
    values = {}
    for workers in (1, 3):
        spec = small_spec(
            experiment=f"by{workers}",
            methods={"tpe": {"n_startup_trials": 3, "in_flight": 1}, "random": {}},
            budget={"trials": 9},
        )
        with prepared(database, spec) as running:
            _work(running, workers)
            values[workers] = [(trial.params, trial.value) for trial in running.trials("tpe")]
    assert values[1] == values[3]


def _spec(**changes: Any) -> dict[str, Any]:
    return small_spec(**changes).to_json()


def _epochs(url: str, name: str = "small") -> int:
    with Database(url) as database:
        experiments = {record.name: record for record in Experiments(database).list()}
        if name not in experiments:
            return 0
        return sum(row.epochs for row in queries.progress(database, experiments[name].id))


def _exact(database: Database, spec: dict[str, Any]) -> None:
    """Every study has its budget, nothing is left running or waiting."""
    experiment = Experiments(database).get(spec["experiment"])
    for row in queries.progress(database, experiment.id):
        assert (row.waiting, row.running, row.failed, row.trials) == (0, 0, 0, 6), row
        assert row.epochs == sum(
            trial.epochs for trial in queries.trials(database, experiment.id, method=row.study.method)
        )


@pytest.mark.parametrize("trainer", [FAKE, FOUR_SLOTS])
def test_a_killed_run_is_resumed_to_its_exact_budget(database: Database, hold: Hold, trainer: str) -> None:
    spec = _spec()
    hold.at(8)
    run = start_run(database.url, spec, trainer=trainer, **hold.environment())
    until(lambda: _epochs(database.url) >= 5, run=run)
    run.kill()
    run.communicate()
    assert 5 <= _epochs(database.url) <= 8, "it was killed in its midst"
    outcome = outcome_of(start_run(database.url, spec, trainer=trainer))
    assert outcome["state"] == "finished"
    _exact(database, spec)


def test_a_killed_run_is_seen_to_be_interrupted_and_is_watched_no_longer(
    database: Database, hold: Hold, capsys: pytest.CaptureFixture[str]
) -> None:
    hold.at(1)
    run = start_run(database.url, _spec(), trainer=FAKE, **hold.environment())
    until(lambda: _epochs(database.url) >= 1, run=run)
    url = ["--database", database.url]
    assert run_command(["status", "small", "--json", *url]) == 0
    assert json.loads(capsys.readouterr().out)["controlled"] is True
    run.kill()
    run.communicate()
    # The server frees the lock of a killed process when it notices that the connection is closed.
    until(lambda: not Experiments(database).controlled([Experiments(database).get("small").id]))
    assert run_command(["watch", "small", *url]) == 1
    said = capsys.readouterr().out
    assert said.startswith("small  interrupted: no process runs it; shoal resume small goes on\n")


def test_in_process_needs_no_ray(database: Database) -> None:
    outcome = outcome_of(start_run(database.url, _spec(), trainer=FAKE))
    assert outcome == {"state": "finished", "reason": "", "ray": False}


def test_an_interrupted_run_goes_on_bit_by_bit(database: Database, hold: Hold) -> None:
    """SIGINT to the process group, as a terminal sends it; the curves are those of a run in peace."""
    changes: dict[str, Any] = {
        "fixed": {"epochs": 12, "optimizer": "adam", "batch_size": 16},
        "data": {"name": "digits", "limit": 400},
        "model": {"name": "cnn", "depth": 1, "width": 4, "dense": 8, "dropout": 0.2},
        "methods": {"random": {}, "tpe": {"n_startup_trials": 2}},
        "pruner": "asha",
    }
    for name in ("peace", "storm"):
        spec = _spec(experiment=name, **changes)
        for _ in range(2 if name == "storm" else 0):
            enough = _epochs(database.url, "storm") + 3
            hold.at(4)
            run = start_run(database.url, spec, trainer=PLAIN, **hold.environment())
            until(lambda enough=enough: _epochs(database.url, "storm") >= enough, run=run)
            os.killpg(run.pid, signal.SIGINT)
            hold.creep(lambda run=run: run.poll() is not None)
            outcome = outcome_of(run)
            assert outcome["state"] == "stopped"
            experiment = Experiments(database).get("storm")
            assert experiment.state == "stopped"
            assert all(row.running == 0 for row in queries.progress(database, experiment.id))
        hold.release()
        run = start_run(database.url, spec, trainer=PLAIN)
        assert outcome_of(run)["state"] == "finished"
        _exact(database, spec)
    assert _curves(database, "storm") == _curves(database, "peace")
    attempts = [trial.attempts for trial in queries.trials(database, Experiments(database).get("storm").id)]
    # What it trained, what it had asked for to go next, and the trial that takes its epochs over.
    assert 12 <= sum(attempts) <= 12 + 2 * 3, (
        "more was given back at a signal than a worker of one slot holds"
    )


def _curves(database: Database, name: str) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    points = Curves(database).of_experiment(Experiments(database).get(name).id)
    return {
        (point.study_name.removeprefix(name), point.trial_number, point.epoch): (
            point.train_loss,
            point.validation_loss,
            point.metrics,
            point.gradient_norm,
            point.learning_rate,
        )
        for point in points
    }


def test_second_signal_does_not_wait(database: Database) -> None:
    run = start_run(database.url, _spec(), trainer=FAKE, **{SECONDS_VARIABLE: "3600"})
    until(lambda: _running(database), run=run)
    run.send_signal(signal.SIGTERM)
    until(lambda: Experiments(database).get("small").stop_requested, run=run)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=PATIENCE)
    # What was cut off is found by the next run.
    assert outcome_of(start_run(database.url, _spec(), trainer=FAKE))["state"] == "finished"
    _exact(database, _spec())


def _running(database: Database) -> bool:
    experiments = Experiments(database).list()
    return bool(experiments) and any(row.running for row in queries.progress(database, experiments[0].id))


def test_second_controller_is_refused(database: Database, hold: Hold) -> None:
    hold.at(1)
    first = start_run(database.url, _spec(), trainer=FAKE, **hold.environment())
    until(lambda: _epochs(database.url) >= 1, run=first)
    second = start_run(database.url, _spec(), trainer=FAKE)
    _, error = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "ExperimentBusy" in error
    hold.release()
    assert outcome_of(first)["state"] == "finished"
    _exact(database, _spec())


def test_a_poison_trial_is_given_up_and_the_study_goes_on(database: Database) -> None:
    """Its process dies with it each time; in a thread that is the whole run, which is started again."""
    spec = _spec(
        space={"loss": ["cross_entropy", "kills"], "learning_rate": [0.1, 0.2, 0.3]}, methods={"random": {}}
    )
    deaths = 0
    run = start_run(database.url, spec, trainer=FAKE)
    while run.wait(PATIENCE) != 0:
        said = run.communicate()
        assert run.returncode == -signal.SIGKILL, said
        # The server frees the lock of a killed process when it notices that the connection is closed.
        until(lambda: not Experiments(database).controlled([Experiments(database).get("small").id]))
        deaths += 1
        run = start_run(database.url, spec, trainer=FAKE)
    assert outcome_of(run)["state"] == "finished"
    experiment = Experiments(database).get("small")
    (row,) = queries.progress(database, experiment.id)
    poisoned = [trial for trial in queries.trials(database, experiment.id) if trial.params["loss"] == "kills"]
    assert poisoned, "the seed draws at least one"
    assert (row.trials, row.failed, row.complete) == (6, len(poisoned), 6 - len(poisoned))
    assert deaths == 3 * len(poisoned)
    assert all("3 workers ended" in (trial.reason or "") for trial in poisoned)
