"""From the database to the comparison and to rows, on an experiment with known numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest
import sqlalchemy

from search.compare.analysis import analyse
from search.compare.base import Retrainings
from search.compare.collect import collect
from search.export import epoch_rows, trial_rows, write_csv, write_json_lines
from storage.database import Database
from storage.errors import ExperimentNotFound
from storage.experiments import Experiments
from storage.programs import Programs
from storage.records import ProgramRecord
from storage.test_readings import TestReadings
from tests.contracts.stored_experiment import SPEC, store_experiment


def test_studies_come_in_the_order_of_the_file_with_their_trials(database: Database) -> None:
    store_experiment(database)
    found = collect(database, "stored")
    assert [s.name for s in found.studies] == [
        "stored/random/0", "stored/random/1", "stored/tpe/0", "stored/tpe/1",
    ]  # fmt: skip
    for study in found.studies:
        assert [trial.state for trial in study.trials] == ["complete", "pruned", "complete", "failed"]
        assert [trial.diverged for trial in study.trials] == [False, False, True, False]
        assert [trial.epochs for trial in study.trials] == [2, 1, 1, 1]
        assert [trial.attempts for trial in study.trials] == [1, 1, 1, 1]
    trial = found.studies[0].trials[0]
    assert trial.params == {"learning_rate": pytest.approx(0.1), "loss": "hinge"}
    assert [(p.epoch, p.value, p.seconds) for p in trial.curve] == [(1, 0.5, 0.25), (2, 0.5, 0.25)]
    assert found.studies[0].trials[3].reason == "the model raised <ValueError>"
    assert (found.metric, found.direction, found.state) == ("accuracy", "maximize", "finished")
    assert found.environment == {"python": "3.11"}


def test_its_analysis_has_the_known_numbers(database: Database) -> None:
    store_experiment(database)
    analysis = analyse(collect(database, "stored"))
    for method, outcomes in zip(analysis.methods, analysis.outcomes, strict=True):
        assert analysis.primary.values[method.method] == {0: 0.5, 1: 0.6}
        assert (outcomes.epochs, outcomes.train_seconds) == (10, pytest.approx(2.5))
        counts = outcomes.counts
        assert (counts.complete, counts.pruned, counts.diverged, counts.failed) == (2, 2, 2, 2)
    assert analysis.curves("epochs").budget == 4


def test_minimised_experiments_are_known_as_such(database: Database) -> None:
    store_experiment(database, direction="minimize")
    assert collect(database, "stored").direction == "minimize"


def test_an_experiment_that_has_only_been_created(database: Database) -> None:
    Experiments(database).create("fresh", SPEC, "0" * 64, {}, [("tpe", 0, "fresh/tpe/0")])
    found = collect(database, "fresh")
    assert [study.trials for study in found.studies] == [()]
    assert analyse(found).curves("epochs").budget is None


def test_readings_of_the_test_set_are_in_the_comparison(database: Database) -> None:
    record = store_experiment(database)
    TestReadings(database).append(
        experiment_id=record.id, study_name="stored/tpe/1", trial_id=1, trial_number=0, config={}, seed=5,
        metrics={"accuracy": 0.4}, validation={"accuracy": 0.6}, epochs=2, images=10, seconds=1.0,
    )  # fmt: skip
    (reading,) = collect(database, "stored").readings
    assert (reading.method, reading.replicate, reading.metrics["accuracy"]) == ("tpe", 1, 0.4)


def test_it_says_who_ran_the_trials_and_how_many_at_once(database: Database) -> None:
    record = store_experiment(database)
    Programs(database).put(
        record.id, ProgramRecord(program="p", batch=32, device="d", fused=False, reason="why", slots=3)
    )
    execution = collect(database, "stored").execution
    (worker,) = execution.workers
    assert (worker.trainer, worker.device, worker.slots, worker.most_held) == (None, None, None, 1)
    assert execution.most_held == {f"stored/{m}/{r}": 1 for m in ("random", "tpe") for r in (0, 1)}
    (way,) = execution.ways
    assert (way.program, way.batch, way.device, way.fused, way.reason, way.slots) == (
        "p", 32, "d", False, "why", 3,
    )  # fmt: skip


def test_retrainings_that_failed_are_counted_by_the_search(database: Database) -> None:
    store_experiment(database)
    record = store_experiment(database, name="again")
    with database.begin() as connection:
        change = """
        UPDATE shoal.experiment_studies SET experiment_id = :stored, role = 'retraining'
        WHERE name = 'again/tpe/1'
        """
        stored = Experiments(database).get("stored").id
        connection.execute(sqlalchemy.text(change), {"stored": stored})
    found = collect(database, "stored")
    assert found.retrainings == {"stored/tpe/1": Retrainings(failed=1, open=0)}
    assert len(found.studies) == 4
    assert collect(database, record.name).retrainings == {}


def test_unknown_experiments_are_not_found(database: Database) -> None:
    store_experiment(database)
    for read in (collect, trial_rows, epoch_rows):
        with pytest.raises(ExperimentNotFound) as found:
            read(database, "storde")
        assert found.value.near == ("stored",)


def test_trials_as_rows(database: Database) -> None:
    store_experiment(database)
    rows = trial_rows(database, "stored")
    assert len(rows) == 16
    first = rows[0]
    assert (first["study"], first["trial"], first["state"], first["value"]) == (
        "stored/random/0",
        0,
        "complete",
        0.5,
    )
    assert first["params.loss"] == "hinge"
    assert rows[3]["value"] is None


def test_epochs_as_rows(database: Database) -> None:
    store_experiment(database)
    rows = epoch_rows(database, "stored")
    assert len(rows) == 4 * 5
    assert (rows[1]["trial"], rows[1]["epoch"], rows[1]["metrics.accuracy"]) == (0, 2, 0.5)
    assert rows[0]["gradient_norm"] is None


def test_csv_and_json_lines_hold_the_same(database: Database) -> None:
    store_experiment(database)
    rows = trial_rows(database, "stored")
    as_csv, as_json = io.StringIO(), io.StringIO()
    write_csv(rows, as_csv)
    write_json_lines(rows, as_json)
    assert [json.loads(line) for line in as_json.getvalue().splitlines()] == rows
    read = list(csv.DictReader(io.StringIO(as_csv.getvalue())))
    assert [row["study"] for row in read] == [row["study"] for row in rows]
    assert [float(row["value"]) if row["value"] else None for row in read] == [row["value"] for row in rows]
