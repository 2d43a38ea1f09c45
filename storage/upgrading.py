"""Bring our schema to this version's: by whom, on which server, with Alembic on a given connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from storage import lazily as sql
from storage.errors import DatabaseUnsuitable

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from storage.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
OLDEST_SERVER = 13

MAY_CHANGE = """
SELECT coalesce(has_schema_privilege(CAST(to_regnamespace(:schema) AS oid), 'CREATE'),
                has_database_privilege(current_database(), 'CREATE')), current_user
"""
"""A schema that isn't there yet is made, for which the database's right is needed."""


def upgrade(database: Database, schema: str, found: str | None, newest: str) -> None:
    """Make or change our tables. Raises `DatabaseUnsuitable` for an old server or a role that may not."""
    major = int(database.scalar("SHOW server_version_num")) // 10000
    if major < OLDEST_SERVER:
        raise DatabaseUnsuitable(
            f"the database {database.masked_url} runs Postgres {major}; {OLDEST_SERVER} or newer is needed"
        )
    _check_right(database, schema, found, newest)
    with database.begin() as connection:
        connection.execute(sql.text("SET LOCAL statement_timeout = 0"))
        upgrade_on(connection)


def upgrade_on(connection: Connection) -> None:
    """The migrations that are missing, in the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_right(database: Database, schema: str, found: str | None, newest: str) -> None:
    """A worker's role works with the tables and may not make them: say so before Postgres does."""
    with database.begin() as connection:
        allowed, role = connection.execute(sql.text(MAY_CHANGE), {"schema": schema}).one()
    if allowed:
        return
    state = f"has schema {found}" if found else "has none of our tables"
    raise DatabaseUnsuitable(
        f"the database {database.masked_url} {state}, this version needs {newest}, and the role {role} may "
        "not change it: run `shoal db migrate` as the role that owns the tables (shoal_owner), or grant the "
        "right (GRANT CREATE ON DATABASE … for our schema, GRANT CREATE ON SCHEMA public for Optuna's tables)"
    )
