"""The broker on a real database: claims, verdicts, failures, and what a dead worker leaves."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.base import EpochReport, TrialFailure, derive_seed
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.holdings import LeasesLost
from search.trials.placing import Load
from search.trials.study import RETRY_KEY, study_lock
from search.work.saving import checkpoint_folder
from storage.attempts import Attempts
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.ledger import MAX_ATTEMPTS, Written
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    with prepared(database, small_spec()) as made:
        yield made


def _claim(broker: Broker) -> Claim:
    (claim,) = broker.claim(1)
    return claim


def _end_epoch(broker: Broker, claim: Claim, report: EpochReport, **said: bool) -> Verdict:
    """One trial's epoch, as a worker with one slot tells it."""
    one = Reported(claim, report, said.get("last", False), said.get("leaving", False))
    verdicts = broker.store([one]) or broker.judge([one])
    broker.flush()
    return verdicts[claim.lease.token]


def _all(broker: Broker) -> list[Claim]:
    """Claims until there is nothing."""
    claims: list[Claim] = []
    while found := broker.claim(1):
        claims += found
    return claims


class TestClaim:
    def test_a_trial_that_another_client_spoilt_does_not_hold_up_the_rest(self, running: Running) -> None:
        optuna.load_study(study_name="small/random/0", storage=running.storage).enqueue_trial(
            {"learning_rate": "much"}
        )
        with running.broker() as broker:
            claims = _all(broker) + _all(broker)
        assert len(claims) == 11, "the spoilt one counts as a trial"
        assert running.trials("random")[0].state == TrialState.FAIL

    def test_everything_is_claimed_once_and_no_more(self, running: Running) -> None:
        with running.broker() as broker:
            claims = _all(broker)
            assert broker.exhausted
        assert len(claims) == 12
        assert len({claim.start.trial_id for claim in claims}) == 12
        # Methods advance evenly: no more than one trial apart at any time.
        methods = [claim.lease.study_name for claim in claims]
        for count in range(1, 13):
            assert abs(methods[:count].count("small/grid/0") - methods[:count].count("small/random/0")) <= 1

    def test_seeds_depend_on_replicate_and_number_alone(self, running: Running) -> None:
        with running.broker() as broker:
            claims = [_claim(broker) for _ in range(4)]
        for claim in claims:
            assert claim.start.seed == derive_seed(3, 0, claim.lease.number)
            assert claim.start.split_seed == derive_seed(3, 0, "split")
        stored = running.trials("random")[0].user_attrs["shoal:seed"]
        assert stored == derive_seed(3, 0, 0)

    def test_config_has_the_fixed_part_and_the_values(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
        config = claim.start.config
        assert config.epochs == 3
        assert claim.values == {"learning_rate": config.learning_rate, "lambda": config.strength}

    def test_in_flight_holds(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"in_flight": 2}}, replicates=2)
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [_claim(broker) for _ in range(4)]
            assert (
                sorted(claim.lease.study_name for claim in claims)
                == ["small/tpe/0"] * 2 + ["small/tpe/1"] * 2
            )
            assert broker.claim(1) == []
            assert not broker.exhausted
            _end_epoch(broker, claims[0], report_of(3), last=True)
            assert _claim(broker).lease.study_name == claims[0].lease.study_name

    def test_budget_of_epochs(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 50, "epochs": 7})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = [_claim(broker) for _ in range(3)]  # 3 × 3 epochs are promised
            assert broker.claim(1) == []
            assert not broker.exhausted
            for claim in claims:
                for epoch in (1, 2, 3):
                    _end_epoch(broker, claim, report_of(epoch), last=epoch == 3)
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_a_study_that_is_being_asked_holds_up_nobody(self, running: Running) -> None:
        with running.broker() as broker, running.database.lock(study_lock("small/grid/0")):
            assert [_claim(broker).lease.study_name for _ in range(6)] == ["small/random/0"] * 6
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
            claim = _claim(broker)
            assert _end_epoch(broker, claim, report_of(1, 0.25), last=False) is Verdict.CONTINUE
            assert _end_epoch(broker, claim, report_of(2, 0.5), last=False) is Verdict.CONTINUE
            assert _end_epoch(broker, claim, report_of(3, 0.75), last=True) is Verdict.FINISH
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
            assert _end_epoch(broker, good, report_of(1, 0.9), last=False) is Verdict.CONTINUE
            assert _end_epoch(broker, bad, report_of(1, 0.1), last=False) is Verdict.PRUNE
            trial = running.storage.get_trial(bad.start.trial_id)
            assert (trial.state, trial.last_step, trial.value) == (TrialState.PRUNED, 1, 0.1)
            assert trial.user_attrs["epochs"] == 1
            assert _states(running, bad) == ["pruned"]

    def test_last_epoch_is_complete_whatever_the_pruner_thinks(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = _claim(broker), _claim(broker)
            _end_epoch(broker, good, report_of(1, 0.9), last=False)
            assert _end_epoch(broker, bad, report_of(1, 0.1), last=True) is Verdict.FINISH

    def test_diverged_is_complete_with_the_worst_value(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            report = report_of(
                2, 0.0, diverged=True, train_loss=None, validation_loss=None, gradient_norm=None
            )
            assert _end_epoch(broker, claim, report, last=False) is Verdict.FINISH
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.0)
        assert (trial.user_attrs["diverged"], trial.user_attrs["diverged_epoch"]) == (True, 2)

    def test_somebody_else_ended_it(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            running.storage.set_trial_state_values(claim.start.trial_id, TrialState.FAIL)
            assert _end_epoch(broker, claim, report_of(1), last=False) is Verdict.TAKEN
        running.ledger.expire(running.experiment.id, dead_workers=[1])
        assert _states(running, claim) == ["lost"]

    def test_a_lost_attempt_writes_nothing(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            running.ledger.expire(running.experiment.id, dead_workers=[1])
            assert _end_epoch(broker, claim, report_of(1), last=True) is Verdict.TAKEN
        trial = running.storage.get_trial(claim.start.trial_id)
        assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {})
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
                claim = _claim(broker)
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
                claim = _claim(broker)
                broker.fail(claim, self._failure(claim, retryable=False))
                broker.flush()
            assert broker.claim(1) == []
            assert len(running.trials("random")) == 2


def _save(claim: Claim, epoch: int) -> None:
    claim.folder.save(
        lambda path: path.write_text(f"state {epoch}"),
        fingerprint=claim.fingerprint,
        epoch=epoch,
        attempt=claim.lease.attempt,
    )


class TestInterruption:
    def test_released_trials_go_on_from_their_checkpoint(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            assert claim.start.checkpoint is None
            _save(claim, 1)
            assert _end_epoch(broker, claim, report_of(1), leaving=True) is Verdict.CONTINUE
            again = _claim(broker)
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"
            assert (again.trial_id, again.values, again.lease.attempt) == (claim.trial_id, claim.values, 2)
            _end_epoch(broker, again, report_of(2), last=True)
            assert not again.start.checkpoint.exists(), "it is of no use once the trial has ended"
        assert _states(running, claim) == ["released", "complete"]

    def test_a_checkpoint_of_an_epoch_that_nobody_stored_is_not_used(self, running: Running) -> None:
        """It would leave a hole in the curve: the report was on its way when its worker died."""
        with running.broker() as broker:
            claim = _claim(broker)
            _save(claim, 1)
            _end_epoch(broker, claim, report_of(1))
            _save(claim, 2)
            broker.release(claim)
            broker.flush()
            again = _claim(broker)
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"

    def test_one_that_leaves_where_it_would_be_pruned_is_pruned(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            good, bad = _claim(broker), _claim(broker)
            _end_epoch(broker, good, report_of(1, 0.9))
            _save(bad, 1)
            assert _end_epoch(broker, bad, report_of(1, 0.1), leaving=True) is Verdict.PRUNE
            assert running.storage.get_trial(bad.trial_id).state == TrialState.PRUNED
            assert not bad.folder.path.exists()

    def test_interruptions_are_not_held_against_a_trial(self, running: Running) -> None:
        with running.broker() as broker:
            for _ in range(MAX_ATTEMPTS + 1):
                claim = _claim(broker)
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
            claim = _claim(broker)
            assert running.ledger.expire(running.experiment.id) == []
            assert _end_epoch(broker, claim, report_of(1)) is Verdict.CONTINUE

    def test_trials_of_the_dead_come_back(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
        dead = self._workers(running)
        (taken,) = running.ledger.expire(running.experiment.id, dead_workers=dead)
        assert (taken.study_name, taken.number, taken.given_up) == ("small/grid/0", 0, False)
        assert running.ledger.expire(running.experiment.id, dead_workers=dead) == []
        with running.broker() as broker:
            again = _claim(broker)
        assert (again.trial_id, again.values, again.start.seed) == (
            claim.trial_id,
            claim.values,
            claim.start.seed,
        )
        assert _states(running, claim) == ["lost", "running"]

    def test_they_come_back_by_themselves_once_their_leases_ran_out(self, database: Database) -> None:
        with prepared(database, small_spec(methods={"grid": {}})) as running, running.broker() as broker:
            claim = _claim(broker)
            with running.database.begin() as connection:
                connection.execute(text("UPDATE shoal.attempts SET deadline = now() - interval '1 second'"))
            assert len(running.ledger.expire(running.experiment.id)) == 1
            assert _claim(broker).trial_id == claim.trial_id

    def test_a_trial_that_kills_its_workers_is_given_up(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS):
            with running.broker() as broker:
                claim = _claim(broker)
            (taken,) = running.ledger.expire(running.experiment.id, dead_workers=self._workers(running))
        assert taken.given_up
        trial = running.storage.get_trial(claim.trial_id)
        assert trial.state == TrialState.FAIL
        assert "3 workers" in trial.user_attrs["reason"]
        assert check_history(running.database, running.experiment.id) == []

    def test_workers_that_left_are_not_held_against_it(self, running: Running) -> None:
        for _ in range(MAX_ATTEMPTS + 1):
            with running.broker(retires=True) as broker:
                claim = _claim(broker)
        assert running.storage.get_trial(claim.trial_id).state == TrialState.WAITING

    def test_a_late_writer_is_refused(self, running: Running) -> None:
        """A worker that was taken for dead but isn't: its trial has gone to somebody else."""
        with running.broker("slow") as slow:
            claim = _claim(slow)
            running.ledger.expire(running.experiment.id, dead_workers=self._workers(running))
            with running.broker("quick") as quick:
                again = _claim(quick)
                assert again.trial_id == claim.trial_id
                assert _end_epoch(slow, claim, report_of(1, 0.1), last=True) is Verdict.TAKEN
                assert slow.lost() == [claim.lease.token]
                assert _end_epoch(quick, again, report_of(1, 0.9), last=True) is Verdict.FINISH
        assert running.storage.get_trial(claim.trial_id).value == 0.9
        assert check_history(running.database, running.experiment.id) == []

    def test_a_trial_of_a_foreign_client_is_left_alone_and_takes_no_place(self, database: Database) -> None:
        spec = small_spec(methods={"tpe": {"in_flight": 1}}, budget={"trials": 3})
        with prepared(database, spec) as running:
            foreign = optuna.load_study(study_name="small/tpe/0", storage=running.storage).ask()
            with running.broker() as broker:
                claim = _claim(broker)
                assert claim.lease.number == 1
                assert running.ledger.expire(running.experiment.id, dead_workers=[1, 2, 3]) != []
            assert running.storage.get_trial(foreign._trial_id).state == TrialState.RUNNING


class Away:
    """A ledger whose writes fail while `away`, and go to another one otherwise."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.away = False
        self.lands = False
        """Whether what fails is done all the same, as when a connection breaks after the commit."""

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
            claim = _claim(broker)
            ledger.away = True
            assert _end_epoch(broker, claim, report_of(1), last=True) is Verdict.FINISH

    def test_after_the_lease_nothing_that_was_held_is_written(self, running: Running) -> None:
        ledger = Away(running.ledger)
        now = [0.0]

        def clock() -> float:
            now[0] += 10.0 * ledger.away
            return now[0]

        with running.broker(ledger=ledger, clock=clock) as broker:
            claim = _claim(broker)
            ledger.away = True
            with pytest.raises(LeasesLost):
                broker.store([Reported(claim, report_of(1), last=True)])
            assert broker.lost() == [claim.lease.token]
            assert len(broker.holdings) == 0
            ledger.away = False
            assert _end_epoch(broker, claim, report_of(1), last=True) is Verdict.TAKEN
            assert running.storage.get_trial(claim.trial_id).state == TrialState.RUNNING


class TestGrowth:
    def test_a_larger_budget_is_noticed_at_the_next_claim(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            first = _all(broker)
            assert (len(first), broker.exhausted) == (2, True)
            broker.adopt(small_spec(methods={"random": {}}, budget={"trials": 5}))
            assert len(_all(broker)) == 3
            # What was claimed before goes on as if nothing had happened.
            assert _end_epoch(broker, first[0], report_of(3), last=True) is Verdict.FINISH

    def test_a_repeated_trial_has_the_seed_of_the_first_and_is_no_part_of_the_budget(
        self, database: Database
    ) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        later = itertools.count(0, 10)  # so that what others did is always looked up
        with prepared(database, spec) as running, running.broker(clock=lambda: next(later)) as broker:
            failure = TrialFailure(0, "went wrong", "Traceback: here", retryable=False)
            one, other = _claim(broker), _claim(broker)
            broker.fail(other, failure)
            broker.flush()
            for _ in range(2):
                (retried,) = running.ledger.retry_failed(running.experiment.id)
                again = _claim(broker)
                assert again.lease.number == retried.new_number
                assert (again.start.seed, again.values) == (other.start.seed, other.values)
                assert again.start.config == other.start.config
                broker.fail(again, failure)
                broker.flush()
            assert running.trials("random")[3].user_attrs[RETRY_KEY] == 2
            assert _end_epoch(broker, one, report_of(3), last=True) is Verdict.FINISH
            assert _all(broker) == []
            assert broker.exhausted


class Sleeper:
    """A ledger whose worker is stopped before its first claim, until the server has taken its lock."""

    def __init__(self, ledger: Any, meanwhile: Callable[[], None]) -> None:
        self._ledger = ledger
        self._meanwhile: Callable[[], None] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def claim(self, *asked: Any, **how: Any) -> Any:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return self._ledger.claim(*asked, **how)


def test_who_lost_the_studys_lock_after_counting_overshoots_no_budget(database: Database) -> None:
    holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid <> 0"
    spec = small_spec(methods={"random": {}}, budget={"trials": 2})
    with prepared(database, spec) as running, running.broker("other") as other:
        theirs: list[Claim] = []

        def meanwhile() -> None:
            with database.own_connection() as connection:
                connection.execute(text(holders))
            # In a thread of its own, as another worker: what this one has read is no news to it.
            with ThreadPoolExecutor(1) as pool:
                theirs.extend(pool.submit(_all, other).result())

        with running.broker(ledger=Sleeper(running.ledger, meanwhile)) as broker:
            assert broker.claim(2) == []
            assert (len(theirs), len(running.trials("random"))) == (2, 2)
            assert broker.claim(2) == []


def test_who_waits_for_others_reads_the_more_seldom_the_longer_reading_takes(running: Running) -> None:
    now = [0.0]
    read: list[str] = []
    with running.broker(clock=lambda: now[0]) as broker:
        _all(broker)
        load = broker._standings._load

        def slowly(name: str) -> Load:
            now[0] += 0.05
            read.append(name)
            return load(name)

        broker._standings._load = slowly  # type: ignore[method-assign]
        now[0] += 10.0
        assert broker.claim(1) == []
        assert len(read) == 2, "both studies, in a tenth of a second"
        for pause, times in ((0.3, 2), (0.6, 2), (0.2, 4)):
            now[0] += pause
            assert broker.claim(1) == []
            assert len(read) == times


class TestBatches:
    def test_several_epochs_of_a_trial_are_stored_at_once(self, running: Running) -> None:
        with running.broker() as broker:
            claim = _claim(broker)
            begun = [Reported(claim, report_of(epoch), last=False) for epoch in (1, 2)]
            assert broker.store(begun) == {}
            assert broker.judge(begun) == {claim.lease.token: Verdict.CONTINUE}
            other = _claim(broker)
            whole = [Reported(other, report_of(epoch), last=epoch == 3) for epoch in (1, 2, 3)]
            assert broker.store(whole) == {other.lease.token: Verdict.FINISH}
            ended = running.storage.get_trial(other.trial_id)
            assert (ended.state, sorted(ended.intermediate_values)) == (TrialState.COMPLETE, [1, 2, 3])
            assert check_history(running.database, running.experiment.id) == []

    def test_a_pool_is_claimed_stored_and_judged_at_once(self, database: Database) -> None:
        spec = small_spec(
            methods={"random": {}}, pruner={"name": "asha", "eta": 2}, budget={"trials": 40}, replicates=2
        )
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(32)
            assert len(claims) == 32
            assert len({claim.trial_id for claim in claims}) == 32
            by_study = [claim.lease.study_name for claim in claims]
            assert by_study.count("small/random/0") == by_study.count("small/random/1") == 16
            reports = [
                Reported(claim, report_of(1, place / 100), last=False) for place, claim in enumerate(claims)
            ]
            assert broker.store(reports) == {}
            verdicts = broker.judge(reports)
            broker.flush()
            stopped = [
                place for place, claim in enumerate(claims) if verdicts[claim.lease.token] is Verdict.PRUNE
            ]
            assert len(stopped) == 16, "the worse half of each study's rung"
            states = [trial.state for trial in (*running.trials("random", 0), *running.trials("random", 1))]
            assert states.count(TrialState.PRUNED) == 16
            assert states.count(TrialState.RUNNING) == 16
            assert check_history(database, running.experiment.id) == []

    def test_adaptive_trials_see_each_others_values(self, database: Database) -> None:
        """Claimed together or one after the other, the values are the same: each draw sees those before."""
        values = {}
        for name, batches in (("together", [3]), ("apart", [1, 1, 1])):
            spec = small_spec(
                experiment=name,
                methods={"tpe": {"n_startup_trials": 4, "in_flight": 3}},
                budget={"trials": 9},
            )
            with prepared(database, spec) as running, running.broker() as broker:
                for place in range(6):
                    claim = _claim(broker)
                    _end_epoch(broker, claim, report_of(3, place / 10), last=True)
                claims = [claim for batch in batches for claim in broker.claim(batch)]
                values[name] = [claim.values for claim in claims]
        assert len(values["together"]) == 3
        assert values["together"] == values["apart"]

    def test_a_sampler_that_raises_leaves_nothing_claimed(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a sampler's mistake")

        monkeypatch.setattr("search.trials.study.draw", broken)
        with running.broker() as broker:
            with pytest.raises(RuntimeError, match="mistake"):
                broker.claim(4)
            broker.flush()
            assert len(broker.holdings) == 0
        states = {trial.state for method in ("grid", "random") for trial in running.trials(method)}
        assert TrialState.RUNNING not in states

    @pytest.mark.parametrize("known", [True, False])
    def test_a_deleted_study_is_left_out_and_the_others_go_on(self, database: Database, known: bool) -> None:
        """Whether it was read before or not; its trials under way are refused."""
        spec = small_spec(replicates=2, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(12) if known else []
            optuna.delete_study(study_name="small/random/0", storage=running.storage)
            found = broker.claim(24 - len(claims))
            assert {claim.lease.study_name for claim in found} == {
                "small/grid/0",
                "small/grid/1",
                "small/random/1",
            }
            gone = [claim for claim in claims if claim.lease.study_name == "small/random/0"]
            assert len(claims) + len(found) == 18 + len(gone)
            reported = [Reported(claim, report_of(1, 0.5), last=False) for claim in (*claims, *found)]
            stored = broker.store(reported)
            assert stored == {claim.lease.token: Verdict.TAKEN for claim in gone}
            assert broker.lost() == [claim.lease.token for claim in gone]
            assert len(broker.judge([one for one in reported if one.claim not in gone])) == 18
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_deleted_between_storing_and_judging(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            reported = [Reported(claim, report_of(1, 0.5), last=False) for claim in broker.claim(4)]
            assert broker.store(reported) == {}
            optuna.delete_study(study_name="small/random/0", storage=running.storage)
            verdicts = broker.judge(reported)
            assert set(verdicts.values()) == {Verdict.CONTINUE}
            stored = broker.store(reported)
            assert set(stored.values()) == {Verdict.TAKEN}
