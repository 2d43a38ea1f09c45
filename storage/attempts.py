"""Attempts: which worker ran which trial, how that ended, and which workers live.

A worker lives as long as it holds the advisory lock of its row on a connection of its own. The
server frees the lock when the process ends, however suddenly, and through TCP keepalives within
a minute when the machine is gone. Nobody's clock plays a part.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from storage.database import UNIQUE_VIOLATION, Database, optuna_tables_missing, sqlstate
from storage.errors import AttemptExists, AttemptLost, StudyNotFound
from storage.records import AbandonedTrial, AttemptRecord
from storage.values import storable

logger = logging.getLogger(__name__)

WORKER_LOCKS = 0x53484F41
"""First half of the two-part advisory lock of a worker; the second is the worker's id."""

REGISTER = "INSERT INTO shoal.workers (name, host, process) VALUES (:name, :host, :process) RETURNING id"

TAKE = "SELECT pg_try_advisory_lock(:locks, :id)"

RETIRE = "UPDATE shoal.workers SET ended_at = now() WHERE id = :id RETURNING pg_advisory_unlock(:locks, :id)"
"""Gives the lock back itself: closing the connection does so too, but some time after we have gone on."""

BEGIN = """
INSERT INTO shoal.attempts (study_id, trial_id, trial_number, number, worker_id)
SELECT study.id, :trial_id, :trial_number,
       1 + coalesce((SELECT max(number) FROM shoal.attempts WHERE trial_id = :trial_id), 0), :worker_id
FROM shoal.experiment_studies AS study
WHERE study.name = :study_name
RETURNING number
"""

END = """
UPDATE shoal.attempts
SET state = :state, reason = coalesce(reason, :reason), traceback = coalesce(traceback, :traceback),
    ended_at = coalesce(ended_at, now())
WHERE trial_id = :trial_id AND number = :number AND state IN ('running', :state)
"""
"""Ending in the same way again is allowed: a worker whose connection broke at the commit asks twice."""

RECORD = """
attempt.id, study.name AS study_name, attempt.trial_number, attempt.trial_id, attempt.number,
worker.name AS worker, attempt.state, attempt.reason, attempt.traceback, attempt.started_at, attempt.ended_at
"""

OF_TRIAL = f"""
SELECT {RECORD}
FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE attempt.trial_id = :trial_id
ORDER BY attempt.number
"""  # noqa: S608 (only our own constants are put in)

ABANDONED = f"""
SELECT study.name AS trial_study, trial.number AS trial_number_, trial.trial_id AS trial_id_, {RECORD}
FROM shoal.experiment_studies AS study
JOIN studies AS optuna ON optuna.study_name = study.name
JOIN trials AS trial ON trial.study_id = optuna.study_id AND trial.state = 'RUNNING'
LEFT JOIN LATERAL (
    SELECT * FROM shoal.attempts WHERE trial_id = trial.trial_id ORDER BY number DESC LIMIT 1
) AS attempt ON true
LEFT JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE study.experiment_id = :experiment_id
  AND NOT EXISTS (
    SELECT FROM pg_locks AS held
    WHERE held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND held.classid = CAST(:locks AS oid) AND held.objid = CAST(attempt.worker_id AS oid)
  )
ORDER BY study.id, trial.number
"""  # noqa: S608


