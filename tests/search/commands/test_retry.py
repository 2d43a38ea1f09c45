"""`shoal retry`: failed trials in the queue again, and a run that takes them up."""

from __future__ import annotations

import json

import pytest

from search.cli import run_command
from search.control.controller import run_experiment
from storage import queries
from storage.checker import check_history
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from tests.contracts.experiments import small_spec
from tests.contracts.fake_engine import FAKE

SPEC = small_spec(
    space={"loss": ["cross_entropy", "raises"], "learning_rate": [0.01, 0.1]},
    methods={"grid": {"order": "nested"}},
    budget={"trials": 4},
)


@pytest.fixture
def failed(database: Database, monkeypatch: pytest.MonkeyPatch, quick_looks: None) -> Database:
    """A finished experiment of four trials, two of which have failed."""
    monkeypatch.setenv(URL_VARIABLE, database.url)
    outcome = run_experiment(SPEC, database.url, in_process=True, trainer=FAKE)
    assert [(row.complete, row.failed) for row in outcome.studies] == [(2, 2)]
    return database


def test_failed_trials_are_run_again_with_their_values_and_seeds(
    failed: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["retry", "small", "--failed", "--json"]) == 0
    said = capsys.readouterr()
    retried = json.loads(said.out)["retried"]
    assert [row["new_trial"] for row in retried] == [4, 5]
    assert "is queued again as trial 4" in said.err
    assert "next: shoal resume small" in said.err
    outcome = run_experiment(SPEC, failed.url, in_process=True, trainer=FAKE)
    experiment = Experiments(failed).get("small").id
    assert [(row.complete, row.failed, row.trials) for row in outcome.studies] == [(2, 4, 6)]
    rows = {row.number: row for row in queries.trials(failed, experiment)}
    for row in retried:
        assert rows[row["new_trial"]].params == rows[row["trial"]].params
    assert check_history(failed, experiment) == []


def test_a_trial_is_retried_once_and_then_its_newest_repetition(
    failed: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["retry", "small", "--failed"]) == 0
    capsys.readouterr()
    assert run_command(["retry", "small", "--failed", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["retried"] == []
    assert "no trial of small has failed that was not tried again" in said.err


def test_which_trials_has_to_be_said(failed: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["retry", "small"]) == 2
    assert "shoal retry small --failed" in capsys.readouterr().err
    assert sum(row.trials for row in queries.progress(failed, Experiments(failed).get("small").id)) == 4
