"""What brokers hand out for retraining, one claim at a time, on a real database."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from objectives.base import TrialFailure, TrialStart, derive_seed
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.retraining import INDEX_KEY, WINNER_ID_KEY, WINNER_KEY, retraining_seed
from search.trials.study import SEED_KEY, study_lock
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.claims import report_of
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FakeEngine
from tests.contracts.ledger_writes import move_deadline
from tests.search.trials.retrained_runs import SEEDS, claims_of, over, readings, retrainings, run, spec_of

pytestmark = pytest.mark.usefixtures("quick_looks")


def _end(broker: Broker, claim: Claim, value: float, epoch: int = 1) -> None:
    said = [Reported(claim, report_of(epoch, value), last=True)]
    assert set(broker.store(said).values()) == {Verdict.FINISH}


class TestClaiming:
    def test_retrainings_alone_read_the_test_set(self, database: Database) -> None:
        spec = spec_of()
        with prepared(database, spec) as running:
            searching = claims_of(running, 12)
        assert len(searching) == 12
        assert not any(claim.start.score_test or claim.retrains for claim in searching)

    def test_what_a_claim_of_a_retraining_says(self, database: Database) -> None:
        spec = spec_of()
        over(database, spec)
        with prepared(database, spec) as running:
            claims = claims_of(running, 99)
            assert len(claims) == 2 * SEEDS
            assert all(claim.start.score_test and claim.retrains for claim in claims)
            for claim in claims:
                index = claim.lease.attributes[INDEX_KEY]
                assert claim.start.seed == retraining_seed(3, 0, index)
                assert claim.start.split_seed == derive_seed(3, 0, "split")
            stored = {trial.user_attrs[SEED_KEY] for trial in retrainings(running, "random")}
            assert stored == {retraining_seed(3, 0, index) for index in range(SEEDS)}
            assert len({claim.folder.path for claim in claims}) == len(claims)
            numbers = {str(trial.number) for trial in running.trials("random")}
            assert not numbers & {claim.folder.path.name for claim in claims}

    def test_searches_come_first(self, database: Database) -> None:
        over(database, small_spec(methods={"random": {}}))
        spec = spec_of(methods={"random": {}}, replicates=2)
        experiments = Experiments(database)
        experiments.grow(experiments.get("small").id, spec.to_json(), spec.studies())
        with prepared(database, spec) as running, running.broker() as broker:
            names = [claim.lease.study_name for claim in broker.claim(8)]
        assert names == ["small/random/1"] * 6 + ["small/random/0/retrained"] * 2

    def test_a_worker_waits_for_the_last_trials_of_others(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 2})
        clock = itertools.count().__next__
        with (
            prepared(database, spec) as running,
            running.broker("a") as other,
            running.broker("b", clock=clock) as broker,
        ):
            held = other.claim(2)
            assert len(held) == 2
            assert broker.claim(1) == []
            assert not broker.exhausted, "a winner will come of them"
            for claim in held:
                other.release(claim)
            other.flush()
            assert len(broker.claim(9)) == 2

    def test_a_search_that_another_client_holds_up_is_not_waited_for(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}}, budget={"trials": 1})
        with prepared(database, spec) as running:
            claims_of(running, 1)
            # As if that client had taken it: RUNNING, under no lease.
            running.ledger.retire(1)
            study = optuna.load_study(study_name="small/random/0", storage=running.storage)
            trial = study.ask()
            trial.set_user_attr(SEED_KEY, 1)
            with running.broker() as broker:
                assert broker.claim(1) == []
                assert broker.exhausted

    def test_who_is_looked_at_by_another_is_left_and_waited_for(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        with prepared(database, spec) as running, running.broker() as broker:
            with database.lock(study_lock("small/random/0")):
                assert broker.claim(1) == []
                assert not broker.exhausted
            assert len(broker.claim(9)) == SEEDS
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_two_workers_queue_a_winner_once(self, database: Database) -> None:
        spec = spec_of()
        over(database, spec)
        with prepared(database, spec) as running:
            with running.broker("a") as one, running.broker("b") as other:
                claims = [*one.claim(2), *other.claim(99), *one.claim(99)]
            assert len({claim.lease.trial_id for claim in claims}) == len(claims) == 2 * SEEDS
            assert len(retrainings(running, "grid")) == len(retrainings(running, "random")) == SEEDS

    def test_a_retraining_of_a_former_winner_is_refused(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        with prepared(database, spec) as running:
            with running.broker(retires=True) as broker:
                broker.claim(1)
            study = optuna.load_study(study_name="small/random/0/retrained", storage=running.storage)
            marks = {WINNER_KEY: 0, WINNER_ID_KEY: -1, INDEX_KEY: 0}
            study.enqueue_trial(study.trials[0].params, user_attrs=marks)
            study.enqueue_trial({"learning_rate": 0.5})
            claims = claims_of(running, 9, worker="other")
            assert len(claims) == SEEDS
            refused = [trial for trial in retrainings(running, "random") if trial.state == TrialState.FAIL]
            reasons = [trial.user_attrs["reason"] for trial in refused]
            assert reasons[0].startswith("trial ")
            assert reasons[0].endswith("has become the winner of small/random/0 since")
            assert reasons[1:] == ["is no retraining of a winner"]

    def test_another_winner_is_noticed_with_the_end_that_made_it(self, database: Database) -> None:
        """Also where no study is read again: the clock stands."""
        spec = spec_of(methods={"random": {}}, budget={"trials": 2}, fixed={"epochs": 1})
        with prepared(database, spec) as running, running.broker(clock=lambda: 0.0) as broker:
            first, second = broker.claim(2)
            _end(broker, first, 0.5)
            broker.fail(second, TrialFailure(second.trial_id, "it broke", "here"))
            broker.flush()
            assert [claim.retrains and claim.retrains.trial_number for claim in broker.claim(9)] == [
                0
            ] * SEEDS
            (retried,) = running.ledger.retry_failed(running.experiment.id)
            broker.adopt(spec)
            (again,) = broker.claim(9)
            assert again.lease.number == retried.new_number == 2
            _end(broker, again, 0.9)
            assert [claim.retrains and claim.retrains.trial_number for claim in broker.claim(9)] == [
                2
            ] * SEEDS
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_who_has_not_heard_of_another_winner_does_not_fail_its_retrainings(
        self, database: Database
    ) -> None:
        """A worker that always finds something to train reads no search again for that."""
        spec = spec_of(methods={"random": {}}, budget={"trials": 2}, fixed={"epochs": 1})
        with (
            prepared(database, spec) as running,
            running.broker("a") as one,
            running.broker("b", clock=lambda: 0.0) as other,
        ):
            first, second = one.claim(2)
            _end(one, first, 0.5)
            one.fail(second, TrialFailure(second.trial_id, "it broke", "here"))
            one.flush()
            (former,) = other.claim(1)
            assert former.retrains is not None
            running.ledger.retry_failed(running.experiment.id)
            one.adopt(spec)
            (again,) = one.claim(1)
            _end(one, again, 0.9)
            assert [one.claim(1) for _ in range(SEEDS - 1)] == [[]] * (SEEDS - 1), "of the former winner"
            claims = other.claim(9)
            assert [claim.retrains and claim.retrains.trial_number for claim in claims] == [2] * SEEDS

    def test_leases_of_a_retraining_may_be_lost_while_the_search_grows(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        over(database, spec)
        grown = spec_of(methods={"random": {}}, budget={"trials": 7})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(9)
            assert len(claims) == SEEDS
            broker.adopt(grown)
            move_deadline(database, -3600)
            said = [Reported(claim, report_of(1), last=False) for claim in claims]
            assert set(broker.store(said).values()) == {Verdict.TAKEN}
            assert len(broker.lost()) == SEEDS
            (new,) = broker.claim(9)
            assert new.retrains is None
            _end(broker, new, 0.0, epoch=3)
            assert len(broker.claim(9)) == SEEDS, "of the same winner, going on"
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_an_epoch_of_a_retraining_is_never_judged(self, database: Database) -> None:
        pruner = {"name": "median", "n_startup_trials": 0, "n_warmup_steps": 0}
        spec = spec_of(methods={"random": {}}, pruner=pruner)
        over(database, spec)
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(9)
            said = [Reported(claim, report_of(1, 0.0), last=False) for claim in claims]
            assert broker.store(said) == {}
            assert set(broker.judge(said).values()) == {Verdict.CONTINUE}

    def test_an_engine_that_gives_no_score_fails_the_retraining(self, database: Database) -> None:
        spec = spec_of(methods={"random": {}})
        run(database, spec, "tests.search.trials.test_winners_claims:Unscored")
        assert readings(database) == []
        with prepared(database, spec) as running:
            trials: Sequence[FrozenTrial] = retrainings(running, "random")
            assert {trial.state for trial in trials} == {TrialState.FAIL}
            assert {trial.user_attrs["reason"] for trial in trials} == {
                "its trainer gave no score on the test set"
            }


class Unscored(FakeEngine):
    """An engine of somebody who has not heard of scoring."""

    def admit(self, start: TrialStart) -> None:
        super().admit(replace(start, score_test=False))
