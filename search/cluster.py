"""Workers as Ray actors: the only file that imports Ray.

Ray places processes on devices and notices when they die; it is told nothing of trials and holds
no results. Only its core is used: an actor per device that runs `search.crew.work`. Actors aren't
restarted by Ray (`max_restarts=0`): the controller hires anew, because it has to put the dead
worker's trials back in the queue first and to give up when that leads nowhere.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

from search.crew import GRACE_SECONDS, Assignment, CrewError, Departure, work
from search.worker import Ending

OBJECT_STORE_BYTES = 80 * 2**20
"""Close to the least that Ray takes: nothing but a worker's ending ever passes through it."""
DISMISSAL_SECONDS = 10.0


class RayCrew:
    """Workers as actors of a Ray cluster: one per GPU, or one per CPU core where there is no GPU.

    Starts a cluster of its own on this machine, or joins the one at `address`. Raises `CrewError`
    if there is none. Each worker has one CPU core and one thread for its arithmetic (Ray sets
    OMP_NUM_THREADS to an actor's cores): more would only fight over the cores.
    """

    def __init__(self, assignment: Assignment, workers: int | None, *, address: str | None = None) -> None:
        self._assignment = replace(assignment, grace_seconds=GRACE_SECONDS)
        self._folder: str | None = None
        self._environment: dict[str, str | None] = {}
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        if address is None:
            self._start(workers)
        else:
            self._join(address)
        resources = self._ray.cluster_resources()
        self._gpu = assignment.device != "cpu" and resources.get("GPU", 0) >= 1
        self.size = workers or max(1, int(resources.get("GPU" if self._gpu else "CPU", 1)))

    def _start(self, workers: int | None) -> None:
        # A short path: Ray puts sockets in it, and their names may have 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="shoal-")
        self._set_environment(
            {
                # Said, not left to Ray's defaults, which change with its releases, nor to a token
                # in the user's home: this cluster is of this run alone and has a token of its own.
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": _token(),
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )
        self._initialise(
            address="local",
            num_cpus=workers or usable_cores(),
            num_gpus=0 if self._assignment.device == "cpu" else None,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=self._folder,
        )

    def _join(self, address: str) -> None:
        self._set_environment({"RAY_USAGE_STATS_ENABLED": "0"})
        self._initialise(address=address)

    def _initialise(self, **settings: Any) -> None:
        import ray

        self._ray = ray
        try:
            with _signals_kept():
                ray.init(log_to_driver=False, logging_level="ERROR", **settings)
        except (Exception, SystemExit) as error:
            # Ray raises what it likes: its own errors, OSError, RuntimeError, ValueError, and
            # SystemExit for a SIGTERM while it starts.
            self.close()
            raise CrewError(f"Ray can't be started or reached: {error}") from error

    def _set_environment(self, values: Mapping[str, str]) -> None:
        """Ray's processes inherit it; `close` puts back what was there."""
        self._environment = {name: os.environ.get(name) for name in values}
        os.environ.update(values)

    def hire(self, worker: str) -> None:
        """Start an actor. Returns before it runs."""
        gpus = 1 if self._gpu else 0
        remote = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        actor = remote(_Actor).remote(self._assignment, worker)
        self._actors[worker] = actor
        self._runs[actor.run.remote()] = worker

    def departures(self, timeout: float) -> list[Departure]:
        """Wait for actors to end or die."""
        if not self._runs:
            return []
        ready, _ = self._ray.wait(list(self._runs), num_returns=1, timeout=timeout)
        if ready:
            # Others may have left with it.
            ready, _ = self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        return [self._departure(run) for run in ready]

    def _departure(self, run: Any) -> Departure:
        worker = self._runs.pop(run)
        actor = self._actors.pop(worker)
        try:
            ending: Ending = self._ray.get(run)
        except self._ray.exceptions.RayTaskError as error:
            return Departure(worker, None, _last_line(error))
        except self._ray.exceptions.RayError as error:
            # The cores are given back by the actor's death alone.
            return Departure(worker, None, f"its process died ({type(error).__name__})")
        finally:
            self._ray.kill(actor)
        return Departure(worker, ending)

    def dismiss(self) -> None:
        """Kill every actor and wait until they are gone."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._runs:
            self._ray.wait(list(self._runs), num_returns=len(self._runs), timeout=DISMISSAL_SECONDS)
        self._runs.clear()
        self._actors.clear()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends, with all that it left on disk."""
        self._ray.shutdown()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _Actor:
    """A worker's process."""

    def __init__(self, assignment: Assignment, worker: str) -> None:
        self._assignment = assignment
        self._worker = worker
        self._interrupted = threading.Event()
        # A machine that is taken away says so with SIGTERM. The terminal's Ctrl-C doesn't come here:
        # Ray blocks SIGINT in its processes, and the controller asks for a stop through the database.
        signal.signal(signal.SIGTERM, lambda *_: self._interrupted.set())

    def run(self) -> Ending:
        """Work until nothing is left."""
        return work(self._assignment, self._worker, self._interrupted)


@cache
def _token() -> str:
    """One for the life of this process, in which Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray replaces the handler of SIGTERM; the controller's must stay, and miss none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    ended = False
    try:
        yield
    except SystemExit:
        ended = True
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if ended and callable(before):
            signal.raise_signal(signal.SIGTERM)
