"""The ledger: what workers may write, and the leases under which they may.

A worker holds a trial by a *lease*: a fencing token, an attempt number and a deadline by the
database's clock. Every write carries the token and is refused once the deadline has passed or the
trial was given to somebody else; the clocks and time zones of clients play no part. What belongs
together is one transaction: a trial's state, its attempt, its last epoch and the event that tells
of it are there together or not at all. `storage.batched_ledger` writes Optuna's tables itself, a
whole pool of slots in one round trip; `storage.stock_ledger` goes through any Optuna storage, for
a schema of Optuna's that we don't know.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from storage.curves import Report

MAX_ATTEMPTS = 3
"""Attempts that failed or were lost before a trial is given up; those given back on purpose don't count."""

LEASE_VARIABLE = "SHOAL_LEASE_SECONDS"
LEASE_SECONDS = 30.0
"""How long a lease lasts without being prolonged; beat every third of it."""


def lease_seconds() -> float:
    """How long a lease lasts; `SHOAL_LEASE_SECONDS` overrides the default. All workers must agree."""
    try:
        seconds = float(os.environ.get(LEASE_VARIABLE, ""))
    except ValueError:
        return LEASE_SECONDS
    return seconds if math.isfinite(seconds) and seconds > 0 else LEASE_SECONDS


Scalar: TypeAlias = bool | int | float | str

EndState: TypeAlias = Literal["complete", "pruned", "failed", "released", "retry"]
"""How a worker parts with a trial. The first three end the trial. `released`: given back on purpose, goes on
later, counts for nothing; `retry`: this attempt failed, the trial goes back to the queue, or has
failed if this was its last attempt (`MAX_ATTEMPTS`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker's hold on a trial, with what the database knew of the trial when it was given."""

    study_name: str
    trial_id: int
    number: int
    """Optuna's number of the trial in its study, from 0."""
    attempt: int
    """From 1, without gaps, per trial."""
    token: int
    """Fencing token: of two leases of a trial the later has the larger; unique in the database."""
    deadline: datetime
    """By the database's clock; to be shown, never to be compared with a client's clock."""
    params: Mapping[str, Any]
    """Values that were drawn by an earlier attempt, as users see them; empty for a new trial."""
    fixed: Mapping[str, Any]
    """Values that were given with the trial when it was enqueued (a point of a grid)."""
    attributes: Mapping[str, Any]
    """The trial's user attributes."""
    last_step: int | None
    """The last epoch that an earlier attempt reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The values of a trial, drawn by its holder; stored before its first epoch."""

    lease: Lease
    values: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    """User attributes to set with them."""
    sampler_seconds: float = 0.0
    """What drawing them took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochWrite:
    """An epoch's end: a point of the curve, and Optuna's intermediate value."""

    lease: Lease
    report: Report
    value: float
    """The experiment's metric; finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingWrite:
    """What a retraining found on the sealed test set, for the log of its readings."""

    study_name: str
    trial_id: int
    trial_number: int
    """The trial of the search whose config was trained again."""
    config: Mapping[str, Scalar]
    seed: int
    metrics: Mapping[str, float]
    """On the test images."""
    validation: Mapping[str, float]
    epochs: int
    images: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a worker parts with a trial."""

    lease: Lease
    state: EndState
    value: float | None = None
    """Of a complete trial; a pruned one keeps its last report. Finite."""
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    """User attributes to set with it."""
    reason: str | None = None
    """Needed for `failed` and `retry`."""
    traceback: str | None = None
    reading: ReadingWrite | None = None
    """Of a complete trial that was a retraining. Of a winner's seed that was read before, the first stays."""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a `write`."""

    refused: Mapping[int, str] = field(default_factory=dict)
    """Token → why, for the leases that were lost (or whose trial somebody else ended or deleted): nothing
    of them was stored, everything of the others was."""
    given_up: frozenset[int] = frozenset()
    """Tokens that ended with `retry` although it was the trial's last attempt: the trial has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """A trial that was taken from a worker that let its lease run out, or is known to be dead."""

    study_name: str
    trial_id: int
    number: int
    attempt: int
    worker: str
    given_up: bool
    """Whether it has failed for good, having used up its attempts, instead of going back to the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A failed trial, and the new one in the queue that runs its values once more."""

    study_name: str
    number: int
    new_number: int


class Ledger(Protocol):
    """Everything that a worker writes. One thread at a time; errors of the database leave it as ours.

    Every method is one transaction. After a connection broke in its middle a method is tried again
    by itself: each is written so that doing it twice is doing it once, or finds out that it was
    done. Raises `DatabaseUnreachable` when the database stays away for longer than it waits.
    """

    def register(self, name: str, told: Mapping[str, Any] | None = None) -> int:
        """Note that a worker of that name starts, on this host and in this process; its id.

        `told`: how it trains, for the event log.
        """

    def retire(self, worker_id: int) -> None:
        """Note that a worker ended. Leases that it still holds go back to the queue at once."""

    def claim(
        self,
        study_name: str,
        worker_id: int,
        *,
        waiting: int,
        new: int,
        of: int | None = None,
        among: Collection[int] | None = None,
    ) -> list[Lease]:
        """Take trials: up to `waiting` from the queue, and `new` that are made for it.

        `among`: numbers of the trials of the queue that may be taken; the others stay where they are.

        `of`: how many trials the study had when it was found that it may have `new` more; none is
        made if it has another number by now. Whoever found that may have been stopped since, or cut
        off, and with it lost the study's lock to others who counted as well.
        Of the queue, trials that have values come first, then by number: what was begun goes on before
        anything begins, and one whose worker died before it was drawn is not begun. A trial in
        Optuna's tables is RUNNING from the same transaction on that gives its lease, so there is
        no moment at which it runs without one. Numbers are dense and distinct also beside stock
        Optuna clients. Gives nothing where another client holds the study's row for longer than a
        moment: ask again later. Raises `StudyNotFound` if no experiment holds the study or Optuna's tables
        don't.
        """

    def write(
        self,
        *,
        beats: Collection[Lease] = (),
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Written:
        """Store everything that a pool has to say, and prolong all leases named: one round trip.

        A lease that was lost refuses what belongs to it and nothing else; each refusal is noted as
        an event. Within a lease the order is draws, epochs, ending. An epoch that an earlier
        attempt reported is written over, and one beyond the last of the attempt that ends the
        trial is dropped; steps of one attempt increase strictly (else the lease is refused). The
        reason of a trial that failed becomes its user attribute `reason`. An ending said twice
        is refused the second time. Raises
        `ValueRefused` for a number that is not finite, before anything is stored.
        """

    def expire(self, experiment_id: int, *, dead_workers: Collection[int] = ()) -> list[Expired]:
        """Take back the trials whose leases ran out, or whose workers are known to be dead.

        They go back to the queue, or have failed if this was their last attempt: in the same
        transaction. Anyone may call it at any time; two callers don't do it twice. Trials without
        an attempt of ours (a foreign client runs them) are left alone.
        """

    def retry_failed(self, experiment_id: int) -> list[Retried]:
        """Put failed trials in the queue again, as new trials with the same values.

        Optuna's finished trials never change, so the failed one stays and the new one names it:
        in the user attribute `shoal:retry_of` and as Optuna's own retry callback does. The new
        trial has the seed of the one that it repeats. A trial is retried once: what failed
        again is retried by its newest repetition.
        """
