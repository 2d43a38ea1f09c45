"""The broker on a real database: claims, verdicts and failures."""

from __future__ import annotations

import threading

import optuna
from optuna.trial import TrialState

from objectives.base import TrialFailure, derive_seed
from search.trials.claims import Claim, Verdict
from search.trials.study import study_lock
from storage.attempts import Attempts
from storage.curves import Curves
from storage.database import Database
from storage.ledger import MAX_ATTEMPTS
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec
from tests.search.trials.broker_steps import all_claims, end_epoch, one_claim, states_of


class TestClaim:
    def test_a_trial_that_another_client_spoilt_does_not_hold_up_the_rest(self, running: Running) -> None:
        optuna.load_study(study_name="small/random/0", storage=running.storage).enqueue_trial(
            {"learning_rate": "much"}
        )
        with running.broker() as broker:
            claims = all_claims(broker) + all_claims(broker)
        assert len(claims) == 11, "the spoilt one counts as a trial"
        assert running.trials("random")[0].state == TrialState.FAIL

    def test_everything_is_claimed_once_and_no_more(self, running: Running) -> None:
        with running.broker() as broker:
            claims = all_claims(broker)
            assert broker.exhausted
        assert len(claims) == 12
        assert len({claim.start.trial_id for claim in claims}) == 12
        # Methods advance evenly: no more than one trial apart at any time.
        methods = [claim.lease.study_name for claim in claims]
        for count in range(1, 13):
            assert abs(methods[:count].count("small/grid/0") - methods[:count].count("small/random/0")) <= 1

    def test_seeds_depend_on_replicate_and_number_alone(self, running: Running) -> None:
        with running.broker() as broker:
            claims = [one_claim(broker) for _ in range(4)]
        for claim in claims:
            assert claim.start.seed == derive_seed(3, 0, claim.lease.number)
            assert claim.start.split_seed == derive_seed(3, 0, "split")
        stored = running.trials("random")[0].user_attrs["shoal:seed"]
        assert stored == derive_seed(3, 0, 0)

    def test_config_has_the_fixed_part_and_the_values(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
        config = claim.start.config
        assert config.epochs == 3
        assert claim.values == {"learning_rate": config.learning_rate, "lambda": config.strength}

    def test_in_flight_holds(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"in_flight": 2}}, replicates=2)
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [one_claim(broker) for _ in range(4)]
            assert (
                sorted(claim.lease.study_name for claim in claims)
                == ["small/tpe/0"] * 2 + ["small/tpe/1"] * 2
            )
            assert broker.claim(1) == []
            assert not broker.exhausted
            end_epoch(broker, claims[0], report_of(3), last=True)
            assert one_claim(broker).lease.study_name == claims[0].lease.study_name

    def test_budget_of_epochs(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 50, "epochs": 7})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [one_claim(broker) for _ in range(3)]  # 3 × 3 epochs are promised
            assert broker.claim(1) == []
            assert not broker.exhausted
            for claim in claims:
                for epoch in (1, 2, 3):
                    end_epoch(broker, claim, report_of(epoch), last=epoch == 3)
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_a_study_that_is_being_asked_holds_up_nobody(self, running: Running) -> None:
        with running.broker() as broker, running.database.lock(study_lock("small/grid/0")):
            assert [one_claim(broker).lease.study_name for _ in range(6)] == ["small/random/0"] * 6
            assert broker.claim(1) == []
            assert not broker.exhausted

    def test_twelve_threads_never_overshoot(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 7})
        claims: list[Claim] = []

        def work(running: Running) -> None:
            with running.broker() as broker:
                while not broker.exhausted:
                    claims.extend(broker.claim(1))

        with prepared(database, spec) as running:
            threads = [threading.Thread(target=work, args=(running,)) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(running.trials("random")) == 7
        assert sorted(claim.lease.number for claim in claims) == list(range(7))


class TestEpochs:
    def test_curve_then_report_then_verdict(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            assert end_epoch(broker, claim, report_of(1, 0.25), last=False) is Verdict.CONTINUE
            assert end_epoch(broker, claim, report_of(2, 0.5), last=False) is Verdict.CONTINUE
            assert end_epoch(broker, claim, report_of(3, 0.75), last=True) is Verdict.FINISH
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.value, trial.user_attrs["epochs"]) == (TrialState.COMPLETE, 0.75, 3)
        assert trial.intermediate_values == {1: 0.25, 2: 0.5, 3: 0.75}
        curve = Curves(running.database).of_trial(claim.start.trial_id)
        assert [point.metrics["accuracy"] for point in curve] == [0.25, 0.5, 0.75]
        assert states_of(running, claim) == ["complete"]

    def test_pruned(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = one_claim(broker), one_claim(broker)
            assert end_epoch(broker, good, report_of(1, 0.9), last=False) is Verdict.CONTINUE
            assert end_epoch(broker, bad, report_of(1, 0.1), last=False) is Verdict.PRUNE
            trial = running.storage.get_trial(bad.start.trial_id)
            assert (trial.state, trial.last_step, trial.value) == (TrialState.PRUNED, 1, 0.1)
            assert trial.user_attrs["epochs"] == 1
            assert states_of(running, bad) == ["pruned"]

    def test_last_epoch_is_complete_whatever_the_pruner_thinks(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = one_claim(broker), one_claim(broker)
            end_epoch(broker, good, report_of(1, 0.9), last=False)
            assert end_epoch(broker, bad, report_of(1, 0.1), last=True) is Verdict.FINISH

    def test_diverged_is_complete_with_the_worst_value(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            report = report_of(
                2, 0.0, diverged=True, train_loss=None, validation_loss=None, gradient_norm=None
            )
            assert end_epoch(broker, claim, report, last=False) is Verdict.FINISH
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.0)
        assert (trial.user_attrs["diverged"], trial.user_attrs["diverged_epoch"]) == (True, 2)

    def test_somebody_else_ended_it(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            running.storage.set_trial_state_values(claim.start.trial_id, TrialState.FAIL)
            assert end_epoch(broker, claim, report_of(1), last=False) is Verdict.TAKEN
        running.ledger.expire(running.experiment.id, dead_workers=[1])
        assert states_of(running, claim) == ["lost"]

    def test_a_lost_attempt_writes_nothing(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            running.ledger.expire(running.experiment.id, dead_workers=[1])
            assert end_epoch(broker, claim, report_of(1), last=True) is Verdict.TAKEN
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {})
        assert Curves(running.database).of_trial(claim.start.trial_id) == []


class TestFailure:
    def _failure(self, claim: Claim, *, retryable: bool) -> TrialFailure:
        return TrialFailure(claim.start.trial_id, "went wrong", "Traceback: here", retryable=retryable)

    def test_the_trials_own(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            broker.fail(claim, self._failure(claim, retryable=False))
            broker.flush()
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
                claim = one_claim(broker)
                assert broker.claim(1) == [], "the study looks used up while its last trial runs"
                assert claim.lease.attempt == attempt
                seeds.add(claim.start.seed)
                broker.fail(claim, self._failure(claim, retryable=True))
                broker.flush()
            assert broker.claim(1) == []
            assert broker.exhausted
            assert len(seeds) == 1
            (trial,) = running.trials("random")
            assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "went wrong")

    def test_failed_trials_are_part_of_the_budget(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            for _ in range(2):
                claim = one_claim(broker)
                broker.fail(claim, self._failure(claim, retryable=False))
                broker.flush()
            assert broker.claim(1) == []
            assert len(running.trials("random")) == 2
