"""A trial that waits for its twin, one epoch at a time, with the brokers of two workers."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.base import TrialFailure
from search.trials.claims import Reported, Verdict
from storage.database import Database
from tests.contracts.claims import report_of
from tests.search.trials.sharing_hands import Hand, first_two, hands, row_of, sound


def test_epochs_are_taken_over_while_the_twin_trains(database: Database) -> None:
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        assert b.take_over() == []
        a.say(led, 0.5)
        assert b.take_over(seconds=0.0) == [], "it looks again after a while"
        assert b.take_over() == [1]
        assert (row_of(running, "tpe").state, row_of(running, "tpe").epochs) == ("running", 1)
        a.say(led, 0.6, 0.7, first=2)
        assert b.take_over() == [2, 3]
        assert len(b.broker.sharing) == 0
        row = row_of(running, "tpe")
        assert (row.state, row.value, row.shared_with, row.shared_epochs) == (
            "complete",
            0.7,
            "small/random/0",
            3,
        )
        assert running.trials("tpe")[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}
        sound(running)


def test_every_epoch_is_judged_before_the_next_is_taken_over(database: Database) -> None:
    """TPE has seen a better trial by now: there it ends after the first of the twin's two epochs."""
    with hands(database) as (running, a, _):
        good, bad = a.claim(2)
        assert a.say(bad, 0.1, 0.1) is Verdict.CONTINUE, "random search has nothing to compare it with"
        a.say(good, 0.9, 0.9, 0.9)
        assert a.take_over() == [1, 2, 3]
        a.claim()
        assert a.take_over() == [1]
        row = row_of(running, "tpe", 1)
        assert (row.state, row.value, row.epochs, row.shared_epochs) == ("pruned", 0.1, 1, 1)
        assert running.trials("tpe")[1].intermediate_values == {1: 0.1}
        sound(running)


def test_a_worker_waits_for_the_last_trials(database: Database) -> None:
    with hands(database, budget={"trials": 1}) as (_, a, b):
        (led,) = a.claim()
        assert b.claim() == []
        assert not b.broker.exhausted
        a.say(led, 0.5, 0.6, 0.7)
        b.take_over()
        assert b.claim() == []
        assert b.broker.exhausted


def test_the_trial_that_waits_is_beaten(database: Database) -> None:
    with hands(database) as (running, a, b):
        first_two(a, b)
        before = running.database.scalar("SELECT min(deadline) FROM shoal.attempts WHERE worker_id = 2")
        b.clock.now += b.broker.holdings.seconds_to_beat()
        b.broker.flush()
        after = running.database.scalar("SELECT min(deadline) FROM shoal.attempts WHERE worker_id = 2")
        assert after > before


def test_a_twin_that_was_pruned_before_is_trained_after_all(database: Database) -> None:
    """From its beginning; what was taken over is not stored again, and nothing was saved."""
    with hands(database) as (running, a, b):
        led, other = first_two(a, b)
        b.say(other, 0.9, 0.9, 0.9)
        assert a.say(led, 0.1) is Verdict.PRUNE
        assert b.take_over() == [1], "TPE has no other trial yet, nothing to be worse than"
        (alone,) = b.claim()
        assert (alone.lease.study_name, alone.lease.number) == ("small/tpe/0", 0)
        assert (alone.start.checkpoint, alone.replayed) == (None, 1)
        assert b.say(alone, 0.1) is Verdict.CONTINUE, "said before"
        assert b.say(alone, 0.2, 0.3, first=2) is Verdict.FINISH
        row = row_of(running, "tpe")
        assert (row.state, row.value, row.epochs, row.attempts) == ("complete", 0.3, 3, 1)
        assert (row.shared_with, row.shared_epochs) == (None, 0)
        sound(running)


def test_a_twin_that_failed_is_trained_after_all(database: Database) -> None:
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        a.say(led, 0.5)
        a.broker.fail(led, TrialFailure(led.trial_id, "went wrong", "Traceback", retryable=False))
        a.broker.flush()
        assert b.take_over() == [1]
        (alone,) = b.claim()
        assert alone.lease.study_name == "small/tpe/0"
        b.say(alone, 0.5, 0.6, 0.7)
        assert row_of(running, "tpe").value == 0.7
        sound(running)


def test_a_diverged_twin_ends_both(database: Database) -> None:
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        a.say(led, 0.5)
        worst = report_of(2, 0.0, diverged=True, train_loss=None, validation_loss=None, gradient_norm=None)
        a._tell(Reported(led, worst, last=False))
        assert b.take_over() == [1, 2]
        row = row_of(running, "tpe")
        assert (row.state, row.diverged, row.value, row.epochs) == ("complete", True, 0.0, 2)
        sound(running)


