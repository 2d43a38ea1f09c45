"""Trials that several methods draw are trained once: workers on a real database, every epoch counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.base import TrialFailure
from search.compare.collect import collect
from search.compare.execution import shared_in_words
from search.control.crew import Assignment, work
from search.experiment.spec import ExperimentSpec
from search.sampling.chance import NamedRandomSampler
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.sharing import LOOK_SECONDS, may_be_common
from storage import queries
from storage.checker import check_history
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
from storage.records import TrialRow
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.fake_engine import FAKE, FOUR_SLOTS, LOG_VARIABLE
from tests.contracts.wire import Wire, wired

SHARING = {"random": {}, "tpe": {"in_flight": 1}, "gp": {"in_flight": 1}}
"""Three methods that begin with the same ten trials, as their defaults have it."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every epoch that is trained is written down."""
    path = tmp_path / "epochs.log"
    monkeypatch.setenv(LOG_VARIABLE, str(path))
    return path


def shared_spec(**changes: Any) -> ExperimentSpec:
    return small_spec(**{"methods": SHARING, "budget": {"trials": 12}} | changes)


def run(running: Running, *trainers: str) -> None:
    """As many workers as trainers, until nothing is left."""

    def one(place: int, trainer: str) -> None:
        assignment = Assignment(running.database.url, running.experiment.name, trainer, "cpu")
        try:
            work(assignment, f"w{place}", threading.Event())
        except BaseException as error:  # noqa: BLE001 (raised below)
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=one, args=place) for place in enumerate(trainers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "it waits for ever"
    if errors:
        raise errors[0]


def curves(running: Running) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    """What every trial said at every epoch."""
    return {
        (point.study_name.split("/", 1)[1], point.trial_number, point.epoch): (
            point.metrics,
            point.train_loss,
            point.validation_loss,
            point.gradient_norm,
            point.learning_rate,
            point.diverged,
        )
        for point in Curves(running.database).of_experiment(running.experiment.id)
    }


def trained(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("trainers", [[FAKE], [FOUR_SLOTS], [FAKE] * 3, [FOUR_SLOTS, FAKE]])
def test_what_methods_share_is_trained_once(database: Database, log: Path, trainers: Sequence[str]) -> None:
    with prepared(database, shared_spec()) as running:
        run(running, *trainers)
        assert len(trained(log)) == 3 * (12 + 2 + 2), "ten of twelve trials are those of random search"
        rows = queries.trials(database, running.experiment.id)
        assert Counter((row.method, row.state) for row in rows) == dict.fromkeys(
            [("random", "complete"), ("tpe", "complete"), ("gp", "complete")], 12
        )
        assert {row.epochs for row in rows} == {3}
        assert check_history(database, running.experiment.id, at_rest=True) == []
        together = curves(running)
    log.unlink()
    alone = {}
    for method, settings in SHARING.items():
        with prepared(database, shared_spec(experiment=method, methods={method: settings})) as running:
            run(running, FAKE)
            alone |= curves(running)
    assert len(trained(log)) == 3 * 36
    assert together == alone


def test_shared_trials_are_told_and_cost_what_they_would_have_cost(database: Database, log: Path) -> None:
    with prepared(database, shared_spec()) as running:
        run(running, FOUR_SLOTS)
        rows = {(row.method, row.number): row for row in queries.trials(database, running.experiment.id)}
    told = {place: (row.shared_with, row.shared_epochs) for place, row in rows.items() if row.shared_with}
    # Which of three is trained is a matter of time; that it is one of them is not.
    assert len(told) == 2 * 10
    for number in range(10):
        of_number = {method: told.get((method, number)) for method in SHARING}
        (trained_one,) = [method for method, said in of_number.items() if said is None]
        assert set(of_number.values()) <= {None} | {(f"small/{method}/0", 3) for method in SHARING}
        seconds = {rows[method, number].seconds for method in SHARING}
        assert seconds == {rows[trained_one, number].seconds}
    outcomes = collect(database, "small")
    assert sum(trial.shared_epochs for study in outcomes.studies for trial in study.trials) == 60
    assert "60 epochs that are counted were not trained" in shared_in_words(outcomes)


@pytest.mark.parametrize("workers", [1, 3])
def test_with_a_pruner_every_study_judges_for_itself(database: Database, log: Path, workers: int) -> None:
    spec = shared_spec(pruner={"name": "asha", "eta": 2}, fixed={"epochs": 4})
    with prepared(database, spec) as running:
        run(running, *[FOUR_SLOTS] * workers)
        rows = queries.trials(database, running.experiment.id)
        assert Counter(row.state for row in rows) >= Counter(complete=3, pruned=3)
        assert {row.state for row in rows} == {"complete", "pruned"}
        assert check_history(database, running.experiment.id, at_rest=True) == []
        told = curves(running)
    assert [row.epochs for row in rows if row.state == "complete"] == [4] * sum(
        row.state == "complete" for row in rows
    )
    same = Counter((place[1], place[2]) for place in told if place[1] < 8)
    values = {(place[1], place[2], str(said)) for place, said in told.items() if place[1] < 8}
    assert len(values) == len(same), "one curve for each trial of the first eight"
    assert len(trained(log)) < len(told)


# A trial at a time, with the brokers of two workers.


class Clock:
    """Goes when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


PAIR: dict[str, Any] = {
    "methods": {"random": {}, "tpe": {"in_flight": 1}},
    "pruner": {"name": "median", "n_startup_trials": 1},
}


@dataclass
class Hand:
    """A worker that does what it is told."""

    broker: Broker
    clock: Clock

    def claim(self, wanted: int = 1) -> list[Claim]:
        return self.broker.claim(wanted)

    def say(self, claim: Claim, *values: float, first: int = 1, epochs: int = 3, **said: Any) -> Verdict:
        """What an engine says of a trial, and the last verdict on it."""
        for epoch, value in enumerate(values, first):
            verdict = self._tell(Reported(claim, report_of(epoch, value), last=epoch == epochs, **said))
        return verdict[claim.lease.token]

    def _tell(self, *reported: Reported) -> dict[int, Verdict]:
        verdicts = self.broker.store(reported)
        verdicts |= self.broker.judge([one for one in reported if one.claim.lease.token not in verdicts])
        self.broker.flush()
        return verdicts

    def take_over(self, seconds: float = LOOK_SECONDS) -> list[int]:
        """Take over all that there is after so long; the epochs."""
        self.clock.now += seconds
        epochs = []
        while reported := self.broker.sharing.replay():
            epochs += [one.report.epoch for one in reported]
            self._tell(*reported)
        return epochs


@contextmanager
def hands(database: Database, **changes: Any) -> Iterator[tuple[Running, Hand, Hand]]:
    """An experiment of random search and TPE, and two workers."""
    with prepared(database, shared_spec(**PAIR | changes)) as running, ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            clock = Clock()
            made.append(Hand(stack.enter_context(running.broker(name, clock=clock)), clock))
        yield running, made[0], made[1]


def first_two(a: Hand, b: Hand) -> tuple[Claim, Claim]:
    """The first trial of random search, with `a`; that of TPE waits with `b`, which has another to train."""
    (led,) = a.claim()
    (other,) = b.claim()
    assert (led.lease.study_name, led.lease.number) == ("small/random/0", 0)
    assert (other.lease.study_name, other.lease.number) == ("small/random/0", 1), "a slot does not wait"
    assert len(b.broker.sharing) == 1
    assert not b.broker.exhausted
    return led, other


def row_of(running: Running, method: str, number: int = 0) -> TrialRow:
    rows = queries.trials(running.database, running.experiment.id, method=method)
    return rows[number]


def sound(running: Running) -> None:
    assert check_history(running.database, running.experiment.id) == []


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


def test_a_method_that_is_added_later_takes_over_what_is_there(database: Database, log: Path) -> None:
    with prepared(database, shared_spec(methods={"tpe": {"in_flight": 1}})) as running:
        run(running, FOUR_SLOTS)
    grown = shared_spec(methods={"tpe": {"in_flight": 1}, "random": {}})
    Experiments(database).grow(running.experiment.id, grown.to_json(), grown.studies())
    with prepared(database, grown) as running:
        run(running, FOUR_SLOTS)
        assert len(trained(log)) == 3 * (12 + 2)
        assert row_of(running, "random", 3).shared_with == "small/tpe/0"
        sound(running)


class TestCost:
    """In messages to the database, which are exact whatever the machine is doing."""

    def _trips(self, wire: Wire) -> int:
        queries, wire.queries = list(wire.queries), []
        return sum("set_config('TimeZone'" not in query for query in queries)

    @pytest.mark.parametrize(
        ("methods", "more"),
        [({"random": {}}, 0), ({"random": {}, "tpe": {"in_flight": 1}}, 1), ({"grid": {}, "random": {}}, 0)],
        ids=["one", "first-trials", "grid"],
    )
    def test_of_a_claim(self, database: Database, methods: dict[str, Any], more: int) -> None:
        """One look for a whole round, where other methods may have drawn the same."""
        with (
            wired(database.url) as wire,
            Database(wire.url) as on_wire,
            prepared(on_wire, shared_spec(methods=methods, budget={"trials": 6})) as running,
            running.broker() as broker,
        ):
            broker.claim(1)
            broker.claim(1)
            self._trips(wire)
            (claim,) = broker.claim(1)
            assert claim.lease.study_name == f"small/{next(iter(methods))}/0"
            assert self._trips(wire) == 5 + more

    def test_of_epochs_while_trials_wait(self, database: Database) -> None:
        """Nothing: they are looked at once in a while, however short the epochs are."""
        with (
            wired(database.url) as wire,
            Database(wire.url) as on_wire,
            hands(on_wire, pruner={"name": "none"}, fixed={"epochs": 50}) as (_, a, b),
        ):
            (led,) = a.claim()
            a.say(led, 0.5)
            (other,) = b.claim()
            b.take_over()
            self._trips(wire)
            for epoch in range(1, 21):
                assert b.broker.sharing.replay() == []
                b.broker.store([Reported(other, report_of(epoch), last=False)])
            assert self._trips(wire) == 20


class TestMayBeCommon:
    KINDS: ClassVar[dict[str, BaseDistribution]] = {
        "rate": FloatDistribution(1e-3, 1.0, log=True),
        "share": FloatDistribution(0.0, 1.0, step=0.25),
        "width": IntDistribution(1, 64),
        "loss": CategoricalDistribution(["a", "b"]),
    }

    def values(self, number: int, **changed: Any) -> dict[str, Any]:
        study = optuna.create_study(sampler=NamedRandomSampler(3, 0))
        for _ in range(number + 1):
            trial = study.ask(self.KINDS)
        return trial.params | changed

    def test_the_values_that_every_method_begins_with(self) -> None:
        assert may_be_common(self.values(5), self.KINDS, 3, 0, 5)

    @pytest.mark.parametrize("changed", [{"rate": 0.5}, {"loss": "c"}, {"width": 65}])
    def test_others_of_a_dimension_that_cannot_be_counted(self, changed: dict[str, Any]) -> None:
        assert not may_be_common(self.values(5, **changed), self.KINDS, 3, 0, 5)

    def test_those_of_another_number(self) -> None:
        assert not may_be_common(self.values(5), self.KINDS, 3, 0, 4)

    def test_any_where_all_can_be_counted(self) -> None:
        assert may_be_common({"share": 0.25, "width": 7, "loss": "b"}, self.KINDS, 3, 0, 5)
