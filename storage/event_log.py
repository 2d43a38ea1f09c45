"""What happened to an experiment, in the order in which it happened: for people who read a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from storage.database import Database
from storage.records import EventKind

AFTER = """
SELECT event.id, event.at, event.kind, study.name AS study, event.trial_number, event.attempt,
       worker.name AS worker, worker.host, event.detail
FROM shoal.events AS event
LEFT JOIN shoal.experiment_studies AS study ON study.id = event.study_id
LEFT JOIN shoal.workers AS worker ON worker.id = event.worker_id
WHERE event.experiment_id = :experiment_id AND event.id > :after
  AND (CAST(:worker AS text) IS NULL OR worker.name = :worker)
ORDER BY event.id LIMIT :limit
"""

LAST = """
SELECT COALESCE(min(id), 1) - 1 FROM (
    SELECT event.id FROM shoal.events AS event
    LEFT JOIN shoal.workers AS worker ON worker.id = event.worker_id
    WHERE event.experiment_id = :experiment_id AND (CAST(:worker AS text) IS NULL OR worker.name = :worker)
    ORDER BY event.id DESC LIMIT :count
) AS newest
"""

MOST = 10_000
"""Events of one reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One event; see `storage.models.Event`."""

    id: int
    at: datetime
    kind: EventKind
    study: str | None
    trial_number: int | None
    attempt: int | None
    worker: str | None
    host: str | None
    detail: Mapping[str, Any] | None


def events_after(
    database: Database, experiment_id: int, after: int = 0, *, worker: str | None = None, limit: int = MOST
) -> list[EventRecord]:
    """Events of an experiment with a number above `after`, in order; of one worker, if one is named."""
    values = {"experiment_id": experiment_id, "after": after, "worker": worker, "limit": limit}
    with database.begin() as connection:
        return [EventRecord(**row) for row in connection.execute(text(AFTER), values).mappings()]


def before_the_last(database: Database, experiment_id: int, count: int, *, worker: str | None = None) -> int:
    """The number after which the last `count` events come, for `events_after`."""
    values = {"experiment_id": experiment_id, "count": count, "worker": worker}
    with database.begin() as connection:
        return int(connection.scalar(text(LAST), values) or 0)
