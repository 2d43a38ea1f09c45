"""What an experiment would do, before it does anything: studies, trials, epochs, time.

Counts are upper bounds, without pruning; the time comes from a short measurement on this machine,
if one is asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

from objectives.base import FULL_BATCH, ObjectiveError, Scalar, Task, TrialConfig
from search.experiment.dimensions import Choices, Dimension
from search.experiment.settings import (
    AshaPromotionSettings,
    GpSettings,
    MethodSettings,
    NoPruner,
    TpeSettings,
)
from search.experiment.spec import ExperimentSpec
from search.plan_comparison import (
    ComparisonPlan,
    comparison_notes,
    comparison_plan,
    retraining_epochs,
    winner_notes,
)

Measure: TypeAlias = Callable[[Task, TrialConfig], "Rates"]
"""How fast trials of a config train on one worker of this machine."""

GP_SECONDS_PER_ASK = 0.9
"""Measured with Optuna 5.0 on one CPU core, after the random trials."""
MOST_IN_FLIGHT = 4
"""With more trials of a study at once, an adaptive method loses much of its advantage."""
VALIDATION_COST = 1 / 3
"""Of a training image's: judging an image needs the forward pass alone."""
MODEL_SIZES = ("model.width", "model.depth", "model.dense")
"""Dimensions that decide most of an epoch's cost besides the batch size."""


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """What one method does in each of its studies."""

    name: str
    settings: Mapping[str, Any]
    trials: int
    """Per study: the budget, or the grid's points if those are fewer."""
    epochs: int
    """Per study, at most."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What one worker trains in a second, and how."""

    alone: float
    """Images of one trial after the other."""
    fused: float | None = None
    """Images of all slots together; None: such trials can't be fused."""
    slots: int = 1
    bytes_per_slot: int | None = None
    """Parameters, gradients, optimizer state; activations come on top. None: not fused."""
    reason: str | None = None
    """Why such trials train one after the other; None: they don't."""
    convolutions: Mapping[str, str] = field(default_factory=dict)
    """Layer → the backend of this convolution in the fused program; empty: not fused, or not in layers."""


@dataclass(frozen=True, slots=True)
class Speed:
    """One measurement: a corner of the space, and how fast it trains."""

    values: Mapping[str, Scalar]
    """Those of its dimensions that decide the cost."""
    images_per_second: float
    """Of a worker, in the way in which it trains such trials."""
    trials_per_hour: float
    """Of a worker, with all epochs and their validations."""
    rates: Rates


