"""Workers of this host: which live, and which are known to be dead, so that nobody waits for their leases."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import text

from storage.database import Database
from storage.processes import birth, this_process

HOLDING_HERE = """
SELECT DISTINCT worker.id, worker.process, worker.process_birth
FROM shoal.attempts AS attempt
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
WHERE attempt.state = 'running' AND study.experiment_id = :experiment_id
  AND worker.host = :host AND worker.boot = :boot
  AND worker.process_space IS NOT DISTINCT FROM :process_space AND worker.process_birth IS NOT NULL
ORDER BY worker.id
"""


LIVING_HERE = """
SELECT id, process, process_birth FROM shoal.workers AS worker
WHERE ended_at IS NULL AND host = :host AND boot = :boot AND process_birth IS NOT NULL
  AND process_space IS NOT DISTINCT FROM :process_space
ORDER BY id
"""


def living_on_this_host(database: Database) -> dict[int, str]:
    """The processes of workers that live on this host, with their births: a number may be used again.

    Of this boot of this machine, and of processes whose numbers mean here what they mean there.
    """
    here = this_process().as_values()
    if here["boot"] is None:
        return {}
    values = {key: here[key] for key in ("host", "boot", "process_space")}
    with database.begin() as connection:
        rows = connection.execute(text(LIVING_HERE), values).all()
    return {process: began for _, process, began in rows if birth(process) == began}


def dead_on_this_host(database: Database, experiment_id: int) -> list[int]:
    """The workers that hold trials of an experiment although their process is gone; give them to `expire`.

    Only of this boot of this machine, and of processes whose numbers mean here what they meant
    there (the same namespace): of all others nothing is known, and their leases run out.
    """
    here = this_process().as_values()
    if here["boot"] is None:
        return []
    values = {key: here[key] for key in ("host", "boot", "process_space")} | {"experiment_id": experiment_id}
    with database.begin() as connection:
        rows = connection.execute(text(HOLDING_HERE), values).all()
    return [worker_id for worker_id, process, began in rows if birth(process) != began]


def registered_as(database: Database, names: Collection[str]) -> list[int]:
    """The workers that registered under these names and have not said goodbye."""
    statement = "SELECT id FROM shoal.workers WHERE name = ANY(:names) AND ended_at IS NULL ORDER BY id"
    with database.begin() as connection:
        return list(connection.scalars(text(statement), {"names": list(names)}))


def trials_held(database: Database, experiment_id: int) -> int:
    """How many trials of an experiment are under a lease, run out or not; foreign clients hold none."""
    statement = """
    SELECT count(*) FROM shoal.attempts AS attempt
    JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
    WHERE attempt.state = 'running' AND study.experiment_id = :id
    """
    with database.begin() as connection:
        return int(connection.scalar(text(statement), {"id": experiment_id}) or 0)