class LiveWorker:
    """A registered worker, alive as long as its connection is. For one thread."""

    def __init__(self, database: Database, name: str) -> None:
        """Use `Attempts.worker` instead."""
        self.name = name
        self._database = database
        self._connection = database.open_own_connection()
        place = {"name": name, "host": platform.node(), "process": os.getpid()}
        self.id = int(self._connection.scalar(text(REGISTER), place))
        self._take(self._connection)

    def renew(self) -> bool:
        """Make sure that we count as alive, after the database was away for instance.

        One round trip. False if a broken connection of ours still holds the lock: we count as
        alive until the server drops it, so ask again later. Raises `DatabaseUnreachable`.
        """
        try:
            self._connection.execute(text("SELECT 1"))
        except DBAPIError:
            self._connection.invalidate()
            self._connection.close()
            self._connection = self._database.open_own_connection()
            return self._take(self._connection)
        return self._held

    def close(self) -> None:
        """Count as gone from now on."""
        try:
            self._connection.execute(text(RETIRE), {"locks": WORKER_LOCKS, "id": self.id})
        except DBAPIError:
            logger.warning("the worker %s could not say goodbye: its connection broke", self.name)
            self._connection.invalidate()
        self._connection.close()

    def _take(self, connection: Connection) -> bool:
        self._held = bool(connection.scalar(text(TAKE), {"locks": WORKER_LOCKS, "id": self.id}))
        return self._held


class Attempts:
    """Reads and writes attempts. May be shared by threads; the workers it makes may not."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @contextmanager
    def worker(self, name: str) -> Iterator[LiveWorker]:
        """Register a worker that counts as alive until the block or the process ends.

        Names may repeat: each call makes a worker of its own.
        """
        worker = LiveWorker(self.database, name)
        try:
            yield worker
        finally:
            worker.close()

    def begin(self, study_name: str, trial_id: int, trial_number: int, worker: LiveWorker) -> int:
        """Note that a worker starts running a trial; the attempt's number, from 1.

        Raises `AttemptExists` if the trial is being run, `StudyNotFound` for a study that no
        experiment holds.
        """
        values = {
            "study_name": study_name,
            "trial_id": trial_id,
            "trial_number": trial_number,
            "worker_id": worker.id,
        }
        try:
            with self.database.begin() as connection:
                number = connection.scalar(text(BEGIN), values)
        except IntegrityError as error:
            if sqlstate(error) != UNIQUE_VIOLATION:
                raise
            message = f"trial {trial_number} of {study_name} is already being run"
        else:
            if number is None:
                raise StudyNotFound(f"no experiment holds a study {study_name!r}")
            return int(number)
        raise AttemptExists(message)

    def end(
        self,
        trial_id: int,
        attempt: int,
        state: Literal["complete", "pruned", "failed", "released", "lost"],
        reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Note how an attempt ended; to say the same twice changes nothing.

        `failed` needs a reason. Raises `AttemptLost` if it ended otherwise before, `ValueRefused`.
        """
        values = {
            "trial_id": trial_id,
            "number": attempt,
            "state": state,
            "reason": storable(reason),
            "traceback": storable(traceback),
        }
        with self.database.begin() as connection:
            ended = connection.execute(text(END), values).rowcount
        if not ended:
            raise AttemptLost(f"attempt {attempt} of trial {trial_id} does not run any more")

    def mark_lost(self, trial_id: int, attempt: int, reason: str = "its worker is gone") -> None:
        """Give up an attempt for its worker. Raises `AttemptLost` if it ended otherwise."""
        self.end(trial_id, attempt, "lost", reason)

    def abandoned(self, experiment_id: int) -> list[AbandonedTrial]:
        """Trials that Optuna's table calls running but no live worker does, in one statement.

        Hold the studies' locks while asking: between asking Optuna for a trial and `begin`, a
        claim looks like a trial without an attempt.
        """
        values = {"experiment_id": experiment_id, "locks": WORKER_LOCKS}
        try:
            with self.database.begin() as connection:
                rows = connection.execute(text(ABANDONED), values).mappings()
                return [_abandoned(dict(row)) for row in rows]
        except DBAPIError as error:
            if optuna_tables_missing(error):
                return []
            raise

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


def _abandoned(fields: dict[str, Any]) -> AbandonedTrial:
    where = {
        "study_name": fields.pop("trial_study"),
        "trial_number": fields.pop("trial_number_"),
        "trial_id": fields.pop("trial_id_"),
    }
    attempt = AttemptRecord(**fields) if fields["id"] is not None else None
    return AbandonedTrial(**where, attempt=attempt)
