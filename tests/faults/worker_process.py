"""One worker in a process of its own, with an environment and limits of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from search.control.crew import Assignment, Departure, work
from storage.database import URL_VARIABLE
from tests.contracts.forks import ROOT, Fork, can_fork, fork

WorkerProcess: TypeAlias = subprocess.Popen[bytes] | Fork
"""A worker that was started: its interpreter is its own only where that matters."""

LIMITS = {"memory": resource.RLIMIT_AS, "file_size": resource.RLIMIT_FSIZE}


@dataclass(frozen=True)
class Job:
    """What workers of a test are started with."""

    url: str
    experiment: str
    folder: Path
    """For the log of each worker."""
    trainer: str = "plain"
    checkpoint_seconds: float = 0.0
    hang_seconds: float = 600.0

    def start(
        self, worker: str, *, limits: Mapping[str, int] | None = None, **environment: str
    ) -> WorkerProcess:
        """Start one. `limits`: bytes by a key of `LIMITS`."""
        told = {
            "experiment": self.experiment,
            "worker": worker,
            "trainer": self.trainer,
            "checkpoint_seconds": self.checkpoint_seconds,
            "hang_seconds": self.hang_seconds,
            "limits": dict(limits or {}),
        }
        environment = {URL_VARIABLE: self.url} | environment
        if not limits and can_fork(environment):
            return fork("tests.faults.worker_process", told, environment=environment, log=self.log(worker))
        with self.log(worker).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.faults.worker_process", json.dumps(told)],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, worker: str) -> Path:
        """What a worker said."""
        return self.folder / f"{worker.replace('/', '-')}.log"


class ProcessCrew:
    """A crew of processes of this machine, for real controllers without Ray."""

    def __init__(self, job: Job, size: int, **environment: str) -> None:
        self.size = size
        self.job = job
        self.processes: dict[str, WorkerProcess] = {}
        self._environment = environment

    def hire(self, worker: str) -> None:
        """Start a process."""
        self.processes[worker] = self.job.start(worker, **self._environment)

    def departures(self, timeout: float) -> list[Departure]:
        """Those that have ended; waits for the first."""
        waker = threading.Event()
        for _ in range(max(1, round(timeout / 0.02))):
            if gone := [name for name, process in self.processes.items() if process.poll() is not None]:
                return [self._departure(name) for name in gone]
            waker.wait(0.02)
        return []

    def _departure(self, worker: str) -> Departure:
        code = self.processes.pop(worker).returncode
        if code == 0:
            return Departure(worker, "stopped" if "ended: stopped" in self._said(worker) else "exhausted")
        return Departure(worker, None, f"exit code {code}")

    def _said(self, worker: str) -> str:
        return self.job.log(worker).read_text(encoding="utf-8", errors="replace")

    def pending(self) -> frozenset[str]:
        """A process begins at once."""
        return frozenset()

    def lost_nodes(self) -> frozenset[str]:
        """There is this machine alone."""
        return frozenset()

    def dismiss(self) -> None:
        """Kill all."""
        for process in list(self.processes.values()):
            process.kill()
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        """Nothing is held."""


def main(told: Mapping[str, Any]) -> None:
    """A worker as it was told."""
    for name, limit in told["limits"].items():
        resource.setrlimit(LIMITS[name], (limit, limit))
    interrupted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: interrupted.set())
    url = os.environ.pop(URL_VARIABLE)
    assignment = Assignment(
        url,
        told["experiment"],
        told["trainer"],
        "cpu",
        checkpoint_seconds=told["checkpoint_seconds"],
        hang_seconds=told["hang_seconds"],
    )
    print("ended:", work(assignment, told["worker"], interrupted), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
