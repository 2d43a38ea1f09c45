"""Postgres' own `pg_dump` and `pg_restore`: found, matched to a server's version, and told how to connect.

How to connect goes into a service file that only we may read, in a folder that is gone afterwards: an
argument or a variable would show the password to others, or to whatever the program starts.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from storage.binaries import BINARIES_VARIABLE, system_folders, wheel_folders
from storage.embedded_access import write_private
from storage.errors import DatabaseUnsuitable

SERVICE = "shoal"


@dataclass(frozen=True, slots=True)
class Program:
    """An executable and the major version of Postgres that it is of."""

    path: Path
    major: int


def programs(name: str) -> list[Program]:
    """All programs of that name here, each version once: `$SHOAL_POSTGRES_BIN`, the system's, the wheel's."""
    named = os.environ.get(BINARIES_VARIABLE)
    folders = [Path(named)] if named else [*system_folders(name), *wheel_folders()]
    found: dict[int, Program] = {}
    for folder in folders:
        path = folder / name
        if path.is_file() and (major := _major(path)) is not None:
            found.setdefault(major, Program(path, major))
    return sorted(found.values(), key=lambda program: program.major)


def program_for(name: str, server: int) -> Program:
    """The program for a server of that major version: of the same one, else the next newer.

    An older one doesn't know what a newer server holds. Raises `DatabaseUnsuitable` saying what there is.
    """
    there = programs(name)
    for program in there:
        if program.major >= server:
            return program
    seen = f"only of version {', '.join(str(p.major) for p in there)}" if there else "none"
    raise DatabaseUnsuitable(
        f"{name} of Postgres {server} or newer is needed, there is {seen} here: install "
        f"postgresql-client-{server}, or set {BINARIES_VARIABLE} to the folder that holds it"
    )


@contextmanager
def connecting(engine: Engine) -> Iterator[Mapping[str, str]]:
    """The environment in which `--dbname service=shoal` means the engine's database."""
    _, parameters = engine.dialect.create_connect_args(engine.url)
    lines = "".join(f"{name}={value}\n" for name, value in parameters.items())
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        file = Path(folder) / "service"
        write_private(file, f"[{SERVICE}]\n{lines}")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "SHOAL_"))}
        yield kept | {"PGSERVICEFILE": str(file), "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C"}


def _major(path: Path) -> int | None:
    try:
        asked = subprocess.run(  # noqa: S603 (a path that we found, no shell)
            [path, "--version"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", asked.stdout)
    return int(version.group(1)) if asked.returncode == 0 and version else None
