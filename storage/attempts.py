"""Attempts as they are read: which worker ran which trial, and how that ended. The ledger writes them."""

from __future__ import annotations

from sqlalchemy import text

from storage.database import Database
from storage.records import AttemptRecord

OF_TRIAL = """
SELECT attempt.id, study.name AS study_name, attempt.trial_number, attempt.trial_id, attempt.number,
       worker.name AS worker, attempt.state, attempt.reason, attempt.traceback, attempt.started_at,
       attempt.ended_at
FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE attempt.trial_id = :trial_id
ORDER BY attempt.number
"""


class Attempts:
    """Reads attempts. May be shared by threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def of_trial(self, trial_id: int) -> list[AttemptRecord]:
        """All attempts of a trial, oldest first."""
        with self.database.begin() as connection:
            rows = connection.execute(text(OF_TRIAL), {"trial_id": trial_id}).mappings()
            return [AttemptRecord(**row) for row in rows]

    def count(self, trial_id: int) -> int:
        """How many attempts a trial has had; those given back on purpose (`released`) don't count."""
        statement = "SELECT count(*) FROM shoal.attempts WHERE trial_id = :id AND state <> 'released'"
        with self.database.begin() as connection:
            return int(connection.scalar(text(statement), {"id": trial_id}) or 0)
