"""Optuna's own storage over our database: its schema unchanged, its connections set up as ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.database import Database, engine_settings

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def open_optuna_storage(database_url: str) -> BaseStorage:
    """Open Optuna's tables, making them if there are none; safe from many processes at once.

    Stock Optuna fails when two processes open an empty database together, hence the lock.
    Raises `DatabaseUnreachable` or `DatabaseUnsuitable`. Give it to `close_optuna_storage` at the end.
    """
    from optuna.storages import RDBStorage, get_storage

    with (
        Database(database_url, application_name="shoal optuna") as database,
        database.lock("optuna's tables"),
    ):
        return get_storage(RDBStorage(database.url, engine_kwargs=engine_settings("shoal optuna")))


def close_optuna_storage(storage: BaseStorage) -> None:
    """Close the connections of a storage that `open_optuna_storage` returned."""
    from optuna.storages import RDBStorage

    storage.remove_session()
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()
