"""One dimension of a search space: the values it may take and when it is part of a trial.

A dimension has one of two forms. `Choices` lists its values; `Range` gives the ends of an interval.
Either may name the points that a grid takes, and a condition: ``when: {optimizer: [sgd, momentum]}``
makes a dimension part of those trials alone whose optimizer is one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, cast

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from objectives.base import Scalar
from search.experiment.problems import shown
from search.experiment.settings import Settings

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

MAX_NUMBER = 10**15
"""Largest magnitude of a number in a space: exact as a float, and sums stay finite."""
MAX_TEXT = 256
MAX_POINTS = 1000
"""Most values or grid points of one dimension."""
MAX_LEVELS = 1_000_000
"""Most steps between the ends of a range."""

Finding: TypeAlias = tuple[tuple[str | int, ...], str, str]
"""A problem inside a space before its place in the file is known: path, message, remedy."""


def _scalar(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise PydanticCustomError("text", f"text of {len(value)} characters; at most {MAX_TEXT}")
        return value
    if isinstance(value, int | float):
        return _number(value)
    raise PydanticCustomError("scalar", f"must be a number, text, true or false, not {shown(value)}")


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("number", f"must be a number, not {shown(value)}")
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise PydanticCustomError("size", f"must be a number between ±{MAX_NUMBER:.0e}, not {shown(value)}")
    return value


ScalarValue = Annotated[Scalar, BeforeValidator(_scalar)]
NumberValue = Annotated[int | float, BeforeValidator(_number)]
Conditions = Annotated[
    dict[str, Annotated[tuple[ScalarValue, ...], Field(min_length=1, max_length=MAX_POINTS)]],
    Field(max_length=16),
]


class Choices(Settings):
    """A dimension that takes one of the listed values."""

    values: Annotated[tuple[ScalarValue, ...], Field(min_length=1, max_length=MAX_POINTS)]
    """The values, each once. A list in the place of the dimension means the same."""
    grid: Annotated[tuple[ScalarValue, ...], Field(min_length=1, max_length=MAX_POINTS)] | None = None
    """The points that a grid takes; null: all values."""
    when: Conditions = Field(default_factory=dict)
    """Other dimension → the values of it with which this one is part of a trial."""

    def points(self) -> tuple[Scalar, ...]:
        """What a grid takes."""
        return self.values if self.grid is None else self.grid

    def contains(self, value: Scalar) -> bool:
        """Whether a trial may have this value."""
        return any(same(value, choice) for choice in self.values)

    def distribution(self) -> BaseDistribution:
        """As Optuna stores it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """Let the trial's sampler choose."""
        return cast("Scalar", trial.suggest_categorical(name, self.values))

    def findings(self) -> list[Finding]:
        """Everything that contradicts itself."""
        found: list[Finding] = []
        for key, points in (("values", self.values), ("grid", self.grid or ())):
            found += repeated(key, points)
        for index, point in enumerate(self.grid or ()):
            if not self.contains(point):
                found.append(
                    (("grid", index), f"{shown(point)} is not one of the values", "add it to `values`")
                )
        return found


