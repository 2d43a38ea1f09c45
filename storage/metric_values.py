"""What `storage.metrics` hands out: frozen numbers of experiments, of the server and of schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias

from storage.records import ExperimentState, StudyRole, TrialState

ToldState: TypeAlias = TrialState | Literal["paused"]
"""Of a trial; `paused`: it rests at a rung until it is promoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentHead:
    """An experiment by itself."""

    id: int
    name: str
    state: ExperimentState
    metric: str
    stop_requested: bool
    changed_seconds: float
    """Since its record changed last, by the database's clock; so all ages here."""


class TrialNumbers(NamedTuple):
    """Trials of a method in one state."""

    method: str
    role: StudyRole
    state: ToldState
    trials: int
    best: float | None
    """The best value of those that are complete and did not diverge."""


class CurveNumbers(NamedTuple):
    """What a method has trained."""

    method: str
    role: StudyRole
    epochs: int
    seconds: float
    """Device seconds of these epochs; an epoch that was run again counts once."""
    quiet_seconds: float
    """Since an epoch was stored last."""


class AttemptNumbers(NamedTuple):
    """Attempts of a method's trials, by how they ended, and those that run."""

    method: str
    complete: int
    pruned: int
    failed: int
    released: int
    lost: int
    running: int
    """Under a lease that lives."""
    overdue: int
    """Under a lease that ran out, and was not taken back yet."""
    sampler_seconds: float
    workers: Sequence[int]
    """Those that hold a living lease."""
    quiet_seconds: float | None
    """Since an attempt ended last; None: none has."""


class PruningNumbers(NamedTuple):
    """What a method's pruned trials did not train, had each gone on at its own pace."""

    method: str
    epochs: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentNumbers:
    """All that is told of an experiment."""

    trials: Sequence[TrialNumbers]
    maximize: bool | None
    """None while Optuna has no study of it."""
    curves: Sequence[CurveNumbers]
    attempts: Sequence[AttemptNumbers]
    pruning: Sequence[PruningNumbers]

    @property
    def quiet_seconds(self) -> float | None:
        """Since an epoch was stored or an attempt ended last; None: nothing of the kind has happened."""
        ages = [
            *(curve.quiet_seconds for curve in self.curves),
            *(attempt.quiet_seconds for attempt in self.attempts),
        ]
        return min((age for age in ages if age is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNumbers:
    """The database as a server."""

    size_bytes: int
    connections: int
    """Of all clients, to any database."""
    connections_limit: int
    oldest_transaction_seconds: float | None
    """Of any client in this database but ourselves; 0 if there is none, None if our role may not see."""
    round_trip_seconds: float
    """What a statement took that asks for nothing."""
    statements: int
    """Sent for this reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleNumbers:
    """A schedule that was not removed, and its firings."""

    name: str
    cron: str
    timezone: str
    paused: bool
    decided_until: datetime
    """Every firing time up to this one has been decided about."""
    now: datetime
    """By the database's clock."""
    queued_seconds: float
    """Since the oldest firing that waits to run was made; 0 if none does."""
    firings: Mapping[str, int]
    """State → how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeNumbers:
    """Notes about firings that are to be sent."""

    unsent: int
    oldest_seconds: float
    """Age of the oldest of these; 0 if there is none."""
    given_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldExperiment:
    """An experiment in a snapshot."""

    head: ExperimentHead
    numbers: ExperimentNumbers
    controlled: bool
    """Whether a living process controls it."""
    events: Mapping[str, int]
    """Kind → how many have happened so far; see `storage.metrics.TOLD`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One reading of everything."""

    server: ServerNumbers
    experiments: Sequence[ToldExperiment]
    states: Mapping[str, int]
    """Experiments by state, also those that are not told of one by one."""
    schedules: Sequence[ScheduleNumbers]
    notices: NoticeNumbers | None
    """None in a database that knows no schedules."""
    seconds: float
    """What the reading took."""
