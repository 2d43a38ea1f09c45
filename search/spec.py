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

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator
from pydantic_core import PydanticCustomError

from objectives.base import CHOICES, DataSpec, Scalar, Task, TrialConfig
from search.dimensions import Choices, Dimension, Range, ScalarValue, dimension_form
from search.problems import Problem, SpecError, nearest, shown
from search.settings import (
    METHODS,
    PRUNER_SETTINGS,
    REFUSED_METHODS,
    ComparisonSettings,
    MethodSettings,
    NoPruner,
    PrunerSettings,
    RandomSettings,
    Settings,
    TpeSettings,
)
from search.space import SearchSpace

__all__ = ["ExperimentSpec", "Problem", "SpecError", "load_spec", "read_spec", "schema"]

MAX_REPLICATES = 1000
MAX_TRIALS = 100_000
MAX_EPOCHS = 100_000
MAX_DIMENSIONS = 64
MAX_IMAGES = 100_000_000
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
Text = Annotated[str, Field(min_length=1, max_length=256)]
Options = Annotated[dict[Text, ScalarValue], Field(max_length=MAX_DIMENSIONS)]


class DataSettings(Settings):
    """Which images all trials see."""

    name: Text
    """The dataset: digits, mnist, fashion_mnist, kmnist, cifar10, cifar100, svhn or image_folder."""
    root: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder with the data; relative to this file. Null: the user's cache folder."""
    download: bool = False
    """Whether missing data may be downloaded into `root`."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images held out to judge trials, stratified by class."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels to which images are resized; needed for `image_folder`."""
    limit: Annotated[int, Field(ge=2, le=MAX_IMAGES)] | None = None
    """Use only so many of the training images, stratified by class; null: all."""

    def data_spec(self) -> DataSpec:
        """As `objectives` takes it."""
        return DataSpec(
            name=self.name,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            validation=self.validation,
            image_size=self.image_size,
            limit=self.limit,
        )


class ModelSettings(BaseModel):
    """Which network, with its options beside its name; those that vary belong in `space`."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )
    __pydantic_extra__: dict[str, ScalarValue] = Field(init=False)

    name: Text = "cnn"
    """`cnn`, `resnet`, or `module:factory` of your own (see `allow_imports`)."""

    @property
    def options(self) -> dict[str, Scalar]:
        """The options that the file gives."""
        return dict(self.__pydantic_extra__)


class Budget(Settings):
    """What one study may spend; each method × replicate is one study."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 50
    """Trials per study."""
    epochs: Annotated[int, Field(ge=1, le=MAX_TRIALS * MAX_EPOCHS)] | None = None
    """Epochs per study after which no new trial begins; null: no limit."""


