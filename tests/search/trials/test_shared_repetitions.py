"""Repetitions of a trial that failed for several methods are trained once, as the trial itself is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from objectives.base import TrialFailure
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported
from search.trials.sharing import LOOK_SECONDS
from storage import queries
from storage.checker import check_history
from storage.database import Database
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec

SPEC = small_spec(methods={"random": {}, "tpe": {"in_flight": 4}}, budget={"trials": 2})

SPEC_OF_ONE = small_spec(
    space={"learning_rate": [0.1]},
    methods={"random": {}, "tpe": {"in_flight": 4}},
    budget={"trials": 2},
)


class Hand:
    """A worker that does what it is told, with a clock that goes when it is told."""

    def __init__(self, stack: ExitStack, running: Running, name: str) -> None:
        self._now = 0.0
        self.broker: Broker = stack.enter_context(running.broker(name, clock=lambda: self._now))

    def claim(self) -> Claim | None:
        """The next trial that is to be trained, if any is, after what there is to be taken over."""
        self.take_over()
        claims = self.broker.claim(1)
        return claims[0] if claims else None

    def fail(self, claim: Claim) -> None:
        self.broker.fail(claim, TrialFailure(claim.trial_id, "went wrong", "Traceback", retryable=False))
        self.broker.flush()

    def train(self, claim: Claim, value: float) -> None:
        """To its end."""
        for epoch in (1, 2, 3):
            self.broker.store([Reported(claim, report_of(epoch, value), last=epoch == 3)])
            self.broker.flush()

    def take_over(self) -> None:
        """All that there is by now."""
        self._now += 10 * LOOK_SECONDS
        while reported := self.broker.sharing.replay():
            self.broker.store(reported)
            self.broker.flush()


@contextmanager
def failed(database: Database) -> Iterator[tuple[Running, Hand, Hand]]:
    """The first trial failed for random search alone, the second for both: they wait to be repeated.

    So the second's repetition is random search's fourth trial, and TPE's third.
    """
    with prepared(database, SPEC) as running, ExitStack() as stack:
        a, b = (Hand(stack, running, name) for name in ("a", "b"))
        begun = []
        while claim := a.claim():
            begun.append(place(claim))
            if begun[-1] == ("tpe", 0):
                a.train(claim, 0.5)
            else:
                a.fail(claim)
        assert sorted(begun) == [("random", 0), ("random", 1), ("tpe", 0), ("tpe", 1)]
        retried = running.ledger.retry_failed(running.experiment.id)
        assert sorted((one.study_name, one.number, one.new_number) for one in retried) == [
            ("small/random/0", 0, 2),
            ("small/random/0", 1, 3),
            ("small/tpe/0", 1, 2),
        ]
        yield running, a, b


def place(claim: Claim) -> tuple[str, int]:
    """Method and number of a trial."""
    return claim.lease.study_name.split("/")[1], claim.lease.number


def repetitions(running: Running) -> dict[tuple[str, int], tuple[str, float | None, int]]:
    """State, value, and how many epochs were taken over, of all repetitions."""
    rows = queries.trials(running.database, running.experiment.id)
    return {
        (row.method, row.number): (row.state, row.value, row.shared_epochs) for row in rows if row.number >= 2
    }


def test_two_repetitions_of_other_numbers_are_trained_once(database: Database) -> None:
    with failed(database) as (running, a, b):
        led = a.claim()
        assert led is not None
        assert place(led) in (("random", 3), ("tpe", 2))
        assert b.claim() is None, "the other waits for it, without a slot"
        a.train(led, 0.7)
        assert a.claim() is b.claim() is None
        told = repetitions(running)
        assert told.pop(("random", 2)) == ("complete", 0.5, 3), "TPE's first trial was there to be taken over"
        assert told.pop(place(led)) == ("complete", 0.7, 0)
        assert list(told.values()) == [("complete", 0.7, 3)]
        assert check_history(database, running.experiment.id, at_rest=True) == []


def test_a_repetition_is_trained_where_the_other_failed_again(database: Database) -> None:
    with failed(database) as (running, a, b):
        led = a.claim()
        assert led is not None
        assert b.claim() is None
        a.fail(led)
        hand, other = next((hand, claim) for hand in (b, a) if (claim := hand.claim()) is not None)
        assert {place(led), place(other)} == {("random", 3), ("tpe", 2)}
        (again,) = running.ledger.retry_failed(running.experiment.id)
        assert a.claim() is b.claim() is None, "what is repeated once more waits for the one that runs"
        hand.train(other, 0.7)
        assert a.claim() is b.claim() is None
        told = repetitions(running)
        assert told[place(other)] == ("complete", 0.7, 0)
        assert told[place(led)[0], again.new_number] == ("complete", 0.7, 3)
        assert check_history(database, running.experiment.id, at_rest=True) == []


def test_another_trial_is_no_twin_of_a_repetition(database: Database) -> None:
    """In a space of one value, only the trial that is repeated in the end tells them apart."""
    with prepared(database, SPEC_OF_ONE) as running, ExitStack() as stack:
        a = Hand(stack, running, "a")
        while claim := a.claim():
            a.fail(claim)
        assert len(running.ledger.retry_failed(running.experiment.id)) == 4
        trained = 0
        while claim := a.claim():
            a.train(claim, 0.1 * (trained := trained + 1))
        a.take_over()
        assert trained == 2
        values = {place: value for place, (_, value, _) in repetitions(running).items()}
        assert values["random", 2] == values["tpe", 2] != values["random", 3] == values["tpe", 3]
