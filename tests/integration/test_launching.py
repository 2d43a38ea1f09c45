"""A real Ray cluster of three nodes with a token: submitted twice, its driver killed, submitted again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from sqlalchemy.engine import make_url

from storage import queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.launches import Launches
from tests.contracts import processes
from tests.contracts.ray_cluster import ROOT, RayCluster, ray_cluster
from tests.contracts.shoal_command import Shoal
from tests.faults.objectives import FOLDER_VARIABLE, PACE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

TRIALS, EPOCHS = 20, 4


def experiment_file(name: str) -> str:
    """One that trains nothing, at a pace that the environment says."""
    return yaml.safe_dump(
        {
            "experiment": name,
            "objective": {"function": "tests.faults.objectives:trial", "direction": "maximize", "worst": 0.0},
            "metric": "value",
            "allow_imports": ["tests.faults.objectives"],
            "fixed": {"epochs": EPOCHS},
            "space": {"x": {"low": 0.0, "high": 1.0}},
            "methods": {"random": {}, "tpe": {"in_flight": 1}},
            "replicates": 1,
            "budget": {"trials": TRIALS},
            "comparison": {"retrain": {"seeds": 2}},
        }
    )


@pytest.fixture
def cluster(database_url: str, tmp_path: Path) -> Iterator[RayCluster]:
    """A head without room for workers and two nodes with room for one each."""
    environment = {
        URL_VARIABLE: database_url,
        FOLDER_VARIABLE: str(tmp_path),
        PACE_VARIABLE: "0.4",
        "SHOAL_LEASE_SECONDS": "5",
    }
    with ray_cluster(**environment) as cluster:
        cluster.start_head()
        cluster.start_worker(1)
        cluster.start_worker(1)
        cluster.await_workers()
        yield cluster


def submitter(cluster: RayCluster, database: Database, folder: Path) -> Shoal:
    """`shoal` on a machine that reaches the cluster and the database."""
    environment = {URL_VARIABLE: database.url, "PYTHONPATH": str(ROOT)}
    return Shoal(folder, os.environ | cluster.client_environment() | environment)


def drivers(cluster: RayCluster) -> list[psutil.Process]:
    """Processes of `shoal resume --launch`, without the shell around it."""
    return [
        process
        for process in cluster.head.processes()
        if "--launch" in process.cmdline() and process.name() != "sh"
    ]


def ended(database: Database, name: str) -> int:
    experiments = {record.name: record for record in Experiments(database).list()}
    if name not in experiments:
        return 0
    rows = queries.progress(database, experiments[name].id)
    return sum(row.complete + row.pruned + row.failed for row in rows)


def test_submitted_twice_driver_killed_submitted_again(
    cluster: RayCluster, database: Database, tmp_path: Path
) -> None:
    shoal = submitter(cluster, database, tmp_path)
    shoal.write("far.yaml", experiment_file("far"))
    there = ("submit", "far.yaml", "--address", cluster.job_address, "--workers", "3", "--device", "cpu")

    # At the same instant from two places: one run.
    both = [shoal.start(*there) for _ in range(2)]
    said = [processes.ended(process, report=lambda: cluster.report(database)) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(one.split()[0] for one in said) == ["far", "submitted"], "one is told that it runs already"
    experiment = Experiments(database).get("far")
    assert [launch.submission for launch in Launches(database).of_experiment(experiment.id)] == [
        "shoal-far-1"
    ]

    # Three are wanted and two have room: the third waits, which is no failure.
    cluster.until(lambda: ended(database, "far") >= 6, database)
    assert len(drivers(cluster)) == 1

    # One actor is told to go: its trial is given back, not lost.
    workers = "SELECT array_agg(process) FROM shoal.workers WHERE ended_at IS NULL"
    os.kill(database.scalar(workers)[0], signal.SIGTERM)
    gone = "SELECT count(*) FROM shoal.workers WHERE ended_at IS NOT NULL"
    cluster.until(lambda: database.scalar(gone) == 1, database)

    # No password where others may look.
    password = make_url(database.url).password
    assert password
    request = urllib.request.Request(
        f"{cluster.job_address}/api/jobs/", headers={"Authorization": f"Bearer {cluster.token}"}
    )
    with urllib.request.urlopen(request, timeout=processes.PATIENCE) as answer:
        jobs = answer.read().decode()
    assert "shoal-far-1" in jobs
    assert password not in jobs
    assert password not in subprocess.check_output(["ps", "-eo", "args", "-ww"], text=True)

    before = ended(database, "far")
    (driver,) = drivers(cluster)
    driver.kill()
    assert before < 2 * TRIALS
    done = shoal(*there, "--follow")
    assert "submitted far as shoal-far-2" in done.stderr
    assert "going on with far" in done.stdout, "the driver's log"

    rows = queries.trials(database, experiment.id)
    assert Counter(row.state for row in rows) == {"complete": 2 * TRIALS}
    assert {row.epochs for row in rows} == {EPOCHS}
    assert check_history(database, experiment.id) == []
    first, second = Launches(database).of_experiment(experiment.id)
    assert (first.state, first.exit_code) == ("lost", None)
    assert (second.state, second.exit_code, second.reason) == ("finished", 0, None)
    assert Experiments(database).get("far").state == "finished"
    kinds = "SELECT array_agg(DISTINCT kind) FROM shoal.events WHERE kind IN ('released', 'refused')"
    assert database.scalar(kinds) == ["released"]

    shown = json.loads(shoal("status", "far", "--json").stdout)
    assert (shown["state"], shown["launch"]["generation"]) == ("finished", 2)
    log = shoal("logs", "far", "--lines", "0").stdout
    assert log.count(" is complete") == 2 * TRIALS + 4
    assert "launch 1 (shoal-far-1): lost" in log

    _stop_from_elsewhere(cluster, database, shoal)
    _wrong_tokens(cluster, shoal)


def _stop_from_elsewhere(cluster: RayCluster, database: Database, shoal: Shoal) -> None:
    """`shoal stop` reaches a submitted run through the database; who follows it learns how it ended."""
    shoal.write("halted.yaml", experiment_file("halted"))
    address = ("--address", cluster.job_address)
    follower = shoal.start("submit", "halted.yaml", *address, "--workers", "2", "--follow")
    cluster.until(lambda: ended(database, "halted") >= 1, database)
    shoal("stop", "halted")
    said = processes.ended(follower, report=lambda: cluster.report(database))
    assert follower.returncode == 1, said
    experiment = Experiments(database).get("halted")
    assert experiment.state == "stopped"
    assert Launches(database).newest(experiment.id).state == "stopped"
    assert 0 < ended(database, "halted") < 2 * TRIALS
    assert check_history(database, experiment.id) == []


def _wrong_tokens(cluster: RayCluster, shoal: Shoal) -> None:
    address = ("--address", cluster.job_address)
    wrong = shoal("submit", "far.yaml", *address, code=5, RAY_AUTH_TOKEN="f" * 32).stderr
    assert "refuses the token" in wrong
    none = shoal("submit", "far.yaml", *address, code=5, RAY_AUTH_MODE="disabled").stderr
    assert "wants a token, and none was sent" in none
    assert "RAY_AUTH_TOKEN" in none
