"""What Postgres' errors say, and which of ours they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import DatabaseBusy, DatabaseRefuses, StorageError, ValueRefused
from storage.urls import mask, scrub, unreachable

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

UNDEFINED_TABLE, INVALID_SCHEMA = "42P01", "3F000"
INSUFFICIENT_PRIVILEGE, READ_ONLY = "42501", "25006"
CHECK_VIOLATION, UNIQUE_VIOLATION, FOREIGN_KEY_VIOLATION = "23514", "23505", "23503"
LOCK_NOT_AVAILABLE = "55P03"
BUSY_STATES = ("40001", "40P01", LOCK_NOT_AVAILABLE, "57014")
"""Serialisation failure, deadlock, lock timeout, statement timeout: rolled back by the server.

Postgres' error codes (appendix A of its manual)."""


def sqlstate(error: DBAPIError) -> str | None:
    """Postgres' five-character code of an error, None if it didn't come from the server."""
    return getattr(error.orig, "pgcode", None)


def optuna_tables_missing(error: DBAPIError) -> bool:
    """Whether a statement failed because nobody has opened Optuna's storage in this database yet."""
    return sqlstate(error) == UNDEFINED_TABLE and "shoal." not in str(error.orig).splitlines()[0]


def constraint_of(error: DBAPIError) -> str | None:
    """The name of the constraint that an error says was violated."""
    return getattr(getattr(error.orig, "diag", None), "constraint_name", None)


def translated(error: DBAPIError, url: str) -> StorageError | None:
    """The error of ours for one of the driver's with the database of that URL; None: there is none."""
    state, said = sqlstate(error), str(error.orig)
    if state in BUSY_STATES:
        message = f"the database {mask(url)} is busy: {said.splitlines()[0]}; try again"
        return DatabaseBusy(message, waited_for_lock=state == LOCK_NOT_AVAILABLE)
    if error.connection_invalidated or (state is None and error.statement is None):
        return unreachable(url, said)
    if state is not None and state[:2] in ("08", "57", "53"):
        return unreachable(url, said)
    if state == INSUFFICIENT_PRIVILEGE:
        return DatabaseRefuses(
            f"the database {mask(url)} denies a right: {scrub(url, said.splitlines()[0])}; "
            f"`shoal db roles` grants what workers and readers need"
        )
    if state == READ_ONLY:
        return DatabaseRefuses(
            f"the database {mask(url)} may only be read so: {said.splitlines()[0]}; "
            "what changes anything runs as the role shoal_worker"
        )
    if state == CHECK_VIOLATION or (state is not None and state[:2] == "22"):
        return ValueRefused(f"the database refuses a value: {said.splitlines()[0]}")
    return None
