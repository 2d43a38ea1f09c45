"""Optuna's storage over our database: its tables unchanged, its reads and writes our own.

`ShoalStorage` knows one revision of Optuna's tables. Where another is found, Optuna's own storage is
used instead: slower, and right.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.connections import engine_settings
from storage.crowds import line_of
from storage.database import OPTUNA_REVISION
from storage.errors import DatabaseUnsuitable
from storage.sqlstates import UNDEFINED_TABLE, sqlstate

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from storage.optuna.wire import Wire

logger = logging.getLogger(__name__)

APPLICATION = "shoal optuna"
"""How the connections are called in `pg_stat_activity`."""


def open_optuna_storage(database_url: str) -> BaseStorage:
    """Open Optuna's tables, making them if there are none; safe from many processes at once.

    Costs one statement where they are there. Raises `DatabaseUnreachable` or `DatabaseUnsuitable`. Give
    it to `close_optuna_storage` at the end.
    """
    from storage.optuna.shoal_storage import ShoalStorage

    storage = ShoalStorage(database_url, application_name=APPLICATION)
    try:
        found = _revision(storage.wire)
        if found is None:
            # Stock Optuna makes them, and fails when two processes do so together: hence the lock.
            with storage.wire.database.lock("optuna's tables"):
                _check_right(storage.wire)
                close_optuna_storage(_stock(storage.wire.url))
            found = _revision(storage.wire)
    except BaseException:
        storage.close()
        raise
    if found == OPTUNA_REVISION:
        return storage
    storage.close()
    logger.warning(
        "Optuna's tables have revision %s; our storage knows %s, so Optuna's own is used, which is slower",
        found,
        OPTUNA_REVISION,
    )
    return _stock(storage.wire.url)


@contextmanager
def opened_optuna_storage(database_url: str) -> Iterator[BaseStorage]:
    """The same within a block."""
    storage = open_optuna_storage(database_url)
    try:
        yield storage
    finally:
        close_optuna_storage(storage)


def close_optuna_storage(storage: BaseStorage) -> None:
    """Store what waits and close the connections of a storage that `open_optuna_storage` returned."""
    from optuna.storages import RDBStorage

    from storage.optuna.shoal_storage import ShoalStorage

    if isinstance(storage, ShoalStorage):
        storage.close()
        return
    storage.remove_session()
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()


def _revision(wire: Wire) -> str | None:
    """The revision of Optuna's tables; None if there are none. A server that is away is not waited for."""
    from sqlalchemy.exc import ProgrammingError

    try:
        rows = wire.database.script("SELECT version_num FROM alembic_version", ())
    except ProgrammingError as error:
        if sqlstate(error) == UNDEFINED_TABLE:
            return None
        raise
    return str(rows[0][0]) if rows else None


def _check_right(wire: Wire) -> None:
    (role, allowed), *_ = wire.database.script(
        "SELECT current_user, has_schema_privilege(current_schema(), 'CREATE')", ()
    )
    if not allowed:
        raise DatabaseUnsuitable(
            f"the database {wire.database.masked_url} has none of Optuna's tables, and the role {role} may "
            "not make them: run `shoal db migrate` as the role that owns the tables (shoal_owner), or grant "
            "the right (GRANT CREATE ON SCHEMA public)"
        )


def _stock(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage, get_storage

    return get_storage(RDBStorage(url, engine_kwargs=engine_settings(APPLICATION, line_of(url))))
