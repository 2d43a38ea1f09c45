"""Workers that die or sleep while a trial of another method waits for theirs, or while their own waits."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from storage.attempts import Attempts
from storage.database import Database
from storage.records import TrialRow
from tests.faults.lab import Lab, lab_of, spec_of, until

pytestmark = pytest.mark.slow

METHODS = {"random": {}, "tpe": {"in_flight": 1}}
SPEC: dict[str, Any] = {
    "methods": METHODS,
    "space": {"x": {"low": 0.0, "high": 1.0}},
    "budget": {"trials": 3},
}
"""Three trials of each method, all of which they share."""


@contextmanager
def waiting(database: Database, folder: Path) -> Iterator[tuple[Lab, int, int]]:
    """The first trial of random search in the middle of an epoch, and that of TPE which waits for it.

    With the processes that have them; the second has another trial to train.
    """
    with lab_of(database, spec_of("gated", **SPEC), folder) as lab, lab.worker("first") as first:
        until(lab.reached)
        with lab.worker("second") as second:
            until(lambda: len(lab.reached()) == 2)
            held = lab.count("SELECT count(*) FROM shoal.attempts WHERE state = 'running'")
            assert held == 3
            yield lab, first.pid, second.pid


def row_of(lab: Lab, method: str, number: int = 0) -> TrialRow:
    (row,) = [row for row in lab.rows() if (row.method, row.number) == (method, number)]
    return row


def attempts_of(lab: Lab, row: TrialRow) -> list[str]:
    return [attempt.state for attempt in Attempts(lab.database).of_trial(row.trial_id)]


def calls_per_epoch(lab: Lab) -> Counter[str]:
    return Counter(lab.trained())


def test_killed_while_it_trains_what_another_waits_for(database: Database, folder: Path) -> None:
    """The one that waited is trained in its place, and the killed one takes over from it."""
    with waiting(database, folder) as (lab, first, _):
        os.kill(first, signal.SIGKILL)
        lab.run_out("first")
        lab.open_gate()
        until(lambda: row_of(lab, "tpe").state == "complete")
        assert attempts_of(lab, row_of(lab, "tpe")) == ["complete"]
        lab.finish()
        lab.sound(complete=6)
        killed = row_of(lab, "random")
        assert attempts_of(lab, killed) == ["lost", "complete"]
        assert (killed.shared_with, killed.shared_epochs) == ("faults/tpe/0", 2)
        assert sorted(calls_per_epoch(lab).values()) == [1] * 8 + [2], "what the killed one had begun"


def test_killed_while_it_waits(database: Database, folder: Path) -> None:
    with waiting(database, folder) as (lab, _, second):
        os.kill(second, signal.SIGKILL)
        lab.run_out("second")
        lab.open_gate()
        until(lambda: row_of(lab, "random").state == "complete")
        lab.finish()
        lab.sound(complete=6)
        waited = row_of(lab, "tpe")
        assert attempts_of(lab, waited) == ["lost", "complete"]
        assert waited.shared_with == "faults/random/0"
        assert sorted(calls_per_epoch(lab).values()) == [1] * 8 + [2]


def test_asleep_while_another_waits_for_its_trial(database: Database, folder: Path) -> None:
    """Past its lease the other is trained; awake again, it is refused and takes over."""
    with waiting(database, folder) as (lab, first, _):
        os.kill(first, signal.SIGSTOP)
        lab.run_out("first")
        lab.open_gate()
        until(lambda: row_of(lab, "tpe").state == "complete")
        os.kill(first, signal.SIGCONT)
        until(lambda: lab.events()["refused"] > 0)
        lab.finish()
        lab.sound(complete=6)
        assert attempts_of(lab, row_of(lab, "random")) == ["lost", "complete"]
