"""The search space: which values a trial's config may take, under which conditions.

Everything is done in one order that comes from names and conditions, never from the order of keys
in a file: parents before what they govern, by name where conditions leave a choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from objectives.base import Scalar
from search.experiment.dimensions import Choices, Dimension, Finding, Range, dimension_from, repeated, same
from search.experiment.problems import nearest, shown

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

MAX_COUNTED = 100_000
"""Combinations beyond this are not counted exactly."""

__all__ = ["Choices", "Dimension", "Range", "SearchSpace", "condition_findings"]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """All dimensions of an experiment.

    Raises `ValueError` for conditions that contradict themselves; a file never gets that far, its
    problems are listed by `condition_findings` first.
    """

    dimensions: Mapping[str, Dimension]
    order: tuple[str, ...] = field(init=False)
    """Names, parents before what they govern."""

    def __post_init__(self) -> None:
        findings = condition_findings(self.dimensions)
        if findings:
            path, message, _ = findings[0]
            raise ValueError(f"{'.'.join(map(str, path))}: {message}")
        order = tuple(_topological(self.dimensions))
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "dimensions", {name: self.dimensions[name] for name in order})

    def is_active(self, name: str, values: Mapping[str, Scalar]) -> bool:
        """Whether a dimension is part of a trial, given the values of those that govern it."""
        return all(
            parent in values and any(same(values[parent], value) for value in allowed)
            for parent, allowed in self.dimensions[name].when.items()
        )

    def active(self, values: Mapping[str, Scalar]) -> tuple[str, ...]:
        """The dimensions that are part of a trial with these values, parents first.

        A value given for a dimension that is not part of the trial governs nothing.
        """
        taken: dict[str, Scalar] = {}
        names = []
        for name in self.order:
            if self.is_active(name, taken):
                names.append(name)
                if name in values:
                    taken[name] = values[name]
        return tuple(names)

    def contains(self, values: Mapping[str, Scalar]) -> bool:
        """Whether these are the values of a possible trial: all that it needs and no others."""
        return set(values) == set(self.active(values)) and all(
            self.dimensions[name].contains(value) for name, value in values.items()
        )

    def misfit(self, given: Mapping[str, object]) -> str | None:
        """Why no trial can be enqueued with these values, which need not be all; None if one can.

        Whether a dimension is part of the trial is not looked at: a value too many does no harm.
        """
        for name, value in given.items():
            dimension = self.dimensions.get(name)
            if dimension is None:
                return f"the experiment has no dimension {shown(name)}"
            distribution = dimension.distribution()
            try:
                # Optuna's own question, which forgives the rounding of its own steps.
                fits = distribution._contains(distribution.to_internal_repr(value))
            except (TypeError, ValueError):
                fits = False
            if not fits:
                return f"{name} is never {shown(value)} in this experiment"
        return None

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """The values of a new trial, chosen by its study's sampler (or enqueued with it)."""
        values: dict[str, Scalar] = {}
        for name in self.order:
            if self.is_active(name, values):
                values[name] = self.dimensions[name].suggest(trial, name)
        return values

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every dimension as Optuna stores it, conditional ones included, parents first."""
        return {name: dimension.distribution() for name, dimension in self.dimensions.items()}

    def without_points(self) -> tuple[str, ...]:
        """The dimensions for which the file names no grid points."""
        return tuple(name for name, dimension in self.dimensions.items() if not dimension.points())

    def grid_points(self) -> list[dict[str, Scalar]]:
        """Every combination of the points that the file names: see `combinations`.

        Raises `ValueError` where a dimension has no points.
        """
        if missing := self.without_points():
            raise ValueError(f"no grid points for {', '.join(missing)}")
        return self.combinations({name: dimension.points() for name, dimension in self.dimensions.items()})

    def combinations(self, points: Mapping[str, Sequence[Scalar]]) -> list[dict[str, Scalar]]:
        """Every combination of these points once, without the dimensions that are not part of it.

        Nested loops over `order`, the last dimension moving fastest.
        """
        return list(self._combinations(self.order, points, {}))

    def count(self, points: Mapping[str, Sequence[Scalar] | int], limit: int = MAX_COUNTED) -> int:
        """How many combinations there are, mostly without making them: they may not fit into memory.

        Of a dimension that governs no other, the number of its points is enough. Beyond `limit`
        it is a lower bound, itself above `limit`.
        """
        parents = {parent for dimension in self.dimensions.values() for parent in dimension.when}
        involved = tuple(name for name in self.order if name in parents or self.dimensions[name].when)
        sizes = {name: given if isinstance(given, int) else len(given) for name, given in points.items()}
        free = math.prod(size for name, size in sizes.items() if name not in involved)
        counted = 0
        for product in self._products(involved, points, sizes, parents, {}):
            counted += product
            if counted * free > limit:
                break
        return counted * free

    def _products(
        self,
        names: tuple[str, ...],
        points: Mapping[str, Sequence[Scalar] | int],
        sizes: Mapping[str, int],
        parents: Collection[str],
        chosen: dict[str, Scalar],
    ) -> Iterator[int]:
        """For each combination of the governing dimensions, how many there are of the governed ones."""
        product = 1
        for index, name in enumerate(names):
            if not self.is_active(name, chosen):
                continue
            given = points[name]
            if isinstance(given, int) or name not in parents:
                product *= sizes[name]
                continue
            for point in given:
                rest = self._products(names[index + 1 :], points, sizes, parents, chosen | {name: point})
                yield from (product * below for below in rest)
            return
        yield product

    def _combinations(
        self, names: tuple[str, ...], points: Mapping[str, Sequence[Scalar]], chosen: dict[str, Scalar]
    ) -> Iterator[dict[str, Scalar]]:
        for index, name in enumerate(names):
            if self.is_active(name, chosen):
                for point in points[name]:
                    yield from self._combinations(names[index + 1 :], points, chosen | {name: point})
                return
        yield dict(chosen)

    def to_json(self) -> dict[str, object]:
        """Plain values for a database or a report; `from_json` is the inverse."""
        return {
            name: dimension.model_dump(mode="json", exclude_none=True)
            for name, dimension in self.dimensions.items()
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> SearchSpace:
        """The space that `to_json` wrote."""
        return cls({name: dimension_from(value) for name, value in stored.items()})


def condition_findings(dimensions: Mapping[str, Dimension], broken: Collection[str] = ()) -> list[Finding]:
    """Conditions that name what is not there, can never hold, or go in circles.

    `broken` names dimensions that exist but could not be read: nothing is said of them.
    """
    found: list[Finding] = []
    for name, dimension in dimensions.items():
        for parent, values in dimension.when.items():
            path = (name, "when", parent)
            if parent in broken:
                continue
            if parent not in dimensions:
                known = nearest(parent, set(dimensions) - {name})
                found.append((path, f"there is no dimension {shown(parent)} in `space`", known))
                continue
            governing = dimensions[parent]
            if isinstance(governing, Range) and not governing.integer:
                message = f"{parent} is a range of floats, which never equal a given value"
                found.append((path, message, "give it `values`"))
                continue
            found += [
                ((*path, index), f"{parent} is never {shown(value)}", _possible(governing))
                for index, value in enumerate(values)
                if not governing.contains(value)
            ]
            found += [
                ((name, "when", *path), text, remedy) for path, text, remedy in repeated(parent, values)
            ]
    if not found:
        circle = sorted(set(dimensions) - set(_topological(dimensions)) - set(broken))
        if circle and not broken:
            message = f"the conditions of {', '.join(circle)} go in a circle"
            found.append(((circle[0], "when"), message, "leave one of the conditions out"))
    return found


def _possible(dimension: Dimension) -> str:
    if isinstance(dimension, Range):
        return f"it is between {dimension.low} and {dimension.high}"
    return nearest("", (str(value) for value in dimension.values[:12]))


def _topological(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Names with parents first; those in or behind a circle are left out."""
    done: dict[str, None] = {}
    waiting = sorted(dimensions)
    while waiting:
        ready = next((name for name in waiting if done.keys() >= dimensions[name].when.keys()), None)
        if ready is None:
            break
        done[ready] = None
        waiting.remove(ready)
    return list(done)