@pytest.mark.parametrize("lost", [True, False])
def test_a_twin_that_went_back_is_followed_no_more(database: Database, lost: bool) -> None:
    """It goes on from its checkpoint, under whichever method it is trained; later it follows in turn."""
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        a.say(led, 0.5)
        led.folder.save(
            lambda path: path.write_text("state 1"), fingerprint=led.fingerprint, epoch=1, attempt=1
        )
        if lost:
            running.ledger.expire(running.experiment.id, dead_workers=[1])
        else:
            a.broker.release(led)
            a.broker.flush()
        assert b.take_over() == [1]
        (alone,) = b.claim()
        assert alone.lease.study_name == "small/tpe/0"
        assert alone.start.checkpoint is not None
        assert alone.start.checkpoint.read_text() == "state 1"
        with running.broker("c", clock=a.clock) as broker:
            c = Hand(broker, a.clock)
            assert [claim.lease.number for claim in c.claim()] == [2], "the one that went back waits"
            b.say(alone, 0.6, 0.7, first=2)
            assert c.take_over() == [2, 3]
        assert [row_of(running, method).value for method in ("random", "tpe")] == [0.7, 0.7]
        assert (row_of(running, "tpe").shared_with, row_of(running, "tpe").shared_epochs) == (
            "small/random/0",
            1,
        )
        assert row_of(running, "random").shared_epochs == 2
        sound(running)


def test_a_lease_that_ran_out_is_not_waited_for(database: Database) -> None:
    with hands(database) as (running, a, b):
        first_two(a, b)
        with running.database.begin() as connection:
            connection.execute(
                text(
                    "UPDATE shoal.attempts SET deadline = clock_timestamp() - interval '1 s' "
                    "WHERE worker_id = 1"
                )
            )
        assert b.take_over() == []
        assert [claim.lease.study_name for claim in b.claim()] == ["small/tpe/0"]


def test_waiting_trials_are_given_back(database: Database) -> None:
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        a.say(led, 0.5)
        assert b.take_over() == [1]
        for claim in b.broker.sharing.leave():
            b.broker.release(claim)
        b.broker.flush()
        assert row_of(running, "tpe").state == "waiting"
        a.say(led, 0.6, 0.7, first=2)
        with running.broker("c", clock=b.clock) as broker:
            c = Hand(broker, b.clock)
            c.claim()
            assert c.take_over() == [2, 3], "what it had is not taken over again"
        row = row_of(running, "tpe")
        assert (row.state, row.attempts, row.shared_epochs) == ("complete", 2, 2)
        sound(running)


def test_a_trial_that_others_ended_is_taken_over_no_more(database: Database) -> None:
    with hands(database) as (running, a, b):
        led, _ = first_two(a, b)
        waiting = running.trials("tpe")[0]._trial_id
        running.storage.set_trial_state_values(waiting, TrialState.FAIL)
        a.say(led, 0.5)
        b.take_over()
        b.clock.now += b.broker.holdings.seconds_to_beat()
        b.broker.flush()
        assert len(b.broker.lost()) == 1
        assert len(b.broker.sharing) == 0
        assert running.trials("tpe")[0].intermediate_values == {}


def test_a_repetition_of_a_failed_trial_takes_over_as_well(database: Database) -> None:
    with hands(database) as (running, a, b):
        (led,) = a.claim()
        a.broker.fail(led, TrialFailure(led.trial_id, "went wrong", "Traceback", retryable=False))
        a.broker.flush()
        found = [claim for claim in b.claim(2) if claim.lease.study_name == "small/tpe/0"]
        b.say(found[0], 0.5, 0.6, 0.7)
        (retried,) = running.ledger.retry_failed(running.experiment.id)
        a.clock.now += 10
        a.claim()
        assert a.take_over() == [1, 2, 3]
        row = row_of(running, "random", retried.new_number)
        assert (row.state, row.value, row.shared_with) == ("complete", 0.7, "small/tpe/0")
        sound(running)


def test_a_trial_of_other_values_is_trained(database: Database) -> None:
    with hands(database) as (running, a, b):
        optuna.load_study(study_name="small/tpe/0", storage=running.storage).enqueue_trial(
            {"learning_rate": 0.5, "lambda": 0.5}
        )
        a.claim()
        assert [claim.lease.study_name for claim in b.claim()] == ["small/tpe/0"]
        assert len(b.broker.sharing) == 0


def test_the_same_trial_given_to_two_studies_is_trained_once(database: Database) -> None:
    with hands(database) as (running, a, b):
        for method in ("random", "tpe"):
            optuna.load_study(study_name=f"small/{method}/0", storage=running.storage).enqueue_trial(
                {"learning_rate": 0.5, "lambda": 0.5}
            )
        first_two(a, b)


def test_other_replicates_are_other_trials(database: Database) -> None:
    """In a space of one value, only seeds tell trials apart."""
    space = {"learning_rate": [0.1]}
    with hands(database, replicates=2, space=space) as (_, a, b):
        begun = [claim.lease for claim in (*a.claim(2), *b.claim(2))]
        first = [lease.study_name for lease in begun if lease.number == 0]
        assert first == ["small/random/0", "small/random/1"]
        assert len(a.broker.sharing) + len(b.broker.sharing) == 2
