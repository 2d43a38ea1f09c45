"""`shoal run` that is told to go, as by a spot notice: the same command, in the next pod, simply goes on."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from tests.contracts.processes import ROOT, until
from tests.contracts.shoal_command import Shoal
from tests.faults.objectives import FOLDER_VARIABLE, PACE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRIALS, EPOCHS = 12, 4
PATIENCE = 240.0
"""Seconds."""
FILE = f"""
experiment: spot
seed: 1
objective: {{function: tests.faults.objectives:trial, direction: maximize, worst: 0.0}}
metric: value
allow_imports: [tests.faults.objectives]
fixed: {{epochs: {EPOCHS}}}
space:
  x: {{low: 0.0, high: 1.0}}
methods: {{random: {{}}}}
replicates: 1
budget: {{trials: {TRIALS}}}
pruner: none
comparison: {{retrain: {{seeds: 0}}}}
"""


def test_the_same_command_goes_on_after_sigterm(database: Database, tmp_path: Path) -> None:
    environment = {
        URL_VARIABLE: database.url,
        "PYTHONPATH": str(ROOT),
        FOLDER_VARIABLE: str(tmp_path),
        "SHOAL_LEASE_SECONDS": "6000",  # a lease that was not given back would outlast the test
    }
    shoal = Shoal(tmp_path, os.environ | environment)
    command = ("run", shoal.write("spot.yaml", FILE), "--in-process", "--no-notes")

    pod = Shoal(tmp_path, {**shoal.environment, PACE_VARIABLE: "0.2"}).start(*command)
    ended = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
    until(lambda: database.scalar(ended) >= 2, run=pod, seconds=PATIENCE)
    pod.send_signal(signal.SIGTERM)
    said = pod.communicate(timeout=PATIENCE)[1]
    assert pod.returncode == 128 + signal.SIGTERM, said
    assert "next: shoal run spot.yaml" in said
    record = Experiments(database).get("spot")
    before = database.scalar(ended)
    assert before < TRIALS
    with database.begin() as connection:
        attempts = Counter(connection.scalars(text("SELECT state FROM shoal.attempts")).all())
    assert attempts["running"] == 0, "leases are given back, not left to run out"
    assert (record.state, record.stop_requested) == ("stopped", True)

    shoal(*command)
    record = Experiments(database).get("spot")
    assert (record.state, record.stop_requested) == ("finished", False)
    rows = queries.trials(database, record.id)
    assert Counter(row.state for row in rows) == {"complete": TRIALS}
    assert {row.epochs for row in rows} == {EPOCHS}
    assert check_history(database, record.id) == []
    # Once more, as a pod that is restarted after its end: nothing is trained again.
    epochs = database.scalar("SELECT count(*) FROM shoal.epochs")
    shoal(*command)
    assert database.scalar("SELECT count(*) FROM shoal.epochs") == epochs
