"""What is there after a process was killed, and what a process leaves that ends by itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.optuna.shoal_storage import ShoalStorage

ROOT = Path(__file__).parents[3]

SCRIPT = """
import os, signal, sys
import optuna
from storage.optuna import outbox
from storage.optuna.shoal_storage import ShoalStorage

outbox.INTERVAL = 3600  # nothing is stored that nobody waits for
storage = ShoalStorage(sys.argv[1])
study = optuna.create_study(study_name="s", storage=storage)
trial = study.ask()
trial.suggest_float("x", 0, 1)
trial.set_user_attr("a", 1)
trial.report(0.5, 1)
{end}
"""

STATES = {
    "told, then killed": "COMPLETE",
    "pruned, then killed": "PRUNED",
    "put back, then killed": "WAITING",
}
ENDS = {
    "told, then killed": "study.tell(trial, 0.25); os.kill(os.getpid(), signal.SIGKILL)",
    "pruned, then killed": (
        "study.tell(trial, state=optuna.trial.TrialState.PRUNED); os.kill(os.getpid(), signal.SIGKILL)"
    ),
    "put back, then killed": (
        "storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    ),
    "closed": "storage.close(); os.kill(os.getpid(), signal.SIGKILL)",
    "pickled": "import pickle; pickle.dumps(storage); os.kill(os.getpid(), signal.SIGKILL)",
    "end of the program": "",
    "exception": "raise ValueError",
}


def run(url: str, end: str) -> int:
    script = SCRIPT.format(end=end)
    done = subprocess.run(
        [sys.executable, "-c", script, url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode in (0, 1, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_lost_that_was_promised(empty_url: str, end: str) -> None:
    code = run(empty_url, ENDS[end])
    assert (code == -signal.SIGKILL) == ("SIGKILL" in ENDS[end])
    with ShoalStorage(empty_url) as storage:
        (trial,) = storage.get_all_trials(storage.get_study_id_from_name("s"))
    assert trial.params.keys() == {"x"}
    assert trial.user_attrs == {"a": 1}
    assert trial.intermediate_values == {1: 0.5}
    assert trial.state.name == STATES.get(end, "RUNNING")


def test_killed_with_reports_that_waited(empty_url: str) -> None:
    """The contract lets them be lost; the trial is there, running, and nothing of it is half there."""
    assert run(empty_url, "os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    with ShoalStorage(empty_url) as storage:
        (trial,) = storage.get_all_trials(storage.get_study_id_from_name("s"))
    assert trial.state.name == "RUNNING"
    assert (trial.params, trial.user_attrs, trial.intermediate_values) == ({}, {}, {})
