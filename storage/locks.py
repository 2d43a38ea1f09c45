"""Several advisory locks at once: for whoever does the same to many things, two messages instead of many."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from storage.database import Database, lock_number


@contextmanager
def locks(database: Database, keys: Collection[str]) -> Iterator[None]:
    """Hold the locks of all keys, each as `Database.lock` would, on one connection of its own.

    Waits for them, in one order, so that no two who want several wait for each other.
    """
    numbers = sorted({lock_number(key) for key in keys})
    with database.own_connection() as connection:
        take = text("SELECT count(pg_advisory_lock(key)) FROM unnest(CAST(:keys AS bigint[])) AS key")
        connection.execute(take, {"keys": numbers})
        try:
            yield
        finally:
            try:
                connection.execute(text("SELECT pg_advisory_unlock_all()"))
            except DBAPIError:
                # It broke, and the server freed them then; raising would hide an error of the caller's own.
                connection.invalidate()
