"""Attempts as they are read."""

from __future__ import annotations

import optuna
import pytest

from storage.attempts import Attempts
from storage.batched_ledger import BatchedLedger
from storage.experiments import Experiments
from storage.ledger import Ending


@pytest.fixture
def ledger(database, experiment, optuna_storage) -> BatchedLedger:
    optuna.create_study(storage=optuna_storage, study_name="e/tpe/0")
    return BatchedLedger(database)


def test_records_of_a_trial(ledger, database):
    attempts, worker = Attempts(database), ledger.register("w")
    (lease,) = ledger.claim("e/tpe/0", worker, waiting=0, new=1)
    (running,) = attempts.of_trial(lease.trial_id)
    assert (running.state, running.worker, running.ended_at) == ("running", "w", None)
    assert (running.study_name, running.trial_number, running.number) == ("e/tpe/0", 0, 1)
    ending = Ending(lease=lease, state="retry", reason="shapes differ", traceback="Traceback \x00 \ud800")
    ledger.write(endings=[ending])
    ledger.claim("e/tpe/0", worker, waiting=1, new=0)
    failed, again = attempts.of_trial(lease.trial_id)
    assert (failed.state, failed.reason, failed.traceback) == (
        "failed",
        "shapes differ",
        "Traceback \ufffd ?",
    )
    assert failed.started_at <= failed.ended_at <= again.started_at
    assert again.number == 2
    assert attempts.of_trial(lease.trial_id + 1) == []


def test_what_was_held_at_once_by_study_and_by_worker(ledger, database, optuna_storage):
    experiment_id = Experiments(database).list()[0].id
    attempts = Attempts(database)
    assert (attempts.most_held(experiment_id), attempts.crew(experiment_id)) == ({}, [])
    first = ledger.register("first", {"trainer": "fused", "device": "CPU", "slots": 4})
    second, _idle = ledger.register("second"), ledger.register("idle")
    leases = ledger.claim("e/tpe/0", first, waiting=0, new=2)
    leases += ledger.claim("e/tpe/0", second, waiting=0, new=1)
    assert attempts.most_held(experiment_id) == {"e/tpe/0": 3}
    ledger.write(endings=[Ending(lease=lease, state="complete", value=1.0) for lease in leases])
    for _ in range(3):  # one after the other is never two at once
        (lease,) = ledger.claim("e/tpe/0", second, waiting=0, new=1)
        ledger.write(endings=[Ending(lease=lease, state="complete", value=1.0)])
    assert attempts.most_held(experiment_id) == {"e/tpe/0": 3}
    crew = attempts.crew(experiment_id)
    assert [(one.name, one.most_held) for one in crew] == [("first", 2), ("second", 1)]
    assert crew[0].told == {"name": "first", "trainer": "fused", "device": "CPU", "slots": 4}
    assert crew[1].told == {"name": "second"}
    assert attempts.crew(experiment_id + 1) == []


def test_released_attempts_do_not_count(ledger, database):
    worker = ledger.register("w")
    for state, counted in (("released", 0), ("retry", 1), ("released", 1), ("retry", 2)):
        new = 0 if Attempts(database).of_trial(1) else 1
        (lease,) = ledger.claim("e/tpe/0", worker, waiting=1, new=new)
        ledger.write(endings=[Ending(lease=lease, state=state, reason="it broke")])
        assert Attempts(database).count(lease.trial_id) == counted
    assert Attempts(database).count(lease.trial_id + 1) == 0
