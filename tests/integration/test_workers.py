"""Real workers that are killed, stopped, told to go, hang, or lose their database; each with the history."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.engine import make_url

from search.control.crew import EXIT_ABANDONED, Assignment
from storage import queries
from storage.attempts import Attempts
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import LEASE_VARIABLE
from storage.patience import PATIENCE_VARIABLE
from tests.conftest import on_server
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import BEGUN_VARIABLE, FAKE, FOUR_SLOTS, LOG_VARIABLE, SECONDS_VARIABLE
from tests.contracts.held_training import PLAIN
from tests.contracts.hold import VARIABLE as HOLD_VARIABLE
from tests.contracts.hold import Hold
from tests.contracts.ledger_writes import move_deadline
from tests.contracts.processes import PATIENCE, outcome_of, start_run, until, worker_process

pytestmark = pytest.mark.slow


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Workers train so many epochs and then wait in the midst of the next ones, until they may go on."""
    made = Hold(tmp_path / "hold")
    made.at(8)
    monkeypatch.setenv(HOLD_VARIABLE, str(made.path))
    return made


@contextmanager
def at_work(running: Running, trainer: str = FAKE, **assigned: Any) -> Iterator[BaseProcess]:
    """A worker in a process of its own."""
    assignment = Assignment(running.database.url, running.experiment.name, trainer, "cpu", **assigned)
    process = worker_process(assignment, "w")
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join(PATIENCE)


def _finish(running: Running) -> None:
    """Another worker does what is left."""
    with at_work(running) as process:
        process.join(PATIENCE)
        assert process.exitcode == 0


def _epochs(running: Running) -> int:
    return sum(row.epochs for row in queries.progress(running.database, running.experiment.id))


def _attempts(running: Running) -> Counter[str]:
    rows = queries.trials(running.database, running.experiment.id)
    return Counter(
        attempt.state for row in rows for attempt in Attempts(running.database).of_trial(row.trial_id)
    )


def _whole(running: Running, trials: int) -> None:
    """Every trial is complete with its whole curve, and nothing happened that may not."""
    rows = queries.trials(running.database, running.experiment.id)
    assert Counter(row.state for row in rows) == {"complete": trials}
    assert {row.epochs for row in rows} == {3}
    assert check_history(running.database, running.experiment.id) == []


