"""Who takes a place of a study, and what a budget still allows, after workers and other clients died."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState

from search.trials.broker import Broker
from search.trials.claims import Claim, Reported
from storage.checker import check_history
from storage.database import Database
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec


def _end(broker: Broker, claim: Claim, epoch: int = 3) -> None:
    broker.store([Reported(claim, report_of(epoch, 0.5), last=True)])


def _die_before_the_draw(running: Running, study: str, count: int = 1) -> None:
    """What a worker leaves that is killed between its claim and the draw, once its lease is taken back."""
    worker = running.ledger.register("killed")
    waiting = len([t for t in running.trials(study.split("/")[1]) if t.state == TrialState.WAITING])
    leases = running.ledger.claim(study, worker, waiting=min(waiting, count), new=max(0, count - waiting))
    assert len(leases) == count
    assert len(running.ledger.expire(running.experiment.id, dead_workers=[worker])) == count


class TestForeignClients:
    """They may take from the queue what one of our workers gave back, and are never hindered."""

    @pytest.fixture
    def sequential(self, database: Database) -> Iterator[Running]:
        spec = small_spec(methods={"tpe": {"in_flight": 1}}, budget={"trials": 3})
        with prepared(database, spec) as running:
            yield running

    @pytest.mark.parametrize("way", ["release", "retry", "expire", "retry_failed"])
    def test_one_that_dies_leaves_no_place_taken(self, sequential: Running, way: str) -> None:
        running = sequential
        with running.broker() as broker:
            (claim,) = broker.claim(1)
            broker.store([Reported(claim, report_of(1, 0.5), last=False)])
            if way == "release":
                broker.release(claim)
            elif way == "retry":
                broker.retry(claim, "the machine failed")
            elif way == "retry_failed":
                broker.fail(claim, _failure())
            broker.flush()
        if way == "expire":
            assert running.ledger.expire(running.experiment.id, dead_workers=[broker._worker_id])
        if way == "retry_failed":
            assert running.ledger.retry_failed(running.experiment.id)
        study = optuna.load_study(study_name="small/tpe/0", storage=running.storage)
        foreign = study.ask()  # takes ours from the queue, and is never heard of again
        assert foreign.params or way == "retry_failed"
        with running.broker() as broker:
            for _ in range(2):
                (other,) = broker.claim(1)
                assert other.trial_id != foreign._trial_id
                assert broker.claim(1) == [], "one at a time, as before"
                _end(broker, other)
            assert broker.claim(1) == []
            assert broker.exhausted
        assert running.storage.get_trial(foreign._trial_id).state == TrialState.RUNNING
        assert check_history(running.database, running.experiment.id) == []

    def test_what_we_take_back_ourselves_takes_its_place(self, sequential: Running) -> None:
        with sequential.broker() as broker:
            (claim,) = broker.claim(1)
            broker.release(claim)
            broker.flush()
            (again,) = broker.claim(1)
            assert again.trial_id == claim.trial_id
            with sequential.broker("other") as other:
                assert other.claim(1) == []
                assert not other.exhausted


def _failure():
    from objectives.base import TrialFailure

    return TrialFailure(0, "no", "", retryable=False)


class TestBudgetsOfEpochs:
    """Trials have three epochs. What never began must not begin when the epochs are promised to others."""

    def test_one_that_was_never_drawn_does_not_go_before_one_that_has_begun(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 6, "epochs": 3})
        with prepared(database, spec) as running:
            _die_before_the_draw(running, "small/random/0")
            with running.broker() as broker:
                (claim,) = broker.claim(1)
                assert (claim.lease.number, claim.lease.attempt) == (0, 2), "it waits, so none is made"
                broker.store([Reported(claim, report_of(1, 0.5), last=False)])
                broker.release(claim)
                broker.flush()
            assert [trial.state for trial in running.trials("random")] == [TrialState.WAITING]

    def test_epochs_are_spent_exactly(self, database: Database) -> None:
        """A lower number that was never drawn and one that is under way: only the latter may go on."""
        spec = small_spec(methods={"grid": {}}, budget={"trials": 6, "epochs": 6})
        with prepared(database, spec) as running:
            with running.broker() as broker:
                first, second = broker.claim(6)
                assert broker.claim(1) == [], "six epochs are promised"
                for claim in (first, second):
                    broker.store([Reported(claim, report_of(1, 0.5), last=False)])
                    broker.release(claim)
                broker.flush()
            # By hand, for no worker of ours would: a point of the grid is begun, and left before its draw.
            worker = running.ledger.register("killed")
            leases = running.ledger.claim("small/grid/0", worker, waiting=3, new=0)
            assert [lease.number for lease in leases] == [0, 1, 2], "what has begun comes first"
            assert running.ledger.expire(running.experiment.id, dead_workers=[worker])
            with running.broker() as broker:
                claims = broker.claim(6)
                assert [claim.lease.number for claim in claims] == [0, 1]
                for claim in claims:
                    _end(broker, claim)
                assert broker.claim(6) == []
                assert broker.exhausted
            trials = running.trials("grid")
            assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2 + ["WAITING"] * 4
            assert sum(trial.last_step or 0 for trial in trials) == 6

    def test_a_leftover_with_a_lower_number_waits_for_the_epochs(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 6, "epochs": 4})
        with prepared(database, spec) as running:
            worker = running.ledger.register("killed")
            assert len(running.ledger.claim("small/random/0", worker, waiting=0, new=1)) == 1
            with running.broker() as broker:
                # The dead worker's lease still runs: trial 0 counts for the trials, not for the epochs.
                claims = broker.claim(6)
                assert [claim.lease.number for claim in claims] == [1, 2], "epochs 3 and 6 of at least 4"
                for claim in claims:
                    broker.store([Reported(claim, report_of(2, 0.5), last=False)])
                    broker.release(claim)
                broker.flush()
            assert running.ledger.expire(running.experiment.id, dead_workers=[worker])
            with running.broker() as broker:
                claims = broker.claim(6)
                assert [claim.lease.number for claim in claims] == [1, 2], "not 0, though its number is lower"
                for claim in claims:
                    _end(broker, claim)
                assert broker.claim(6) == []
                assert broker.exhausted
            trials = running.trials("random")
            assert [trial.state.name for trial in trials] == ["WAITING", "COMPLETE", "COMPLETE"]
