"""Five machines, one of which is broken amid an experiment: the budget is exact, and nothing counts twice.

Machines are network namespaces, so this needs root. Prints its counts (`-s`), and writes them to the file
that MULTIHOST_OUTPUT names. MULTIHOST=all runs every scenario, as `python -m tests.multihost.run` does; else
those of `scenarios.IN_CI`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.multihost import counts, scenarios
from tests.multihost.counts import Counts
from tests.multihost.lab import EPOCHS, JOINER, Lab, lab, until
from tests.multihost.network import missing

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

LATE_WRITE = """
UPDATE shoal.epochs SET diverged = diverged
WHERE (trial_id, epoch) IN (SELECT min(trial_id), 1 FROM shoal.epochs)
"""

CHOSEN = scenarios.SCENARIOS if os.environ.get("MULTIHOST") == "all" else scenarios.IN_CI


@pytest.fixture(scope="module")
def the_lab() -> Iterator[Lab]:
    """One for all: a head takes a quarter of a minute to start."""
    if reason := missing():
        pytest.skip(reason)
    with lab() as made:
        yield made


@pytest.fixture(scope="module")
def counted() -> Iterator[list[Counts]]:
    """Collects what was counted, and shows it at the end."""
    rows: list[Counts] = []
    yield rows
    if rows:
        print(f"\n{counts.table(rows)}")
    if output := os.environ.get("MULTIHOST_OUTPUT"):
        counts.write(rows, Path(output))


def test_a_node_with_a_wrong_token_is_refused_and_a_worker_without_ray_takes_part(
    the_lab: Lab, counted: list[Counts]
) -> None:
    assert the_lab.cluster is not None
    intruder = the_lab.start_node(JOINER, RAY_AUTH_TOKEN="f" * 32)
    counted.append(scenarios.together(the_lab))
    until(lambda: intruder.process.poll() is not None)
    assert intruder.process.returncode != 0
    assert "nvalid" in intruder.said() or "uthenti" in intruder.said()

    # A write that landed after its lease had ended would be seen: here is one.
    with the_lab.database.begin() as connection:
        connection.execute(text(LATE_WRITE))
    seen = the_lab.count(scenarios.experiment_of("together"), "together", 0.0)
    assert (counted[-1].late, seen.late) == (0, 1)
    assert any("after" in problem for problem in seen.problems(EPOCHS))


@pytest.mark.parametrize("scenario", CHOSEN)
def test_a_fault_costs_no_trial_and_at_most_a_checkpoint_interval(
    the_lab: Lab, counted: list[Counts], scenario: str
) -> None:
    counted.append(scenarios.run(the_lab, scenario))
