"""Attempts as they are read: which worker ran which trial, and how that ended. The ledger writes them."""

from __future__ import annotations

from sqlalchemy import text

from storage.database import Database
from storage.records import AttemptRecord, CrewMember

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

# What is held at a moment changes where an attempt begins or ends; one that ends makes room for one that
# begins at the same time. An attempt that still runs ends never.
MOST_HELD = """
WITH held AS (
    SELECT {whose} AS whose, moved.at, moved.change
    FROM shoal.attempts AS attempt
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    CROSS JOIN LATERAL (VALUES (attempt.started_at, 1), (attempt.ended_at, -1)) AS moved (at, change)
    WHERE study.experiment_id = :experiment_id
),
counted AS (
    SELECT whose, sum(change) OVER (PARTITION BY whose ORDER BY at, change ROWS UNBOUNDED PRECEDING) AS held
    FROM held WHERE at IS NOT NULL
)
SELECT whose, max(held) FROM counted GROUP BY whose
"""

CREW = """
SELECT worker.id, worker.name, worker.host, event.detail AS told
FROM shoal.workers AS worker
LEFT JOIN shoal.events AS event ON event.write = worker.registration AND event.kind = 'registered'
WHERE worker.id IN (
    SELECT attempt.worker_id FROM shoal.attempts AS attempt
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    WHERE study.experiment_id = :experiment_id)
ORDER BY worker.id
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

    def most_held(self, experiment_id: int) -> dict[str, int]:
        """The most trials of each study that were under a lease at once, by the study's name."""
        return {str(name): held for name, held in self._most_held("study.name", experiment_id)}

    def crew(self, experiment_id: int) -> list[CrewMember]:
        """The workers that have ever held a trial of the experiment, the oldest first."""
        held = {int(worker): most for worker, most in self._most_held("attempt.worker_id", experiment_id)}
        with self.database.begin() as connection:
            rows = connection.execute(text(CREW), {"experiment_id": experiment_id}).all()
        return [
            CrewMember(name=name, host=host, told=told or {}, most_held=held.get(worker, 0))
            for worker, name, host, told in rows
        ]

    def _most_held(self, whose: str, experiment_id: int) -> list[tuple[str | int, int]]:
        statement = MOST_HELD.format(whose=whose)
        with self.database.begin() as connection:
            rows = connection.execute(text(statement), {"experiment_id": experiment_id}).all()
        return [(name, int(held)) for name, held in rows]

    def count(self, trial_id: int) -> int:
        """How many attempts a trial has had; those given back on purpose (`released`) don't count."""
        statement = "SELECT count(*) FROM shoal.attempts WHERE trial_id = :id AND state <> 'released'"
        with self.database.begin() as connection:
            return int(connection.scalar(text(statement), {"id": trial_id}) or 0)
