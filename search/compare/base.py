"""What was measured, as values: an experiment's studies, their trials and curves.

Everything in `compare` besides `collect` works on these values alone: no database, no clock, no
torch. A `Comparison` is a snapshot, so a report can be made again from it and tested with numbers
written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["maximize", "minimize"]
"""Whether larger or smaller values of the metric are better, in Optuna's words."""

State: TypeAlias = Literal["waiting", "running", "complete", "pruned", "failed"]
"""A trial's state, Optuna's in lower case (`FAIL` is `failed`)."""

Purpose: TypeAlias = Literal["score", "retraining"]

FINISHED: frozenset[str] = frozenset({"complete", "pruned", "failed"})
"""States in which a trial has spent all that it will spend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPoint:
    """One epoch of a trial's curve, from 1."""

    epoch: int
    value: float | None
    """The experiment's metric on the validation images."""
    train_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """One trial, with what it spent and what came of it."""

    number: int
    state: State
    value: float | None
    """What the trial was told to be worth; for a pruned trial its last report."""
    params: Mapping[str, object]
    epochs: int
    """Epochs trained, each counted once however many attempts it took."""
    seconds: float
    """Device seconds of those epochs."""
    sampler_seconds: float = 0.0
    """What drawing its values took."""
    attempts: int = 1
    reason: str | None = None
    diverged: bool = False
    shared_with: str | None = None
    """The study whose trial of the same number, values and seed was trained for both of them."""
    shared_epochs: int = 0
    """How many of `epochs` were trained for that trial alone; they count in full for both."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    curve: tuple[EpochPoint, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the trial has spent all that it will spend."""
        return self.state in FINISHED

    @property
    def eligible(self) -> bool:
        """Whether the trial may be an incumbent: trained to its end, and did not diverge."""
        return self.state == "complete" and not self.diverged and self.value is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOutcome:
    """One study: a method's trials in one replicate."""

    method: str
    replicate: int
    name: str
    trials: tuple[TrialOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of the sealed test set, each of which is logged."""

    method: str
    replicate: int
    trial: int
    seed: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]
    epochs: int
    images: int
    read_at: datetime
    purpose: Purpose = "score"
    """`retraining`: of a study's incumbent with a fresh seed, declared before the run; `score`: by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrainings:
    """Retrainings of a study's winners, the present one's and former ones', that left no reading."""

    failed: int = 0
    open: int = 0
    """Waiting or running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How trials of a kind trained on a kind of device, as it was measured and decided once."""

    program: str
    """The architecture in words."""
    batch: int
    device: str
    fused: bool
    reason: str | None = None
    """Why one by one; None: fused."""
    fused_rate: float | None = None
    """Training images per second of all slots together when it was decided; None: not measured."""
    alone_rate: float | None = None
    slots: int | None = None
    """The most that memory had room for; None: no limit was met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeen:
    """A worker that held trials; what it didn't say of itself is None."""

    host: str
    trainer: str | None = None
    """`fused`, `plain`, `function`, or the class of another engine."""
    device: str | None = None
    slots: int | None = None
    most_held: int = 0
    """The most trials that it held at once, claimed ahead ones among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """By whom the trials were run, and how many at once, as the database recorded it."""

    workers: tuple[WorkerSeen, ...] = ()
    ways: tuple[Way, ...] = ()
    most_held: Mapping[str, int] = field(default_factory=dict)
    """Study → the most of its trials that were under a lease at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that a report is made of."""

    experiment: str
    state: str
    metric: str
    direction: Direction
    spec: Mapping[str, object]
    """The experiment file as it was checked and stored."""
    environment: Mapping[str, object]
    """Versions, hardware and revision, as the controller recorded them."""
    created_at: datetime
    collected_at: datetime
    studies: tuple[StudyOutcome, ...]
    """In the order in which the file lists the methods, then by replicate."""
    readings: tuple[Reading, ...] = field(default=())
    retrainings: Mapping[str, Retrainings] = field(default_factory=dict)
    """By the name of the study whose winner was to be trained again; those without a reading."""
    execution: Execution = Execution()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the order of their first study."""
        return tuple(dict.fromkeys(study.method for study in self.studies))

    @property
    def replicates(self) -> int:
        """How many different replicates the studies have."""
        return len({study.replicate for study in self.studies})

    @property
    def is_function(self) -> bool:
        """Whether a function of the user's own is searched: it has no images and no test set."""
        return bool(self.spec.get("objective"))

    @property
    def judged(self) -> str:
        """What trials are judged by, in words: the metric on validation images, or a function's value."""
        return self.metric if self.is_function else f"validation {self.metric}"

    @property
    def scored(self) -> str:
        """What retrained winners are ranked by, in words: as `judged`, on test images."""
        return self.metric if self.is_function else f"test {self.metric}"

    def studies_of(self, method: str) -> tuple[StudyOutcome, ...]:
        """The method's studies, one per replicate."""
        return tuple(study for study in self.studies if study.method == method)