def test_a_killed_worker_costs_its_trials_one_checkpoint_interval(
    database: Database, hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after every epoch: what four slots trained since then is all that is trained twice."""
    log = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    with prepared(database, small_spec()) as running:
        with at_work(running, FOUR_SLOTS, checkpoint_seconds=0.0) as process:
            until(lambda: _epochs(running) >= 8)
            process.kill()
            process.join(PATIENCE)
        hold.release()
        workers = database.scalar("SELECT array_agg(id) FROM shoal.workers")
        taken = running.ledger.expire(running.experiment.id, dead_workers=workers)
        assert taken
        _finish(running)
        _whole(running, 12)
    lines = log.read_text().splitlines()
    assert len(set(lines)) == 36
    assert len(lines) - 36 <= 4, "of each slot the last epoch, whose file was under way"


def test_a_killed_run_goes_on_from_its_checkpoints_bit_by_bit(database: Database, hold: Hold) -> None:
    changes: dict[str, Any] = {
        "fixed": {"epochs": 6, "optimizer": "adam", "batch_size": 64},
        "data": {"name": "digits", "limit": 300},
        "model": {"name": "cnn", "depth": 1, "width": 4, "dense": 8, "dropout": 0.2},
        "methods": {"random": {}},
        "budget": {"trials": 3},
    }
    for name in ("peace", "storm"):
        spec = small_spec(experiment=name, **changes)
        options = {"checkpoint_seconds": 0.0}
        for _ in range(2 if name == "storm" else 0):
            hold.at(4)
            run = start_run(database.url, spec.to_json(), trainer=PLAIN, options=options)
            enough = _points(database, name) + 3
            until(lambda enough=enough, name=name: _points(database, name) >= enough, run=run)
            run.kill()
            run.communicate()
            record = Experiments(database).get(name)
            until(lambda record=record: not Experiments(database).controlled([record.id]))
        hold.release()
        run = start_run(database.url, spec.to_json(), trainer=PLAIN, options=options)
        assert outcome_of(run)["state"] == "finished"
        assert check_history(database, Experiments(database).get(name).id) == []
    assert _curves(database, "storm") == _curves(database, "peace")
    points = Curves(database).of_experiment(Experiments(database).get("storm").id)
    first = {(p.study_name, p.trial_number): p.attempt for p in points if p.epoch == 1}
    assert any(p.attempt > first[p.study_name, p.trial_number] for p in points), "one went on in its middle"


def _points(database: Database, name: str) -> int:
    found = {record.name: record.id for record in Experiments(database).list()}
    return len(Curves(database).of_experiment(found[name])) if name in found else 0


def _curves(database: Database, name: str) -> dict[tuple[int, int], tuple[Any, ...]]:
    return {
        (p.trial_number, p.epoch): (p.train_loss, p.validation_loss, p.metrics, p.gradient_norm)
        for p in Curves(database).of_experiment(Experiments(database).get(name).id)
    }


def test_told_to_go_a_worker_saves_gives_back_and_goes(
    database: Database, hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(log))
    hold.at(4)  # so that the next epoch is not the last of their three
    with prepared(database, small_spec()) as running:
        with at_work(running, FOUR_SLOTS) as process:
            until(lambda: _epochs(running) >= 4)
            process.terminate()
            hold.release()
            process.join(PATIENCE)
            assert process.exitcode == 0
        states = _attempts(running)
        assert states["running"] == states["lost"] == 0, "nobody has to wait for a lease to run out"
        assert states["released"] > 0
        _finish(running)
        _whole(running, 12)
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 36, "no epoch was trained twice"


def test_told_to_go_in_a_long_epoch_it_goes_without_its_end(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepared(database, small_spec(methods={"random": {}})) as running:
        begun = tmp_path / "begun"
        monkeypatch.setenv(BEGUN_VARIABLE, str(begun))
        monkeypatch.setenv(SECONDS_VARIABLE, "600")
        with at_work(running, grace_seconds=0.5) as process:
            until(begun.exists)
            process.terminate()
            process.join(PATIENCE)
            assert process.exitcode == EXIT_ABANDONED
        assert _attempts(running) == {"released": 1}
        monkeypatch.delenv(SECONDS_VARIABLE)
        _finish(running)
        _whole(running, 6)


HANGING = {"space": {"loss": ["cross_entropy", "hangs"]}, "methods": {"grid": {}}, "budget": {"trials": 2}}


def test_a_hung_trial_is_tried_again_and_then_given_up(database: Database) -> None:
    with prepared(database, small_spec(**HANGING)) as running:
        codes = []
        for _ in range(3):
            with at_work(running, hang_seconds=3.0) as process:
                process.join(PATIENCE)
                codes.append(process.exitcode)
        with at_work(running, hang_seconds=3.0) as process:
            process.join(PATIENCE)
            codes.append(process.exitcode)
        assert codes == [EXIT_ABANDONED] * 3 + [0]
        by_loss = {trial.params["loss"]: trial for trial in running.trials("grid")}
        assert by_loss["cross_entropy"].state == TrialState.COMPLETE
        hung = by_loss["hangs"]
        assert (hung.state, hung.last_step) == (TrialState.FAIL, 1)
        assert "hung: the engine did not come back" in hung.user_attrs["reason"]
        attempts = Attempts(database).of_trial(hung._trial_id)
        assert [attempt.state for attempt in attempts] == ["failed"] * 3
        assert check_history(database, running.experiment.id) == []


def test_in_one_process_a_hung_trial_ends_the_run_and_says_why(database: Database) -> None:
    run = start_run(database.url, small_spec(**HANGING).to_json(), trainer=FAKE, options={"hang_seconds": 3})
    outcome = outcome_of(run)
    assert outcome["state"] == "failed"
    assert "hung: the engine did not come back" in outcome["reason"]
    assert "--hang-seconds" in outcome["reason"]


def test_a_worker_that_slept_past_its_leases_is_refused_and_starts_over(
    database: Database, hold: Hold
) -> None:
    """SIGSTOP, then another has the trials, then SIGCONT: every write under the old leases is refused."""
    with prepared(database, small_spec()) as running, at_work(running, FOUR_SLOTS) as sleeper:
        until(lambda: _epochs(running) >= 6)
        assert sleeper.pid
        os.kill(sleeper.pid, signal.SIGSTOP)
        move_deadline(database, -3600)
        hold.release()
        assert running.ledger.expire(running.experiment.id)
        _finish(running)
        os.kill(sleeper.pid, signal.SIGCONT)
        sleeper.join(PATIENCE)
        assert sleeper.exitcode == 0, "there is nothing left for it"
        _whole(running, 12)
        with database.begin() as connection:
            refusals = connection.scalar(text("SELECT count(*) FROM shoal.events WHERE kind = 'refused'"))
        assert refusals


def test_a_database_that_is_away_for_longer_than_leases_last(
    database: Database, hold: Hold, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker stops writing, waits, and claims anew: nothing is doubled, and it ends by itself."""
    monkeypatch.setenv(LEASE_VARIABLE, "4")
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    name = make_url(database.url).database
    assert name
    with prepared(database, small_spec()) as running, at_work(running, FOUR_SLOTS) as process:
        until(lambda: _epochs(running) >= 6)
        with database.own_connection() as ours:
            on_server(postgres_url, "ALTER DATABASE {} CONNECTION LIMIT 0", name)
            ours.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
            hold.release()
            running_out = (
                "SELECT bool_and(deadline < clock_timestamp()) FROM shoal.attempts WHERE state = 'running'"
            )
            until(lambda: ours.scalar(text(running_out)))
            assert process.is_alive()
            on_server(postgres_url, "ALTER DATABASE {} CONNECTION LIMIT -1", name)
        process.join(PATIENCE)
        assert process.exitcode == 0
        assert _attempts(running)["lost"] > 0
        _whole(running, 12)
