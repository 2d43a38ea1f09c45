"""The parts of an experiment file that could be read, for the checks of what they must agree on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from objectives.base import Scalar
from search.experiment.dimensions import Choices, Dimension
from search.experiment.sections import Budget, DataSettings, ModelSettings, ObjectiveSettings
from search.experiment.settings import ComparisonSettings, MethodSettings, PrunerSettings
from search.experiment.spec import default_epochs, max_epochs

Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """The parts of an experiment file that could be read. None: that part is broken."""

    data: DataSettings | None
    model: ModelSettings | None
    fixed: Mapping[str, Scalar]
    space: Mapping[str, Dimension]
    methods: Mapping[str, MethodSettings]
    budget: Budget | None
    pruner: PrunerSettings | None
    metric: str | None
    allow_imports: Collection[str] | None
    broken: frozenset[str] = frozenset()
    """Names in `fixed` and `space` that exist but could not be read."""
    model_is_named: bool = False
    """Whether the file itself says which model."""
    data_name: str | None = None
    """The dataset, which may be readable though `data` is not."""
    method_names: frozenset[str] = frozenset()
    """Those that the file names, readable or not."""
    comparison: ComparisonSettings | None = None
    objective: ObjectiveSettings | None = None
    keys: frozenset[str] = frozenset()
    """The sections that the file has."""

    @property
    def is_function(self) -> bool:
        """Whether trials call a function of the user's own, readable or not."""
        return "objective" in self.keys

    @property
    def most_epochs(self) -> int:
        """The most epochs that a trial can have."""
        return max_epochs(self.fixed, self.space, default_epochs(function=self.is_function))

    @property
    def imports(self) -> Collection[str]:
        """The modules that may be imported; none where the file can't be read."""
        return self.allow_imports or ()


def items(draft: Draft) -> list[tuple[Place, str, Dimension]]:
    """Every part of a config that the file sets, a constant as a dimension of one value."""
    constants = [(("fixed", key), key, value) for key, value in draft.fixed.items()]
    if draft.model is not None and not draft.is_function:
        constants += [(("model", key), f"model.{key}", value) for key, value in draft.model.options.items()]
    found: list[tuple[Place, str, Dimension]] = [
        (place, key, Choices(values=(value,))) for place, key, value in constants
    ]
    return found + [(("space", name), name, dimension) for name, dimension in draft.space.items()]


def values_at(place: Place, dimension: Dimension) -> list[tuple[Place, Scalar]]:
    """The values to check, with their places: each one listed, or both ends of a range."""
    if isinstance(dimension, Choices):
        if place[0] != "space":
            return [(place, dimension.values[0])]
        return [((*place, "values", index), value) for index, value in enumerate(dimension.values)]
    kind = int if dimension.integer else float
    return [((*place, "low"), kind(dimension.low)), ((*place, "high"), kind(dimension.high))]


def written(draft: Draft, key: str) -> list[tuple[Place, Scalar]]:
    """Every value that the file gives to a part of a config, with its place."""
    return [
        pair for place, name, dimension in items(draft) if name == key for pair in values_at(place, dimension)
    ]
