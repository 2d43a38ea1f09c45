"""What is broken, one thing at a time, in the middle of an experiment; and what must have come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.multihost.counts import Counts
from tests.multihost.lab import DATABASE, EPOCHS, HEAD, JOINER, LEASE, NODES, PATIENCE, TRIALS, Lab, until

VICTIM = NODES[0]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`strike` breaks something, and does what an operator or a supervisor does about it."""

    says: str
    strike: Callable[[Lab, str], None]
    loses: int = 0
    """Leases that are lost at the least: else the fault has met nobody."""
    trials: int = TRIALS
    """Of each study: more where it takes long until the fault is noticed."""


def run(lab: Lab, scenario: str) -> Counts:
    """Submit an experiment, strike amid it, wait for its end. Raises `AssertionError`."""
    lab.stand()
    chosen = SCENARIOS[scenario]
    name = experiment_of(scenario)
    assert "submitted" in lab.submit(name, chosen.trials)
    with lab.explained(name):
        lab.amid(name)
        struck = time.time()
        chosen.strike(lab, name)
        counted = lab.finish(name, scenario, struck)
    problems = counted.problems(EPOCHS)
    if counted.lost < chosen.loses:
        problems.append(f"only {counted.lost} leases were lost: the fault met nobody")
    assert not problems, (problems, counted)
    return counted


def experiment_of(scenario: str) -> str:
    """The name of its experiment; a lab runs each scenario once."""
    return f"lab-{scenario}"


def _raylet(lab: Lab, _name: str) -> None:
    node = lab.nodes[VICTIM]
    node.raylet().kill()
    node.process.wait(60)
    lab.start_node(VICTIM)


def _database_edge(lab: Lab, name: str) -> None:
    """Until the lease was lost; then the worker is heard again, with what it had still to say."""
    before = lab.lost(name, VICTIM)
    lab.network[VICTIM].cut_from(lab.network[DATABASE])
    try:
        until(lambda: lab.lost(name, VICTIM) > before)
    finally:
        lab.network[VICTIM].heal()


def _head_edge(lab: Lab, name: str) -> None:
    """Until Ray has given the node up, or the node its head. The database is reached all the while."""
    node = lab.nodes[VICTIM]
    lab.network[VICTIM].cut_from(lab.network[HEAD])
    try:
        until(lambda: node.process.poll() is not None or lab.lost(name, VICTIM))
    finally:
        lab.network[VICTIM].heal()
    until(lambda: node.process.poll() is not None)
    lab.start_node(VICTIM)


def _head(lab: Lab, name: str) -> None:
    """Nodes end by themselves once they have missed the head for long enough; then all is started anew."""
    assert lab.cluster is not None
    old = lab.cluster
    old.head.kill()
    until(lambda: all(lab.nodes[node].process.poll() is not None for node in NODES))
    old.close()
    lab.start_head()
    for node in NODES:
        lab.start_node(node)
    assert "submitted" in lab.resubmit(name)


def _driver(lab: Lab, name: str) -> None:
    (driver,) = lab.drivers()
    driver.kill()
    driver.wait(60)
    # A moment passes before the cluster says that it has ended; until then submitting starts nothing.
    until(lambda: "submitted" in lab.resubmit(name))


def _fast_stop(lab: Lab, _name: str) -> None:
    lab.server.stop()
    lab.server.start()


def _kill_server(lab: Lab, _name: str) -> None:
    """It stays away for longer than leases last: nobody can prolong one, and nobody knows who else might."""
    lab.server.kill()
    time.sleep(1.5 * LEASE)
    lab.server.start()


def together(lab: Lab) -> Counts:
    """No fault: a worker without Ray joins from a machine of its own, and takes part."""
    lab.stand()
    name = experiment_of("together")
    lab.submit(name)
    struck = time.time()
    joined = lab.start_shoal(lab.network[JOINER], "worker", name, "--device", "cpu")
    with lab.explained(name):
        counted = lab.finish(name, "together", struck)
    assert joined.wait(PATIENCE) == 0, "what it was to serve has ended, so it leaves"
    problems = counted.problems(EPOCHS)
    if set(counted.hosts) != {JOINER, *NODES}:
        problems.append(f"not all took part: {counted.hosts}")
    assert not problems, (problems, counted)
    return counted


SCENARIOS = {
    "raylet": Scenario("a worker's raylet is killed", _raylet, loses=1),
    "driver": Scenario("the driver is killed", _driver, loses=1),
    "database-killed": Scenario(
        "Postgres is killed (SIGKILL), and started again once all leases have run out", _kill_server, loses=1
    ),
    "database-stopped": Scenario("Postgres is stopped (fast) and started again at once", _fast_stop),
    "database-edge": Scenario("a worker's link to the database is cut, and heals", _database_edge, loses=1),
    "head-edge": Scenario("a worker's link to the head is cut, and heals", _head_edge, loses=1, trials=25),
    "head": Scenario("the head is killed; a new one is started", _head, loses=1, trials=25),
}
"""In the order in which they are run: those that need a new head come last."""

IN_CI = ("raylet", "driver", "database-killed")
"""All seven took 10 min 42 s on two busy cores; the command runs the others, and so does MULTIHOST=all."""
