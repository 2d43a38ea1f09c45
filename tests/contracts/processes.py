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
from typing import Any

from search.control.crew import Assignment, work
from storage.database import URL_VARIABLE
from tests.contracts.forks import PRELOADED, ROOT, Fork, can_fork, fork

PATIENCE = 240.0
"""Seconds for whatever is to happen by itself: far longer than it takes, also on a slow and busy machine."""


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
) -> subprocess.Popen[str] | Fork:
    """`run_experiment` in a process group of its own, as a shell starts it; `workers` 0: in-process.

    `options` are further ones of `run_experiment`. Its last line of output is the outcome as JSON.
    """
    told = {"spec": spec, "trainer": trainer, "workers": workers, "options": dict(options or {})}
    environment = {URL_VARIABLE: url} | environment
    if not workers and can_fork(environment):
        return fork("tests.contracts.processes", told, environment=environment)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.contracts.processes", json.dumps(told)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def outcome_of(run: subprocess.Popen[str] | Fork, timeout: float = PATIENCE) -> dict[str, Any]:
    """Wait for a run to end by itself."""
    out, err = run.communicate(timeout=timeout)
    assert run.returncode == 0, err
    outcome: dict[str, Any] = json.loads(out.splitlines()[-1])
    return outcome


def ended(
    process: subprocess.Popen[str], *, seconds: float = PATIENCE, report: Callable[[], str] = str
) -> str:
    """Wait for a process to end by itself; what it wrote to stderr. One that doesn't end is killed, and its
    words and `report` are told."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        known = report()
        raise AssertionError(f"it did not end in time: {_last_words(process)}\n{known}".rstrip()) from None


def _last_words(process: subprocess.Popen[str] | Fork) -> object:
    """What it wrote; it is killed."""
    process.kill()
    try:
        return process.communicate(timeout=30)
    except subprocess.TimeoutExpired as held:
        return held.stdout, held.stderr, "its children hold its pipes"


def until(
    condition: Callable[[], Any],
    *,
    run: subprocess.Popen[str] | Fork | None = None,
    seconds: float = PATIENCE,
    report: Callable[[], str] = str,
) -> None:
    """Poll until something is so; fail, telling what `run` said, if it takes too long or `run` ends first.

    `report`: what is known of that which should have happened, for whoever reads of the failure.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            known = report() if run is None else f"{report()}\n{_last_words(run)}"
            raise AssertionError(f"it did not happen in time\n{known}".rstrip())
        if run is not None and run.poll() is not None:
            raise AssertionError(f"the run ended first: {run.communicate()}")
        time.sleep(0.02)


def main(told: Mapping[str, Any]) -> None:
    """A run as it was told."""
    from search.control.controller import run_experiment
    from search.control.events import Event, Progress
    from search.experiment.spec import ExperimentSpec

    def tell(event: Event) -> None:
        # Not each second's progress: nobody reads the pipe before the end, and once it is full the run waits.
        if not isinstance(event, Progress):
            print(event, file=sys.stderr)

    outcome = run_experiment(
        ExperimentSpec.from_json(told["spec"]),
        workers=told["workers"] or None,
        in_process=not told["workers"],
        device="cpu",
        trainer=told["trainer"],
        **told["options"],
        on_event=tell,
    )
    print(json.dumps({"state": outcome.state, "reason": outcome.reason, "ray": "ray" in sys.modules}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
