"""What an experiment is: the values of an experiment file, checked once at the door.

`load_spec` reads a file and refuses it with every problem at once; past that door an
`ExperimentSpec` is typed, frozen and trusted. It is stored in the database as `to_json` writes it,
and a worker on another machine rebuilds it from there without looking at the file again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from objectives.base import CHOICES, FunctionTask, ObjectiveError, Scalar, Task, TrialConfig
from search.experiment.dimensions import Choices, Dimension, Range, dimension_form
from search.experiment.identity import canonical, conflicts_of, identity_of, shrinks_of
from search.experiment.problems import Problem, SpecError, nearest, shown
from search.experiment.sections import (
    MAX_DIMENSIONS,
    Budget,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    Options,
    Text,
)
from search.experiment.settings import (
    METHODS,
    PRUNER_SETTINGS,
    REFUSED_METHODS,
    ComparisonSettings,
    GridSettings,
    MethodSettings,
    NoPruner,
    PrunerSettings,
    RandomSettings,
    Settings,
    TpeSettings,
)
from search.experiment.space import SearchSpace
from search.sampling.grid import Axis, grid_axes, grid_points

__all__ = ["ExperimentSpec", "Problem", "SpecError", "load_spec", "read_spec", "schema"]

MAX_REPLICATES = 1000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
INTEGERS = frozenset({"batch_size", "epochs"})
FLOATS = frozenset({"lambda", "learning_rate"})


def _experiment_name(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("name", f"must be text, not {shown(value)}", {"remedy": NAME_RULE})
    if not NAME.fullmatch(value):
        text = f"{shown(value)} ({len(value)} characters)" if len(value) > 64 else shown(value)
        raise PydanticCustomError("name", f"{text} is no experiment name", {"remedy": NAME_RULE})
    return value


NAME_RULE = "1 to 64 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"


def _spelled_out(value: object) -> object:
    """The long spelling of a section that may be a bare name: ``model: cnn``."""
    return {"name": value} if isinstance(value, str) else value


def _function(value: object) -> object:
    """The same of ``objective: module:function``."""
    return {"function": value} if isinstance(value, str) else value


def pruner_from(value: object) -> PrunerSettings:
    """A pruner's settings from plain values; raises pydantic's errors."""
    if isinstance(value, PrunerSettings):
        return value
    value = _spelled_out(value)
    if not isinstance(value, Mapping):
        raise PydanticCustomError("form", f"must be a mapping with `name`, not {shown(value)}")
    name = value.get("name")
    if not isinstance(name, str) or name not in PRUNER_SETTINGS:
        remedy = nearest(name if isinstance(name, str) else "", PRUNER_SETTINGS)
        raise PydanticCustomError("pruner", f"there is no pruner {shown(name)}", {"remedy": remedy})
    return PRUNER_SETTINGS[name].model_validate(value)


def method_from(name: str, value: object) -> MethodSettings:
    """A method's settings from plain values, nothing meaning the defaults; raises pydantic's errors."""
    if isinstance(value, MethodSettings):
        return value
    if name not in METHODS:
        if (lowered := re.sub(r"[^a-z]", "", name.lower())) in REFUSED_METHODS:
            remedy = f"use one of: {', '.join(METHODS)}"
            raise PydanticCustomError("method", cast("Any", REFUSED_METHODS[lowered]), {"remedy": remedy})
        raise PydanticCustomError(
            "method", f"there is no method {shown(name)}", {"remedy": nearest(name, METHODS)}
        )
    return METHODS[name].model_validate({} if value is None else value)


def _methods(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {name: method_from(str(name), settings) for name, settings in value.items()}


def _space(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    dimensions: dict[object, object] = {}
    for name, written in value.items():
        if isinstance(written, Choices | Range):
            dimensions[name] = written
        else:
            form, long = dimension_form(written)
            dimensions[name] = form.model_validate_json(json.dumps(long))
    return dimensions


class ExperimentSpec(Settings):
    """An experiment: one search space, one budget, several methods that are compared on it."""

    experiment: Annotated[str, BeforeValidator(_experiment_name), Field(pattern=f"^{NAME.pattern}$")]
    """The experiment's name: under it everything is stored and found again."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """All chance comes from this number: splits, initial weights, orders, samplers."""
    data: Annotated[DataSettings | None, BeforeValidator(_spelled_out)] = None
    """Which images all trials see; null: none, `objective` says what a trial is."""
    objective: Annotated[ObjectiveSettings | None, BeforeValidator(_function)] = None
    """A function of your own instead of data and model; null: networks are trained on `data`."""
    model: Annotated[ModelSettings, BeforeValidator(_spelled_out)] = ModelSettings()
    """Which network all trials train, with its fixed options."""
    fixed: Options = Field(default_factory=dict)
    """Parts of a trial's config that don't vary: `epochs`, `loss`, `optimizer`, `schedule.warmup`, …"""
    space: Annotated[
        dict[Text, Dimension], BeforeValidator(_space), Field(min_length=1, max_length=MAX_DIMENSIONS)
    ]
    """Parts of a trial's config that the methods search over."""
    methods: Annotated[
        dict[str, SerializeAsAny[MethodSettings]], BeforeValidator(_methods), Field(min_length=1)
    ] = Field(default_factory=lambda: {"random": RandomSettings(), "tpe": TpeSettings()})
    """The methods to compare, each with its settings (`{}`: the defaults)."""
    replicates: Annotated[int, Field(ge=1, le=MAX_REPLICATES)] = 30
    """How often each method runs, with other splits and seeds; below 10 nothing can be claimed."""
    budget: Budget = Budget()
    """What each study may spend."""
    pruner: Annotated[SerializeAsAny[PrunerSettings], BeforeValidator(pruner_from)] = NoPruner()
    """When a poor trial is stopped before its last epoch."""
    metric: Text = "accuracy"
    """What is judged, on validation images: accuracy, error, macro_f1 or log_loss; or by `objective`."""
    comparison: ComparisonSettings = ComparisonSettings()
    """What is claimed, declared before the run."""
    allow_imports: Annotated[tuple[Text, ...], Field(max_length=64, strict=False)] = ()
    """Python modules from which `module:function` references may be imported."""

    @field_validator("space")
    @classmethod
    def _resolve_types(cls, space: dict[str, Dimension], info: ValidationInfo) -> dict[str, Dimension]:
        function = info.data.get("objective") is not None
        return {name: with_type(name, dimension, function=function) for name, dimension in space.items()}

    @model_validator(mode="after")
    def _either_or(self) -> ExperimentSpec:
        if (self.data is None) == (self.objective is None):
            raise PydanticCustomError("either_or", "needs either `data` or `objective`")
        return self

    # Values for the rest of the program

    def task(self) -> Task:
        """What all trials share that train networks. Raises `ObjectiveError` where they call a function."""
        if self.data is None:
            raise ObjectiveError(f"{self.experiment} trains no networks: its objective is a function")
        return Task(data=self.data.data_spec(), metric=self.metric, allow_imports=self.allow_imports)

    def function_task(self) -> FunctionTask | None:
        """What all trials of a function of the user's own share; None: networks are trained."""
        if self.objective is None:
            return None
        return FunctionTask(
            function=self.objective.function,
            metric=self.metric,
            direction=self.objective.direction,
            worst=self.objective.worst,
            allow_imports=self.allow_imports,
        )

    def direction(self) -> Literal["minimize", "maximize"]:
        """Whether small or large values of the metric are good. Imports torch for metrics of networks."""
        if self.objective is not None:
            return self.objective.direction
        from objectives.metrics import METRICS

        return METRICS[self.metric].direction

    def constants(self) -> dict[str, Scalar]:
        """The part of a config that all trials share, as `TrialConfig.from_values` names it."""
        if self.objective is not None:
            return {"epochs": self.max_epochs(), **self.fixed}
        options = {f"model.{option}": value for option, value in self.model.options.items()}
        return {"model": self.model.name, **options, **self.fixed}

    def config(self, values: Mapping[str, Scalar]) -> TrialConfig:
        """The config of a trial with these values of the dimensions."""
        if self.objective is None:
            return TrialConfig.from_values({**self.constants(), **values})
        given = {**self.constants(), **values}
        return TrialConfig(epochs=int(given.pop("epochs")), values=given)

    def search_space(self) -> SearchSpace:
        """The dimensions with their order and conditions."""
        return SearchSpace(self.space)

    def max_epochs(self) -> int:
        """The most epochs that a trial can have, without pruning."""
        return max_epochs(self.fixed, self.space, default_epochs(function=self.objective is not None))

    def grid_axes(self, replicate: int) -> dict[str, Axis]:
        """What the grid takes of every dimension in a replicate. `KeyError` without a grid."""
        return grid_axes(self.search_space(), self._grid(), self.budget.trials, self.seed, replicate)

    def grid_points(self, replicate: int) -> list[dict[str, Scalar]]:
        """The grid's points in a replicate, in the order in which they are tried. `KeyError` without one."""
        return grid_points(self.search_space(), self._grid(), self.budget.trials, self.seed, replicate)

    def _grid(self) -> GridSettings:
        settings = self.methods["grid"]
        assert isinstance(settings, GridSettings)
        return settings

    def study_name(self, method: str, replicate: int) -> str:
        """The name of a study in Optuna's tables."""
        return f"{self.experiment}/{method}/{replicate}"

    def studies(self) -> list[tuple[str, int, str]]:
        """Method, replicate (from 0) and name of every study, replicate by replicate.

        That order is the one to run in: an experiment that is stopped early has whole replicates.
        """
        return [
            (method, replicate, self.study_name(method, replicate))
            for replicate in range(self.replicates)
            for method in self.methods
        ]

    # Identity

    def identity(self) -> dict[str, Any]:
        """Everything that may not change under one experiment name.

        That is what decides which configs are tried and what a trial's value is. These may change,
        because finished trials stay what they were: `replicates`, `budget`, `in_flight`, how often
        winners are retrained, where the data lie, what may be imported, and which methods there
        are. What is claimed may not change, for it was declared before the run. The settings of a
        method may not change either, nor the budget of a grid whose levels are made from it, but a
        method may be added: see `conflicts`.
        """
        return identity_of(self)

    def space_hash(self) -> str:
        """SHA-256 of `identity` in canonical JSON: 64 hexadecimal digits."""
        text = json.dumps(canonical(self.identity()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def conflicts(self, stored: ExperimentSpec) -> list[Problem]:
        """What of `stored` this spec changes though it may not; empty if both are one experiment."""
        return conflicts_of(self, stored)

    def shrinks(self, stored: ExperimentSpec) -> list[Problem]:
        """What this spec would take away from `stored`, which is allowed but seldom meant; empty if nothing.

        Fewer replicates, trials, epochs or retraining seeds, or a method less: what is there of
        them stays in the database, but an experiment that is stored like that no longer shows it.
        """
        return shrinks_of(self, stored)

    # Storage

    def to_json(self) -> dict[str, Any]:
        """Plain values for a database or a report; `from_json` is the inverse."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ExperimentSpec:
        """The spec that `to_json` wrote; reads no registry, so it needs no torch."""
        return cls.model_validate(stored)


def default_epochs(*, function: bool) -> int:
    """The epochs of a trial where a file says nothing: a function of the user's own has one value."""
    return 1 if function else TrialConfig().epochs


def max_epochs(fixed: Mapping[str, Scalar], space: Mapping[str, Dimension], default: int) -> int:
    """The most epochs that a trial can have: the upper end of the dimension, or the fixed number."""
    default = int(cast("int", fixed.get("epochs", default)))
    dimension = space.get("epochs")
    if dimension is None:
        return default
    ends = dimension.values if isinstance(dimension, Choices) else (dimension.high,)
    most = max(int(end) for end in ends if not isinstance(end, str))
    return max(most, default) if dimension.when else most


def with_type(name: str, dimension: Dimension, *, function: bool = False) -> Dimension:
    """The dimension with `type` written out, so that a stored spec needs no registry to be read.

    A range is of integers if its name takes integers (`batch_size`, `epochs`, `model.width` …), or
    if the name is unknown and low, high and step are written without a decimal point. To a `function`
    of the user's own all names but `epochs` are unknown.
    """
    if isinstance(dimension, Choices) or dimension.type is not None:
        return dimension
    kind = None if function and name != "epochs" else _kind(name)
    integer = dimension.integer if kind is None else kind == "int"
    return dimension.model_copy(update={"type": "int" if integer else "float"})


def _kind(name: str) -> Literal["int", "float"] | None:
    if name in INTEGERS:
        return "int"
    if name in FLOATS:
        return "float"
    group, dot, option = name.partition(".")
    if not dot:
        return None
    from objectives import registry

    kinds = set()
    if group in CHOICES:
        for entry in registry.names(group):
            found = registry.options(group, entry).get(option)
            kinds.add(found.kind if found else None)
    elif group == "augment" and option in registry.names(group):
        kinds.add(registry.options(group, option)["amount"].kind)
    if "float" in kinds:
        return "float"
    return "int" if "int" in kinds else None


def load_spec(path: str | Path) -> ExperimentSpec:
    """Read an experiment file. Raises `SpecError` with every problem of it, and nothing else."""
    from search.experiment.reading import load

    return load(Path(path))


def read_spec(text: str | bytes, *, folder: Path, name: str = "") -> ExperimentSpec:
    """As `load_spec`, from the text of a file that lies (or would lie) in `folder`."""
    from search.experiment.reading import read

    return read(text, folder=folder, name=name)


def schema() -> dict[str, Any]:
    """The JSON Schema of an experiment file, for editors."""
    from search.experiment.file_schema import file_schema

    return file_schema()
