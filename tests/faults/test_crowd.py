"""Far more connections wanted than a server has, by real processes with real workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.crowded_server import Crowd, Outcome, run

CROWD = Crowd(workers=24, connections=10, studies=4, trials=12)
"""`python -m tests.faults.crowded_server` has 200 workers on 40 connections."""

WELL = Outcome(
    max_connections=10,
    exit_code=0,
    errors="",
    refused_connections=25,
    states={"complete": 48},
    attempts={1: 48},
    events={"registered": 24, "retired": 24, "claimed": 48, "completed": 48, "drawn": 48},
    violations=[],
    seconds=1.0,
)


@pytest.mark.slow
def test_workers_share_a_server_that_has_no_place_for_most_of_them(tmp_path: Path) -> None:
    """All come at once; none gives up, and nothing is lost, doubled or held back for ever."""
    outcome = run(tmp_path, CROWD, patience=240)
    assert outcome.failures(CROWD) == [], outcome.errors


def test_nothing_that_goes_wrong_passes() -> None:
    assert WELL.failures(CROWD) == []
    for wrong in (
        replace(WELL, exit_code=1),
        replace(WELL, max_connections=300),
        replace(WELL, refused_connections=24),
        replace(WELL, states={"complete": 47, "failed": 1}),
        replace(WELL, attempts={1: 47, 2: 1}),
        replace(WELL, events=WELL.events | {"retired": 23}),
        replace(WELL, events=WELL.events | {"expired": 1}),
        replace(WELL, violations=["a trial has two ends"]),
    ):
        assert len(wrong.failures(CROWD)) == 1, wrong
