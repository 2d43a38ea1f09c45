"""Alembic's entry: runs the migrations on the connection that `Database.migrate` gives.

The models are not named here: a migration says all by itself, and stays as it was when they change.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from storage.database import SCHEMA, VERSION_TABLE

connection = context.config.attributes["connection"]
# Asked first, because IF NOT EXISTS wants the right to create schemas even where one exists.
if connection.scalar(text("SELECT to_regnamespace(:schema) IS NULL"), {"schema": SCHEMA}):
    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
context.configure(connection=connection, version_table=VERSION_TABLE, version_table_schema=SCHEMA)
with context.begin_transaction():
    context.run_migrations()
