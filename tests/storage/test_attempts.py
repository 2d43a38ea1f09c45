"""Attempts: numbered, never two at a time, and given up when their worker is gone."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from storage.attempts import Attempts
from storage.errors import AttemptExists, AttemptLost, StudyNotFound, ValueRefused

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def attempts(database, experiment) -> Attempts:
    return Attempts(database)


def kill_connections(database) -> None:
    with database.own_connection() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_numbers_count_from_one(attempts):
    with attempts.worker("w") as worker:
        for expected in (1, 2, 3):
            assert attempts.begin("e/tpe/0", 10, 0, worker) == expected
            attempts.end(10, expected, "released")
        assert attempts.begin("e/tpe/0", 11, 1, worker) == 1


def test_record_of_an_attempt(attempts):
    with attempts.worker("w") as worker:
        number = attempts.begin("e/tpe/0", 10, 4, worker)
        (running,) = attempts.of_trial(10)
        assert (running.state, running.worker, running.ended_at) == ("running", "w", None)
        assert (running.study_name, running.trial_number, running.number) == ("e/tpe/0", 4, 1)
        attempts.end(10, number, "failed", "shapes differ", "Traceback …\x00 with \ud800 in it")
    (failed,) = attempts.of_trial(10)
    assert (failed.state, failed.reason) == ("failed", "shapes differ")
    assert failed.traceback == "Traceback …\ufffd with ? in it"
    assert failed.ended_at >= failed.started_at


def test_a_trial_is_run_by_one_worker_at_a_time(attempts):
    with attempts.worker("one") as one, attempts.worker("two") as two:
        attempts.begin("e/tpe/0", 10, 0, one)
        with pytest.raises(AttemptExists):
            attempts.begin("e/tpe/0", 10, 0, two)
        attempts.end(10, 1, "released")
        assert attempts.begin("e/tpe/0", 10, 0, two) == 2


def test_of_many_that_begin_at_once_one_wins(attempts):
    with attempts.worker("w") as worker:

        def begin(_number: int) -> int | None:
            try:
                return attempts.begin("e/tpe/0", 10, 0, worker)
            except AttemptExists:
                return None

        with ThreadPoolExecutor(4) as threads:
            assert sorted(threads.map(begin, range(8)), key=str) == [1, *[None] * 7]


def test_an_unknown_study_is_refused(attempts):
    with attempts.worker("w") as worker, pytest.raises(StudyNotFound):
        attempts.begin("elsewhere/tpe/0", 10, 0, worker)


def test_an_ended_attempt_stays_as_it_ended(attempts):
    with attempts.worker("w") as worker:
        attempts.begin("e/tpe/0", 10, 0, worker)
    attempts.end(10, 1, "failed", "first reason")
    attempts.end(10, 1, "failed", "second reason")  # the answer to the first may have been lost
    with pytest.raises(AttemptLost):
        attempts.end(10, 1, "complete")
    with pytest.raises(AttemptLost):
        attempts.mark_lost(10, 1)
    with pytest.raises(AttemptLost):
        attempts.end(10, 2, "complete")
    (record,) = attempts.of_trial(10)
    assert (record.state, record.reason) == ("failed", "first reason")


def test_failing_needs_a_reason_and_states_are_known(attempts):
    with attempts.worker("w") as worker:
        attempts.begin("e/tpe/0", 10, 0, worker)
    for state in ("failed", "asleep"):
        with pytest.raises(ValueRefused):
            attempts.end(10, 1, state)


def test_released_attempts_do_not_count(attempts):
    with attempts.worker("w") as worker:
        for state in ("lost", "released", "failed", "released"):
            attempts.end(10, attempts.begin("e/tpe/0", 10, 0, worker), state, "reason")
        assert attempts.count(10) == 2
        attempts.begin("e/tpe/0", 10, 0, worker)
        assert attempts.count(10) == 3
    assert attempts.count(11) == 0


class TestAbandoned:
    @pytest.fixture
    def study(self, optuna_storage) -> optuna.Study:
        return optuna.create_study(storage=optuna_storage, study_name="e/tpe/0")

    def test_before_optunas_tables_exist(self, empty_database_url):
        from storage.database import open_database

        with open_database(empty_database_url) as database:
            assert Attempts(database).abandoned(1) == []

    def test_only_running_trials_without_a_live_worker(self, attempts, experiment, study):
        orphan, running, waiting, done = (study.ask() for _ in range(4))
        study.tell(done, 1.0)
        study._storage.set_trial_state_values(waiting._trial_id, optuna.trial.TrialState.WAITING)
        with attempts.worker("w") as worker:
            attempts.begin(study.study_name, running._trial_id, running.number, worker)
            (found,) = attempts.abandoned(experiment.id)
            assert (found.trial_id, found.attempt) == (orphan._trial_id, None)
        found = attempts.abandoned(experiment.id)
        assert [trial.trial_number for trial in found] == [orphan.number, running.number]
        assert found[1].attempt == attempts.of_trial(running._trial_id)[0]
        assert attempts.abandoned(experiment.id + 1) == []

    def test_a_namesake_does_not_keep_a_dead_workers_trial(self, attempts, experiment, study):
        trial = study.ask()
        with attempts.worker("same name") as worker:
            attempts.begin(study.study_name, trial._trial_id, 0, worker)
        with attempts.worker("same name"):
            assert len(attempts.abandoned(experiment.id)) == 1

    def test_the_newest_attempt_decides(self, attempts, experiment, study):
        trial = study.ask()
        with attempts.worker("gone") as gone:
            attempts.begin(study.study_name, trial._trial_id, 0, gone)
        attempts.mark_lost(trial._trial_id, 1)
        assert attempts.abandoned(experiment.id)[0].attempt.state == "lost"
        with attempts.worker("alive") as alive:
            attempts.begin(study.study_name, trial._trial_id, 0, alive)
            assert attempts.abandoned(experiment.id) == []

    def test_a_killed_worker_is_noticed(self, attempts, experiment, study, database_url):
        trial = study.ask()
        code = "import sys; from storage.attempts import Attempts; from storage.database import Database\n"
        code += "attempts = Attempts(Database(sys.argv[1]))\n"
        code += "with attempts.worker('w') as worker:\n"
        code += f"    attempts.begin('e/tpe/0', {trial._trial_id}, 0, worker)\n"
        code += "    print('begun', flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, database_url],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "begun\n"
        assert attempts.abandoned(experiment.id) == []
        process.kill()
        process.communicate()
        with attempts.database.own_connection() as connection:  # until the server has noticed
            worker_id = connection.scalar(text("SELECT worker_id FROM shoal.attempts"))
            connection.execute(
                text("SELECT pg_advisory_lock(:locks, :id), pg_advisory_unlock(:locks, :id)"),
                {"locks": 0x53484F41, "id": worker_id},
            )
        (found,) = attempts.abandoned(experiment.id)
        assert (found.attempt.worker, found.attempt.state) == ("w", "running")

    def test_a_worker_comes_back_after_the_database_was_away(self, attempts, experiment, study):
        trial = study.ask()
        with attempts.worker("w") as worker:
            assert worker.renew()
            attempts.begin(study.study_name, trial._trial_id, 0, worker)
            kill_connections(attempts.database)
            assert len(attempts.abandoned(experiment.id)) == 1
            assert worker.renew()
            assert attempts.abandoned(experiment.id) == []

    def test_a_worker_whose_connection_broke_ends_quietly(self, attempts, caplog):
        with attempts.worker("w"):
            kill_connections(attempts.database)
        assert "could not say goodbye" in caplog.text

    def test_a_worker_in_another_database_is_none_of_ours(
        self, attempts, experiment, study, empty_database_url
    ):
        from storage.database import open_database

        trial = study.ask()
        with attempts.worker("w") as worker:
            attempts.begin(study.study_name, trial._trial_id, 0, worker)
        with open_database(empty_database_url) as other, Attempts(other).worker("w") as namesake:
            assert namesake.id == worker.id
            assert len(attempts.abandoned(experiment.id)) == 1
