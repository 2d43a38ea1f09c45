"""Backups: everything in our schema and Optuna's tables as one file, and back.

The file is Postgres' own (`pg_dump --format=custom`), so that its tools read it as well. A restore is one
transaction of ours: tables are dropped, made and filled, brought to this version's form, and everything
that was under way is fenced off (`storage.restore_fence`) before anybody sees any of it. Whatever fails
leaves the database as it was.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, text

from storage.client_programs import SERVICE, Program, connecting, program_for, programs
from storage.database import SCHEMA, VERSION_TABLE, Database, newest_revision
from storage.errors import DatabaseOccupied, DatabaseRefuses, DatabaseUnsuitable, FileUnsuitable, StorageError
from storage.restore_fence import Fenced, fence
from storage.roles import SCHEMAS, SEAL
from storage.sqlstates import INSUFFICIENT_PRIVILEGE, READ_ONLY
from storage.upgrading import upgrade_on
from storage.urls import scrub

ENTRY = re.compile(r"\d+; \d+ \d+ (?P<kind>[A-Z]+(?: [A-Z]+)*) (?P<schema>\S+) (?P<name>\S+)")
"""A line of `pg_restore --list`."""
LEFT_OUT = ("SCHEMA", "ACL", "DEFAULT ACL", "COMMENT", "EXTENSION")
"""Entries that are not restored: schemas are there, and rights are `shoal db roles`' business."""
COPY = re.compile(rb"COPY \S+ \(.*\) FROM stdin;\n")
OF_PSQL = re.compile(rb"\\(un)?restrict \w+\n")
"""Lines of newer `pg_restore`s that are for psql alone."""
UNKNOWN_TO_OLD = b"SET transaction_timeout = 0;\n"
"""Of Postgres 17; older servers don't know it."""

OCCUPIED = """
SELECT count(*) FROM pg_class AS class JOIN pg_namespace AS place ON place.oid = class.relnamespace
WHERE class.relkind IN ('r', 'p', 'v', 'm', 'S')
  AND (place.nspname = 'shoal' OR (place.nspname = 'public' AND class.relname = ANY(:tables)))
"""

CLEAR_OURS = """
SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
    SELECT 1 AS place, 'TABLE' AS kind, CAST(CAST(oid AS regclass) AS text) AS name
    FROM pg_class WHERE relnamespace = CAST('shoal' AS regnamespace) AND relkind IN ('r', 'p')
    UNION ALL
    SELECT 2, 'SEQUENCE', CAST(CAST(oid AS regclass) AS text)
    FROM pg_class WHERE relnamespace = CAST('shoal' AS regnamespace) AND relkind = 'S'
    UNION ALL
    SELECT 3, 'FUNCTION', CAST(CAST(oid AS regprocedure) AS text)
    FROM pg_proc WHERE pronamespace = CAST('shoal' AS regnamespace)
) AS found ORDER BY place, name
"""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made."""

    path: Path
    size: int
    """Bytes."""
    revision: str | None
    """Of our schema."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    revision: str
    """Of our schema in the backup."""
    fenced: Fenced


