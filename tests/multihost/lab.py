"""The lab: Postgres, a Ray head, two nodes and a laptop, each on a machine of its own, and what goes on."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from sqlalchemy import text

from objectives.imports import ALLOW_VARIABLE
from storage import queries
from storage.database import URL_VARIABLE, Database
from storage.embedded import HOME_VARIABLE
from storage.errors import StorageError
from storage.experiments import Experiments
from storage.ledger import LEASE_VARIABLE
from tests.contracts.ray_cluster import ROOT, Node, RayCluster
from tests.faults.objectives import PACE_VARIABLE
from tests.multihost import counts
from tests.multihost.counts import Counts
from tests.multihost.network import Machine, Network, folder_of_a_lab, network
from tests.multihost.objective import LOG_VARIABLE
from tests.multihost.server import Server

SHOAL = Path(sys.executable).parent / "shoal"
DATABASE, HEAD, NODES, LAPTOP, JOINER = "database", "head", ("node1", "node2"), "laptop", "joiner"
GCS_PORT, JOBS_PORT = 6379, 8265
STUDIES, TRIALS, EPOCHS = 2, 10, 10
"""Of a scenario, unless it says otherwise: 200 epochs."""
PACE, CHECKPOINT, LEASE = 0.2, 0.6, 5.0
"""Seconds: of an epoch, between two checkpoints of a trial, of a lease."""
ALLOWED = math.ceil(CHECKPOINT / PACE)
"""Epochs that a checkpoint interval has at most."""
RAY = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}
"""So that Ray gives up a machine in 20 s instead of a minute, and a machine its head."""
SETTINGS = {
    LEASE_VARIABLE: f"{LEASE:g}",
    "--checkpoint-seconds": f"{CHECKPOINT:g}",
    "epoch": f"{PACE:g} s",
    **RAY,
}
PATIENCE = float(os.environ.get("MULTIHOST_PATIENCE", "300"))
"""Seconds for anything to happen, on a machine that has other things to do as well."""

LOOK_SECONDS = 0.1

HELD = """
SELECT worker.host, max(attempt.last_step) AS step FROM shoal.attempts AS attempt
JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
WHERE study.experiment_id = :id AND attempt.state = 'running' GROUP BY worker.host
"""


def until(condition: Callable[[], Any]) -> None:
    """Poll until something is so; fail if it takes too long. Seldom, for the cores are the lab's."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(LOOK_SECONDS)


