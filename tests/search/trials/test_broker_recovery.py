"""What a broker does with trials that were interrupted, when workers die and while the database is away."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.base import TrialFailure
from search.trials.claims import Reported, Verdict
from search.trials.holdings import LeasesLost
from search.work.saving import checkpoint_folder
from storage.checker import check_history
from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.ledger import MAX_ATTEMPTS, Written
from tests.contracts.claims import report_of, save
from tests.contracts.experiments import Running, prepared, small_spec
from tests.search.trials.broker_steps import end_epoch, one_claim, states_of


class TestInterruption:
    def test_released_trials_go_on_from_their_checkpoint(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            assert claim.start.checkpoint is None
            save(claim, 1)
            assert end_epoch(broker, claim, report_of(1), leaving=True) is Verdict.CONTINUE
            again = one_claim(broker)
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"
            assert (again.trial_id, again.values, again.lease.attempt) == (claim.trial_id, claim.values, 2)
            end_epoch(broker, again, report_of(2), last=True)
            assert not again.start.checkpoint.exists(), "it is of no use once the trial has ended"
        assert states_of(running, claim) == ["released", "complete"]

    def test_a_checkpoint_of_an_epoch_that_nobody_stored_is_not_used(self, running: Running) -> None:
        """It would leave a hole in the curve: the report was on its way when its worker died."""
        with running.broker() as broker:
            claim = one_claim(broker)
            save(claim, 1)
            end_epoch(broker, claim, report_of(1))
            save(claim, 2)
            broker.release(claim)
            broker.flush()
            again = one_claim(broker)
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"

    def test_one_that_leaves_where_it_would_be_pruned_is_pruned(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = one_claim(broker), one_claim(broker)
            end_epoch(broker, good, report_of(1, 0.9))
            save(bad, 1)
            assert end_epoch(broker, bad, report_of(1, 0.1), leaving=True) is Verdict.PRUNE
            assert running.storage.get_trial(bad.trial_id).state == TrialState.PRUNED
            assert not bad.folder.path.exists()

    def test_interruptions_are_not_held_against_a_trial(self, running: Running) -> None:
        with running.broker() as broker:
            for _ in range(MAX_ATTEMPTS + 1):
                claim = one_claim(broker)
                broker.release(claim)
                broker.flush()
        assert running.storage.get_trial(claim.start.trial_id).state == TrialState.WAITING

    def test_experiments_of_one_name_in_two_databases_share_no_checkpoint(self, running: Running) -> None:
        later = dataclasses.replace(
            running.experiment, created_at=running.experiment.created_at + timedelta(microseconds=1)
        )
        assert checkpoint_folder(later) != checkpoint_folder(running.experiment)
        assert checkpoint_folder(running.experiment).name.startswith("small-")


class TestRecover:
    """Workers that are gone after their block, as if they had been killed."""

    def _workers(self, running: Running) -> list[int]:
        found = running.database.scalar("SELECT array_agg(id) FROM shoal.workers")
        return list(found or [])

    def test_trials_of_the_living_are_left_alone(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            assert running.ledger.expire(running.experiment.id) == []
            assert end_epoch(broker, claim, report_of(1)) is Verdict.CONTINUE

    def test_trials_of_the_dead_come_back(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
        dead = self._workers(running)
        (taken,) = running.ledger.expire(running.experiment.id, dead_workers=dead)
        assert (taken.study_name, taken.number, taken.given_up) == ("small/grid/0", 0, False)
        assert running.ledger.expire(running.experiment.id, dead_workers=dead) == []
        with running.broker() as broker:
            again = one_claim(broker)
        assert (again.trial_id, again.values, again.start.seed) == (
            claim.trial_id,
            claim.values,
            claim.start.seed,
        )
        assert states_of(running, claim) == ["lost", "running"]

    def test_they_come_back_by_themselves_once_their_leases_ran_out(self, database: Database) -> None:
        with prepared(database, small_spec(methods={"grid": {}})) as running, running.broker() as broker:
            claim = one_claim(broker)
            with running.database.begin() as connection:
                connection.execute(text("UPDATE shoal.attempts SET deadline = now() - interval '1 second'"))
            assert len(running.ledger.expire(running.experiment.id)) == 1
            assert one_claim(broker).trial_id == claim.trial_id

    def test_a_trial_that_kills_its_workers_is_given_up(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS):
            with running.broker() as broker:
                claim = one_claim(broker)
            (taken,) = running.ledger.expire(running.experiment.id, dead_workers=self._workers(running))
        assert taken.given_up
        trial = running.storage.get_trial(claim.trial_id)
        assert trial.state == TrialState.FAIL
        assert "3 workers" in trial.user_attrs["reason"]
        assert check_history(running.database, running.experiment.id) == []

    def test_workers_that_left_are_not_held_against_it(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS + 1):
            with running.broker(retires=True) as broker:
                claim = one_claim(broker)
        assert running.storage.get_trial(claim.trial_id).state == TrialState.WAITING

    def test_a_late_writer_is_refused(self, running: Running) -> None:
        """A worker that was taken for dead but isn't: its trial has gone to somebody else."""
        with running.broker("slow") as slow:
            claim = one_claim(slow)
            running.ledger.expire(running.experiment.id, dead_workers=self._workers(running))
            with running.broker("quick") as quick:
                again = one_claim(quick)
                assert again.trial_id == claim.trial_id
                assert end_epoch(slow, claim, report_of(1, 0.1), last=True) is Verdict.TAKEN
                assert slow.lost() == [claim.lease.token]
                assert end_epoch(quick, again, report_of(1, 0.9), last=True) is Verdict.FINISH
        assert running.storage.get_trial(claim.trial_id).value == 0.9
        assert check_history(running.database, running.experiment.id) == []

    def test_a_trial_of_a_foreign_client_is_left_alone_and_takes_no_place(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"in_flight": 1}}, budget={"trials": 3})
        with prepared(database, spec) as running:
            foreign = optuna.load_study(study_name="small/tpe/0", storage=running.storage).ask()
            with running.broker() as broker:
                claim = one_claim(broker)
                assert claim.lease.number == 1
                assert running.ledger.expire(running.experiment.id, dead_workers=[1, 2, 3]) != []
            assert running.storage.get_trial(foreign._trial_id).state == TrialState.RUNNING


