"""What `shoal db check` looks at: everything about a database that has to be right."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from time import time

from sqlalchemy import text

from storage.database import OPTUNA_REVISION, Database, newest_revision
from storage.upgrading import OLDEST_SERVER

LARGEST_SKEW = 5.0
"""Seconds by which this machine's clock may differ from the database's before `check` objects."""


def version(database: Database) -> tuple[bool, str]:
    number = int(database.scalar("SHOW server_version_num"))
    return number // 10000 >= OLDEST_SERVER, f"Postgres {database.scalar('SHOW server_version')}"


def isolation(database: Database) -> tuple[bool, str]:
    """What other clients, such as a dashboard, get; our own connections ask for it themselves."""
    with database.own_connection() as connection:
        level = str(connection.scalar(text("SHOW default_transaction_isolation")))
    return level == "read committed", level


def time_zone(database: Database) -> tuple[bool, str]:
    zone = str(database.scalar("SHOW TimeZone"))
    return zone == "UTC", zone


def schema(database: Database) -> tuple[bool, str]:
    found, newest = database.revision(), newest_revision()
    return found == newest, f"{found or 'none yet'} (newest {newest})"


def optuna(database: Database) -> tuple[bool, str]:
    found = database.optuna_revision()
    return found in (None, OPTUNA_REVISION), f"{found or 'none yet'} (known {OPTUNA_REVISION})"


def clock(database: Database) -> tuple[bool, str]:
    before = time()
    moment = database.scalar("SELECT clock_timestamp()")
    middle = datetime.fromtimestamp((before + time()) / 2, UTC)
    skew = (middle - moment).total_seconds()
    return abs(skew) <= LARGEST_SKEW, f"{skew:+.3f} s against the database's"


CHECKS: dict[str, Callable[[Database], tuple[bool, str]]] = {
    "server version": version,
    "isolation level": isolation,
    "time zone": time_zone,
    "schema": schema,
    "Optuna's schema": optuna,
    "clock": clock,
}
"""Name → whether it is right, and what was found. They may raise our errors."""
