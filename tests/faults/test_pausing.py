"""Workers that are killed while trials rest at rungs, and while they hold ones that were promoted."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from search.experiment.spec import ExperimentSpec
from storage.attempts import Attempts
from storage.database import Database
from tests.faults.lab import Lab, lab_of, spec_of, until

pytestmark = pytest.mark.slow


def pausing(kind: str, trials: int, **changes: Any) -> ExperimentSpec:
    """Random search of nine epochs with rungs at 1 and 3."""
    sections: dict[str, Any] = {
        "methods": {"random": {}},
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "fixed": {"epochs": 9, "kind": kind},
        "budget": {"trials": trials},
        "pruner": {"name": "asha_promotion", "min_epochs": 1, "eta": 3},
    }
    return spec_of(kind, **sections | changes)


def resting(lab: Lab) -> int:
    """How many trials wait that have trained."""
    return lab.count(
        "SELECT count(*) FROM trials WHERE state = 'WAITING' AND EXISTS ("
        "SELECT FROM shoal.epochs WHERE epochs.trial_id = trials.trial_id)"
    )


def well_promoted(lab: Lab, trials: int) -> None:
    """Everything has ended; of each rung the best third went on."""
    rows = lab.rows()
    states = Counter(row.state for row in rows)
    lab.sound(complete=states["complete"], pruned=trials - states["complete"])
    assert {row.epochs for row in rows} == {1, 3, 9}
    curves = lab.curves()
    for rung in (1, 3):
        here = [row.number for row in rows if row.epochs >= rung]
        best = sorted(here, key=lambda number: -curves[number, rung][2]["value"])
        further = {row.number for row in rows if row.epochs > rung}
        assert set(best[: len(here) // 3]) <= further


def test_killed_with_a_promoted_trial_while_others_rest(
    database: Database, folder: Path, short_leases: None
) -> None:
    """Both workers, each in the middle of the first epoch after a promotion."""
    with lab_of(database, pausing("gated", 12), folder) as lab:
        with lab.worker("first") as first, lab.worker("second") as second:
            until(lambda: len(lab.reached()) == 2)
            assert resting(lab) >= 2
            os.kill(first.pid, signal.SIGKILL)
            os.kill(second.pid, signal.SIGKILL)
        lab.open_gate()
        lab.finish(workers=2)
        lost = lab.count("SELECT count(DISTINCT trial_id) FROM shoal.attempts WHERE state = 'lost'")
        assert lost >= 2
        well_promoted(lab, 12)
        for row in lab.rows():
            states = Counter(attempt.state for attempt in Attempts(database).of_trial(row.trial_id))
            assert states["complete"] + states["pruned"] == 1, "one attempt ended it"


def test_one_of_two_workers_is_killed_and_the_run_goes_on(
    database: Database, folder: Path, short_leases: None
) -> None:
    """The other promotes, and ends what rests; nobody waits for the dead."""
    with lab_of(database, pausing("gated", 9), folder) as lab, lab.run(2) as run:
        until(lambda: len(lab.reached()) == 2)
        os.kill(lab.reached()[0], signal.SIGKILL)
        lab.open_gate()
        assert run.result().state == "finished"
        assert lab.events()["expired"] >= 1
        well_promoted(lab, 9)