class Away:
    """A ledger whose writes fail while `away`, and go to another one otherwise."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.away = False
        self.lands = False
        """Whether it is away for one write alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def write(self, **said: Any) -> Written:
        if self.away:
            self.away = not self.lands
            raise DatabaseUnreachable("away", retryable=True)
        written: Written = self._ledger.write(**said)
        return written


class TestDatabaseAway:
    def test_a_short_absence_is_waited_for(self, running: Running) -> None:
        ledger = Away(running.ledger)
        ledger.lands = True
        with running.broker(ledger=ledger) as broker:
            claim = one_claim(broker)
            ledger.away = True
            assert end_epoch(broker, claim, report_of(1), last=True) is Verdict.FINISH

    def test_after_the_lease_nothing_that_was_held_is_written(self, running: Running) -> None:
        ledger = Away(running.ledger)
        now = [0.0]

        def clock() -> float:
            now[0] += 10.0 * ledger.away
            return now[0]

        with running.broker(ledger=ledger, clock=clock) as broker:
            claim = one_claim(broker)
            ledger.away = True
            with pytest.raises(LeasesLost):
                broker.store([Reported(claim, report_of(1), last=True)])
            assert broker.lost() == [claim.lease.token]
            assert len(broker.holdings) == 0
            ledger.away = False
            assert end_epoch(broker, claim, report_of(1), last=True) is Verdict.TAKEN
            assert running.storage.get_trial(claim.trial_id).state == TrialState.RUNNING

    def test_what_was_to_end_there_keeps_its_checkpoints(self, running: Running) -> None:
        """Its end was never stored: somebody else goes on with the trial."""
        ledger = Away(running.ledger)
        now = [0.0]

        def clock() -> float:
            now[0] += 10.0 * ledger.away
            return now[0]

        with running.broker(ledger=ledger, clock=clock) as broker:
            claim = one_claim(broker)
            save(claim, 1)
            broker.fail(claim, TrialFailure(claim.trial_id, "ValueError: no", "Traceback", retryable=False))
            ledger.away = True
            with pytest.raises(LeasesLost):
                broker.flush()
            assert broker.lost() == [claim.lease.token]
            ledger.away = False
            assert one_claim(broker).trial_id != claim.trial_id
        assert claim.folder.newest(claim.fingerprint, at_most=1) is not None
