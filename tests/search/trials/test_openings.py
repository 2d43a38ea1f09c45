"""What an experiment has for workers, as somebody sees it who is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from objectives.base import EpochReport
from search.trials.claims import Claim, Reported
from search.trials.openings import Openings
from storage import queries
from storage.database import Database
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec

SPEC = {
    "methods": {"grid": {}, "tpe": {"in_flight": 1}},
    "budget": {"trials": 6},
    "comparison": {"retrain": {"seeds": 2}},
}


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    with prepared(database, small_spec(**SPEC)) as made:
        yield made


def _finish(broker, claims: list[Claim]) -> None:
    for claim in claims:
        reports: list[EpochReport] = [report_of(epoch) for epoch in (1, 2, 3)]
        for report in reports:
            broker.store([Reported(claim, report, report.epoch == 3)])


def _ever(running: Running, openings: Openings) -> bool:
    return openings.ever(queries.progress(running.database, running.experiment.id))


def test_as_many_as_may_start_at_this_moment(running: Running) -> None:
    openings = Openings(running.storage, running.spec)
    assert openings.now(100) == 6 + 1, "TPE's next depends on its last"
    assert openings.now(2) == 2
    with running.broker() as broker:
        claims = broker.claim(7)
        assert len(claims) == 7
        assert openings.now(100) == 0
        assert _ever(running, openings), "TPE has five more"
        broker.release(claims[0])
        broker.flush()
        assert openings.now(100) == 1
    assert openings.now(0) == 0


def test_winners_are_work_until_they_are_retrained(running: Running) -> None:
    openings = Openings(running.storage, running.spec)
    with running.broker() as broker:
        while claims := [claim for claim in broker.claim(1) if claim.retrains is None]:
            _finish(broker, claims)
        broker.flush()
        # The broker has put the winners' retrainings in the queue, and taken one.
        assert openings.now(100) == 2
        assert _ever(running, openings)


def test_without_retraining_nothing_is_left_at_the_end(database: Database) -> None:
    spec = small_spec(methods={"random": {}}, budget={"trials": 2})
    with prepared(database, spec) as running, running.broker() as broker:
        openings = Openings(running.storage, running.spec)
        _finish(broker, broker.claim(2))
        assert openings.now(100) == 0
        assert not _ever(running, openings)
