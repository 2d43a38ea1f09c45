"""The broker on a real database: claims, verdicts, failures, and what a dead worker leaves."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from objectives.base import EpochReport, TrialFailure, derive_seed
from search.broker import (
    MAX_ATTEMPTS,
    Broker,
    Claim,
    Verdict,
    checkpoint_folder,
    claim_order,
    is_over,
    recover,
    study_lock,
)
from search.study import Limits
from storage.attempts import Attempts
from storage.curves import Curves
from storage.database import Database
from storage.records import StudyProgress, StudyRecord
from tests.contracts.experiments import Running, prepared, small_spec


def _row(name: str, *, waiting: int = 0, running: int = 0, complete: int = 0) -> StudyProgress:
    return StudyProgress(
        study=StudyRecord(id=1, experiment_id=1, method=name, replicate=0, name=name),
        waiting=waiting,
        running=running,
        complete=complete,
        pruned=0,
        failed=0,
        epochs=0,
        seconds=0.0,
        best=None,
    )


def _order(rows: list[StudyProgress], **limits: Limits) -> list[str]:
    return [row.study.name for row in claim_order(rows, limits)]


class TestClaimOrder:
    TEN = Limits(10, None, None)

    def test_furthest_behind_first(self) -> None:
        rows = [_row("a", complete=3), _row("b", running=1), _row("c", complete=1, running=1)]
        assert _order(rows, a=self.TEN, b=self.TEN, c=self.TEN) == ["b", "c", "a"]

    def test_behind_is_a_share_of_the_budget(self) -> None:
        rows = [_row("a", complete=3), _row("b", complete=2)]
        assert _order(rows, a=self.TEN, b=Limits(4, None, None)) == ["a", "b"]

    def test_waiting_points_have_not_started(self) -> None:
        rows = [_row("a", complete=1), _row("grid", waiting=10)]
        assert _order(rows, a=self.TEN, grid=self.TEN) == ["grid", "a"]

    def test_equal_ones_in_the_experiments_order(self) -> None:
        assert _order([_row("b"), _row("a")], a=self.TEN, b=self.TEN) == ["a", "b"]

    def test_full_or_done_or_foreign_ones_are_left_out(self) -> None:
        one = Limits(10, None, 1)
        rows = [_row("full", running=1), _row("done", complete=10), _row("foreign"), _row("open", complete=9)]
        assert _order(rows, full=one, done=self.TEN, open=self.TEN) == ["open"]

    def test_one_that_waits_is_not_over(self) -> None:
        assert not is_over(_row("a", waiting=1, complete=9), self.TEN)
        assert is_over(_row("a", running=1, complete=9), self.TEN)
        assert not is_over(_row("a", complete=9), self.TEN)


def _report(epoch: int, value: float = 0.5, **changes: Any) -> EpochReport:
    fields: dict[str, Any] = {
        "epoch": epoch,
        "train_loss": 1.0,
        "validation_loss": 1.0,
        "metrics": {"accuracy": value},
        "gradient_norm": 1.0,
        "learning_rate": 0.1,
        "seconds": 0.01,
        "images_per_second": 10.0,
    }
    return EpochReport(**fields | changes)


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    with prepared(database, small_spec()) as made:
        yield made


def _claim(broker: Broker) -> Claim:
    claim = broker.claim()
    assert claim is not None
    return claim


class TestClaim:
    def test_a_trial_that_another_client_spoilt_does_not_hold_up_the_rest(self, running: Running) -> None:
        optuna.load_study(study_name="small/random/0", storage=running.storage).enqueue_trial(
            {"learning_rate": "much"}
        )
        with running.broker() as broker:
            claims = list(iter(broker.claim, None))
            claims += list(iter(broker.claim, None))
        assert len(claims) == 11, "the spoilt one counts as a trial"
        assert running.trials("random")[0].state == TrialState.FAIL

    def test_everything_is_claimed_once_and_no_more(self, running: Running) -> None:
        with running.broker() as broker:
            claims = []
            while (claim := broker.claim()) is not None:
                claims.append(claim)
            assert broker.exhausted
        assert len(claims) == 12
        assert len({claim.start.trial_id for claim in claims}) == 12
        # Methods advance evenly: no more than one trial apart at any time.
        methods = [claim.study_name for claim in claims]
        for count in range(1, 13):
            assert abs(methods[:count].count("small/grid/0") - methods[:count].count("small/random/0")) <= 1

    def test_seeds_depend_on_replicate_and_number_alone(self, running: Running) -> None:
        with running.broker() as broker:
            claims = [_claim(broker) for _ in range(4)]
        for claim in claims:
            assert claim.start.seed == derive_seed(3, 0, claim.asked.number)
            assert claim.start.split_seed == derive_seed(3, 0, "split")
        stored = running.trials("random")[0].user_attrs["shoal:seed"]
        assert stored == derive_seed(3, 0, 0)

    def test_config_has_the_fixed_part_and_the_values(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
        config = claim.start.config
        assert config.epochs == 3
        assert claim.asked.values == {"learning_rate": config.learning_rate, "lambda": config.strength}

    def test_in_flight_holds(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"in_flight": 2}}, replicates=2)
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [_claim(broker) for _ in range(4)]
            assert sorted(claim.study_name for claim in claims) == ["small/tpe/0"] * 2 + ["small/tpe/1"] * 2
            assert broker.claim() is None
            assert not broker.exhausted
            broker.end_epoch(claims[0], _report(3), last=True)
            assert _claim(broker).study_name == claims[0].study_name

    def test_budget_of_epochs(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 50, "epochs": 7})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [_claim(broker) for _ in range(3)]  # 3 × 3 epochs are promised
            assert broker.claim() is None
            assert not broker.exhausted
            for claim in claims:
                for epoch in (1, 2, 3):
                    broker.end_epoch(claim, _report(epoch), last=epoch == 3)
            assert broker.claim() is None
            assert broker.exhausted

    def test_a_study_that_is_being_asked_holds_up_nobody(self, running: Running) -> None:
        with running.broker() as broker, running.database.lock(study_lock("small/grid/0")):
            assert [_claim(broker).study_name for _ in range(6)] == ["small/random/0"] * 6
            assert broker.claim() is None
            assert not broker.exhausted

    def test_twelve_threads_never_overshoot(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 7})
        claims: list[Claim] = []

        def work(running: Running) -> None:
            with running.broker() as broker:
                while not broker.exhausted:
                    if (claim := broker.claim()) is not None:
                        claims.append(claim)

        with prepared(database, spec) as running:
            threads = [threading.Thread(target=work, args=(running,)) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(running.trials("random")) == 7
        assert sorted(claim.asked.number for claim in claims) == list(range(7))


class TestEpochs:
    def test_curve_then_report_then_verdict(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            assert broker.end_epoch(claim, _report(1, 0.25), last=False) is Verdict.CONTINUE
            assert broker.end_epoch(claim, _report(2, 0.5), last=False) is Verdict.CONTINUE
            assert broker.end_epoch(claim, _report(3, 0.75), last=True) is Verdict.FINISH
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.value, trial.user_attrs["epochs"]) == (TrialState.COMPLETE, 0.75, 3)
        assert trial.intermediate_values == {1: 0.25, 2: 0.5, 3: 0.75}
        curve = Curves(running.database).of_trial(claim.start.trial_id)
        assert [point.metrics["accuracy"] for point in curve] == [0.25, 0.5, 0.75]
        assert _states(running, claim) == ["complete"]

    def test_pruned(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = _claim(broker), _claim(broker)
            assert broker.end_epoch(good, _report(1, 0.9), last=False) is Verdict.CONTINUE
            assert broker.end_epoch(bad, _report(1, 0.1), last=False) is Verdict.PRUNE
            trial = running.storage.get_trial(bad.start.trial_id)
            assert (trial.state, trial.last_step, trial.value) == (TrialState.PRUNED, 1, 0.1)
            assert trial.user_attrs["epochs"] == 1
            assert _states(running, bad) == ["pruned"]

    def test_last_epoch_is_complete_whatever_the_pruner_thinks(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = _claim(broker), _claim(broker)
            broker.end_epoch(good, _report(1, 0.9), last=False)
            assert broker.end_epoch(bad, _report(1, 0.1), last=True) is Verdict.FINISH

    def test_diverged_is_complete_with_the_worst_value(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            report = _report(2, 0.0, diverged=True, train_loss=None, validation_loss=None, gradient_norm=None)
            assert broker.end_epoch(claim, report, last=False) is Verdict.FINISH
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.0)
        assert (trial.user_attrs["diverged"], trial.user_attrs["diverged_epoch"]) == (True, 2)

    def test_somebody_else_ended_it(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            running.storage.set_trial_state_values(claim.start.trial_id, TrialState.FAIL)
            assert broker.end_epoch(claim, _report(1), last=False) is Verdict.TAKEN
        assert _states(running, claim) == ["lost"]

    def test_a_lost_attempt_writes_nothing(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            Attempts(running.database).mark_lost(claim.start.trial_id, claim.attempt)
            assert broker.end_epoch(claim, _report(1), last=True) is Verdict.TAKEN
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.intermediate_values) == (TrialState.RUNNING, {})
        assert Curves(running.database).of_trial(claim.start.trial_id) == []


def _states(running: Running, claim: Claim) -> list[str]:
    return [attempt.state for attempt in Attempts(running.database).of_trial(claim.start.trial_id)]


class TestFailure:
    def _failure(self, claim: Claim, *, retryable: bool) -> TrialFailure:
        return TrialFailure(claim.start.trial_id, "went wrong", "Traceback: here", retryable=retryable)

    def test_the_trials_own(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            broker.fail(claim, self._failure(claim, retryable=False))
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "went wrong")
        (attempt,) = Attempts(running.database).of_trial(claim.start.trial_id)
        assert (attempt.state, attempt.reason, attempt.traceback) == (
            "failed",
            "went wrong",
            "Traceback: here",
        )

    def test_the_machines_is_tried_again_with_the_same_seed(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 1})
        with prepared(database, spec) as running, running.broker() as broker:
            seeds = set()
            for attempt in range(1, MAX_ATTEMPTS + 1):
                claim = _claim(broker)
                assert broker.claim() is None, "the study looks used up while its last trial runs"
                assert claim.attempt == attempt
                seeds.add(claim.start.seed)
                broker.fail(claim, self._failure(claim, retryable=True))
            assert broker.claim() is None
            assert broker.exhausted
            assert len(seeds) == 1
            (trial,) = running.trials("random")
            assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "went wrong")

    def test_failed_trials_are_part_of_the_budget(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            for _ in range(2):
                claim = _claim(broker)
                broker.fail(claim, self._failure(claim, retryable=False))
            assert broker.claim() is None
            assert len(running.trials("random")) == 2


class TestInterruption:
    def test_released_trials_go_on_from_their_checkpoint(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            path = broker.checkpoint_path(claim.study_name, claim.asked.number)
            assert claim.start.checkpoint is None
            broker.end_epoch(claim, _report(1), last=False)
            path.parent.mkdir(parents=True)
            path.write_text("state")
            broker.release(claim)
            again = _claim(broker)
            assert again.start.checkpoint == path
            assert (again.asked, again.attempt) == (claim.asked, 2)
            broker.end_epoch(again, _report(2), last=True)
            assert not path.exists(), "it is of no use once the trial has ended"
        assert _states(running, claim) == ["released", "complete"]

    def test_interruptions_are_not_held_against_a_trial(self, running: Running) -> None:
        with running.broker() as broker:
            for _ in range(MAX_ATTEMPTS + 1):
                claim = _claim(broker)
                broker.release(claim)
        assert running.storage.get_trial(claim.start.trial_id).state == TrialState.WAITING

    def test_experiments_of_one_name_in_two_databases_share_no_checkpoint(self, running: Running) -> None:
        later = dataclasses.replace(
            running.experiment, created_at=running.experiment.created_at + timedelta(microseconds=1)
        )
        assert checkpoint_folder(later) != checkpoint_folder(running.experiment)
        assert checkpoint_folder(running.experiment).name.startswith("small-")


class TestRecover:
    def _recover(self, running: Running, **options: bool) -> list[str]:
        return recover(running.database, running.storage, running.experiment, **options)

    def test_trials_of_the_living_are_left_alone(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            assert self._recover(running) == []
            assert broker.end_epoch(claim, _report(1), last=False) is Verdict.CONTINUE

    def test_trials_of_the_dead_come_back(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
        (line,) = self._recover(running)
        assert "trial 0 of small/grid/0 is queued again" in line
        assert self._recover(running) == []
        with running.broker() as broker:
            assert _claim(broker).asked == claim.asked
        assert _states(running, claim) == ["lost", "running"]

    def test_a_claim_that_was_cut_off_before_its_attempt(self, running: Running) -> None:
        trial_id = running.trials("grid")[0]._trial_id
        running.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        assert len(self._recover(running)) == 1
        assert running.storage.get_trial(trial_id).state == TrialState.WAITING

    def test_a_recovery_that_was_cut_off(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
        Attempts(running.database).mark_lost(claim.start.trial_id, claim.attempt)
        assert len(self._recover(running)) == 1
        assert running.storage.get_trial(claim.start.trial_id).state == TrialState.WAITING

    def test_a_trial_that_kills_its_workers_is_given_up(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS):
            with running.broker() as broker:
                claim = _claim(broker)
            (line,) = self._recover(running)
        assert "has failed: 3 workers ended" in line
        trial = running.storage.get_trial(claim.start.trial_id)
        assert trial.state == TrialState.FAIL
        assert "3 workers" in trial.user_attrs["reason"]

    def test_workers_that_the_user_killed_are_not_held_against_it(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS + 1):
            with running.broker() as broker:
                claim = _claim(broker)
            self._recover(running, interrupted=True)
        assert running.storage.get_trial(claim.start.trial_id).state == TrialState.WAITING

    def test_a_late_writer_is_refused(self, running: Running) -> None:
        """A worker that was taken for dead but isn't: its trial has gone to somebody else."""
        with running.broker("slow") as slow:
            claim = _claim(slow)
            backend = slow._worker._connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            running.database.scalar(f"SELECT pg_terminate_backend({backend}, 5000)")
            slow._worker.renew = lambda: True  # type: ignore[method-assign]
            assert len(self._recover(running)) == 1
            with running.broker("quick") as quick:
                again = _claim(quick)
                assert again.asked == claim.asked
                assert slow.end_epoch(claim, _report(1, 0.1), last=True) is Verdict.TAKEN
                assert quick.end_epoch(again, _report(1, 0.9), last=True) is Verdict.FINISH
        assert running.storage.get_trial(claim.start.trial_id).value == 0.9
