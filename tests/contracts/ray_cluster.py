"""Ray clusters of several nodes for tests: heads and workers by `ray start`, ended by their own processes.

Everything is said: folders, ports, addresses, token. Nothing here touches another Ray of the machine;
`ray stop`, which ends all of them, is never used. `wrap` puts a node elsewhere, such as in a network
namespace: ``("ip", "netns", "exec", "node1")``.

Each node has a folder of its own, as machines have. In one folder, two that start at the same time take the
same names for their sockets (Ray looks which is free, and makes it later): one's workers then speak to
another's raylet, or to its objects, and no actor ever begins on either.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.contracts import processes
from tests.contracts.ports import free_ports
from tests.contracts.run_report import run_report, section

if TYPE_CHECKING:
    from storage.database import Database

RAY = Path(sys.executable).parent / "ray"
ROOT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 80 * 2**20
START_SECONDS = 300.0
TRIES = 3
"""Times that a node is started: `ray start` gives up after 30 s, whatever else the machine has to do."""
STARTED = "Ray runtime started."
"""What `ray start` says of a node that has come up and that the head knows."""
TAIL = 2000
"""Characters of a log's end in a report."""
LOGS = (
    "job-driver-*.log",
    "raylet*",
    "gcs_server*",
    "runtime_env_agent*",
    "dashboard_agent.log",
    "worker-*.err",
)
"""Ray's own logs of a node that tell why it doesn't do what it should."""


@dataclass
class Node:
    """One `ray start --block`, and all that it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str
    folder: Path
    """Ray's own, with its logs."""
    again: Callable[[], Node]
    """Starts another like it."""
    told_to_end: bool = False

    @property
    def has_started(self) -> bool:
        """Whether `ray start` says so; a node without it is none."""
        return STARTED in self.said()

    @property
    def has_failed(self) -> bool:
        """Whether it ended although nobody told it to."""
        return self.process.poll() is not None and not self.told_to_end

    def processes(self) -> list[psutil.Process]:
        """Those of the node that live, its own first."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def raylet(self) -> psutil.Process:
        """Its raylet: killed, the node is gone."""
        return next(one for one in self.processes() if Path(one.exe()).name == "raylet")

    def said(self) -> str:
        """What `ray start` said."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End the node as a power cut would: SIGKILL to all of its processes at once."""
        self.told_to_end = True
        _kill(self.processes())
        self.process.wait(30)

    def report(self) -> str:
        """How it is, and what it said."""
        code = self.process.poll()
        state = "runs" if code is None else f"ended with {code}{', as told' * self.told_to_end}"
        names = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                names.append(process.name())
        return section(f"{self.name} {state}", [f"processes: {', '.join(names)}", *_tail(self.log)])

    def logs(self) -> str:
        """The ends of what Ray's processes and their drivers wrote."""
        logs = sorted(one for kind in LOGS for one in self.folder.glob(f"session_2*/logs/{kind}"))
        ends = {log.name: _tail(log) for log in logs}
        return "\n".join(section(f"{self.name}: {name}", end) for name, end in ends.items() if end)

    def end(self) -> None:
        """End it in order, and what is left by force."""
        self.told_to_end = True
        processes = self.processes()
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        _kill(processes)
        self.process.wait(30)


