"""Ray clusters of several nodes for tests: heads and workers by `ray start`, ended by their own processes.

Everything is said: folder, ports, addresses, token. Nothing here touches another Ray of the machine;
`ray stop`, which ends all of them, is never used. `wrap` puts a node elsewhere, such as in a network
namespace: ``("ip", "netns", "exec", "node1")``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"
ROOT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 80 * 2**20
START_SECONDS = 300.0


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody listens on at this moment."""
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for one in with_sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()


@dataclass
class Node:
    """One `ray start --block`, and all that it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    address: str

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
        _kill(self.processes())
        self.process.wait(30)

    def end(self) -> None:
        """End it in order, and what is left by force."""
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
        """Start a node with so many cores; who needs it to be there waits for what it does."""
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

    def _start(self, name: str, host: str, wrap: Sequence[str], *options: str, **environment: str) -> Node:
        log = self.folder / f"{name}.log"
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
                    f"--temp-dir={self.folder / 'ray'}",
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
        self.nodes.append(Node(name, process, log, host))
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


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
