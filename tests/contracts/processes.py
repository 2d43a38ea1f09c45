"""Workers and whole runs in processes of their own, for tests that kill them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from search.control.crew import Assignment, work
from storage.database import URL_VARIABLE

ROOT = Path(__file__).parents[2]

PATIENCE = 240.0
"""Seconds for whatever is to happen by itself: far longer than it takes, also on a slow and busy machine."""


PRELOADED = ["tests.contracts.processes", "tests.contracts.fake_engine", "objectives.devices"]
"""What workers import, imported once: each is a fork of one process, which has done nothing else."""


def worker_process(assignment: Assignment, worker: str) -> BaseProcess:
    """A worker in a process of its own, with this one's environment; yet to be started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context.Process(target=_work_in_process, args=(assignment, worker, dict(os.environ)))


def _work_in_process(assignment: Assignment, worker: str, environment: Mapping[str, str]) -> None:
    """One worker until nothing is left, or SIGTERM comes."""
    os.environ.clear()
    os.environ.update(environment)
    interrupted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: interrupted.set())
    work(assignment, worker, interrupted)


def start_run(
    url: str,
    spec: dict[str, Any],
    *,
    trainer: str,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """`run_experiment` in a process group of its own, as a shell starts it; `workers` 0: in-process.

    `options` are further ones of `run_experiment`. Its last line of output is the outcome as JSON.
    """
    arguments = json.dumps(
        {"spec": spec, "trainer": trainer, "workers": workers, "options": dict(options or {})}
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.contracts.processes", arguments],
        cwd=ROOT,
        env=os.environ | {URL_VARIABLE: url} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome_of(run: subprocess.Popen[str], timeout: float = PATIENCE) -> dict[str, Any]:
    """Wait for a run to end by itself."""
    out, err = run.communicate(timeout=timeout)
    assert run.returncode == 0, err
    outcome: dict[str, Any] = json.loads(out.splitlines()[-1])
    return outcome


def until(
    condition: Callable[[], Any], *, run: subprocess.Popen[str] | None = None, seconds: float = PATIENCE
) -> None:
    """Poll until something is so; fail if it takes too long, or if `run` ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        if run is not None and run.poll() is not None:
            raise AssertionError(f"the run ended first: {run.communicate()}")
        time.sleep(0.02)


def _main() -> None:
    from search.control.controller import run_experiment
    from search.experiment.spec import ExperimentSpec

    arguments = json.loads(sys.argv[1])
    outcome = run_experiment(
        ExperimentSpec.from_json(arguments["spec"]),
        workers=arguments["workers"] or None,
        in_process=not arguments["workers"],
        device="cpu",
        trainer=arguments["trainer"],
        **arguments["options"],
        on_event=lambda event: print(event, file=sys.stderr),
    )
    print(json.dumps({"state": outcome.state, "reason": outcome.reason, "ray": "ray" in sys.modules}))


if __name__ == "__main__":
    _main()
