"""A schedule with an address, fired against a live Ray head: submitted, followed, finished, told of."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from search.schedules.webhook import verify
from storage import queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.launches import Launches
from storage.schedules import Schedules
from tests.contracts.processes import ended
from tests.contracts.ray_cluster import ROOT, RayCluster, ray_cluster
from tests.contracts.schedules import SECRET, receiver
from tests.contracts.shoal_command import Shoal
from tests.faults.objectives import FOLDER_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

TRIALS, EPOCHS = 4, 3
PATIENCE = 600.0
"""Seconds: a head and a node start slowly where others test as well."""

FILE = {
    "experiment": "nightly",
    "objective": {"function": "tests.faults.objectives:trial", "direction": "maximize", "worst": 0.0},
    "metric": "value",
    "allow_imports": ["tests.faults.objectives"],
    "fixed": {"epochs": EPOCHS},
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "methods": {"random": {}},
    "replicates": 1,
    "budget": {"trials": TRIALS},
    "pruner": "none",
    "comparison": {"retrain": {"seeds": 2}},
}


@pytest.fixture
def cluster(database_url: str, tmp_path: Path) -> Iterator[RayCluster]:
    """A head that trains nothing, and a node with room for one worker; both know the database, as it is said
    of the cluster's machines."""
    with ray_cluster(**{URL_VARIABLE: database_url, FOLDER_VARIABLE: str(tmp_path)}) as cluster:
        cluster.start_head()
        cluster.start_worker(1)
        cluster.await_workers()
        yield cluster


def test_a_generation_runs_on_the_cluster_and_its_end_is_told(
    cluster: RayCluster, database: Database, tmp_path: Path
) -> None:
    environment = {
        URL_VARIABLE: database.url,
        "PYTHONPATH": str(ROOT),
        "SHOAL_WEBHOOK_SECRET": SECRET,
        **cluster.client_environment(),
    }
    shoal = Shoal(tmp_path, os.environ | environment)
    file = shoal.write("nightly.yaml", yaml.safe_dump(FILE))
    with receiver() as hook:
        shoal(
            "schedule", file, "--cron", "0 0 29 2 *", "--address", cluster.job_address, "--workers", "1",
            "--device", "cpu", "--webhook", hook.url,
        )  # fmt: skip
        fire = shoal.start("schedule", "fire", "nightly")
        said = ended(fire, seconds=PATIENCE, report=lambda: cluster.report(database))
        assert fire.returncode == 0, said
        [(headers, body)] = hook.received

    # Where it ran: as a job of the head's, whose driver said how it ended.
    record = Experiments(database).get("nightly.g1")
    [launch] = Launches(database).of_experiment(record.id)
    assert (launch.submission, launch.address) == ("shoal-nightly.g1-1", cluster.job_address)
    assert (launch.state, launch.exit_code) == ("finished", 0)
    assert "submitted nightly.g1 as shoal-nightly.g1-1" in said
    hosts = "SELECT count(DISTINCT process) FROM shoal.workers"
    assert database.scalar(hosts) >= 1

    # What it did.
    assert record.state == "finished"
    rows = queries.trials(database, record.id)
    assert Counter(row.state for row in rows) == {"complete": TRIALS}
    assert {row.epochs for row in rows} == {EPOCHS}
    assert check_history(database, record.id) == []
    schedules = Schedules(database)
    [firing] = schedules.firings(schedules.get("nightly").id)
    assert (firing.state, firing.attempts, firing.report) == ("finished", 1, None)

    # What was told, and that it is ours.
    note = json.loads(body)
    assert (note["schedule"], note["generation"], note["experiment"]) == ("nightly", 1, "nightly.g1")
    assert note["state"] == "finished"
    assert set(note["best"]) == {"random"}
    timestamp, signature = headers["X-Shoal-Timestamp"], headers["X-Shoal-Signature"]
    assert verify(SECRET.encode(), timestamp, body, signature)
    assert not verify(SECRET.encode(), timestamp, body.replace(b"finished", b"failed"), signature)
