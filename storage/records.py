"""What the storage hands out: frozen values, detached from any connection. All times are UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

ExperimentState: TypeAlias = Literal["created", "running", "stopped", "finished", "failed"]
"""created → running → stopped | finished | failed, and from each of these back to running (resume)."""

AttemptState: TypeAlias = Literal["running", "complete", "pruned", "failed", "released", "lost"]
"""running → one of the others, for good. `released`: given back on purpose (interrupted), counts
for nothing; `lost`: its worker is gone."""

EventKind: TypeAlias = Literal[
    "registered",
    "retired",
    "claimed",
    "drawn",
    "released",
    "requeued",
    "completed",
    "pruned",
    "failed",
    "expired",
    "given_up",
    "refused",
    "retried",
]
"""What the event log tells. Of a worker: registered, retired. Of a lease: claimed, drawn, refused (a
write that came too late), and how it ended: completed, pruned and failed end the trial with it;
released and requeued (an attempt that failed) put it back; expired was taken from its worker.
given_up: the trial failed as well, having used up its attempts. retried: a failed trial has a
repetition."""

StudyRole: TypeAlias = Literal["search", "retraining"]
"""What a study is for: a method's search, or training the winner of one again with fresh seeds."""

Purpose: TypeAlias = Literal["score", "retraining"]
"""Why the test set was read: by hand, or of a study's winner with a fresh seed, as the file declared."""

LaunchState: TypeAlias = Literal["submitted", "running", "finished", "stopped", "failed", "lost"]
"""submitted → running → finished | stopped | failed, as the driver says itself; lost: it ended, or never
began, and said nothing."""

TrialState: TypeAlias = Literal["waiting", "running", "complete", "pruned", "failed"]
"""Optuna's states in our words; its FAIL is `failed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRecord:
    """What an experiment file described, and how far it is."""

    id: int
    name: str
    spec: Mapping[str, Any]
    space_hash: str
    """Of everything that must not change between runs of one name."""
    state: ExperimentState
    stop_requested: bool
    created_at: datetime
    updated_at: datetime
    environment: Mapping[str, Any]
    """Versions and hardware of the controller that created it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRecord:
    """How trials of a kind train on a kind of device; see `storage.models.Program`."""

    program: str
    batch: int
    device: str
    fused: bool
    reason: str | None = None
    fused_rate: float | None = None
    alone_rate: float | None = None
    slots: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """One method × replicate, or the retraining of its winner; `name` is the Optuna study's."""

    id: int
    experiment_id: int
    method: str
    replicate: int
    name: str
    role: StudyRole = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One time that a worker ran a trial."""

    id: int
    study_name: str
    trial_number: int
    trial_id: int
    number: int
    """From 1, without gaps, per trial."""
    worker: str
    state: AttemptState
    reason: str | None
    traceback: str | None
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewMember:
    """A worker that held trials of an experiment."""

    name: str
    host: str
    told: Mapping[str, Any]
    """What it said of itself when it registered: `trainer`, `device`, `slots`; nothing of older ones."""
    most_held: int
    """The most trials that it held at once, those that it had claimed ahead among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One point of a trial's curve. None stands for a number that was not finite."""

    study_name: str
    trial_number: int
    trial_id: int
    attempt: int
    epoch: int
    """From 1; Optuna's step."""
    train_loss: float | None
    validation_loss: float | None
    metrics: Mapping[str, float]
    gradient_norm: float | None
    learning_rate: float
    seconds: float
    images_per_second: float
    diverged: bool


class CurveArrays(NamedTuple):
    """A trial's curve, column by column; all equally long, by epoch. None: there was no finite number."""

    epochs: Sequence[int]
    values: Sequence[float | None]
    """Of the metric that was asked for."""
    train_losses: Sequence[float | None]
    validation_losses: Sequence[float | None]
    seconds: Sequence[float]
    written_at: datetime
    """When the last of it was stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgress:
    """How far a study is: trials by state, and what they cost and found."""

    study: StudyRecord
    waiting: int
    """In the queue, those that rest among them."""
    running: int
    complete: int
    pruned: int
    failed: int
    epochs: int
    """Trained so far, by trials in any state that Optuna still holds; one that was run again counts once."""
    seconds: float
    """Device seconds of those epochs."""
    best: float | None
    """The best value of a complete trial in the study's direction; None if there is none."""
    present: bool = True
    """Whether Optuna's tables hold the study: it may not be made yet, or somebody deleted it."""
    paused: int = 0
    """Those of `waiting` that rest at a rung until they are promoted."""

    @property
    def trials(self) -> int:
        """All trials, in whatever state."""
        return self.waiting + self.running + self.complete + self.pruned + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial with everything a table of trials shows."""

    study_name: str
    method: str
    replicate: int
    number: int
    trial_id: int
    state: TrialState
    value: float | None
    params: Mapping[str, Any]
    """In the order in which they were suggested; categorical ones as their choice."""
    epochs: int
    seconds: float
    """Device seconds of its epochs."""
    sampler_seconds: float
    """What drawing its values took, over all its attempts."""
    attempts: int
    reason: str | None
    """Why it failed, or why its newest attempt ended without a result."""
    diverged: bool
    started_at: datetime | None
    ended_at: datetime | None
    shared_with: str | None = None
    """The study whose trial of equal values and seed was trained for this one as well."""
    shared_epochs: int = 0
    """Epochs that were not trained for this one therefore; they and their seconds count all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestReading:
    """One reading of the sealed test images: a config trained once and scored on them."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    id: int
    experiment_id: int
    study_name: str
    trial_id: int
    trial_number: int
    """The trial of the search whose config was trained, not the one that trained it again."""
    config: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float]
    """On the test images; of a function of the user's own, its value."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """Of the same training, on the validation images."""
    epochs: int
    images: int
    """0 for a function."""
    seconds: float
    read_at: datetime
    purpose: Purpose = "score"
    retraining_trial_id: int | None = None
    """Of a retraining: the trial that trained it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """One submission of an experiment to a cluster; see `storage.launch_models.Launch`."""

    id: int
    experiment_id: int
    generation: int
    submission: str
    address: str
    options: Mapping[str, Any]
    state: LaunchState
    reason: str | None
    exit_code: int | None
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def is_over(self) -> bool:
        """Whether its driver is known to have ended."""
        return self.ended_at is not None