@dataclass(frozen=True, slots=True)
class GridAxis:
    """What a grid takes of one dimension."""

    name: str
    kind: str
    """`given` by the file, `complete` (all values), or so many `levels` made."""
    points: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `shoal plan` prints. Every count is an upper bound, without pruning."""

    experiment: str
    dataset: str | None
    """None: trials call the function that `objective` names."""
    objective: str | None
    methods: tuple[MethodPlan, ...]
    replicates: int
    studies: int
    grid_points: int | None
    """Of the largest replicate; None: no grid among the methods."""
    grid: tuple[GridAxis, ...]
    """What the grid of the first replicate takes; empty without a grid."""
    trials: int
    epochs: int
    train_images: int | None
    """Images per epoch; None: trials call a function."""
    validation_images: int | None
    pruner: str
    metric: str
    workers: int
    speeds: tuple[Speed, ...]
    """Empty if nothing was measured."""
    seconds: tuple[float, float] | None
    """Expected duration with all workers busy, by the fastest and the slowest measurement.

    Training and validation of every epoch, the retraining of winners, and Gaussian-process asks;
    starting workers and storing results come on top.
    """
    sampler_seconds: float
    """Part of it that Gaussian-process asks are expected to take."""
    comparison: ComparisonPlan | None
    """What is claimed and can be shown; None with a single method."""
    notes: tuple[str, ...]
    """What a reader should know before starting."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def make_plan(spec: ExperimentSpec, *, measure: Measure | None = None, workers: int = 1) -> Plan:
    """The plan of an experiment on so many workers; `measure=measured_speed` adds the time.

    Measures at most four configs: smallest and largest batch with smallest and largest model.
    """
    sizes = _grid_sizes(spec)
    size = max(sizes, default=None)
    methods = tuple(_method_plan(spec, name, settings, sizes) for name, settings in spec.methods.items())
    epochs = spec.replicates * sum(method.epochs for method in methods)
    notes = _notes(spec, size)
    images = _images(spec)
    speeds: tuple[Speed, ...] = ()
    if measure is not None and images is not None:
        try:
            speeds = tuple(_measured(spec, measure, spec.max_epochs() * _per_epoch(images)))
        except ObjectiveError as error:
            notes.append(f"the speed could not be measured: {error}")
    elif images is None:
        notes.append("the time is not known: only the function itself could tell how long it takes")
    asks = sum(
        max(0, method.trials - settings.n_startup_trials)
        for method in methods
        if isinstance(settings := spec.methods[method.name], GpSettings)
    )
    sampler_seconds = GP_SECONDS_PER_ASK * asks * spec.replicates
    return Plan(
        experiment=spec.experiment,
        dataset=None if spec.data is None else spec.data.name,
        objective=None if spec.objective is None else spec.objective.function,
        methods=methods,
        replicates=spec.replicates,
        studies=len(methods) * spec.replicates,
        grid_points=size,
        grid=_grid_axes(spec),
        trials=spec.replicates * sum(method.trials for method in methods),
        epochs=epochs,
        train_images=None if images is None else images[0],
        validation_images=None if images is None else images[1],
        pruner=spec.pruner.name,
        metric=spec.metric,
        workers=workers,
        speeds=speeds,
        seconds=_seconds(
            speeds, (epochs + retraining_epochs(spec)) * _per_epoch(images), sampler_seconds, workers
        ),
        sampler_seconds=sampler_seconds,
        comparison=comparison_plan(spec),
        notes=tuple(notes),
    )


def _images(spec: ExperimentSpec) -> tuple[int, int] | None:
    """Training and validation images per epoch; None where trials call a function."""
    if spec.data is None:
        return None
    from objectives.datasets import describe

    data = describe(spec.data.data_spec())
    return data.train_images, data.validation_images


def _per_epoch(images: tuple[int, int] | None) -> float:
    return 0.0 if images is None else images[0] + VALIDATION_COST * images[1]


def _grid_sizes(spec: ExperimentSpec) -> list[int]:
    """The grid's points in each replicate; they differ where a part of a governing list is taken."""
    if "grid" not in spec.methods:
        return []
    space = spec.search_space()
    return [
        space.count({name: axis.points for name, axis in spec.grid_axes(replicate).items()})
        for replicate in range(spec.replicates)
    ]


def _grid_axes(spec: ExperimentSpec) -> tuple[GridAxis, ...]:
    if "grid" not in spec.methods:
        return ()
    return tuple(GridAxis(name, axis.kind, axis.points) for name, axis in spec.grid_axes(0).items())


def measured_speed(task: Task, config: TrialConfig, precision: str = "auto") -> Rates:
    """`objectives.fused.choose.speed_on`, imported when it is needed: it brings torch along."""
    from objectives.devices import resolve_device
    from objectives.fused.choose import speed_on
    from objectives.precision import resolve_precision

    task = replace(task, precision=resolve_precision(precision, resolve_device("auto")))
    seen = speed_on(task, config)
    return Rates(
        seen.alone,
        seen.fused or None,
        seen.tried,
        seen.bytes_per_slot or None,
        seen.reason,
        seen.convolutions,
    )


def _method_plan(
    spec: ExperimentSpec, name: str, settings: MethodSettings, grid_sizes: list[int]
) -> MethodPlan:
    trials = max(grid_sizes) if name == "grid" else spec.budget.trials
    epochs = trials * spec.max_epochs()
    if spec.budget.epochs is not None:
        epochs = min(epochs, spec.budget.epochs)
    return MethodPlan(name, settings.model_dump(mode="json"), trials, epochs)


def _seconds(
    speeds: tuple[Speed, ...], images: float, sampler_seconds: float, workers: int
) -> tuple[float, float] | None:
    rates = [speed.images_per_second for speed in speeds]
    if not rates or min(rates) <= 0:
        return None
    return (
        (images / max(rates) + sampler_seconds) / workers,
        (images / min(rates) + sampler_seconds) / workers,
    )