def back_up(database: Database, path: Path, *, overwrite: bool = False) -> Backup:
    """Write a backup as of this moment; experiments may run meanwhile. Mode 0600: it holds everything.

    A role that reads is enough. The file appears when it is whole. Raises `StorageError` for a file that
    is there, `FileUnsuitable` for a folder that isn't, `DatabaseUnsuitable` without a fitting `pg_dump` or
    without our tables.
    """
    revision = database.revision()
    if revision is None:
        raise DatabaseUnsuitable(f"the database {database.masked_url} has none of our tables to back up")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists; name another file, or --force replaces it")
    if not path.parent.is_dir():
        raise FileUnsuitable(f"there is no folder {path.parent}: make it, or name another file")
    program = program_for("pg_dump", _server(database))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _dump(database, program, aside)
        _entries(Program(program.path.with_name("pg_restore"), program.major), aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return Backup(path, path.stat().st_size, revision)


def restore(database: Database, path: Path, *, replace: bool = False) -> Restored:
    """Fill the database from a backup and fence off what ran when it was made; all or nothing.

    `database` is opened as its owner. `replace`: what it holds of ours and of Optuna's is dropped. The file
    is SQL that runs with the owner's rights: restore only backups of your own. Raises
    `FileUnsuitable` for one that is no backup, `DatabaseUnsuitable` for one of a newer version,
    `DatabaseOccupied` for a database that isn't empty, `DatabaseRefuses` for a role that may not fill it.
    """
    program, entries = _readable(path, _server(database))
    tables = [name for kind, schema, name in entries if kind == "TABLE" and schema == "public"]
    with database.long_transaction() as connection:
        if connection.scalar(text(OCCUPIED), {"tables": tables}):
            if not replace:
                raise DatabaseOccupied(
                    f"the database {database.masked_url} is not empty; --force replaces what it holds"
                )
            _clear(connection, entries)
        if connection.scalar(text(f"SELECT to_regnamespace('{SCHEMA}') IS NULL")):
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        _fill(connection, program, path)
        connection.execute(text("SELECT set_config('search_path', 'public', false)"))
        found = str(connection.scalar(text(f"SELECT max(version_num) FROM {SCHEMA}.{VERSION_TABLE}")))  # noqa: S608 (our own constants)
        if found > newest_revision():
            raise DatabaseUnsuitable(
                f"{path} has schema {found}, made by a newer version of this program, which knows up to "
                f"{newest_revision()}: update it"
            )
        upgrade_on(connection)
        connection.execute(text(SEAL))
        return Restored(found, fence(connection))


def _server(database: Database) -> int:
    return int(database.scalar("SHOW server_version_num")) // 10000


def _dump(database: Database, program: Program, aside: Path) -> None:
    schemas = [f"--schema={schema}" for schema in SCHEMAS]
    command = [str(program.path), "--format=custom", "--no-password", "--lock-wait-timeout=60s", *schemas]
    with connecting(database.engine) as environment:
        done = subprocess.run(  # noqa: S603 (a list of our own making, no shell)
            [*command, f"--file={aside}", f"--dbname=service={SERVICE}"],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode != 0:
        said = scrub(database.url, " ".join(done.stderr.split()))[:500]
        raise StorageError(f"the database {database.masked_url} could not be backed up: {said}")


def _entries(program: Program, path: Path) -> list[tuple[str, str, str]]:
    """What a backup holds: kind, schema and name. Raises `FileUnsuitable` for a file that is none."""
    listed = subprocess.run(  # noqa: S603 (likewise)
        [program.path, "--list", path], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        said = " ".join(listed.stderr.split())[:300]
        raise FileUnsuitable(f"{path} can't be read by pg_restore of Postgres {program.major}: {said}")
    found = [match.group("kind", "schema", "name") for line in listed.stdout.splitlines()
             if (match := ENTRY.match(line))]  # fmt: skip
    if ("TABLE", SCHEMA, VERSION_TABLE) not in found:
        raise FileUnsuitable(f"{path} is no backup of shoal: it has no table {SCHEMA}.{VERSION_TABLE}")
    return [(kind, schema, name) for kind, schema, name in found]


def _readable(path: Path, server: int) -> tuple[Program, list[tuple[str, str, str]]]:
    """The `pg_restore` nearest to the server's version that reads the file, and what is in it."""
    if not path.is_file():
        raise FileUnsuitable(f"there is no backup {path}")
    there = sorted(programs("pg_restore"), key=lambda program: abs(program.major - server))
    if not there:
        program_for("pg_restore", server)  # says what to install
    for program in there[:-1]:
        try:
            return program, _entries(program, path)
        except FileUnsuitable:
            continue
    return there[-1], _entries(there[-1], path)


def _clear(connection: Connection, entries: list[tuple[str, str, str]]) -> None:
    for statement in connection.scalars(text(CLEAR_OURS)).all() if _has_schema(connection) else ():
        connection.exec_driver_sql(statement)
    for wanted in ("TABLE", "TYPE"):
        for kind, schema, name in entries:
            if kind == wanted and schema == "public":
                connection.execute(text(f'DROP {kind} IF EXISTS public."{name}" CASCADE'))


def _has_schema(connection: Connection) -> bool:
    return bool(connection.scalar(text(f"SELECT to_regnamespace('{SCHEMA}') IS NOT NULL")))


def _fill(connection: Connection, program: Program, path: Path) -> None:
    """Run the backup's SQL on our connection, whose transaction goes on afterwards."""
    import psycopg2

    cursor: Any = connection.connection.cursor()
    waiting: list[bytes] = []
    try:
        with _script(program, path) as script:
            for line in script:
                if COPY.fullmatch(line):
                    _execute(cursor, waiting)
                    cursor.copy_expert(line.decode().rstrip().rstrip(";"), _Rows(script))
                elif line != UNKNOWN_TO_OLD and not OF_PSQL.fullmatch(line):
                    waiting.append(line)
            _execute(cursor, waiting)
    except psycopg2.Error as error:
        said = " ".join(str(error).split())[:300]
        kind = DatabaseRefuses if error.pgcode in (INSUFFICIENT_PRIVILEGE, READ_ONLY) else StorageError
        raise kind(f"{path} can't be restored, and nothing was changed: {said}") from None
    finally:
        cursor.close()


def _execute(cursor: Any, waiting: list[bytes]) -> None:
    statements = b"".join(line for line in waiting if not line.startswith(b"--")).decode().strip()
    waiting.clear()
    if statements:
        cursor.execute(statements)


@contextmanager
def _script(program: Program, path: Path) -> Iterator[IO[bytes]]:
    """The backup as SQL, as it comes out of `pg_restore`."""
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        listed = subprocess.run(  # noqa: S603 (likewise)
            [program.path, "--list", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        chosen = Path(folder) / "list"
        lines = [line for line in listed.stdout.splitlines()
                 if (match := ENTRY.match(line)) and match["kind"] not in LEFT_OUT]  # fmt: skip
        chosen.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [str(program.path), "--no-owner", "--no-privileges", "--file=-"]
        command += [f"--use-list={chosen}", str(path)]
        with (Path(folder) / "errors").open("w+b") as errors:
            with subprocess.Popen(  # noqa: S603 (likewise)
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            ) as running:
                assert running.stdout is not None
                try:
                    yield running.stdout
                finally:
                    running.stdout.close()
            if running.returncode != 0:
                errors.seek(0)
                said = " ".join(errors.read().decode(errors="replace").split())[:300]
                raise FileUnsuitable(f"{path} is damaged: {said}")


class _Rows:
    """The lines of one table's data as the file that `copy_expert` reads."""

    def __init__(self, script: IO[bytes]) -> None:
        self._script = script
        self._left = b""
        self._ended = False

    def read(self, size: int = -1) -> bytes:
        parts, length = [self._left], len(self._left)
        while not self._ended and (size < 0 or length < size):
            line = self._script.readline()
            if line == b"\\.\n":
                self._ended = True
            elif not line:
                raise FileUnsuitable("the backup ends in the middle of a table")
            else:
                parts.append(line)
                length += len(line)
        found = b"".join(parts)
        if size < 0:
            size = len(found)
        self._left = found[size:]
        return found[:size]
