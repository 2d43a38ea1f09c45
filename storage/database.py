"""The one door to Postgres: connections, locks, our schema's migrations, and a check of it all."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from storage import crowds
from storage import lazily as sql
from storage import patience as waiting
from storage.errors import DatabaseBusy, DatabaseFull, DatabaseUnreachable, DatabaseUnsuitable, StorageError
from storage.moments import FREE, TRY_FOR, UNLOCK, held_here
from storage.plain import PLAIN, Plain, PlainError
from storage.sqlstates import INVALID_SCHEMA, UNDEFINED_TABLE, sqlstate, translated
from storage.upgrading import MIGRATIONS, upgrade
from storage.urls import URL_VARIABLE, canonical, mask, parse, resolve_url

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = [
    "URL_VARIABLE",
    "CheckResult",
    "Database",
    "mask",
    "open_database",
    "resolve_url",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = "shoal"
"""The Postgres schema of our own tables; Optuna's lie where the search path puts them (`public`)."""
VERSION_TABLE = "schema_version"
"""Not `alembic_version`, which is the name of Optuna's."""
OPTUNA_REVISION = "v3.2.0.a"
"""The revision of Optuna's schema that our queries were written for."""

BRIEF_LOCKS = 16
"""Locks that threads of this process may hold at once for moments each; who wants another waits."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of `shoal db check`."""

    name: str
    ok: bool
    detail: str


