"""Launches: one per generation, and what becomes of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from storage.database import Database
from storage.errors import ExperimentNotFound, ValueRefused
from storage.launches import Launches
from storage.records import ExperimentRecord

HEAD = "http://head:8265"


@pytest.fixture
def launches(database: Database) -> Launches:
    return Launches(database)


def test_from_submission_to_end(launches: Launches, experiment: ExperimentRecord) -> None:
    assert launches.newest(experiment.id) is None
    first = launches.add(experiment.id, 1, "shoal-x-1", HEAD, {"options": ["--workers", "3"]})
    assert (first.state, first.is_over, first.started_at) == ("submitted", False, None)
    assert first.options == {"options": ["--workers", "3"]}
    launches.start(experiment.id, 1)
    running = launches.newest(experiment.id)
    assert running is not None
    assert (running.state, running.is_over) == ("running", False)
    launches.end(experiment.id, 1, "failed", exit_code=5, reason="no \x00 database")
    (ended,) = launches.of_experiment(experiment.id)
    assert (ended.state, ended.exit_code, ended.reason) == ("failed", 5, "no \ufffd database")
    assert ended.is_over


def test_whoever_is_gone_may_not_overrule_what_was_said(
    launches: Launches, experiment: ExperimentRecord
) -> None:
    launches.add(experiment.id, 1, "shoal-x-1", HEAD, {})
    launches.start(experiment.id, 1)
    launches.end(experiment.id, 1, "finished", exit_code=0)
    launches.lose(experiment.id, 1, "gone")
    assert launches.of_experiment(experiment.id)[0].state == "finished"
    launches.add(experiment.id, 2, "shoal-x-2", HEAD, {})
    launches.lose(experiment.id, 2, "gone")
    newest = launches.newest(experiment.id)
    assert newest is not None
    assert (newest.generation, newest.state, newest.reason, newest.exit_code) == (2, "lost", "gone", None)
    # It was not: its cluster was only away.
    launches.start(experiment.id, 2)
    again = launches.newest(experiment.id)
    assert again is not None
    assert (again.state, again.reason, again.ended_at) == ("running", None, None)


def test_a_generation_is_made_once(launches: Launches, experiment: ExperimentRecord) -> None:
    launches.add(experiment.id, 1, "shoal-x-1", HEAD, {})
    with pytest.raises(ValueRefused, match="shoal-y-1"):
        launches.add(experiment.id, 1, "shoal-y-1", HEAD, {})
    with pytest.raises(ValueRefused, match="shoal-x-1"):
        launches.add(experiment.id, 2, "shoal-x-1", HEAD, {})
    with pytest.raises(ValueRefused):
        launches.add(experiment.id, 0, "shoal-x-0", HEAD, {})
    with pytest.raises(ExperimentNotFound):
        launches.add(experiment.id + 1, 1, "shoal-z-1", HEAD, {})
    assert len(launches.of_experiment(experiment.id)) == 1


def test_one_decides_at_a_time(launches: Launches, experiment: ExperimentRecord) -> None:
    together = Barrier(4)

    def decide(_: int) -> int:
        together.wait()
        with launches.deciding(experiment.id):
            newest = launches.newest(experiment.id)
            if newest is None:
                launches.add(experiment.id, 1, "shoal-x-1", HEAD, {})
            return 0 if newest is None else 1

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(decide, range(4))) == [0, 1, 1, 1]


def test_under_way_while_the_newest_waits_for_its_driver(
    launches: Launches, experiment: ExperimentRecord
) -> None:
    assert launches.under_way() == frozenset()
    launches.add(experiment.id, 1, "shoal-x-1", HEAD, {})
    assert launches.under_way() == {experiment.id}
    launches.add(experiment.id, 2, "shoal-x-2", HEAD, {})
    launches.start(experiment.id, 2)
    assert launches.under_way() == frozenset(), "the older one is history"
