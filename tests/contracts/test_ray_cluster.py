"""Clusters for tests, with a `ray` that is a script: what comes up, what doesn't, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from search.control.controller import find_or_create
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts import ray_cluster as module
from tests.contracts.experiments import small_spec
from tests.contracts.ray_cluster import RayCluster, ray_cluster

SCRIPT = """#!/bin/sh
for option; do case $option in --temp-dir=*) folder=${option#--temp-dir=};; esac; done
mkdir -p "$folder/session_2000/logs"
echo "what $folder/raylet says" > "$folder/session_2000/logs/raylet.out"
echo attempt >> "$0.attempts"
if [ "$(wc -l < "$0.attempts")" -le FAILURES ]; then echo "no luck"; exit 7; fi
echo "Ray runtime started."
exec sleep 600
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """Without nodes; `failing` says how many of the first nodes fail."""
    monkeypatch.setattr(module, "RAY", tmp_path / "ray")
    failing(tmp_path, 0)
    with ray_cluster() as cluster:
        yield cluster


def failing(folder: Path, count: int) -> None:
    script = folder / "ray"
    script.write_text(SCRIPT.replace("FAILURES", str(count)))
    script.chmod(0o755)
    (folder / "ray.attempts").unlink(missing_ok=True)


def test_nodes_share_neither_folders_nor_ports(cluster: RayCluster) -> None:
    cluster.start_head(wait=False)
    cluster.start_worker()
    cluster.start_worker()
    cluster.await_workers()
    assert len({node.folder for node in cluster.nodes}) == 3
    given = [str(argument) for node in cluster.nodes for argument in node.process.args]
    ports = [option.split("=")[1] for option in given if "port=" in option and "worker-port" not in option]
    assert len(ports) == len(set(ports)) == 7 + 4 + 4


def test_a_node_that_does_not_come_up_is_started_again(cluster: RayCluster, tmp_path: Path) -> None:
    cluster.start_head(wait=False)
    cluster.await_workers()
    failing(tmp_path, 2)
    cluster.start_worker(3, FLAVOUR="sour")
    cluster.await_workers()
    assert [node.name for node in cluster.nodes] == [
        "head",
        "worker1",
        "worker1-again",
        "worker1-again-again",
    ]
    assert [node.has_started for node in cluster.nodes] == [True, False, False, True]
    (last,) = cluster.nodes[-1].processes()
    assert last.environ()["FLAVOUR"] == "sour"
    assert not any(node.has_failed for node in cluster.nodes), "those were told to end"


def test_and_what_it_said_is_told_if_that_is_of_no_use(cluster: RayCluster, tmp_path: Path) -> None:
    failing(tmp_path, 100)
    cluster.start_head(wait=False)
    with pytest.raises(AssertionError, match=r"(?s)head-again-again ended with 7.*no luck"):
        cluster.await_workers()


def test_a_wait_ends_with_the_nodes_and_tells_all_that_is_known(
    cluster: RayCluster, database: Database
) -> None:
    find_or_create(Experiments(database), small_spec())
    cluster.start_head(wait=False)
    cluster.start_worker()
    other = cluster.start_worker()
    cluster.await_workers()
    cluster.until(lambda: True)
    for node in cluster.nodes[1:]:
        node.process.kill()
        node.process.wait(30)
        asked: list[int] = []
        if node is not other:
            cluster.until(lambda asked=asked: asked.append(1) or len(asked) > 2)  # one is left
    with pytest.raises(AssertionError) as raised:
        cluster.until(lambda: False, database)
    told = str(raised.value)
    for part in (
        "head runs", "worker2 ended with -9", "Ray runtime started.", f"what {other.folder}/raylet says",
        f"name: {small_spec().experiment}", "newest events:", "connections:", "application_name: ",
    ):  # fmt: skip
        assert part in told


def test_one_that_was_killed_by_the_test_is_none_that_failed(cluster: RayCluster) -> None:
    cluster.start_head(wait=False)
    cluster.start_worker().kill()
    cluster.await_workers()
    cluster.until(lambda: True)