class Database:
    """A Postgres database with our schema in it.

    Connects when first used. A server that was there before, or that says that it is full or
    starting, is waited for, up to the patience. May be shared by threads; a forked process must
    open its own.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "shoal",
        patience: float | None = None,
        looks: bool = False,
    ) -> None:
        """`url` as a user writes it; `patience` in seconds, None for the defaults (see `storage.patience`).

        `looks`: for one thread that asks a few questions (`rows`): on one connection without
        SQLAlchemy, which is imported only if anything else is wanted or something goes wrong.
        Raises `DatabaseUnreachable` if it isn't a Postgres URL.
        """
        self.url = canonical(url)
        self.masked_url = mask(self.url)
        self.patience = waiting.patience() if patience is None else patience
        self._patience_if_full = self.patience * (waiting.FULL_TIMES if patience is None else 1)
        self._application_name = application_name
        self._reached = False
        plain = looks and PLAIN.fullmatch(self.url)
        self._plain = Plain(self.url, application_name) if plain else None

    @cached_property
    def engine(self) -> Engine:
        """Transactions on pooled connections."""
        return self._engine()

    @cached_property
    def _direct(self) -> Engine:
        """Without a ping, for what is tried again anyway, and for locks; every execution is a transaction."""
        return self._engine(isolation_level="AUTOCOMMIT", pool_pre_ping=False, pool_size=BRIEF_LOCKS)

    @cached_property
    def _own(self) -> Engine:
        """Without a pool."""
        return self._engine(pooled=False)

    def _engine(self, *, pooled: bool = True, **special: Any) -> Engine:
        from storage.connections import engine_settings

        settings = engine_settings(self._application_name, crowds.line_of(self.url), pooled=pooled) | special
        return sql.create_engine(parse(self.url), **settings)

    def __repr__(self) -> str:
        return f"Database({self.masked_url!r})"

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections; using the database again opens new ones."""
        if self._plain is not None:
            self._plain.close()
        for name in ("engine", "_direct"):
            if name in self.__dict__:  # made so far
                getattr(self, name).dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction on a pooled connection: committed at the end, rolled back by an exception.

        The driver's errors leave it as ours: `DatabaseUnreachable` for a lost or refused
        connection, `DatabaseRefuses` for a missing right, `ValueRefused` for a violated CHECK.
        Other violated constraints (`IntegrityError`) pass, for the caller knows what they mean.
        """
        with self._translated(), self._connect(self.engine) as connection, connection.begin():
            yield connection

    def rows(self, statement: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """The rows of one statement that reads, with its values by name (`:name`): tuples with names.

        Errors as with `begin`.
        """
        if self._plain is not None:
            try:
                return self._plain.rows(statement, values or {})
            except PlainError:
                self._plain = None  # what is wrong is found and told, or waited for, by what follows
        with self.begin() as connection:
            return list(connection.execute(sql.text(statement), dict(values or {})).all())

    def script(self, statements: str, values: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        """Send several statements at once: one transaction, one round trip; the rows of the last one.

        In the driver's own notation (`%(name)s`, or `%s` for a sequence of values). Each statement
        sees what was committed before it began. Not tried again by itself; see `retrying`. Errors
        as with `begin`.
        """
        given = dict(values) if isinstance(values, Mapping) else tuple(values)
        ours = held_here.connections.get(self.url)
        if ours is not None and not ours.invalidated:
            with self._translated():
                return list(ours.exec_driver_sql(statements, given).all())
        with self._translated(), self._connect(self._direct) as connection:
            return list(connection.exec_driver_sql(statements, given).all())

    def retrying(self, work: Callable[[bool], T]) -> T:
        """Do work that may safely be done twice, again while the database is away or busy.

        `work` is told whether an earlier try of it may have been done although its answer was
        lost. Raises what the last try raised once the patience is used up.
        """
        return waiting.retrying(work, self.patience)

    @contextmanager
    def long_transaction(self) -> Iterator[Connection]:
        """A transaction outside the pool that may take as long as it likes; errors as with `begin`.

        For restores. Waits a minute for a lock that somebody holds.
        """
        with self._translated(), self._connect(self._own) as connection, connection.begin():
            connection.execute(sql.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(sql.text("SET LOCAL lock_timeout = '60s'"))
            yield connection

    @contextmanager
    def own_connection(self) -> Iterator[Connection]:
        """A connection outside the pool that commits every statement by itself, for session locks."""
        with self._translated(), self.open_own_connection() as connection:
            try:
                yield connection
            finally:
                # Nobody uses it again, and to reset it would raise the driver's own error where it broke.
                connection.invalidate()

    def open_own_connection(self) -> Connection:
        """The same, for the caller to close. Raises `DatabaseUnreachable`."""
        with self._translated():
            return self._connect(self._own).execution_options(isolation_level="AUTOCOMMIT")

    def _connect(self, engine: Engine) -> Connection:
        """A connection; to get one may always be tried again.

        A server that we never reached is not waited for unless it answers that it is full or
        starting: its URL may be wrong.
        """
        tries, began = waiting.pauses(self.patience), monotonic()
        while True:
            try:
                with self._translated():
                    connection = engine.connect()
            except crowds.NoPlace:
                raise DatabaseFull(f"the server of {self.masked_url} has no connection left") from None
            except DatabaseFull:
                # To connect is to stand in line (`storage.crowds`): the wait is at the next attempt.
                if monotonic() - began >= self._patience_if_full or not crowds.waits():
                    raise
                waiting.tally.waits += 1
            except DatabaseUnreachable as error:
                hopeful = isinstance(error, DatabaseBusy) or (self._reached and error.retryable)
                if not hopeful or next(tries, error) is error:
                    raise
            else:
                self._reached = True
                return connection

    @contextmanager
    def lock(self, key: str, *, wait: bool = True, idle_seconds: float | None = None) -> Iterator[bool]:
        """Hold the advisory lock of `key` in the whole database, on a connection of its own.

        Yields True once it is held, and False, without holding it, only if `wait` is False and
        somebody else has it. The end of the process, however sudden, frees it. One that was only
        stopped (SIGSTOP) would keep it: with `idle_seconds`, for a lock that isn't waited for, the
        server (14 or newer) frees it after so long. Not re-entrant.
        """
        number = {"key": lock_number(key)}
        if idle_seconds is not None and not wait:
            with self._lock_for_a_moment(key, number | {"idle": f"{round(1000 * idle_seconds)}ms"}) as held:
                yield held
            return
        with self.own_connection() as connection:
            got = connection.scalar(
                sql.text(f"SELECT pg{'' if wait else '_try'}_advisory_lock(:key)"), number
            )
            try:
                yield wait or bool(got)
            finally:
                if wait or got:
                    self._unlock(connection, number, key)

    @contextmanager
    def _lock_for_a_moment(self, key: str, values: dict[str, Any]) -> Iterator[bool]:
        """On a connection that is kept for the next time, as a new one costs many times as much as a lock."""

        def attempt(_unsure: bool) -> tuple[Connection, bool]:
            connection = self._connect(self._direct)
            try:
                with self._translated():
                    return connection, bool(connection.execute(sql.text(TRY_FOR), values).one()[0])
            except BaseException:
                connection.invalidate()
                connection.close()
                raise

        connection, held = self.retrying(attempt)
        if not held:
            connection.close()
            yield False
            return
        before = held_here.connections
        held_here.connections = before | {self.url: connection}
        try:
            yield True
        finally:
            held_here.connections = before
            with connection:
                self._unlock(connection, {"key": values["key"]}, key, FREE)

    def migrate(self) -> None:
        """Bring our schema to this version's. Safe to call from many processes at once.

        Costs one statement where nothing is to be done. Raises `DatabaseUnsuitable` for a server
        that is too old or a schema that a newer version of this program made.
        """
        newest = newest_revision()
        if self.revision() == newest:
            return
        with self.lock("migrations"):
            found = self.revision()
            if found is not None and found > newest:
                raise DatabaseUnsuitable(
                    f"the database {self.masked_url} has schema {found}, made by a newer version of "
                    f"this program, which knows up to {newest}: update it"
                )
            if found != newest:
                upgrade(self, SCHEMA, found, newest)

    def revision(self) -> str | None:
        """The revision of our schema in the database; None if there is none yet."""
        return self._revision_in(f"{SCHEMA}.{VERSION_TABLE}")

    def optuna_revision(self) -> str | None:
        """The revision of Optuna's schema in the database; None if there is none yet."""
        return self._revision_in("alembic_version")

    def check(self) -> list[CheckResult]:
        """Look at everything that has to be right, for `shoal db check`. Raises nothing of ours.

        Nothing is changed. If there is no connection, that is the only line.
        """
        try:
            with self.begin() as connection:
                connection.execute(sql.text("SELECT 1"))
        except StorageError as error:
            return [CheckResult("connection", ok=False, detail=str(error))]
        results = [CheckResult("connection", ok=True, detail=self.masked_url)]
        from storage.database_checks import CHECKS

        for name, look in CHECKS.items():
            try:
                ok, detail = look(self)
            except StorageError as error:
                ok, detail = False, str(error)
            results.append(CheckResult(name, ok, detail))
        return results

    def scalar(self, statement: str) -> Any:
        """The single value of a statement without parameters."""
        rows = self.rows(statement)
        return rows[0][0] if rows else None

    def _revision_in(self, table: str) -> str | None:
        try:
            found = self.scalar(f"SELECT max(version_num) FROM {table}")  # noqa: S608 (our own constants)
        except sql.ProgrammingError as error:
            if sqlstate(error) in (UNDEFINED_TABLE, INVALID_SCHEMA):
                return None
            raise
        return str(found) if found is not None else None

    def _unlock(self, connection: Connection, number: dict[str, int], key: str, free: str = UNLOCK) -> None:
        with suppress(sql.DBAPIError):
            if not connection.invalidated:  # by something that was sent under the lock
                connection.execute(sql.text(free), number)
                return
        # The connection broke, which freed the lock. Raising would hide an error of the caller's own.
        connection.invalidate()
        logger.warning("the connection that held the lock %s broke", key)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sql.DBAPIError as error:
            ours = translated(error, self.url)
            if ours is None:
                raise
            raise ours from None


def open_database(
    url: str | None = None,
    *,
    application_name: str = "shoal",
    patience: float | None = None,
    looks: bool = False,
) -> Database:
    """Resolve the URL, connect, and bring our schema up to date. Arguments as of `Database`.

    Raises `DatabaseUnreachable`, `DatabaseUnsuitable` or `EmbeddedError`.
    """
    database = Database(resolve_url(url), application_name=application_name, patience=patience, looks=looks)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


def lock_number(key: str) -> int:
    """The 64-bit number of an advisory lock, the same in every process and version."""
    return int.from_bytes(hashlib.sha256(f"shoal:{key}".encode()).digest()[:8], "big", signed=True)


def newest_revision() -> str:
    """The newest revision of our schema that this version knows: the number in its file's name.

    Read from the folder, because importing Alembic takes longer than `shoal status` may.
    """
    return max(
        match.group(1)
        for path in (MIGRATIONS / "versions").iterdir()
        if (match := re.fullmatch(r"(\d{4})_\w+\.py", path.name))
    )
