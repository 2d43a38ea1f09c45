"""Databases to measure in: each arm and round starts from a copy of the same one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import make_url

from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.errors import DatabaseRefuses
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.big_experiment import Size, store_big_experiment

_numbers = itertools.count(1)


class Server:
    """An embedded Postgres of its own, with a database that has a study of every size."""

    def __init__(self, folder: Path, sizes: Sequence[int]) -> None:
        self._postgres = EmbeddedPostgres(folder / "postgres")
        self.url = self._postgres.start()
        with Database(self.url) as database:
            self._run("CREATE DATABASE stored")
            self.settings = {
                name: str(database.scalar(f"SHOW {name}"))
                for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers")
            }
        stored = self._named("stored")
        with Database(stored) as database:
            database.migrate()
            close_optuna_storage(open_optuna_storage(stored))
            for size in sizes:
                store_big_experiment(
                    database,
                    f"n{size}",
                    Size(methods=("random",), replicates=1, trials=size, running=0, waiting=0),
                )
            self.values = int(database.scalar("SELECT count(*) FROM trial_intermediate_values"))
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(sqlalchemy.text("VACUUM ANALYZE"))

    @property
    def pid(self) -> int:
        """The first process of the server."""
        pid = self._postgres.status().pid
        assert pid is not None
        return pid

    @contextmanager
    def copy(self) -> Iterator[str]:
        """A fresh copy of the database; it is gone afterwards, whoever is still connected."""
        name = f"copy_{next(_numbers)}"
        self._run(f"CREATE DATABASE {name} TEMPLATE stored")
        try:
            yield self._named(name)
        finally:
            try:
                self._run(f"DROP DATABASE {name} WITH (FORCE)")
            except DatabaseRefuses:  # to end the server's own autovacuum, which gives way to this
                self._run(f"DROP DATABASE {name}")

    def stop(self) -> None:
        """End the server."""
        self._postgres.stop()

    def _named(self, name: str) -> str:
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with Database(self.url) as database, database.own_connection() as connection:
            connection.execute(sqlalchemy.text(statement))
