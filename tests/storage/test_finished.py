"""Trials that have ended, with curve, seed and readings: what sinks are given."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, text

from storage.database import Database
from storage.experiments import Experiments
from storage.finished import Finished
from storage.test_readings import TestReadings
from tests.contracts.stored_experiment import REASON, store_experiment

KEY = "shoal:seed"


@pytest.fixture
def finished(database: Database) -> Finished:
    return Finished(database, store_experiment(database).id, seed_key=KEY)


def test_all_that_ended_and_nothing_else(database: Database, finished: Finished) -> None:
    """Two methods × two replicates × (complete, pruned, diverged, failed)."""
    ended = finished.ids()
    assert len(ended) == 16
    with database.begin() as connection:
        going = (
            "INSERT INTO trials (number, study_id, state) SELECT 90 + n, study_id, CAST(s AS trialstate) FROM"
        )
        connection.execute(
            text(f"{going} studies, unnest(ARRAY['RUNNING', 'WAITING']) WITH ORDINALITY AS of(s, n)")
        )
    assert finished.ids() == ended


def test_other_experiments_are_none_of_its_business(database: Database, finished: Finished) -> None:
    other = Finished(database, store_experiment(database, name="other").id, seed_key=KEY)
    assert not finished.ids() & other.ids()


def test_a_trial_with_all_that_is_known_of_it(database: Database, finished: Finished) -> None:
    trials = finished.trials(finished.ids())
    assert [(t.row.study_name, t.row.number) for t in trials] == sorted(
        ((t.row.study_name, t.row.number) for t in trials),
        key=lambda place: (place[0].split("/")[2], place[0], place[1]),
    )
    first = trials[0]
    assert (first.row.study_name, first.row.state, first.row.value) == ("stored/random/0", "complete", 0.5)
    assert [point.epoch for point in first.curve] == [1, 2]
    assert first.curve[0].metrics == {"accuracy": 0.5, "error": 0.5}
    assert (first.role, first.seed, first.test) == ("search", None, {})
    failed = [trial for trial in trials if trial.row.state == "failed"]
    assert [trial.row.reason for trial in failed] == [REASON] * 4


def test_the_seed_is_exact(database: Database, finished: Finished) -> None:
    trial_id = min(finished.ids())
    with database.begin() as connection:
        noted = "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:id, :key, :seed)"
        connection.execute(text(noted), {"id": trial_id, "key": KEY, "seed": str(2**63 - 1)})
    (trial,) = finished.trials([trial_id])
    assert trial.seed == 2**63 - 1


def test_readings_belong_to_the_trial_that_made_them(database: Database, finished: Finished) -> None:
    """A winner that was scored by hand has no reading of its own: other weights were scored."""
    record = Experiments(database).get("stored")
    winner, retrained = sorted(finished.ids())[:2]
    TestReadings(database).append(
        experiment_id=record.id,
        study_name="stored/random/0",
        trial_id=winner,
        trial_number=0,
        config={},
        seed=1,
        metrics={"accuracy": 0.1},
        validation={},
        epochs=1,
        images=10,
        seconds=1.0,
    )
    with database.begin() as connection:
        copy = """
        INSERT INTO shoal.test_readings (experiment_id, study_name, trial_id, trial_number, config, seed,
            metrics, validation, epochs, images, seconds, purpose, retraining_trial_id)
        SELECT experiment_id, study_name, trial_id, trial_number, config, 2, '{"accuracy": 0.9}', validation,
               epochs, images, seconds, 'retraining', :retrained
        FROM shoal.test_readings
        """
        connection.execute(text(copy), {"retrained": retrained})
    assert {t.row.trial_id: dict(t.test) for t in finished.trials([winner, retrained])} == {
        winner: {},
        retrained: {"accuracy": 0.9},
    }


def test_statements_do_not_grow_with_trials(database: Database, finished: Finished) -> None:
    def count(trial_ids: Any) -> int:
        sent: list[str] = []
        note = lambda *said: sent.append(said[2])  # noqa: E731  removed again by the same name
        event.listen(database.engine, "before_cursor_execute", note)
        finished.trials(trial_ids)
        event.remove(database.engine, "before_cursor_execute", note)
        return len(sent)

    ended = sorted(finished.ids())
    assert count(ended[:1]) == count(ended) == 3


def test_a_trial_that_was_deleted_is_left_out(database: Database, finished: Finished) -> None:
    gone, kept = sorted(finished.ids())[:2]
    with database.begin() as connection:
        for table in (
            "trial_values",
            "trial_params",
            "trial_intermediate_values",
            "trial_user_attributes",
            "trial_system_attributes",
            "trials",
        ):
            connection.execute(text(f"DELETE FROM {table} WHERE trial_id = {gone}"))
    assert [trial.row.trial_id for trial in finished.trials([gone, kept])] == [kept]


def test_before_optunas_tables_are_made(empty_database_url: str) -> None:
    with Database(empty_database_url) as database:
        database.migrate()
        assert Finished(database, 1, seed_key=KEY).ids() == frozenset()
