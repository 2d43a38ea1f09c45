"""Looking at experiments that nobody runs, and at studies that somebody deleted."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

import search.commands.standing
from storage.database import Database
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord, ExperimentState
from tests.contracts.shoal_command import document, printed


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look comes at once."""
    monkeypatch.setattr(search.commands.standing, "SECOND_LOOK", 0.0)


def set_state(database: Database, state: ExperimentState) -> ExperimentRecord:
    experiments = Experiments(database)
    experiments.set_state(experiments.get("stored").id, state)
    return experiments.get("stored")


@pytest.mark.parametrize("state", ["running", "created"])
def test_an_experiment_that_nobody_runs_is_interrupted(
    state: ExperimentState, stored: Database, quick_looks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    set_state(stored, state)
    said = "interrupted: no process runs it; shoal resume stored goes on"
    assert f"stored  {said}\n" in printed(capsys, "status", "stored")[0]
    assert "interrupted" in printed(capsys, "status")[0]
    found = document(capsys, "status", "stored")
    assert (found["state"], found["controlled"]) == (state, False)
    assert document(capsys, "status")["experiments"][0]["controlled"] is False
    assert said in printed(capsys, "watch", "stored", code=1)[0]
    (line,) = printed(capsys, "watch", "stored", "--json", code=1)[0].splitlines()
    assert json.loads(line)["controlled"] is False
    assert "no process runs it" in printed(capsys, "stop", "stored")[1] or state == "created"


def test_a_running_experiment_is_not_interrupted(
    stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    record = set_state(stored, "running")
    with Experiments(stored).control(record):
        assert printed(capsys, "status", "stored")[0].startswith("stored  running\n")
        assert document(capsys, "status", "stored")["controlled"] is True
        assert document(capsys, "status")["experiments"][0]["controlled"] is True
        assert "asked stored to stop" in printed(capsys, "stop", "stored")[1]
        assert printed(capsys, "status", "stored")[0].startswith("stored  running, asked to stop\n")


def test_a_finished_experiment_is_not_interrupted(
    stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "status", "stored")
    assert (found["state"], found["controlled"]) == ("finished", False)
    assert "interrupted" not in printed(capsys, "status")[0]


def test_a_controller_that_just_starts_or_ends_is_not_misjudged(
    stored: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the two looks the experiment gets its controller, or its end."""
    record = set_state(stored, "running")
    with contextlib.ExitStack() as later:

        def begins(_seconds: float) -> None:
            later.enter_context(Experiments(stored).control(record))

        monkeypatch.setattr(search.commands.standing, "sleep", begins)
        assert printed(capsys, "status", "stored")[0].startswith("stored  running\n")
    monkeypatch.setattr(search.commands.standing, "sleep", lambda _s: set_state(stored, "finished"))
    assert printed(capsys, "watch", "stored")[0].startswith("stored  finished\n")


def test_one_that_nobody_touched_of_late_is_judged_without_waiting(
    stored: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(search.commands.standing, "sleep", waits.append)
    set_state(stored, "running")
    assert printed(capsys, "status", "stored")[0].startswith("stored  interrupted")
    assert waits == [search.commands.standing.SECOND_LOOK]
    age = "UPDATE shoal.experiments SET updated_at = now() - interval '11 seconds' RETURNING 1"
    stored.script(age, ())
    assert printed(capsys, "status", "stored")[0].startswith("stored  interrupted")
    assert len(waits) == 1


def delete_studies(database: Database, count: int) -> None:
    """As a user does in Optuna Dashboard."""
    storage = open_optuna_storage(database.url)
    try:
        for study in storage.get_all_studies()[:count]:
            storage.delete_study(study._study_id)
    finally:
        close_optuna_storage(storage)


def test_studies_that_were_deleted_are_told_and_crash_nothing(
    stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    delete_studies(stored, 1)
    assert "1 of 4 studies are not in Optuna's tables" in printed(capsys, "status", "stored")[1]
    assert len(document(capsys, "trials", "stored")["trials"]) == 12
    assert len(document(capsys, "best", "stored")["studies"]) == 3
    rows = document(capsys, "status", "stored")["studies"]
    assert [(row["present"], row["epochs"]) for row in rows] == [(False, 0)] + [(True, 5)] * 3
    delete_studies(stored, 4)
    out, err = printed(capsys, "status", "stored", "--studies")
    assert "0/8" in out
    assert "4 of 4 studies are not in Optuna's tables" in err
    assert "shoal resume stored" in err
    assert [row["present"] for row in document(capsys, "status", "stored")["studies"]] == [False] * 4
    assert printed(capsys, "watch", "stored")[0].startswith("stored  finished\n")
    out, err = printed(capsys, "trials", "stored")
    assert (out, "no trials to list" in err) == ("", True)
    assert document(capsys, "trials", "stored")["trials"] == []
    for command in ("best", "score"):
        assert "no trial of stored" in printed(capsys, command, "stored", code=3)[1]
    out, err = printed(capsys, "export", "stored")
    assert (out, "no trials to export" in err) == ("", True)
    assert len(printed(capsys, "export", "stored", "--what", "epochs")[0].splitlines()) == 21
    out, err = printed(capsys, "report", "stored")
    assert "No trial was trained to its end" in err
    assert Path("reports/stored/report.html").exists()
