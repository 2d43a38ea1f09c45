"""What a run says of itself when a test of it fails: all that the database knows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from storage.database import Database

TABLES = {
    "experiments": "SELECT id, name, state, stop_requested, updated_at FROM shoal.experiments ORDER BY id",
    "launches": """
        SELECT generation, submission, state, reason, exit_code, submitted_at, started_at, ended_at
        FROM shoal.launches ORDER BY id
        """,
    "schedules' firings": """
        SELECT schedule.name, firing.generation, firing.state, firing.attempts, firing.reason
        FROM shoal.firings AS firing JOIN shoal.schedules AS schedule ON schedule.id = firing.schedule_id
        ORDER BY firing.id
        """,
    "workers": "SELECT id, name, host, process, started_at, ended_at FROM shoal.workers ORDER BY id",
    "attempts that run": """
        SELECT trial_id, number, worker_id, last_step, deadline, now() AS now
        FROM shoal.attempts WHERE state = 'running' ORDER BY id
        """,
    "newest events": """
        SELECT at, kind, trial_number, attempt, worker_id, detail FROM shoal.events ORDER BY id DESC LIMIT 40
        """,
    "connections": """
        SELECT pid, application_name, state, wait_event_type, wait_event, left(query, 100) AS query
        FROM pg_stat_activity WHERE datname = current_database() ORDER BY backend_start
        """,
    "locks": """
        SELECT pid, objid, granted FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
}


def run_report(database: Database) -> str:
    """All of it. Raises what reading raises: a table that has changed is to be asked for in another way."""
    with database.begin() as connection:
        sections = {
            name: [dict(row) for row in connection.execute(text(statement)).mappings()]
            for name, statement in TABLES.items()
        }
    return "\n".join(section(name, map(line, rows)) for name, rows in sections.items())


def line(row: dict[str, Any]) -> str:
    """A row, without what is empty."""
    return ", ".join(f"{key}: {value}" for key, value in row.items() if value is not None)


def section(title: str, lines: Any) -> str:
    """A part of a report."""
    body = "\n".join(f"  {one}" for one in lines) or "  none"
    return f"{title}:\n{body}"
