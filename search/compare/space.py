"""The dimensions of the search space as a report sees them: names, scales, levels.

Read leniently from the stored experiment file and from the trials' own values, so that imported
studies and files of older releases have a report too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from search.compare.base import Comparison, TrialOutcome
from search.formats import format_value

Scale: TypeAlias = Literal["linear", "log", "category"]

BINS = 8
"""Into so many parts of equal width, on its own scale, a numeric dimension is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceAxis:
    """One dimension of the space that takes at least two values in the trials."""

    name: str
    scale: Scale
    low: float = math.nan
    high: float = math.nan
    """Ends of a numeric dimension, which hold every trial's value."""
    levels: tuple[str, ...] = ()
    """A categorical dimension's values as text, in the file's order."""
    conditional: bool = False
    """Whether some trials don't have it."""

    @property
    def categorical(self) -> bool:
        """Whether its values are levels without distance."""
        return self.scale == "category"

    @property
    def parts(self) -> tuple[str, ...]:
        """Levels, or the bins in words."""
        if self.categorical:
            return self.levels
        edges = [f"{edge:.2g}" for edge in self.edges]
        return tuple(f"{low} to {high}" for low, high in itertools.pairwise(edges))

    @property
    def edges(self) -> tuple[float, ...]:
        """The ends of a numeric dimension's bins, one more than bins."""
        low, high = self.place(self.low), self.place(self.high)
        return tuple(self.unplace(low + (high - low) * k / BINS) for k in range(BINS + 1))

    @property
    def centres(self) -> tuple[float, ...]:
        """The middles of the bins on the dimension's own scale."""
        places = [self.place(edge) for edge in self.edges]
        return tuple(self.unplace((a + b) / 2) for a, b in itertools.pairwise(places))

    def place(self, value: float) -> float:
        """A number on the dimension's own scale: its decimal logarithm if the scale is logarithmic."""
        return math.log10(value) if self.scale == "log" else value

    def unplace(self, place: float) -> float:
        """The inverse of `place`."""
        return float(10**place) if self.scale == "log" else place

    def share(self, value: object) -> float:
        """Where a value lies between the ends, from 0 to 1; levels are spread evenly."""
        if self.categorical:
            return self.levels.index(format_value(value)) / max(1, len(self.levels) - 1)
        low, high = self.place(self.low), self.place(self.high)
        return (self.place(as_number(value)) - low) / (high - low)

    def part(self, value: object) -> int:
        """The number of the level or bin in which a value lies, from 0."""
        if self.categorical:
            return self.levels.index(format_value(value))
        return min(BINS - 1, int(self.share(value) * BINS))


def as_number(value: object) -> float:
    """The value of a numeric dimension as a float."""
    assert isinstance(value, int | float)
    return float(value)


def space_axes(comparison: Comparison) -> tuple[SpaceAxis, ...]:
    """The dimensions that vary over the experiment's trials, in the file's order; others are left out."""
    trials = [trial for study in comparison.studies for trial in study.trials if trial.params]
    space = comparison.spec.get("space")
    declared = space if isinstance(space, Mapping) else {}
    names = dict.fromkeys([*declared, *(name for trial in trials for name in trial.params)])
    found = [_axis(str(name), declared.get(name), trials) for name in names]
    return tuple(axis for axis in found if axis is not None)


def named(axes: Sequence[SpaceAxis], *names: str) -> SpaceAxis | None:
    """The first axis with one of the names."""
    return next((axis for name in names for axis in axes if axis.name == name), None)


def _axis(name: str, declared: object, trials: Sequence[TrialOutcome]) -> SpaceAxis | None:
    values = [trial.params[name] for trial in trials if name in trial.params]
    if not values:
        return None
    conditional = len(values) < len(trials)
    entry = declared if isinstance(declared, Mapping) else {}
    listed = entry.get("values", declared if isinstance(declared, list | tuple) else ())
    numeric = all(_is_number(value) for value in values)
    if listed or not numeric:
        listed = listed if isinstance(listed, list | tuple) else ()
        order = dict.fromkeys(format_value(value) for value in listed)
        seen = {format_value(value) for value in values}
        if len(seen) < 2:
            return None
        levels = tuple(level for level in order if level in seen)
        levels += tuple(sorted(seen - set(levels)))
        return SpaceAxis(name=name, scale="category", levels=levels, conditional=conditional)
    numbers = [as_number(value) for value in values]
    if min(numbers) == max(numbers):
        return None
    ends = [float(entry[end]) for end in ("low", "high") if _is_number(entry.get(end))]
    low, high = min(*numbers, *ends), max(*numbers, *ends)
    log = bool(entry.get("log")) and low > 0
    return SpaceAxis(name=name, scale="log" if log else "linear", low=low, high=high, conditional=conditional)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
