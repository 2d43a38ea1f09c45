"""What a trial is, in values: the config it trains, the reports it gives, the engine that trains it.

Imports neither torch nor Optuna, so that the rest of the project can speak of trials without
paying for a deep-learning framework.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

Scalar: TypeAlias = bool | int | float | str
"""A value that a search space can hold, YAML can write and Optuna can store."""

FULL_BATCH = "full"
"""The batch size that means plain gradient descent: one step per epoch over all training images."""

CHOICES = {
    "loss": "cross_entropy",
    "regulariser": "l2",
    "optimizer": "sgd",
    "schedule": "constant",
    "model": "cnn",
}
"""The parts of a config that name an entry of a registry and may carry options → their default entry."""


class ObjectiveError(Exception):
    """Base of all errors raised by `objectives`; the message is written for a user."""


class TrialError(ObjectiveError):
    """One trial can't be trained (bad user module, wrong shapes …); trying again will not help."""


class SlotError(ObjectiveError):
    """An engine was asked to admit a trial without a free slot, or named a trial that it doesn't hold."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An entry of a registry with its options: ``Choice("momentum", {"momentum": 0.9})``.

    Options that are left out take the entry's own defaults.
    """

    name: str
    options: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's curve besides its seed and the data: one trial's values.

    Every `Choice` names an entry of the registry of the same name (`LOSSES`, `REGULARISERS`,
    `OPTIMIZERS`, `SCHEDULES`, `MODELS`).
    """

    loss: Choice = Choice(CHOICES["loss"])
    regulariser: Choice = Choice(CHOICES["regulariser"])
    strength: float = 0.0
    """λ, the strength of the regulariser, ≥ 0; written `lambda` in files and studies."""
    optimizer: Choice = Choice(CHOICES["optimizer"])
    learning_rate: float = 0.1
    batch_size: int | None = 64
    """Images per step; None takes all training images in one step (`full`)."""
    schedule: Choice = Choice(CHOICES["schedule"])
    epochs: int = 10
    augment: Mapping[str, Scalar] = field(default_factory=dict)
    """Augmentation name → its strength; an augmentation left out is off."""
    model: Choice = Choice(CHOICES["model"])
    class_weights: str = "none"
    """`none`, or `balanced`: each class weighs inversely to its count, mean weight 1 over the images."""
    values: Mapping[str, Scalar] = field(default_factory=dict)
    """What a function of the user's own is called with; of the rest, it is given `epochs` alone."""

    @classmethod
    def from_values(cls, values: Mapping[str, Scalar]) -> TrialConfig:
        """The config that a flat mapping of dimension names to values describes.

        Keys are `loss`, `regulariser`, `lambda`, `optimizer`, `learning_rate`, `batch_size` (an
        int or `full`), `schedule`, `epochs`, `class_weights`, and dotted ones for options:
        `loss.gamma`, `optimizer.momentum`, `schedule.warmup`, `model.width`, `augment.flip`, …;
        `model` itself names the model. An unknown key raises `ObjectiveError`; whether names and
        options exist is checked at the door, by `objectives.registry.problems_of`.
        """
        fields: dict[str, object] = {}
        options: dict[str, dict[str, Scalar]] = {group: {} for group in (*CHOICES, "augment")}
        for key, value in values.items():
            group, dot, option = key.partition(".")
            if dot and group in options and option:
                options[group][option] = value
            elif key in FIELDS:
                fields[FIELDS[key]] = value
            elif key not in CHOICES:
                raise ObjectiveError(f"{key!r} is not part of a trial's config")
        if fields.get("batch_size") == FULL_BATCH:
            fields["batch_size"] = None
        for group, default in CHOICES.items():
            fields[group] = Choice(str(values.get(group, default)), options[group])
        fields["augment"] = options["augment"]
        return cls(**fields)  # type: ignore[arg-type]  # its names were checked above


FIELDS = {
    "lambda": "strength",
    "learning_rate": "learning_rate",
    "batch_size": "batch_size",
    "epochs": "epochs",
    "class_weights": "class_weights",
}
"""Dimension name → field of `TrialConfig`, for the parts that carry no options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which images all trials of an experiment see."""

    name: str
    root: Path | None = None
    """Folder in which the data lie (or are downloaded to); None: the user's cache folder."""
    download: bool = False
    validation: float = 0.2
    """Share of the non-test images held out for validation, stratified by class, in (0, 1)."""
    image_size: int | None = None
    """Side in pixels to which images are resized; needed for `image_folder`."""
    limit: int | None = None
    """Use only the first so many non-test images, stratified; None: all."""


Precision: TypeAlias = Literal["fp32", "tf32", "bf16"]
"""See `objectives.precision`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all trials of an experiment share: the data, the metric, what may be imported, the precision."""

    data: DataSpec
    metric: str = "accuracy"
    allow_imports: tuple[str, ...] = ()
    """Modules of which `module:function` references may name something; nothing else is imported."""
    precision: Precision = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTask:
    """What all trials share that call a function of the user's own: see `objectives.plugin`."""

    function: str
    """``module:function``."""
    metric: str
    direction: Literal["minimize", "maximize"]
    worst: float
    """What a trial has whose value is not finite, or beyond this; finite itself."""
    allow_imports: tuple[str, ...] = ()
    """Modules from which the function may come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStart:
    """A trial that an engine is asked to train.

    `seed` alone decides initial weights, batch order, augmentation and dropout; `split_seed`
    decides which images are held out. `checkpoint` is a file written by `Engine.save` for the
    same trial: training then goes on after the epoch it was saved at.
    """

    trial_id: int
    config: TrialConfig
    seed: int
    split_seed: int
    checkpoint: Path | None = None
    carried: Carried | None = field(default=None, compare=False, repr=False)
    """What the same engine said the trial was, in the place of `checkpoint`: that file need not be read."""
    score_test: bool = False
    """Score the trained model once on the sealed test images; for retraining what a search has chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """What a trial says at the end of an epoch. All numbers are finite."""

    epoch: int
    """Epochs trained so far, from 1; this is Optuna's step."""
    train_loss: float | None
    """Mean over the epoch's images of loss plus regulariser; None where it was not finite."""
    validation_loss: float | None
    """Mean of the trial's own loss over the validation images; None where it was not finite."""
    metrics: Mapping[str, float]
    """Every metric of `METRICS` on the validation images."""
    gradient_norm: float | None
    """Mean over the epoch's steps of the gradient's 2-norm; None where it was not finite."""
    learning_rate: float
    """At the epoch's last step."""
    seconds: float
    """Device seconds spent on this epoch, validation included."""
    images_per_second: float
    """Training images per second of training."""
    diverged: bool = False
    """Loss or parameters became non-finite: every metric is at its declared worst, the trial ends here."""


