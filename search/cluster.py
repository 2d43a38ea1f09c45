"""Workers as Ray actors: the only file that imports Ray.

Ray places processes on devices and notices when they die; it is told nothing of trials and holds
no results. Only its core is used: an actor per device that runs `search.control.crew.work`. Actors aren't
restarted by Ray (`max_restarts=0`): the controller hires anew, because it has to put the dead
worker's trials back in the queue first and to give up when that leads nowhere.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from search.control.crew import Assignment, CrewError, Departure, leave_when_told, work
from search.control.supervision import GRACE_SECONDS
from search.logs import configure
from search.observe.live import serve_metrics_of_actor
from search.work.worker import Ending

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 * 2**20
"""Close to the least that Ray takes: nothing but a worker's ending ever passes through it."""
DISMISSAL_SECONDS = 10.0
SOMEWHERE = "somewhere"
"""The machine of a worker that died before it could say where it was."""


class RayCrew:
    """Workers as actors of a Ray cluster: one per GPU, or one per CPU core where there is no GPU.

    Starts a cluster of its own on this machine, or joins the one at `address`. Raises `CrewError`
    if there is none. Each worker has one CPU core and one thread for its arithmetic (Ray sets
    OMP_NUM_THREADS to an actor's cores): more would only fight over the cores.

    More may be hired than a cluster has room for: actors that wait for room are what makes an
    autoscaler add machines. `worker_logs`: what workers log is written to stderr here as well.
    """

    def __init__(
        self,
        assignment: Assignment,
        workers: int | None,
        *,
        address: str | None = None,
        worker_logs: bool = False,
    ) -> None:
        if assignment.grace_seconds is None:
            assignment = replace(assignment, grace_seconds=GRACE_SECONDS)
        self._assignment = assignment
        self._shared = address is not None
        self._worker_logs = worker_logs and not sys.stderr.isatty()
        self._folder: str | None = None
        self._environment: dict[str, str | None] = {}
        self._actors: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        self._beginnings: dict[Any, str] = {}
        self._nodes: dict[str, str] = {}
        if address is None:
            self._start(workers)
        else:
            self._join(address)
        resources = self._ray.cluster_resources()
        # Asked for by name, one is waited for: a cluster may have no GPU until somebody wants it.
        self._gpu = assignment.device == "cuda" and self._shared
        self._gpu = self._gpu or (assignment.device != "cpu" and resources.get("GPU", 0) >= 1)
        self._here = str(self._ray.get_runtime_context().get_node_id())
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
        if problem := unreachable_from(self._assignment.database_url, self._other_machines()):
            self.close()
            raise CrewError(problem)

    def _other_machines(self) -> list[str]:
        """Addresses of the cluster's machines that are not this one."""
        here = self._ray.util.get_node_ip_address()
        alive = [str(node["NodeManagerAddress"]) for node in self._ray.nodes() if node["Alive"]]
        return [address for address in alive if address != here]

    def _initialise(self, **settings: Any) -> None:
        import ray

        self._ray = ray
        try:
            _read_environment()
            with _signals_kept():
                ray.init(log_to_driver=self._worker_logs, logging_level="ERROR", **settings)
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
        """Start an actor. Returns before it runs, or before there is room for it."""
        remote = self._ray.remote(
            num_cpus=1,
            num_gpus=1 if self._gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            # Workers of one machine die with it together, and share its disk and memory.
            scheduling_strategy="SPREAD",
        )
        actor = remote(_Actor).remote(self._assignment, worker)
        self._actors[worker] = actor
        self._beginnings[actor.node.remote()] = worker
        self._runs[actor.run.remote()] = worker

    def pending(self) -> frozenset[str]:
        """Workers whose actors have no process yet."""
        if self._beginnings:
            begun, _ = self._ray.wait(
                list(self._beginnings), num_returns=len(self._beginnings), timeout=0, fetch_local=False
            )
            for beginning in begun:
                worker = self._beginnings.pop(beginning)
                try:
                    self._nodes[worker] = str(self._ray.get(beginning))
                except self._ray.exceptions.RayError:
                    self._nodes[worker] = SOMEWHERE  # it will be among the departures
        return frozenset(self._beginnings.values())

    def lost_nodes(self) -> frozenset[str]:
        """Machines of the cluster that Ray has given up."""
        return frozenset(str(node["NodeID"]) for node in self._ray.nodes() if not node["Alive"])

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
        self.pending()
        self._beginnings = {ref: name for ref, name in self._beginnings.items() if name != worker}
        node = self._nodes.pop(worker, SOMEWHERE if self._shared else "")
        node = "" if node == self._here else node
        try:
            ending: Ending = self._ray.get(run)
        except self._ray.exceptions.RayTaskError as error:
            logger.info("worker %s died: %s", worker, error)  # with the traceback of its process
            return Departure(worker, None, _last_line(error))
        except self._ray.exceptions.RayError as error:
            # The cores are given back by the actor's death alone.
            return Departure(worker, None, f"its process died ({type(error).__name__})", node=node)
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
        self._beginnings.clear()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends, with all that it left on disk."""
        self._ray.shutdown()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_environment()
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
        leave_when_told(self._interrupted, assignment.grace_seconds or GRACE_SECONDS)

    def node(self) -> str:
        """The machine that it runs on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def run(self) -> Ending:
        """Work until nothing is left."""
        configure()
        with serve_metrics_of_actor():
            return work(self._assignment, self._worker, self._interrupted)


def _read_environment() -> None:
    """Have Ray look at its variables again: it reads them as it is imported, perhaps long before."""
    # Ray's own way of doing so, for which its types have no names.
    core = import_module("ray._raylet")
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


@cache
def _token() -> str:
    """One for the life of this process, in which Ray reads it once and keeps it."""
    return secrets.token_hex(32)


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def unreachable_from(database_url: str, machines: Sequence[str]) -> str:
    """Why workers on other machines can't reach the database; empty if nothing is known against it."""
    host = urlsplit(database_url).hostname or ""
    try:
        local = host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not (local and machines):
        return ""
    return (
        f"the database listens on this machine alone, and workers on {machines[0]} can't reach it: "
        "give --database (or SHOAL_DATABASE_URL) the URL of one that all machines reach"
    )


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
