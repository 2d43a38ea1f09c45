"""Experiments whose methods share trials, and workers that take them over as they are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from search.experiment.spec import ExperimentSpec
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.sharing import LOOK_SECONDS
from storage import queries
from storage.checker import check_history
from storage.database import Database
from storage.records import TrialRow
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec

SHARING = {"random": {}, "tpe": {"in_flight": 1}, "gp": {"in_flight": 1}}
"""Three methods that begin with the same ten trials, as their defaults have it."""


def shared_spec(**changes: Any) -> ExperimentSpec:
    return small_spec(**{"methods": SHARING, "budget": {"trials": 12}} | changes)


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
