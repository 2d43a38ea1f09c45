"""The one door to Postgres: connections, locks, our schema's migrations, and a check of it all."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, NullPool, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from storage.errors import DatabaseUnsuitable, StorageError, ValueRefused
from storage.urls import URL_VARIABLE, canonical, mask, parse, resolve_url, scrub, unreachable

__all__ = [
    "URL_VARIABLE",
    "CheckResult",
    "Database",
    "engine_settings",
    "mask",
    "open_database",
    "resolve_url",
]

logger = logging.getLogger(__name__)

SCHEMA = "shoal"
"""The Postgres schema of our own tables; Optuna's lie where the search path puts them (`public`)."""
VERSION_TABLE = "schema_version"
"""Not `alembic_version`, which is the name of Optuna's."""
MIGRATIONS = Path(__file__).parent / "migrations"
OLDEST_SERVER = 13
CONNECT_TIMEOUT = 10
"""Seconds."""
LARGEST_SKEW = 5.0
"""Seconds by which this machine's clock may differ from the database's before `check` objects."""

SESSION = """
SELECT set_config('TimeZone', 'UTC', false),
       set_config('tcp_keepalives_idle', '30', false),
       set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false),
       CASE WHEN current_user = 'shoal' THEN set_config('search_path', 'public', false) END
"""
"""What every connection starts with. Optuna stores times without a zone and compares them with
now(), so the zone is pinned. Keepalives let the server notice within a minute that a machine is
gone, and free its locks. A role called as our schema would search that schema first for Optuna's tables."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of `shoal db check`."""

    name: str
    ok: bool
    detail: str


class Database:
    """A Postgres database with our schema in it.

    Connects when first used. May be shared by threads; a forked process must open its own.
    """

    def __init__(self, url: str, *, application_name: str = "shoal") -> None:
        """`url` as a user writes it. Raises `DatabaseUnreachable` if it isn't a Postgres URL."""
        self._parsed = parse(url)
        self.url = canonical(url)
        self.masked_url = mask(self.url)
        self.engine: Engine = sqlalchemy.create_engine(self._parsed, **engine_settings(application_name))
        self._own: Engine = sqlalchemy.create_engine(
            self._parsed, **engine_settings(application_name, pooled=False)
        )

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
        self.engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction on a pooled connection: committed at the end, rolled back by an exception.

        The driver's errors leave it as ours: `DatabaseUnreachable` for a lost or refused
        connection, `DatabaseUnsuitable` for a missing right, `ValueRefused` for a violated CHECK.
        Other violated constraints (`IntegrityError`) pass, for the caller knows what they mean.
        """
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def own_connection(self) -> Iterator[Connection]:
        """A connection outside the pool that commits every statement by itself, for session locks."""
        with self._translated(), self.open_own_connection() as connection:
            yield connection

    def open_own_connection(self) -> Connection:
        """The same, for the caller to close. Raises `DatabaseUnreachable`."""
        with self._translated():
            return self._own.connect().execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the advisory lock of `key` in the whole database, on a connection of its own.

        Yields True once it is held, and False, without holding it, only if `wait` is False and
        somebody else has it. The end of the process, however sudden, frees it. Not re-entrant.
        """
        number = {"key": lock_number(key)}
        with self.own_connection() as connection:
            if wait:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), number)
                held = True
            else:
                held = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), number))
            try:
                yield held
            finally:
                if held:
                    self._unlock(connection, number, key)

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
                self._upgrade()

    def revision(self) -> str | None:
        """The revision of our schema in the database; None if there is none yet."""
        return self._revision_in(f"{SCHEMA}.{VERSION_TABLE}")

    def check(self) -> list[CheckResult]:
        """Look at everything that has to be right, for `shoal db check`. Raises nothing of ours.

        Nothing is changed. If there is no connection, that is the only line.
        """
        try:
            with self.begin() as connection:
                connection.execute(text("SELECT 1"))
        except StorageError as error:
            return [CheckResult("connection", ok=False, detail=str(error))]
        results = [CheckResult("connection", ok=True, detail=self.masked_url)]
        for name, look in _CHECKS.items():
            try:
                ok, detail = look(self)
            except StorageError as error:
                ok, detail = False, str(error)
            results.append(CheckResult(name, ok, detail))
        return results

    def scalar(self, statement: str) -> Any:
        """The single value of a statement without parameters."""
        with self.begin() as connection:
            return connection.scalar(text(statement))

    def _revision_in(self, table: str) -> str | None:
        try:
            found = self.scalar(f"SELECT max(version_num) FROM {table}")  # noqa: S608 (our own constants)
        except ProgrammingError as error:
            if sqlstate(error) in (UNDEFINED_TABLE, INVALID_SCHEMA):
                return None
            raise
        return str(found) if found is not None else None

    def _upgrade(self) -> None:
        major = int(self.scalar("SHOW server_version_num")) // 10000
        if major < OLDEST_SERVER:
            raise DatabaseUnsuitable(
                f"the database {self.masked_url} runs Postgres {major}; {OLDEST_SERVER} or newer is needed"
            )
        from alembic import command
        from alembic.config import Config

        with self.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _unlock(self, connection: Connection, number: dict[str, int], key: str) -> None:
        try:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), number)
        except DBAPIError:
            # The connection broke, and the server freed the lock then: what the caller did
            # since was not under it. Raising would hide an error of the caller's own.
            logger.warning("the connection that held the lock %s broke", key)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            translated = self._translate(error)
            if translated is None:
                raise
            raise translated from None

    def _translate(self, error: DBAPIError) -> StorageError | None:
        state, said = sqlstate(error), str(error.orig)
        if error.connection_invalidated or (state is None and error.statement is None):
            return unreachable(self.url, said)
        if state is not None and state[:2] in ("08", "57", "53"):
            return unreachable(self.url, said)
        if state == INSUFFICIENT_PRIVILEGE:
            return DatabaseUnsuitable(
                f"the database {self.masked_url} denies a right: {scrub(self.url, said.splitlines()[0])}; "
                f"its owner can grant it (GRANT CREATE ON DATABASE … for our schema, "
                f"GRANT CREATE ON SCHEMA public for Optuna's tables)"
            )
        if state == CHECK_VIOLATION or (state is not None and state[:2] == "22"):
            return ValueRefused(f"the database refuses a value: {said.splitlines()[0]}")
        return None