@dataclass(frozen=True, slots=True)
class TestScore:
    """Every metric on the sealed test images, of a config trained once."""

    metrics: Mapping[str, float]
    epochs: int
    images: int
    seconds: float
    validation: Mapping[str, float] = field(default_factory=dict)

    __test__ = False  # not a test class, whatever pytest makes of the name


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """A slot is at an epoch's end; `last` says that the trial has nothing left to train."""

    trial_id: int
    report: EpochReport
    last: bool
    test: TestScore | None = None
    """With the last epoch of a trial that was started with `score_test`, and never otherwise."""


@dataclass(frozen=True, slots=True)
class TrialFailure:
    """A slot's trial raised. It has left its slot; the other slots are untouched.

    `retryable` is True for failures of the machine (out of memory), False for those of the trial.
    """

    trial_id: int
    reason: str
    traceback: str
    retryable: bool = False


class Engine(Protocol):
    """Trains the trials in its slots on one device.

    Implementers guarantee: a trial's reports depend on its `TrialStart` and the task alone, not on
    its slot, its neighbours, or when it was admitted; an exception in one trial becomes a
    `TrialFailure` and never leaves `advance`. Callers guarantee: one thread, and no `trial_id`
    admitted twice at a time. An engine knows nothing of Optuna, SQL or Ray.
    """

    @property
    def free_slots(self) -> int:
        """How many trials `admit` takes before one must be retired."""

    def admit(self, start: TrialStart) -> None:
        """Give a trial a slot. Raises `SlotError` if none is free or the trial is already held."""

    def advance(self) -> Sequence[EpochEnd | TrialFailure]:
        """Train until at least one slot is at its epoch's end; empty if nothing is left to train."""

    def retire(self, trial_id: int) -> None:
        """Free the slot of a trial that finished or was pruned. Raises `SlotError` if not held."""

    def save(self, trial_id: int, path: Path) -> None:
        """Write the trial's state at its last epoch end, whole or not at all (write aside, rename)."""


@dataclass(frozen=True, slots=True)
class StateCopy:
    """A trial's state at the end of an epoch, in the host's memory: what `Engine.save` writes, as a value."""

    fingerprint: str
    """Of the trial and its data: see `objectives.checkpoint_files.fingerprint`."""
    report: EpochReport
    """Of the epoch that the trial is at the end of."""
    state: object = field(repr=False)
    """As the engine that made it reads it. Nobody changes it."""
    size: int
    """Bytes that it takes."""


class Carried:
    """A copy of a trial's state on its way back into a slot. It is let go of by being taken.

    So who keeps a `TrialStart` for as long as the trial trains doesn't keep the state it began with.
    """

    def __init__(self, copy: StateCopy) -> None:
        self._copy: StateCopy | None = copy

    def take(self) -> StateCopy | None:
        """The copy; None if it was taken."""
        copy, self._copy = self._copy, None
        return copy


@runtime_checkable
class CopyingEngine(Protocol):
    """What an `Engine` may do besides: go on from a copy in memory as it does from a file, to the same bits.

    One that is given a copy which it can't read (another engine's, another trial's) goes by the file.
    """

    def copy_of(self, trial_id: int) -> StateCopy:
        """The trial's state at its last epoch end. Raises `SlotError` where `Engine.save` does."""


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on their order (SHA-256).

    Used for every stream of chance: ``derive_seed(experiment_seed, replicate, number)`` is a
    trial's seed, ``derive_seed(trial_seed, "order", epoch)`` one epoch's permutation.
    """
    return _as_seed(hashlib.sha256("\x1f".join(map(_part, parts)).encode()))


class SeedStem:
    """`derive_seed` with its first parts given, which are hashed once for all seeds that begin with them."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, *parts: int | str) -> None:
        self._parts = parts
        self._hash = hashlib.sha256("".join(_part(part) + "\x1f" for part in parts).encode())

    def derive(self, *parts: int | str) -> int:
        """The seed of all parts together; at least one is needed here."""
        hashed = self._hash.copy()
        hashed.update("\x1f".join(map(_part, parts)).encode())
        return _as_seed(hashed)

    def __reduce__(self) -> tuple[type[SeedStem], tuple[int | str, ...]]:
        return SeedStem, self._parts


def _as_seed(hashed: hashlib._Hash) -> int:
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


def _part(part: int | str) -> str:
    """A part of a seed such that no two lists of parts are joined to the same text."""
    if isinstance(part, str):
        return "str:" + part.replace("\x1f", "\x1f\x1f")
    return f"int:{operator.index(part)}"  # NumPy's whole numbers are numbers like others
