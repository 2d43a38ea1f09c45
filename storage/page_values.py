"""What `storage.pages` hands out: frozen values for the web view. All times are UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.records import AttemptState, TrialState


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentOverview:
    """An experiment in a list: what it is and how far."""

    id: int
    name: str
    state: str
    spec: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime
    studies: int
    waiting: int
    """For a slot."""
    paused: int
    """Trials that rest at a rung until they are promoted."""
    running: int
    complete: int
    pruned: int
    failed: int
    best: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """A study's best value so far, from the moment on at which so many epochs were spent."""

    study_id: int
    epochs: int
    """Of all trials that had ended by then."""
    trials: int
    """How many had ended by then."""
    best: float | None
    """None while none of them may be the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTrial:
    """A trial in a picture of many."""

    trial_id: int
    number: int
    study_id: int
    method: str
    replicate: int
    state: TrialState
    value: float
    names: Sequence[str]
    numbers: Sequence[float]
    """As Optuna stores them."""
    distributions: Sequence[str]
    """Optuna's JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One attempt of a trial."""

    number: int
    worker: str
    host: str
    state: AttemptState
    reason: str | None
    traceback: str | None
    started_at: datetime
    ended_at: datetime | None
    sampler_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A trial that runs, and who runs it."""

    worker_id: int
    worker: str
    host: str
    process: int
    experiment_id: int
    experiment: str
    study_id: int
    study_name: str
    method: str
    replicate: int
    trial_id: int
    trial_number: int
    attempt: int
    seconds: float
    """Since the attempt began."""
    epochs: int
    """Whose end was stored."""
    metric: float | None
    """The experiment's, at the last of them."""
    quiet_seconds: float | None
    """Since the last of them was stored."""
    alive: bool
    """Whether the lease holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """A process that runs trials and has not said that it ended."""

    id: int
    name: str
    host: str
    process: int
    started_at: datetime
    running: int
    """Attempts that it holds."""
    alive: int
    """How many of their leases hold."""