@dataclass
class Lab:
    """The machines and what runs on them. The caller's thread is on the laptop's network."""

    network: Network
    folder: Path
    server: Server
    database: Database
    cluster: RayCluster | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    heads: int = 0

    # Machines.

    @property
    def environment(self) -> dict[str, str]:
        """What is set on all machines, as an operator sets it."""
        return {
            URL_VARIABLE: self.server.url,
            HOME_VARIABLE: str(self.folder / "shared"),
            LEASE_VARIABLE: f"{LEASE:g}",
            ALLOW_VARIABLE: "tests.multihost.objective",
            LOG_VARIABLE: str(self.notes),
            PACE_VARIABLE: f"{PACE:g}",
            "PYTHONPATH": str(ROOT),
        }

    @property
    def notes(self) -> Path:
        """What trials noted."""
        return self.folder / "notes"

    def start_head(self) -> None:
        """A new head, which knows of nothing, at the same address and with the same token."""
        head = self.network[HEAD]
        self.heads += 1
        folder = self.folder / f"{self.heads}"
        folder.mkdir()
        token = {} if self.cluster is None else {"token": self.cluster.token}
        self.cluster = RayCluster(folder, self.environment | RAY, head.address, **token)
        self.cluster.start_head(wrap=head.wrap, ports=(GCS_PORT, JOBS_PORT))

    def start_node(self, name: str, **environment: str) -> Node:
        """A node with room for one worker, in place of one that has ended."""
        assert self.cluster is not None
        assert name not in self.nodes or self.nodes[name].process.poll() is not None
        self.nodes[name] = self.cluster.start_worker(
            1, host=self.network[name].address, wrap=self._wrap(name), **environment
        )
        return self.nodes[name]

    def _wrap(self, name: str) -> tuple[str, ...]:
        """Nodes that share Ray's folder may take each other's sockets as they start."""
        assert self.cluster is not None
        private, seen_at = self.cluster.folder / name, self.cluster.folder / "ray"
        for folder in (private, seen_at):
            folder.mkdir(exist_ok=True)
        return self.network[name].on_own_disk(private, seen_at)

    def stand(self) -> None:
        """All that should run, runs: what a supervisor sees to on real machines."""
        if self.cluster is None or self.cluster.head.process.poll() is not None:
            self.start_head()
        for name in NODES:
            if name not in self.nodes or self.nodes[name].process.poll() is not None:
                self.start_node(name)

    def drivers(self) -> list[psutil.Process]:
        """Processes of `shoal resume --launch` on the head, without the shell around it."""
        assert self.cluster is not None
        found = []
        for process in self.cluster.head.processes():
            try:
                if "--launch" in process.cmdline() and process.name() != "sh":
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    # The laptop.

    def shoal(self, *arguments: str, code: int = 0) -> str:
        """A command on the laptop, which must end so; what it said, stdout first."""
        assert self.cluster is not None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        done = subprocess.run(
            [*self.network[LAPTOP].wrap, str(SHOAL), *arguments],
            cwd=self.folder, env=kept | self.environment | self.cluster.client_environment(),
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def submit(self, name: str, trials: int = TRIALS) -> str:
        """Submit an experiment of that name, with so many trials in each study."""
        self._file(name).write_text(experiment(name, trials), encoding="utf-8")
        return self.resubmit(name)

    def resubmit(self, name: str) -> str:
        """Submit the same file again: it goes on."""
        assert self.cluster is not None
        return self.shoal(
            "submit", str(self._file(name)), "--address", self.cluster.job_address,
            "--workers", str(len(NODES)), "--device", "cpu", "--checkpoint-seconds", f"{CHECKPOINT:g}",
        )  # fmt: skip

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def start_shoal(self, machine: Machine, *arguments: str) -> subprocess.Popen[bytes]:
        """A command elsewhere, in the background; it ends with the lab at the latest."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with (self.folder / f"{machine.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*machine.wrap, str(SHOAL), *arguments], cwd=self.folder, env=kept | self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.others.append(process)
        return process

    # What is seen.

    def held(self, name: str) -> dict[str, int]:
        """Machine → the last epoch that was stored of what it trains now."""
        with self.database.begin() as connection:
            rows = connection.execute(text(HELD), {"id": Experiments(self.database).get(name).id}).all()
        return {host: step or 0 for host, step in rows}

    def lost(self, name: str, host: str) -> int:
        """Leases that this machine has lost."""
        statement = """
        SELECT count(*) FROM shoal.attempts AS attempt
        JOIN shoal.workers AS worker ON worker.id = attempt.worker_id
        JOIN shoal.experiment_studies AS study ON study.id = attempt.study_id
        WHERE study.experiment_id = :id AND worker.host = :host AND attempt.state = 'lost'
        """
        values = {"id": Experiments(self.database).get(name).id, "host": host}
        with self.database.begin() as connection:
            return int(connection.scalar(text(statement), values) or 0)

    def ended(self, name: str) -> int:
        """Trials that are over."""
        rows = queries.progress(self.database, Experiments(self.database).get(name).id)
        return sum(row.complete + row.pruned + row.failed for row in rows)

    def amid(self, name: str) -> None:
        """Wait until both nodes are in the middle of a trial, and some trials are over."""

        def is_amid() -> bool:
            held = self.held(name)
            return self.ended(name) >= 2 and all(2 <= held.get(node, 0) < EPOCHS for node in NODES)

        until(is_amid)

    def finish(self, name: str, scenario: str, struck: float) -> Counts:
        """Wait for the end, and count. `struck`: when it was, in seconds since 1970."""
        until(lambda: Experiments(self.database).get(name).state not in ("created", "running"))
        assert Experiments(self.database).get(name).state == "finished", self.shoal("logs", name)
        return self.count(name, scenario, struck)

    def count(self, name: str, scenario: str, struck: float) -> Counts:
        """Look at an experiment that has ended."""
        return counts.count(
            self.database, name, self.notes,
            scenario=scenario, struck=struck, allowed=ALLOWED, settings=SETTINGS,
        )  # fmt: skip

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """What fails meanwhile says what is known of the run, and what its newest driver said."""
        try:
            yield
        except Exception as error:
            assert self.cluster is not None
            logs = sorted(self.cluster.folder.glob(f"ray/session_*/logs/job-driver-shoal-{name}-*"))
            error.add_note("\n".join(log.read_text("utf-8", "replace")[-3000:] for log in logs[-1:]))
            with suppress(StorageError):  # it may be what fails
                error.add_note(self.cluster.report(self.database))
            raise

    def close(self) -> None:
        """End what has ends of its own; namespaces are cleared of the rest."""
        for process in self.others:
            if process.poll() is None:
                process.kill()
            process.wait(30)
        if self.cluster is not None:
            self.cluster.close()


def experiment(name: str, trials: int) -> str:
    """Its file: trials that take two seconds each, and train nothing."""
    return yaml.safe_dump(
        {
            "experiment": name,
            "objective": {
                "function": "tests.multihost.objective:trial", "direction": "maximize", "worst": 0.0,
            },
            "metric": "value",
            "allow_imports": ["tests.multihost.objective"],
            "fixed": {"epochs": EPOCHS},
            "space": {"x": {"low": 0.0, "high": 1.0}},
            "methods": {"random": {}},
            "replicates": STUDIES,
            "budget": {"trials": trials},
            "comparison": {"retrain": {"seeds": 0}},
        }
    )  # fmt: skip


@contextmanager
def lab() -> Iterator[Lab]:
    """The machines, with Postgres and a head; all is gone at the end, whatever happened."""
    folder = folder_of_a_lab()
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        machines = stack.enter_context(network((DATABASE, HEAD, *NODES, LAPTOP, JOINER)))
        stack.enter_context(machines[LAPTOP].entered())
        server = Server(machines[DATABASE], folder)
        stack.callback(server.close)
        server.initialise()
        (folder / "notes").touch()
        database = stack.enter_context(Database(server.url))
        made = Lab(machines, folder, server, database)
        stack.callback(made.close)
        made.stand()
        yield made
