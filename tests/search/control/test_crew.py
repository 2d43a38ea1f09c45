"""A crew of threads, what it is told to do, and what its lookout reads."""

from __future__ import annotations

import logging

import pytest

from search.control.controller import find_or_create
from search.control.crew import Assignment, Lookout, ThreadCrew
from search.trials.claims import Look
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.experiments import small_spec
from tests.contracts.fake_engine import FAKE


def test_a_worker_in_a_thread_reports_what_ended_it(database_url: str) -> None:
    crew = ThreadCrew(Assignment(database_url, "missing", FAKE, "cpu"))
    assert crew.departures(0) == []
    crew.hire("w")
    (left,) = crew.departures(60)
    assert (left.worker, left.ending) == ("w", None)
    assert "there is no experiment 'missing'" in left.reason
    assert crew.departures(0) == []


def test_where_it_broke_is_in_the_log(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is one line, which says little of a mistake of ours."""
    crew = ThreadCrew(Assignment(database_url, "missing", FAKE, "cpu"))
    with caplog.at_level(logging.INFO, logger="search.control.crew"):
        crew.hire("w")
        crew.departures(60)
    (record,) = [record for record in caplog.records if record.name == "search.control.crew"]
    assert record.getMessage() == "worker w died"
    assert record.exc_info is not None
    assert "in work" in logging.Formatter().formatException(record.exc_info)


def test_a_lookout_reads_the_experiment_only_when_it_has_changed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = Experiments(database)
    record, _ = find_or_create(experiments, small_spec())
    lookout = Lookout(experiments, record)
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "get", None)
        assert lookout() == Look(stop=False)
    experiments.request_stop(record.id)
    assert lookout() == Look(stop=True), "no new version: only the request"
    grown = small_spec(budget={"trials": 9})
    experiments.grow(record.id, grown.to_json(), grown.studies())
    assert lookout() == Look(stop=True, grown=grown)
    assert lookout() == Look(stop=True)


def test_an_assignment_does_not_show_its_url() -> None:
    assert "secret" not in repr(Assignment("postgresql://u:secret@h/d", "e", "plain", "cpu"))
