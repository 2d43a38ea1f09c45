"""What a worker's life costs in round trips, counted on the wire: exact, whatever the machine is doing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from search.trials.claims import Claim, Reported
from storage.database import Database
from tests.contracts.claims import report_of
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.wire import Wire, wired

POOL = 256


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    with wired(database.url) as made:
        yield made


def _reported(claims: list[Claim], epoch: int, *, last: bool = False) -> list[Reported]:
    return [
        Reported(claim, report_of(epoch, 0.5 + place / 1000), last=last) for place, claim in enumerate(claims)
    ]


def _trips(wire: Wire) -> list[str]:
    queries, wire.queries = list(wire.queries), []
    return [query.split("\n")[0][:60] for query in queries if "set_config('TimeZone'" not in query]


def test_a_pools_epoch_is_written_in_one_and_judged_on_one(wire: Wire) -> None:
    spec = small_spec(
        methods={"random": {}}, budget={"trials": 1000}, pruner={"name": "asha", "eta": 2}, replicates=2
    )
    with Database(wire.url) as database, prepared(database, spec) as running, running.broker() as broker:
        broker.store(_reported(broker.claim(8), 3, last=True))
        _trips(wire)
        claims = broker.claim(POOL)
        assert len(claims) == POOL
        # For each of the two studies: lock, read, claim, store the values, unlock.
        assert len(_trips(wire)) == 2 * 5
        reported = _reported(claims, 1)
        broker.store(reported)
        assert len(_trips(wire)) == 1
        verdicts = broker.judge(reported)
        assert len(_trips(wire)) == 1, "one reading of all studies"
        broker.flush()
        assert len(_trips(wire)) == 1, "all that was pruned"
        going = [one.claim for one in reported if verdicts[one.claim.lease.token].value == "continue"]
        assert 0 < len(going) < POOL
        broker.store(_reported(going, 3, last=True))
        assert len(_trips(wire)) == 1, "the last epoch and the ending together"


def test_one_trial_by_one(wire: Wire) -> None:
    """A worker with one slot: of a sequential study, with a pruner."""
    spec = small_spec(
        methods={"tpe": {"in_flight": 1, "n_startup_trials": 2}},
        budget={"trials": 50},
        pruner={"name": "asha", "eta": 2},
    )
    with Database(wire.url) as database, prepared(database, spec) as running, running.broker() as broker:
        for _ in range(3):
            broker.store(_reported(broker.claim(1), 3, last=True))
        _trips(wire)
        claims = broker.claim(1)
        assert len(_trips(wire)) == 5
        for epoch in (1, 2):
            reported = _reported(claims, epoch)
            broker.store(reported)
            broker.judge(reported)
            broker.flush()
            assert len(_trips(wire)) == 2
        broker.store(_reported(claims, 3, last=True))
        assert len(_trips(wire)) == 1