def _spelled_out(value: object) -> object:
    """The long spelling of a section that may be a bare name: ``model: cnn``."""
    return {"name": value} if isinstance(value, str) else value


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
    data: Annotated[DataSettings, BeforeValidator(_spelled_out)]
    """Which images all trials see."""
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
    """What is judged, on validation images: accuracy, error, macro_f1 or log_loss."""
    comparison: ComparisonSettings = ComparisonSettings()
    """What is claimed, declared before the run."""
    allow_imports: Annotated[tuple[Text, ...], Field(max_length=64, strict=False)] = ()
    """Python modules from which `module:function` references may be imported."""

    @field_validator("space")
    @classmethod
    def _resolve_types(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        return {name: with_type(name, dimension) for name, dimension in space.items()}

    # Values for the rest of the program

    def task(self) -> Task:
        """What all trials share."""
        return Task(data=self.data.data_spec(), metric=self.metric, allow_imports=self.allow_imports)

    def constants(self) -> dict[str, Scalar]:
        """The part of a config that all trials share, as `TrialConfig.from_values` names it."""
        options = {f"model.{option}": value for option, value in self.model.options.items()}
        return {"model": self.model.name, **options, **self.fixed}

    def config(self, values: Mapping[str, Scalar]) -> TrialConfig:
        """The config of a trial with these values of the dimensions."""
        return TrialConfig.from_values({**self.constants(), **values})

    def search_space(self) -> SearchSpace:
        """The dimensions with their order and conditions."""
        return SearchSpace(self.space)

    def max_epochs(self) -> int:
        """The most epochs that a trial can have, without pruning."""
        return max_epochs(self.fixed, self.space)

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
        are. What is claimed may not change, for it was declared before the run. The settings of a method may
        not change either, but a method may be added: see `conflicts`.
        """
        plain = self.to_json()
        data = {key: value for key, value in plain["data"].items() if key not in {"root", "download"}}
        kept = ("seed", "model", "fixed", "space", "pruner", "metric")
        declared = {key: value for key, value in plain["comparison"].items() if key != "retrain"}
        return {"data": data, **{key: plain[key] for key in kept}, "comparison": declared}

    def space_hash(self) -> str:
        """SHA-256 of `identity` in canonical JSON: 64 hexadecimal digits."""
        text = json.dumps(_canonical(self.identity()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def conflicts(self, stored: ExperimentSpec) -> list[Problem]:
        """What of `stored` this spec changes though it may not; empty if both are one experiment."""
        before, now = stored.identity(), self.identity()
        for plain, spec, other in ((before, stored, self), (now, self, stored)):
            plain["methods"] = {
                name: settings.model_dump(mode="json", exclude={"in_flight"})
                for name, settings in spec.methods.items()
                if name in other.methods
            }
        remedy = "put it back, or give the experiment another name"
        return [
            Problem(place, f"was {shown(old)} when the experiment was made, now it is {shown(new)}", remedy)
            for place, old, new in _differences(_canonical(before), _canonical(now), "")
        ]

    # Storage

    def to_json(self) -> dict[str, Any]:
        """Plain values for a database or a report; `from_json` is the inverse."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ExperimentSpec:
        """The spec that `to_json` wrote; reads no registry, so it needs no torch."""
        return cls.model_validate(stored)


def max_epochs(fixed: Mapping[str, Scalar], space: Mapping[str, Dimension]) -> int:
    """The most epochs that a trial can have: the upper end of the dimension, or the fixed number."""
    default = int(cast("int", fixed.get("epochs", TrialConfig().epochs)))
    dimension = space.get("epochs")
    if dimension is None:
        return default
    ends = dimension.values if isinstance(dimension, Choices) else (dimension.high,)
    most = max(int(end) for end in ends if not isinstance(end, str))
    return max(most, default) if dimension.when else most


def with_type(name: str, dimension: Dimension) -> Dimension:
    """The dimension with `type` written out, so that a stored spec needs no registry to be read.

    A range is of integers if its name takes integers (`batch_size`, `epochs`, `model.width` …), or
    if the name is unknown and low, high and step are written without a decimal point.
    """
    if isinstance(dimension, Choices) or dimension.type is not None:
        return dimension
    kind = _kind(name)
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


def _canonical(value: Any) -> Any:
    """Numbers written as 1 and as 1.0 are one number; keys have no order."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _differences(old: Any, new: Any, place: str) -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if json.dumps(old) == json.dumps(new) else [(place, _flat(old), _flat(new))]


def _flat(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value


def load_spec(path: str | Path) -> ExperimentSpec:
    """Read an experiment file. Raises `SpecError` with every problem of it, and nothing else."""
    from search.reading import load

    return load(Path(path))


def read_spec(text: str | bytes, *, folder: Path, name: str = "") -> ExperimentSpec:
    """As `load_spec`, from the text of a file that lies (or would lie) in `folder`."""
    from search.reading import read

    return read(text, folder=folder, name=name)


def schema() -> dict[str, Any]:
    """The JSON Schema of an experiment file, for editors."""
    from search.file_schema import file_schema

    return file_schema()