UNDEFINED_TABLE, INVALID_SCHEMA = "42P01", "3F000"
INSUFFICIENT_PRIVILEGE = "42501"
CHECK_VIOLATION, UNIQUE_VIOLATION, FOREIGN_KEY_VIOLATION = "23514", "23505", "23503"
"""Postgres' error codes (appendix A of its manual)."""


def open_database(url: str | None = None, *, application_name: str = "shoal") -> Database:
    """Resolve the URL, connect, and bring our schema up to date.

    Raises `DatabaseUnreachable`, `DatabaseUnsuitable` or `EmbeddedError`.
    """
    database = Database(resolve_url(url), application_name=application_name)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database


def engine_settings(application_name: str, *, pooled: bool = True) -> dict[str, Any]:
    """Arguments for `create_engine`, the same for our tables and for Optuna's.

    A small pool, for there are many processes; a ping before use, so that a restart of the server
    costs nobody an error; READ COMMITTED, for under REPEATABLE READ Optuna doubles trial numbers.
    """
    settings: dict[str, Any] = {
        "isolation_level": "READ COMMITTED",
        "pool_events": [(_start_session, "connect")],
        "connect_args": {
            "application_name": application_name,
            "connect_timeout": CONNECT_TIMEOUT,
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
        },
    }
    if pooled:
        return settings | {"pool_size": 2, "max_overflow": 2, "pool_pre_ping": True}
    return settings | {"poolclass": NullPool}


def sqlstate(error: DBAPIError) -> str | None:
    """Postgres' five-character code of an error, None if it didn't come from the server."""
    return getattr(error.orig, "pgcode", None)


def optuna_tables_missing(error: DBAPIError) -> bool:
    """Whether a statement failed because nobody has opened Optuna's storage in this database yet."""
    return sqlstate(error) == UNDEFINED_TABLE and "shoal." not in str(error.orig).splitlines()[0]


def constraint_of(error: DBAPIError) -> str | None:
    """The name of the constraint that an error says was violated."""
    return getattr(getattr(error.orig, "diag", None), "constraint_name", None)


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


def _start_session(connection: Any, _record: Any) -> None:
    """Runs on every new connection of the driver; one round trip, without a transaction."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(SESSION)
    connection.autocommit = False


def _check_version(database: Database) -> tuple[bool, str]:
    number = int(database.scalar("SHOW server_version_num"))
    return number // 10000 >= OLDEST_SERVER, f"Postgres {database.scalar('SHOW server_version')}"


def _check_isolation(database: Database) -> tuple[bool, str]:
    """What other clients, such as a dashboard, get; our own connections ask for it themselves."""
    with database.own_connection() as connection:
        level = str(connection.scalar(text("SHOW default_transaction_isolation")))
    return level == "read committed", level


def _check_time_zone(database: Database) -> tuple[bool, str]:
    zone = str(database.scalar("SHOW TimeZone"))
    return zone == "UTC", zone


def _check_schema(database: Database) -> tuple[bool, str]:
    found, newest = database.revision(), newest_revision()
    return found == newest, f"{found or 'none yet'} (newest {newest})"


def _check_optuna(database: Database) -> tuple[bool, str]:
    found = database._revision_in("alembic_version")
    return found in (None, OPTUNA_REVISION), f"{found or 'none yet'} (known {OPTUNA_REVISION})"


def _check_clock(database: Database) -> tuple[bool, str]:
    before = time.time()
    moment = database.scalar("SELECT clock_timestamp()")
    middle = datetime.fromtimestamp((before + time.time()) / 2, UTC)
    skew = (middle - moment).total_seconds()
    return abs(skew) <= LARGEST_SKEW, f"{skew:+.3f} s against the database's"


OPTUNA_REVISION = "v3.2.0.a"
"""The revision of Optuna's schema that our queries were written for."""

_CHECKS: dict[str, Callable[[Database], tuple[bool, str]]] = {
    "server version": _check_version,
    "isolation level": _check_isolation,
    "time zone": _check_time_zone,
    "schema": _check_schema,
    "Optuna's schema": _check_optuna,
    "clock": _check_clock,
}
