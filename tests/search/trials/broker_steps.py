"""What tests tell a broker, one step at a time, and what it leaves of it."""

from __future__ import annotations

from objectives.base import EpochReport
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from storage.attempts import Attempts
from tests.contracts.experiments import Running


def one_claim(broker: Broker) -> Claim:
    (claim,) = broker.claim(1)
    return claim


def end_epoch(broker: Broker, claim: Claim, report: EpochReport, **said: bool) -> Verdict:
    """One trial's epoch, as a worker with one slot tells it."""
    one = Reported(claim, report, said.get("last", False), said.get("leaving", False))
    verdicts = broker.store([one]) or broker.judge([one])
    broker.flush()
    return verdicts[claim.lease.token]


def all_claims(broker: Broker) -> list[Claim]:
    """Claims until there is nothing."""
    claims: list[Claim] = []
    while found := broker.claim(1):
        claims += found
    return claims


def states_of(running: Running, claim: Claim) -> list[str]:
    return [attempt.state for attempt in Attempts(running.database).of_trial(claim.start.trial_id)]
