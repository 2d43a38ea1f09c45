"""How clients get into the embedded Postgres: its passwords, its URL, and whether it answers."""

from __future__ import annotations

import enum
import json
import os
import secrets
from contextlib import closing
from pathlib import Path
from typing import Any

SUPERUSER = "postgres"
OWNER = "shoal_owner"
"""The role that everything is done with; no superuser. Not called as our schema, which Postgres
would then search before `public` for Optuna's tables."""
DATABASE = "shoal"
CONNECT_TIMEOUT = 5
"""Seconds."""


class Probe(enum.Enum):
    """What came of one attempt to connect."""

    ANSWERS = "answers"
    FULL = "full"
    """Ours and alive, but every connection is taken."""
    UNREADY = "unready"
    """Alive, and starting, recovering or stopping."""
    REFUSED = "refused"
    """Alive, but without our role or database; or another server on that port."""
    SILENT = "silent"


class Access:
    """The files `credentials` and `url` of a server's folder, and connections made with them."""

    def __init__(self, directory: Path) -> None:
        self._credentials = directory / "credentials"
        self._url = directory / "url"

    def make_passwords(self) -> None:
        """Choose the passwords of a new server; those of an existing one stay."""
        if not self._credentials.exists():
            passwords = {user: secrets.token_urlsafe(24) for user in (SUPERUSER, OWNER)}
            write_private(self._credentials, json.dumps(passwords))

    def password(self, user: str) -> str:
        """The password of a role."""
        return str(json.loads(self._credentials.read_text())[user])

    def publish(self, port: int) -> None:
        """Tell clients at which port the server is going to listen."""
        write_private(self._url, self._render(port, self.password(OWNER)) + "\n")

    def port(self) -> int | None:
        """The port at which the server listens, or did last; None before its first start."""
        try:
            url = self._url.read_text()
        except FileNotFoundError:
            return None
        return int(url.rpartition("@")[2].partition(":")[2].partition("/")[0])

    def url(self, *, masked: bool = False) -> str:
        """How to connect, as SQLAlchemy and Optuna take it; with its password unless `masked`."""
        return self._render(self.port(), "***" if masked else self.password(OWNER))

    def administrator_url(self) -> str:
        """How to connect as the superuser, for what the owner may not do: making roles."""
        return self._render(self.port(), self.password(SUPERUSER), SUPERUSER)

    def probe(self, version: list[str] | None = None) -> Probe:
        """Connect once as an ordinary client would; appends the server's version if it is wanted."""
        if self.port() is None or not self._credentials.exists():
            return Probe.SILENT
        import psycopg2

        try:
            connection = psycopg2.connect(**self._parameters(OWNER, DATABASE))
        except psycopg2.OperationalError as error:
            return _meaning(str(error))
        with closing(connection):
            if version is not None:
                version.append(connection.info.parameter_status("server_version") or "")
        return Probe.ANSWERS

    def create_owner(self) -> None:
        """Make the role and the database that everything uses, or what is missing of them."""
        import psycopg2
        from psycopg2 import errors, sql

        owner, database = sql.Identifier(OWNER), sql.Identifier(DATABASE)
        password = sql.Literal(self.password(OWNER))
        statements = (
            sql.SQL("CREATE ROLE {}").format(owner),
            sql.SQL("ALTER ROLE {} LOGIN CREATEDB PASSWORD {}").format(owner, password),
            sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner),
        )
        try:
            connection = psycopg2.connect(**self._parameters(SUPERUSER, "postgres"))
        except psycopg2.OperationalError:
            return  # another server has our port, or ours is not ready yet
        with closing(connection):
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    try:
                        cursor.execute(statement)
                    except (errors.DuplicateObject, errors.DuplicateDatabase):
                        continue

    def _parameters(self, user: str, database: str) -> dict[str, Any]:
        from psycopg2 import extensions

        parameters = {
            "host": "127.0.0.1",
            "port": self.port(),
            "user": user,
            "password": self.password(user),
            "dbname": database,
            "sslmode": "disable",
            "gssencmode": "disable",
            "connect_timeout": CONNECT_TIMEOUT,
            "application_name": "shoal start",
        }
        if extensions.libpq_version() >= 160000:
            # SCRAM proves that the server knows our password; anything else on that port learns nothing.
            parameters["require_auth"] = "scram-sha-256"
        return parameters

    @staticmethod
    def _render(port: int | None, password: str, user: str = OWNER) -> str:
        return f"postgresql+psycopg2://{user}:{password}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read: aside, synced, then renamed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _meaning(said: str) -> Probe:
    """What a failed connection says about the server."""
    if "too many clients" in said or "connection slots" in said:
        return Probe.FULL
    if "the database system is" in said:
        return Probe.UNREADY
    return Probe.REFUSED if "FATAL" in said else Probe.SILENT
