"""Programs of tests as forks of one process, which has imported what they need and done nothing else.

To start Python and import torch, Optuna and SQLAlchemy takes two seconds of a core, and more where a
trial is trained; a fork pays for none of that. It has a session, an environment and outputs of its
own, and warnings are errors in it, as in a program that is started the long way (`python -W error`).

Not for what a fresh interpreter is needed for: another dynamic linker's environment, limits of memory, or
Ray, which does what it has left to do as the interpreter exits.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PRELOADED = [
    "tests.contracts.processes",
    "tests.contracts.fake_engine",
    "tests.faults.worker_process",
    "search.control.controller",
    "search.observe.watching",
    "objectives.trainer",
    "torch._dynamo",
]
"""What programs import, imported once. The last are what training imports when it begins."""

FRESH = ("LD_PRELOAD", "FAKETIME", "TZ", "PYTHONPATH")
"""Variables that only a fresh interpreter heeds; none of them may be new in a fork."""

_one_at_a_time = threading.Lock()
"""multiprocessing reads a process's end where it is asked first, and knows nothing of a second thread."""


class Fork:
    """A running program: what tests use of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess, pipes: tuple[Connection, ...] = ()) -> None:
        self._process = process
        self._said = dict.fromkeys(pipes, b"")
        self._open = list(pipes)
        assert process.pid is not None
        self.pid = process.pid
        self.sentinel = process.sentinel
        """Ready to be read once it has ended."""

    @property
    def returncode(self) -> int | None:
        """As `Popen` has it: a signal's number is negative."""
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        with _one_at_a_time:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises `subprocess.TimeoutExpired`."""
        if not wait([self.sentinel], timeout):
            raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once all have closed them and it has ended.

        Raises `subprocess.TimeoutExpired`; what was read by then is not lost.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while self._open:
            ready = wait(self._open, None if until is None else max(0.0, until - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
            for pipe in ready:
                assert isinstance(pipe, Connection)
                if read := os.read(pipe.fileno(), 1 << 16):
                    self._said[pipe] += read
                else:
                    self._open.remove(pipe)
                    pipe.close()
        self.wait(None if until is None else max(0.0, until - time.monotonic()))
        stdout, stderr = (said.decode(errors="replace") for said in self._said.values())
        return stdout, stderr

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether nothing in a program's environment asks for a fresh interpreter."""
    return not any(name in FRESH for name in environment)


def fork(
    module: str, told: Mapping[str, Any], *, environment: Mapping[str, str], log: Path | None = None
) -> Fork:
    """Run `main(told)` of a module, in a session of its own, at the root of the repository.

    `environment`: variables beside this process's. `log`: a file to which all that it writes is appended;
    without one it is read with `communicate`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    pairs = [] if log is not None else [context.Pipe(duplex=False) for _ in range(2)]
    outputs = log if log is not None else [writer for _, writer in pairs]
    process = context.Process(target=_run, args=(module, told, {**os.environ, **environment}, outputs))
    try:
        with _one_at_a_time:
            process.start()
    finally:
        for _, writer in pairs:
            writer.close()
    return Fork(process, tuple(reader for reader, _ in pairs))


def _run(
    module: str, told: Mapping[str, Any], environment: Mapping[str, str], outputs: Path | list[Connection]
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
    warnings.simplefilter("error")
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    _redirect(outputs)
    importlib.import_module(module).main(told)


def _redirect(outputs: Path | list[Connection]) -> None:
    """Have stdout and stderr lead there, also those of what this process starts."""
    if isinstance(outputs, Path):
        log = os.open(outputs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        return
    for number, pipe in enumerate(outputs, start=1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
