"""The log of readings of the sealed test images: appended to, never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import ExperimentNotFound
from storage.records import TestReading
from storage.sqlstates import FOREIGN_KEY_VIOLATION, sqlstate
from storage.values import json_text

COLUMNS = """
id, experiment_id, study_name, trial_id, trial_number, config, seed, metrics, validation, epochs, images,
seconds, read_at, purpose, retraining_trial_id
"""

APPEND = f"""
INSERT INTO shoal.test_readings
    (experiment_id, study_name, trial_id, trial_number, config, seed, metrics, validation, epochs, images,
     seconds)
VALUES (:experiment_id, :study_name, :trial_id, :trial_number, CAST(:config AS json), :seed,
        CAST(:metrics AS json), CAST(:validation AS json), :epochs, :images, :seconds)
RETURNING {COLUMNS}
"""  # noqa: S608 (here and below: only our own constants are put in)

READ = f"SELECT {COLUMNS} FROM shoal.test_readings WHERE experiment_id = :id ORDER BY id"  # noqa: S608


class TestReadings:
    """Reads and appends to the log. May be shared by threads."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    def __init__(self, database: Database) -> None:
        self.database = database

    def append(
        self,
        *,
        experiment_id: int,
        study_name: str,
        trial_id: int,
        trial_number: int,
        config: Mapping[str, Any],
        seed: int,
        metrics: Mapping[str, float],
        validation: Mapping[str, float],
        epochs: int,
        images: int,
        seconds: float,
    ) -> TestReading:
        """Store a reading made by hand; those of retrainings are stored by the ledger, as they end.

        Raises `ExperimentNotFound`, `ValueRefused`.
        """
        values = {
            "experiment_id": experiment_id,
            "study_name": study_name,
            "trial_id": trial_id,
            "trial_number": trial_number,
            "config": json_text(dict(config)),
            "seed": seed,
            "metrics": json_text({name: float(value) for name, value in metrics.items()}),
            "validation": json_text({name: float(value) for name, value in validation.items()}),
            "epochs": epochs,
            "images": images,
            "seconds": float(seconds),
        }
        try:
            with self.database.begin() as connection:
                return TestReading(**connection.execute(text(APPEND), values).mappings().one())
        except IntegrityError as error:
            if sqlstate(error) != FOREIGN_KEY_VIOLATION:
                raise
        raise ExperimentNotFound(f"there is no experiment with id {experiment_id}")

    def of_experiment(self, experiment_id: int) -> list[TestReading]:
        """All readings of an experiment, oldest first."""
        with self.database.begin() as connection:
            rows = connection.execute(text(READ), {"id": experiment_id}).mappings()
            return [TestReading(**row) for row in rows]
