"""The history checker: every rule finds what is planted against it, and nothing in an honest history."""

from __future__ import annotations

import math

import optuna
import pytest
from sqlalchemy import text

from storage.batched_ledger import BatchedLedger
from storage.checker import RULES, Violation, check_history
from storage.database import open_database
from storage.experiments import Experiments
from tests.contracts.ledger_readings_contract import reading_of
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of, move_deadline

PLANTED: dict[str, list[str]] = {
    "trial numbers are dense": [
        "UPDATE trials SET number = 0 WHERE number = 1",
        "UPDATE trials SET number = 99 WHERE number = 5",
    ],
    "a trial ends once": [
        """
        INSERT INTO shoal.events (kind, study_id, trial_id, trial_number, token)
        SELECT 'pruned', study_id, trial_id, trial_number, token
        FROM shoal.events
        WHERE kind = 'completed'
        """,
        "UPDATE trials SET state = 'FAIL' WHERE state = 'COMPLETE'",
        """
        INSERT INTO shoal.attempts (study_id, trial_id, trial_number, number, worker_id)
        SELECT study_id, trial_id, trial_number, number + 1, worker_id
        FROM shoal.attempts
        WHERE state = 'complete'
        """,
    ],
    "attempts and events agree": [
        "UPDATE shoal.attempts SET state = 'pruned' WHERE state = 'complete'",
        """
        INSERT INTO shoal.events (kind, study_id, trial_id, trial_number, token)
        SELECT 'claimed', study_id, trial_id, trial_number, token
        FROM shoal.attempts
        WHERE state = 'complete'
        """,
        "UPDATE shoal.attempts SET state = 'running', ended_at = NULL WHERE state = 'released'",
        """
        INSERT INTO shoal.attempts (study_id, trial_id, trial_number, number, worker_id)
        SELECT study_id, 1000, 1000, 1, worker_id
        FROM shoal.attempts LIMIT 1
        """,
    ],
    "attempts are monotone": [
        "DELETE FROM shoal.epochs; UPDATE shoal.attempts SET number = 7 WHERE number = 2",
        "UPDATE shoal.attempts SET token = -token WHERE number = 2",
        "UPDATE shoal.attempts SET started_at = started_at - interval '1 hour' WHERE number = 2",
    ],
    "nothing is written after the end": [
        """
        INSERT INTO shoal.events (kind, study_id, trial_id, trial_number, token)
        SELECT 'drawn', study_id, trial_id, trial_number, token
        FROM shoal.attempts
        WHERE state = 'complete'
        """,
        "UPDATE shoal.epochs SET written_at = now() + interval '1 hour' WHERE epoch = 3",
    ],
    "steps increase": [
        "UPDATE shoal.epochs SET written_at = written_at - interval '1 hour' WHERE epoch = 3",
        """
        INSERT INTO shoal.epochs
        SELECT trial_id, 4, 1, study_id, trial_number, train_loss, validation_loss,
        metrics, gradient_norm, learning_rate, seconds, images_per_second, diverged,
        written_at - interval '1 hour'
        FROM shoal.epochs
        WHERE attempt = 2 AND epoch = 3
        """,
    ],
    "curves and reports agree": [
        "DELETE FROM trial_intermediate_values WHERE step = 2",
        "UPDATE trial_intermediate_values SET intermediate_value = 'NaN' WHERE step = 2",
        """
        UPDATE trial_intermediate_values SET intermediate_value = NULL, intermediate_value_type = 'NAN'
        WHERE step = 2
        """,
    ],
    "values are finite": [
        "UPDATE trial_values SET value = 'Infinity'",
        "UPDATE trial_values SET value = NULL, value_type = 'INF_POS'",
        "DELETE FROM trial_values",
    ],
    "a grid point is one trial": [
        """UPDATE trial_user_attributes SET value_json = '"lr=0.1"' WHERE key = 'shoal:grid'""",
    ],
    "a failed trial is repeated once": [
        """
        INSERT INTO trial_user_attributes (trial_id, key, value_json)
        SELECT trial_id, 'shoal:retry_of', '2'
        FROM trials
        WHERE number IN (0, 1)
        """,
        """
        INSERT INTO trial_user_attributes (trial_id, key, value_json)
        SELECT trial_id, 'shoal:retry_of', '0'
        FROM trials
        WHERE number = 1
        """,
    ],
    "a winner's seed is one trial": [
        "UPDATE trial_user_attributes SET value_json = '0' WHERE key = 'shoal:retrain_seed'",
    ],
    "retrainings are read once": [
        "UPDATE shoal.experiment_studies SET role = 'search', replicate = 9 WHERE role = 'retraining'",
        "UPDATE shoal.experiment_studies SET role = 'retraining', replicate = 9 WHERE name = 'e/tpe/0'",
        """
        INSERT INTO shoal.test_readings
        (experiment_id, study_name, trial_id, trial_number, config, seed, metrics, validation,
        epochs, images, seconds, purpose, retraining_trial_id)
        SELECT experiment_id, study_name, trial_id, trial_number, config, seed + 99, metrics, validation,
        epochs, images, seconds, purpose, retraining_trial_id
        FROM shoal.test_readings
        """,
    ],
    "running trials have leases": [
        "UPDATE trials SET state = 'RUNNING' WHERE number = 4",
    ],
}
"""Rule → statements that each break it."""