class Range(Settings):
    """A dimension that takes numbers between two ends, both included."""

    low: NumberValue
    """Smallest value."""
    high: NumberValue
    """Largest value."""
    log: bool = False
    """Even over the logarithm instead of the value; `low` must be above 0."""
    step: NumberValue | None = None
    """Distance between neighbouring values; null: any float, or every integer."""
    type: Literal["int", "float"] | None = None
    """What kind of number; null: integers for what takes integers (`batch_size`, `epochs`, …)."""
    grid: Annotated[tuple[NumberValue, ...], Field(min_length=1, max_length=MAX_POINTS)] | None = None
    """The points that a grid takes; a grid needs them."""
    when: Conditions = Field(default_factory=dict)
    """Other dimension → the values of it with which this one is part of a trial."""

    @property
    def integer(self) -> bool:
        """Whether the values are integers: by `type`, and without one by how the ends are written."""
        if self.type is not None:
            return self.type == "int"
        return all(isinstance(end, int) for end in (self.low, self.high, self.step or 1))

    def points(self) -> tuple[Scalar, ...]:
        """What a grid takes; empty if the file doesn't say."""
        kind = int if self.integer else float
        return tuple(kind(point) for point in self.grid or ())

    def contains(self, value: Scalar) -> bool:
        """Whether a trial may have this value."""
        if isinstance(value, bool | str) or (self.integer and int(value) != value):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or _remainder(self.low, value, self.step) == 0

    def distribution(self) -> BaseDistribution:
        """As Optuna stores it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        step = None if self.step is None else float(self.step)
        return FloatDistribution(float(self.low), float(self.high), log=self.log, step=step)

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """Let the trial's sampler choose."""
        if self.integer:
            return trial.suggest_int(
                name, int(self.low), int(self.high), log=self.log, step=int(self.step or 1)
            )
        step = None if self.step is None else float(self.step)
        return trial.suggest_float(name, float(self.low), float(self.high), log=self.log, step=step)

    def findings(self) -> list[Finding]:
        """Everything that contradicts itself."""
        found: list[Finding] = []
        if self.integer:
            for key, end in (("low", self.low), ("high", self.high), ("step", self.step)):
                if end is not None and int(end) != end:
                    found.append(((key,), f"{end} is not a whole number", "a whole number, or `type: float`"))
        if self.low > self.high:
            found.append((("low",), f"low {self.low} is above high {self.high}", "swap the two"))
        if self.log and self.low <= 0:
            found.append(
                (("low",), f"log needs low above 0, not {self.low}", "a small positive low, or no `log`")
            )
        if self.step is not None:
            found += self._step_findings(self.step)
        found += repeated("grid", self.grid or ())
        if not found:
            for index, point in enumerate(self.grid or ()):
                if not self.contains(point):
                    found.append(
                        (("grid", index), self._why_not(point), "move the point, or widen the range")
                    )
        return found

    def _step_findings(self, step: float) -> list[Finding]:
        if self.log:
            return [(("step",), "step and log don't go together", "leave one of them out")]
        if step <= 0:
            return [(("step",), f"step must be above 0, not {step}", "a positive step")]
        if self.low >= self.high:
            return []
        if (self.high - self.low) / step > MAX_LEVELS:
            message = f"step {step} makes more than {MAX_LEVELS:,} values"
            return [(("step",), message, "a larger step, or none")]
        if rest := _remainder(self.low, self.high, step):
            last = Decimal(str(self.high)) - rest
            message = f"high {self.high} can't be reached from low {self.low} by steps of {step}"
            return [(("high",), message, f"high: {last}")]
        return []

    def _why_not(self, point: float) -> str:
        if not self.low <= point <= self.high:
            return f"grid point {point} is outside {self.low} … {self.high}"
        if self.integer and int(point) != point:
            return f"grid point {point} is not a whole number"
        return f"grid point {point} is not low {self.low} plus a multiple of step {self.step}"


Dimension: TypeAlias = Choices | Range


def same(left: Scalar, right: Scalar) -> bool:
    """Equality that keeps `true` and 1 apart, as a file does."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _remainder(low: float, value: float, step: float) -> Decimal:
    # In decimals, as Optuna does: 0.3 is three steps of 0.1, whatever binary floats say.
    return (Decimal(str(value)) - Decimal(str(low))) % Decimal(str(step))


def repeated(key: str, points: tuple[Scalar, ...]) -> list[Finding]:
    """A finding for each value that a list has twice."""
    # Plain equality: Optuna can't tell 1, 1.0 and true apart either.
    seen: set[Scalar] = set()
    found: list[Finding] = []
    for index, point in enumerate(points):
        if point in seen:
            found.append(((key, index), f"{shown(point)} is there twice", "list each value once"))
        seen.add(point)
    return found


def dimension_from(value: object) -> Dimension:
    """A dimension from plain values in any of its written forms.

    Raises pydantic's `ValidationError`.
    """
    form, value = dimension_form(value)
    return form.model_validate_json(json.dumps(value))


def dimension_form(value: object) -> tuple[type[Choices] | type[Range], object]:
    """Which form a written dimension has, and its long spelling."""
    if isinstance(value, list | tuple):
        return Choices, {"values": list(value)}
    if isinstance(value, Mapping) and ("low" in value or "high" in value):
        return Range, value
    return Choices, value
