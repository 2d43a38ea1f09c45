"""The log of an experiment, read from what happened."""

from __future__ import annotations

import pytest

from storage.event_log import before_the_last, events_after
from tests.contracts.experiments import Running, prepared, small_spec


@pytest.fixture
def running(database):
    with prepared(database, small_spec(methods={"random": {}})) as made:
        yield made


def _claim_and_release(running: Running, worker: str, count: int) -> None:
    with running.broker(worker, retires=True) as broker:
        for claim in broker.claim(count):
            broker.release(claim)
        broker.flush()


def test_in_order_from_anywhere_and_of_one_worker(running: Running) -> None:
    database, number = running.database, running.experiment.id
    _claim_and_release(running, "one", 2)
    _claim_and_release(running, "two", 1)
    every = events_after(database, number)
    assert [event.id for event in every] == sorted(event.id for event in every)
    assert [(e.kind, e.worker, e.trial_number, e.attempt) for e in every if e.kind == "claimed"] == [
        ("claimed", "one", 0, 1),
        ("claimed", "one", 1, 1),
        ("claimed", "two", 0, 2),
    ]
    assert {event.study for event in every} == {"small/random/0"}
    middle = every[2].id
    assert events_after(database, number, middle) == every[3:]
    assert events_after(database, number, limit=2) == every[:2]
    of_two = events_after(database, number, worker="two")
    assert of_two == [event for event in every if event.worker == "two"]
    assert events_after(database, number + 1) == []
    assert events_after(database, number, before_the_last(database, number, 3)) == every[-3:]
    assert events_after(database, number, before_the_last(database, number, 1, worker="one")) != []
    last_of_one = [event for event in every if event.worker == "one"][-1].id
    assert before_the_last(database, number, 1, worker="one") == last_of_one - 1
    assert before_the_last(database, number, 10**6) < every[0].id
    assert before_the_last(database, number, 5, worker="nobody") == 0