def _measured(spec: ExperimentSpec, measure: Measure, images_per_trial: float) -> list[Speed]:
    task = spec.task()
    found = []
    for corner in corners(spec):
        rates = measure(task, spec.config(corner))
        rate = rates.fused if rates.fused is not None and rates.reason is None else rates.alone
        found.append(Speed(corner, rate, 3600 * rate / images_per_trial, rates))
    return found


def corners(spec: ExperimentSpec) -> list[dict[str, Scalar]]:
    """The configs to measure: both ends of the batch size with both ends of the model's sizes.

    Dimensions that don't decide the cost take the defaults of a trial.
    """
    batches = [{"batch_size": end} for end in _ends(spec.space.get("batch_size"))] or [{}]
    sizes = {name: _ends(spec.space.get(name)) for name in MODEL_SIZES}
    varying = {name: ends for name, ends in sizes.items() if ends and not spec.space[name].when}
    models = [
        {name: ends[index] for name, ends in varying.items()} for index in ((0, -1) if varying else (0,))
    ]
    found: list[dict[str, Scalar]] = []
    for batch, model in itertools.product(batches, models):
        corner: dict[str, Scalar] = {**batch, **model}
        if corner not in found:
            found.append(corner)
    return found


def _ends(dimension: Dimension | None) -> list[Scalar]:
    if dimension is None:
        return []
    if isinstance(dimension, Choices):
        numbers = sorted(value for value in dimension.values if isinstance(value, int | float))
        # All images at once is the largest batch of all.
        ordered: list[Scalar] = [*numbers, *([FULL_BATCH] if FULL_BATCH in dimension.values else [])]
        return list(dict.fromkeys([*ordered[:1], *ordered[-1:]]))
    kind = int if dimension.integer else float
    return list(dict.fromkeys((kind(dimension.low), kind(dimension.high))))


def _notes(spec: ExperimentSpec, grid_size: int | None) -> list[str]:
    trials = spec.budget.trials
    notes = []
    if not isinstance(spec.pruner, NoPruner):
        notes.append(f"epochs and time are upper bounds: the pruner `{spec.pruner.name}` will save some")
    if isinstance(spec.pruner, AshaPromotionSettings):
        notes += _promotion_notes(spec, spec.pruner)
    if spec.budget.epochs is not None and spec.budget.epochs < trials * spec.max_epochs():
        notes.append(f"a study stops starting trials after {spec.budget.epochs:,} epochs")
    if len(spec.methods) > 1:
        notes += comparison_notes(spec, grid_size)
    else:
        notes += winner_notes(spec)
    for name, settings in spec.methods.items():
        notes += _method_notes(name, settings, trials)
    return notes


def _promotion_notes(spec: ExperimentSpec, pruner: AshaPromotionSettings) -> list[str]:
    rungs, epochs = 0, pruner.min_epochs
    while epochs < spec.max_epochs():
        rungs, epochs = rungs + 1, epochs * pruner.eta
    notes = []
    if spec.budget.trials < (least := pruner.eta**rungs):
        notes.append(
            f"of fewer than {least:,} trials none is promoted over all {rungs} rungs: the best of a study is "
            "trained to its end when nothing else is left"
        )
    if "gp" in spec.methods:
        notes.append("gp learns from trials that were trained to their end alone, and most will rest before")
    return notes


def _method_notes(name: str, settings: MethodSettings, trials: int) -> list[str]:
    notes = []
    if isinstance(settings, TpeSettings | GpSettings) and settings.n_startup_trials >= trials:
        notes.append(
            f"{name} begins with {settings.n_startup_trials} random trials, "
            f"so all {trials} of a study are random"
        )
    if isinstance(settings, GpSettings):
        notes.append(f"an ask of {name} costs about {GP_SECONDS_PER_ASK} s once its random trials are done")
    if settings.adaptive and (settings.in_flight is None or settings.in_flight > MOST_IN_FLIGHT):
        count = "any number of" if settings.in_flight is None else f"{settings.in_flight}"
        notes.append(
            f"{name} runs {count} trials of a study at once: it learns less than with 1 to {MOST_IN_FLIGHT}"
        )
    return notes
