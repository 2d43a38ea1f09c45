"""Launches: each submission of an experiment to a cluster, and how far its driver got.

A launch says where a driver was started and what it was told. Whether that driver lives is not for
this table to say: a living one holds the experiment's lock (`storage.control`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from storage import lazily as sql
from storage.database import Database
from storage.errors import ExperimentNotFound, ValueRefused
from storage.records import LaunchRecord
from storage.sqlstates import FOREIGN_KEY_VIOLATION, constraint_of, sqlstate
from storage.values import json_text, storable

COLUMNS = (
    "id, experiment_id, generation, submission, address, options, state, reason, exit_code, "
    "submitted_at, started_at, ended_at"
)

ADD = f"""
INSERT INTO shoal.launches (experiment_id, generation, submission, address, options)
VALUES (:experiment_id, :generation, :submission, :address, CAST(:options AS json))
RETURNING {COLUMNS}
"""  # noqa: S608 (here and below: only our own constants are put in)

OF_EXPERIMENT = f"SELECT {COLUMNS} FROM shoal.launches WHERE experiment_id = :id ORDER BY generation"  # noqa: S608

NEWEST = f"""
SELECT {COLUMNS} FROM shoal.launches WHERE experiment_id = :id ORDER BY generation DESC LIMIT 1
"""  # noqa: S608

START = """
UPDATE shoal.launches
SET state = 'running', started_at = now(), ended_at = NULL, exit_code = NULL, reason = NULL
WHERE experiment_id = :id AND generation = :generation
"""

END = """
UPDATE shoal.launches SET state = :state, exit_code = :exit_code, reason = :reason, ended_at = now()
WHERE experiment_id = :id AND generation = :generation
"""

LOSE = """
UPDATE shoal.launches SET state = 'lost', reason = :reason, ended_at = now()
WHERE experiment_id = :id AND generation = :generation AND ended_at IS NULL
"""

WITHOUT_CONTROLLER = """
SELECT study.experiment_id FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
JOIN shoal.events AS event ON event.write = worker.registration AND event.kind = 'registered'
WHERE attempt.state = 'running' AND attempt.deadline > now() AND event.detail ->> 'joined' = 'true'
UNION
SELECT experiment_id FROM shoal.launches AS launch
WHERE state = 'submitted' AND generation = (
    SELECT max(generation) FROM shoal.launches WHERE experiment_id = launch.experiment_id)
"""

LaunchEnd: TypeAlias = Literal["finished", "stopped", "failed"]
"""What a driver says of its end."""


class Launches:
    """Reads and writes launches. May be shared by threads."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def deciding(self, experiment_id: int) -> Iterator[None]:
        """Be the only one, on whatever machine, who decides about a launch of the experiment."""
        with self.database.lock(f"launch:{experiment_id}"):
            yield

    def add(
        self, experiment_id: int, generation: int, submission: str, address: str, options: Mapping[str, Any]
    ) -> LaunchRecord:
        """Note a launch before it is made. Neither `address` nor `options` may hold a secret.

        Raises `ValueRefused` if there is one of that generation or submission, `ExperimentNotFound`.
        """
        values = {
            "experiment_id": experiment_id,
            "generation": generation,
            "submission": submission,
            "address": storable(address),
            "options": json_text(dict(options)),
        }
        try:
            with self.database.begin() as connection:
                return LaunchRecord(**connection.execute(sql.text(ADD), values).mappings().one())
        except sql.IntegrityError as error:
            if sqlstate(error) == FOREIGN_KEY_VIOLATION:
                message = f"there is no experiment with id {experiment_id}"
            elif constraint_of(error) in TAKEN:
                raise ValueRefused(f"the launch {submission} has been made by somebody else") from None
            else:
                raise
        raise ExperimentNotFound(message)

    def newest(self, experiment_id: int) -> LaunchRecord | None:
        """The launch of the highest generation; None if there is none."""
        rows = self.database.rows(NEWEST, {"id": experiment_id})
        return LaunchRecord(**rows[0]._asdict()) if rows else None

    def under_way(self) -> frozenset[int]:
        """Experiments that need no controller now: workers joined them, or a driver is on its way."""
        return frozenset(experiment_id for (experiment_id,) in self.database.rows(WITHOUT_CONTROLLER))

    def of_experiment(self, experiment_id: int) -> list[LaunchRecord]:
        """All launches, oldest first."""
        with self.database.begin() as connection:
            rows = connection.execute(sql.text(OF_EXPERIMENT), {"id": experiment_id}).mappings()
            return [LaunchRecord(**row) for row in rows]

    def start(self, experiment_id: int, generation: int) -> None:
        """Its driver runs, for the first time or again."""
        self._update(START, id=experiment_id, generation=generation)

    def end(
        self, experiment_id: int, generation: int, state: LaunchEnd, *, exit_code: int, reason: str = ""
    ) -> None:
        """Its driver ends, and says how."""
        self._update(
            END,
            id=experiment_id,
            generation=generation,
            state=state,
            exit_code=exit_code,
            reason=storable(reason) or None,
        )

    def lose(self, experiment_id: int, generation: int, reason: str) -> None:
        """Its driver is gone; one that has said how it ended is left alone."""
        self._update(LOSE, id=experiment_id, generation=generation, reason=storable(reason))

    def _update(self, statement: str, **values: Any) -> None:
        def work(_unsure: bool) -> None:
            with self.database.begin() as connection:
                connection.execute(sql.text(statement), values)

        self.database.retrying(work)


TAKEN = ("launches_experiment_id_generation_unique", "launches_submission_unique")