@dataclass
class RayCluster:
    """A head without room for workers, as a real one has, and nodes that come and go.

    `environment`: of all its processes, and so of drivers and workers. `job_address` is for `shoal submit`,
    `client_environment()` for its process.
    """

    folder: Path
    environment: Mapping[str, str]
    head_host: str = "127.0.0.1"
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    nodes: list[Node] = field(default_factory=list)
    gcs_port: int = 0
    dashboard_port: int = 0

    @property
    def job_address(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head_host}:{self.dashboard_port}"

    @property
    def gcs_address(self) -> str:
        """What `--ray-address` takes."""
        return f"{self.head_host}:{self.gcs_port}"

    @property
    def head(self) -> Node:
        """The node that was started first."""
        return self.nodes[0]

    def client_environment(self) -> dict[str, str]:
        """What a process needs to talk to the cluster, beside its address."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start_head(
        self, *, wrap: Sequence[str] = (), wait: bool = True, ports: tuple[int, int] | None = None
    ) -> Node:
        """Start the head on `head_host`, and wait until it takes jobs. `ports`: its own, and its jobs'."""
        self.gcs_port, self.dashboard_port, client, agent, grpc, runtime, metrics = free_ports(7)
        self.gcs_port, self.dashboard_port = ports or (self.gcs_port, self.dashboard_port)
        node = self._start(
            "head",
            self.head_host,
            wrap,
            "--head",
            f"--port={self.gcs_port}",
            "--num-cpus=0",
            f"--dashboard-host={self.head_host}",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}",
            f"--metrics-export-port={metrics}",
        )
        if wait:
            self._await_jobs(node)
        return node

    def start_worker(
        self, cpus: int = 1, *, host: str | None = None, wrap: Sequence[str] = (), **environment: str
    ) -> Node:
        """Start a node with so many cores; who needs it to be there calls `await_workers`."""
        agent, grpc, runtime, metrics = free_ports(4)
        return self._start(
            f"worker{len(self.nodes)}",
            host or self.head_host,
            wrap,
            f"--address={self.gcs_address}",
            f"--num-cpus={cpus}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={runtime}",
            f"--metrics-export-port={metrics}",
            **environment,
        )

    def await_workers(self) -> None:
        """Until all nodes that were started are there; one that ended instead is started again, as it
        would be on a machine of its own. Fails, saying why, if that is of no use."""
        for left in reversed(range(TRIES)):
            processes.until(
                lambda: all(node.has_started or node.process.poll() is not None for node in self.nodes),
                report=self.report,
            )
            failed = [node for node in self.nodes if node.has_failed]
            assert left or not failed, self.report()
            for node in failed:
                node.told_to_end = True
                node.again()

    def until(self, condition: Callable[[], Any], database: Database | None = None) -> None:
        """Until something is so that takes the head and a node; fails with a report, at once if these have
        ended by themselves. `database`: of the run that is waited for."""

        def is_so() -> bool:
            if condition():
                return True
            workers = [node for node in self.nodes[1:] if not node.told_to_end]
            gone = self.head.has_failed or (workers and all(node.has_failed for node in workers))
            assert not gone, f"the nodes ended by themselves\n{self.report(database)}"
            return False

        processes.until(is_so, report=lambda: self.report(database))

    def report(self, database: Database | None = None) -> str:
        """All that is known of the nodes, and of the run in this database: for a test that fails."""
        known = [run_report(database)] if database is not None else []
        return "\n".join(
            [*(node.report() for node in self.nodes), *known, *(node.logs() for node in self.nodes)]
        )

    def _start(self, name: str, host: str, wrap: Sequence[str], *options: str, **environment: str) -> Node:
        log, folder = self.folder / f"{name}.log", self.folder / f"ray{len(self.nodes) or ''}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *wrap,
                    RAY,
                    "start",
                    *options,
                    f"--node-ip-address={host}",
                    "--num-gpus=0",
                    f"--object-store-memory={OBJECT_STORE_BYTES}",
                    f"--temp-dir={folder}",
                    "--min-worker-port=0",
                    "--max-worker-port=0",
                    "--disable-usage-stats",
                    "--block",
                ],
                cwd=ROOT,
                env=self._environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        again = partial(self._start, f"{name}-again", host, wrap, *options, **environment)
        self.nodes.append(Node(name, process, log, host, folder, again))
        return self.nodes[-1]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join((str(RAY.parent), kept.get("PATH", "")))
        own = {"PATH": path, "PYTHONPATH": str(ROOT), **self.client_environment()}
        return kept | own | dict(self.environment)

    def _await_jobs(self, node: Node) -> None:
        """Until the job server answers with the version of Ray; by then the head takes jobs."""
        deadline = time.monotonic() + START_SECONDS
        request = urllib.request.Request(
            f"{self.job_address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}
        )
        while True:
            assert node.process.poll() is None, node.said()
            assert time.monotonic() < deadline, node.said()
            with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 200
                return
            time.sleep(0.2)

    def close(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.end()
        # What was not below any of them: Ray starts some of its processes apart from the others.
        _kill([one for one in psutil.process_iter(["cmdline"]) if self._is_ours(one)])
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        return str(self.folder) in " ".join(process.info["cmdline"] or ()) and process.pid != os.getpid()


@contextmanager
def ray_cluster(head_host: str = "127.0.0.1", **environment: str) -> Iterator[RayCluster]:
    """A cluster without nodes so far, which ends with the block."""
    # A short path: Ray puts sockets in it, and their names may have 107 bytes.
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="sr-")), environment, head_host)
    try:
        yield cluster
    finally:
        cluster.close()


def _tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace")[-TAIL:].splitlines()


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
