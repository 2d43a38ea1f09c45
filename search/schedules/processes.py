"""Starts what a firing runs: `shoal run`, or `shoal submit` for a cluster, in a process of its own.

A process because what a firing held must be free when it is over, GPU memory first of all. It is asked
to end by SIGTERM when whoever watches it dies, however suddenly: a run that nobody watches would
keep to no budget.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from search.schedules.webhook import SECRET_FILE_VARIABLE, SECRET_VARIABLE
from storage.urls import URL_VARIABLE

FOLLOW_RETRIES = 3
"""Drivers on a cluster that may die of one firing."""

ENTER = """
import ctypes, os, sys
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program, to be sent SIGTERM at its parent's death (prctl's PR_SET_PDEATHSIG). In a process
of its own: code between fork and exec is unsafe beside other threads."""


class Child(Protocol):
    """A process that runs a firing."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def end(self) -> None:
        """Ask it to end in order."""

    def kill(self) -> None:
        """End it, and what it started."""


class Launcher(Protocol):
    """Starts children."""

    def start(self, file: Mapping[str, Any], options: Mapping[str, Any]) -> Child:
        """Run an experiment file, given as plain values, with a schedule's options. Raises `OSError`."""

    def report(self, experiment: str, options: Mapping[str, Any]) -> str | None:
        """Where the report of an experiment will be; None: it is not written here."""


class ProcessChild:
    """A child in a session of its own, so that the terminal's Ctrl-C reaches it through us alone."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """`folder` is removed at its end."""
        self._folder = folder
        enter = [sys.executable, "-I", "-S", "-c", ENTER, str(os.getpid())]
        self._process = subprocess.Popen(  # noqa: S603 (a list of our own making, no shell)
            [*enter, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # ours says how the firing ended; all else is its log
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """See `Child`."""
        code = self._process.poll()
        if code is not None:
            # Whatever it left behind would hold the GPU: Ray's processes, workers that hang.
            self._signal(signal.SIGKILL)
            shutil.rmtree(self._folder, ignore_errors=True)
        return code

    def end(self) -> None:
        """See `Child`."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """See `Child`."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True, slots=True)
class ShoalLauncher:
    """Starts `shoal` commands."""

    database_url: str | None
    """Given to this command; None: the children find it as we did."""
    reports: Path
    """Folder of reports, one folder for each experiment."""
    ray_address: str | None = None
    """Join the Ray cluster there, whatever the schedule says."""

    def start(self, file: Mapping[str, Any], options: Mapping[str, Any]) -> Child:
        """See `Launcher`."""
        folder = Path(tempfile.mkdtemp(prefix="shoal-firing-"))
        path = folder / f"{file['experiment']}.yaml"
        # JSON is YAML; the command reads it as any experiment file.
        path.write_text(json.dumps(dict(file), indent=1, ensure_ascii=False), encoding="utf-8")
        return ProcessChild(self.command(path, str(file["experiment"]), options), self._environment(), folder)

    def command(self, path: Path, experiment: str, options: Mapping[str, Any]) -> list[str]:
        """The command line; it holds no secret."""
        shoal = [sys.executable, "-m", "search.cli"]
        shared = [
            part
            for name in ("workers", "device", "trainer", "precision")
            if options.get(name) is not None
            for part in (f"--{name}", str(options[name]))
        ]
        if options.get("address") and not self.ray_address:
            following = ["--address", str(options["address"]), "--follow", "--retry", str(FOLLOW_RETRIES)]
            return [*shoal, "submit", str(path), *following, *shared]
        report = ["--report", str(self.reports / experiment)]
        joining = ["--ray-address", self.ray_address] if self.ray_address else []
        in_process = ["--in-process"] if options.get("in_process") and not joining else []
        return [*shoal, "run", str(path), *report, *joining, *in_process, *shared]

    def report(self, experiment: str, options: Mapping[str, Any]) -> str | None:
        """See `Launcher`."""
        if options.get("address") and not self.ray_address:
            return None
        return str((self.reports / experiment / "report.html").resolve())

    def _environment(self) -> dict[str, str]:
        # Modules of a user's own run there, and the secret is none of their business.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (SECRET_VARIABLE, SECRET_FILE_VARIABLE)
        }
        if self.database_url is not None:
            environment[URL_VARIABLE] = self.database_url
        return environment
