"""The log of readings of the test set only grows."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage.errors import ExperimentNotFound, ValueRefused
from storage.test_readings import TestReadings

READING = {
    "study_name": "e/tpe/0",
    "trial_id": 7,
    "trial_number": 3,
    "config": {"loss": "hinge", "lambda": 1e-4},
    "seed": 2**62,
    "metrics": {"accuracy": 0.91},
    "validation": {"accuracy": 0.92},
    "epochs": 5,
    "images": 10000,
    "seconds": 2.5,
}


def test_readings_are_kept_in_order(database, experiment):
    readings = TestReadings(database)
    first = readings.append(experiment_id=experiment.id, **READING)
    second = readings.append(experiment_id=experiment.id, **READING | {"metrics": {"accuracy": 0.5}})
    assert readings.of_experiment(experiment.id) == [first, second]
    for name, value in READING.items():
        assert getattr(first, name) == value


def test_what_cannot_be_true_is_refused(database, experiment):
    readings = TestReadings(database)
    for change in ({"metrics": {"accuracy": float("nan")}}, {"images": 0}, {"seconds": float("inf")}):
        with pytest.raises(ValueRefused):
            readings.append(experiment_id=experiment.id, **READING | change)
    with pytest.raises(ExperimentNotFound):
        readings.append(experiment_id=experiment.id + 1, **READING)
    assert readings.of_experiment(experiment.id) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE shoal.test_readings SET metrics = '{}'",
        "DELETE FROM shoal.test_readings",
        "TRUNCATE shoal.test_readings",
        "DELETE FROM shoal.experiments",
    ],
)
def test_nobody_changes_a_reading(database, experiment, statement):
    readings = TestReadings(database)
    reading = readings.append(experiment_id=experiment.id, **READING)
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(text(statement))
    assert readings.of_experiment(experiment.id) == [reading]
