"""Workers as Ray actors: killed, interrupted from the terminal, orphaned."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from search.control.controller import run_experiment
from search.control.events import Event, Progress, Started, Trouble
from search.trials.study import GRID_KEY
from storage import queries
from storage.attempts import Attempts
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FAKE, LOG_VARIABLE, SECONDS_VARIABLE
from tests.contracts.hold import VARIABLE as HOLD_VARIABLE
from tests.contracts.hold import Hold
from tests.contracts.processes import outcome_of, start_run, until

pytestmark = [pytest.mark.slow, pytest.mark.ray]

GRID_36 = {
    "learning_rate": {"low": 1e-3, "high": 1.0, "log": True, "grid": [0.001, 0.01, 0.03, 0.1, 0.3, 1.0]},
    "lambda": {"low": 0.0, "high": 1.0, "grid": [0.0, 0.1, 0.2, 0.3, 0.5, 1.0]},
}


def _workers(database: Database) -> list[int]:
    """Process ids of the workers that are registered and have not said goodbye."""
    listed = database.scalar("SELECT array_agg(process) FROM shoal.workers WHERE ended_at IS NULL")
    return [process for process in listed or [] if psutil.pid_exists(process)]


def _epochs(database: Database) -> int:
    experiments = Experiments(database).list()
    return sum(row.epochs for row in queries.progress(database, experiments[0].id)) if experiments else 0


def test_killed_actor_costs_nothing_but_its_epoch(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: each point of a grid once, no password in a process list."""
    # Our cluster's token counts although Ray was here first.
    import ray

    assert not ray.is_initialized()
    hold = Hold(tmp_path / "hold")
    hold.at(7)  # of each worker: two trials are over, and it is at the third
    monkeypatch.setenv(HOLD_VARIABLE, str(hold.path))
    spec = small_spec(space=GRID_36, methods={"grid": {}}, budget={"trials": 36})
    password = make_url(database.url).password
    assert password
    events: list[Event] = []
    killed: list[int] = []

    def kill_one(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.ended >= 6 and not killed:
            processes = subprocess.check_output(["ps", "-eo", "args", "-ww"], text=True)
            assert "raylet" in processes
            assert password not in processes
            assert os.environ["RAY_AUTH_TOKEN"] not in processes
            killed.append(_workers(database)[0])
            os.kill(killed[0], signal.SIGKILL)
            hold.release()

    outcome = run_experiment(spec, database.url, workers=4, device="cpu", trainer=FAKE, on_event=kill_one)
    assert (outcome.state, outcome.reason) == ("finished", "")
    assert [event.workers for event in events if isinstance(event, Started)] == [4]
    troubles = [event.message for event in events if isinstance(event, Trouble)]
    assert any("died: its process died" in message for message in troubles)
    assert "RAY_AUTH_TOKEN" not in os.environ
    with prepared(database, spec) as running:
        trials = running.trials("grid")
    assert Counter(trial.state for trial in trials) == {TrialState.COMPLETE: 36}
    assert len({trial.user_attrs[GRID_KEY] for trial in trials}) == 36
    rows = queries.trials(database, outcome.studies[0].study.experiment_id)
    assert sum(row.epochs for row in rows) == 3 * 36
    lost = [
        attempt
        for row in rows
        for attempt in Attempts(database).of_trial(row.trial_id)
        if attempt.state == "lost"
    ]
    # The one that it trained, and the one that it had claimed ahead.
    assert len(lost) <= 2
    assert any("queued again" in message for message in troubles) == bool(lost)
    # A second cluster in the same process, and nothing left to do.
    again = run_experiment(spec, database.url, workers=1, device="cpu", trainer=FAKE)
    assert (again.state, again.resumed, sum(row.trials for row in again.studies)) == ("finished", True, 36)


@pytest.fixture
def short_tmp() -> Iterator[str]:
    """A short folder for Ray, whose sockets' paths may have 107 bytes; a killed run leaves things in it."""
    with tempfile.TemporaryDirectory(prefix="s-", ignore_cleanup_errors=True) as folder:
        yield folder


def test_orphaned_then_interrupted_then_finished(database: Database, tmp_path: Path, short_tmp: str) -> None:
    """kill -9 of the controller ends its actors; Ctrl-C in the terminal lets them end their epochs."""
    log = tmp_path / "epochs.log"
    spec = small_spec(budget={"trials": 30}, methods={"random": {}, "tpe": {}}).to_json()
    slow = {LOG_VARIABLE: str(log), SECONDS_VARIABLE: "0.2", "TMPDIR": short_tmp}

    run = start_run(database.url, spec, trainer=FAKE, workers=2, **slow)
    until(lambda: _epochs(database) >= 6, run=run)
    orphans = _workers(database)
    assert len(orphans) == 2
    run.kill()
    run.communicate()
    until(lambda: not any(map(psutil.pid_exists, orphans)))

    run = start_run(database.url, spec, trainer=FAKE, workers=2, **slow)
    before = _epochs(database)
    until(lambda: _epochs(database) >= before + 4, run=run)
    os.killpg(run.pid, signal.SIGINT)
    outcome = outcome_of(run)
    assert (outcome["state"], outcome["ray"]) == ("stopped", True)
    experiment = Experiments(database).get("small")
    assert sum(row.running for row in queries.progress(database, experiment.id)) == 0
    assert _epochs(database) < 180

    assert outcome_of(start_run(database.url, spec, trainer=FAKE, workers=2))["state"] == "finished"
    for row in queries.progress(database, experiment.id):
        assert (row.waiting, row.running, row.failed, row.complete, row.epochs) == (0, 0, 0, 30, 90)
    # Only what died with the first controller was trained twice: at most what two trials had.
    lines = log.read_text().splitlines()
    assert len(lines) - len(set(lines)) <= 2 * 3