@pytest.fixture
def history(database, optuna_storage, experiment) -> BatchedLedger:
    """A history with a bit of everything: ended in all ways, gone on, failed and repeated, a grid."""
    study = optuna.create_study(storage=optuna_storage, study_name=STUDY)
    ledger = BatchedLedger(database)
    worker = ledger.register("w")
    study.enqueue_trial({"lr": 0.1}, user_attrs={"shoal:grid": "lr=0.1"})
    study.enqueue_trial({"lr": 0.2}, user_attrs={"shoal:grid": "lr=0.2"})
    leases = ledger.claim(STUDY, worker, waiting=2, new=3)
    ledger.write(draws=[draw_of(lease) for lease in leases], epochs=[epoch_of(lease, 1) for lease in leases])
    ledger.write(epochs=[epoch_of(lease, step) for lease in leases for step in (2, 3)])
    states = ("complete", "pruned", "failed", "released", "retry")
    ledger.write(endings=[end(lease, state) for lease, state in zip(leases, states, strict=True)])
    ledger.retry_failed(experiment.id)
    begun = ledger.claim(STUDY, worker, waiting=1, new=0)
    ledger.write(epochs=[epoch_of(lease, 3) for lease in begun])
    ledger.write(endings=[end(lease, "pruned") for lease in begun])
    return ledger


@pytest.fixture
def retrained(history, database, optuna_storage, experiment) -> BatchedLedger:
    """The same, and its winner was retrained with two seeds."""
    Experiments(database).add_study(experiment.id, "tpe", 0, f"{STUDY}/retrained", role="retraining")
    study = optuna.create_study(storage=optuna_storage, study_name=f"{STUDY}/retrained")
    for index in range(2):
        marks = {"shoal:retrain_trial": 1, "shoal:retrain_of": 0, "shoal:retrain_seed": index}
        study.enqueue_trial({"lr": 0.1}, user_attrs=marks)
    leases = history.claim(study.study_name, history.register("w"), waiting=2, new=0)
    history.write(
        draws=[draw_of(lease) for lease in leases],
        epochs=[epoch_of(lease, 1) for lease in leases],
        endings=[end(lease, reading=reading_of(lease)) for lease in leases],
    )
    return history


def test_an_honest_history_has_no_violations(retrained, database, experiment):
    assert check_history(database) == check_history(database, experiment.id, at_rest=True) == []


@pytest.mark.parametrize(("rule", "statement"), [(rule, s) for rule, all_ in PLANTED.items() for s in all_])
def test_what_is_planted_is_found(retrained, database, experiment, rule, statement):
    with database.begin() as connection:
        assert connection.execute(text(statement)).rowcount
    found = check_history(database, experiment.id)
    assert rule in {violation.rule for violation in found}
    assert all(STUDY in violation.where and violation.detail for violation in found)
    assert check_history(database, experiment.id + 1) == []


def test_every_rule_is_planted_against():
    assert set(PLANTED) == set(RULES)


def test_leases_at_rest_are_found(history, database, experiment):
    worker = history.register("w")
    history.claim(STUDY, worker, waiting=1, new=0)
    assert check_history(database, experiment.id) == []
    (violation,) = check_history(database, experiment.id, at_rest=True)
    assert violation == Violation("running trials have leases", f"trial 4 of {STUDY}", "attempt 2 still runs")


def test_what_other_clients_do_is_their_business(history, database, experiment, optuna_storage):
    study = optuna.load_study(study_name=STUDY, storage=optuna_storage)
    theirs = study.ask()
    theirs.report(math.nan, 9)
    study.tell(theirs, math.inf)
    (lease,) = history.claim(STUDY, history.register("w"), waiting=0, new=1)
    study.tell(lease.number, 0.5)
    history.write(beats=[lease])
    move_deadline(database, -3600)
    history.expire(experiment.id)
    assert check_history(database, experiment.id, at_rest=True) == []


def test_before_optunas_tables_exist(empty_database_url):
    with open_database(empty_database_url) as database:
        assert check_history(database) == []


@pytest.mark.parametrize(
    "change", ["UPDATE shoal.events SET kind = 'drawn'", "DELETE FROM shoal.events", "TRUNCATE shoal.events"]
)
def test_events_are_never_changed(history, database, change):
    from sqlalchemy.exc import DBAPIError

    with pytest.raises(DBAPIError, match="never changed"), database.begin() as connection:
        connection.execute(text(change))


def test_events_outlive_their_experiment(history, database, experiment):
    before = database.scalar("SELECT count(*) FROM shoal.events")
    with database.begin() as connection:
        connection.execute(text("DELETE FROM shoal.experiments"))
    assert database.scalar("SELECT count(*) FROM shoal.events") == before
    assert check_history(database, experiment.id) == []
