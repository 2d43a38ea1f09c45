"""Grids that are made: as many points as the budget, levels where the settings put them."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.base import Scalar
from search.experiment.dimensions import Choices, Range, dimension_from
from search.experiment.settings import GridSettings
from search.experiment.space import SearchSpace
from search.sampling.grid import (
    Axis,
    grid_axes,
    grid_points,
    least_size,
    level_values,
    number_of_values,
    shuffled,
)

UNIT = {"low": 0.0, "high": 1.0}
RATE = {"low": 1e-4, "high": 1.0, "log": True, "type": "float"}


def space(**written: object) -> SearchSpace:
    return SearchSpace({name: dimension_from(form) for name, form in written.items()})


def axes(searched: SearchSpace, budget: int, replicate: int = 0, **options: object) -> dict[str, Axis]:
    return grid_axes(searched, GridSettings.model_validate(options), budget, 7, replicate)


def counts(searched: SearchSpace, budget: int) -> dict[str, int]:
    return {name: len(axis.points) for name, axis in axes(searched, budget).items()}


def points(
    searched: SearchSpace, budget: int, replicate: int = 0, **options: object
) -> list[dict[str, Scalar]]:
    return grid_points(searched, GridSettings.model_validate(options), budget, 7, replicate)


def values(
    written: Mapping[str, object] | Sequence[object], count: int, levels: str, offset: float
) -> object:
    return level_values(dimension_from(written), count, levels, offset)


# How many levels


@pytest.mark.parametrize(
    ("searched", "budget", "expected"),
    [
        (space(a=UNIT), 17, {"a": 17}),
        (space(a=UNIT, b=UNIT), 53, {"a": 7, "b": 7}),
        (space(a=UNIT, b=UNIT), 56, {"a": 8, "b": 7}),
        (space(a=UNIT, learning_rate=RATE), 56, {"learning_rate": 8, "a": 7}),
        (
            space(a=UNIT, **{"lambda": UNIT}, learning_rate=RATE),
            12,
            {"learning_rate": 3, "lambda": 2, "a": 2},
        ),
        (space(a=UNIT, b=UNIT, c=UNIT, d=UNIT), 48, {"a": 4, "b": 3, "c": 2, "d": 2}),
        # Lists are complete while the first range has two levels …
        (space(c=["x", "y", "z"], learning_rate=RATE), 20, {"c": 3, "learning_rate": 6}),
        (space(c=["x", "y", "z"], learning_rate=RATE), 6, {"c": 3, "learning_rate": 2}),
        # … and share with the others where they can't be.
        (space(c=["x", "y", "z"], learning_rate=RATE), 5, {"c": 2, "learning_rate": 2}),
        (
            space(learning_rate=RATE, loss=list("abcdef"), optimizer=list("abcde"), batch=[1, 2, 3]),
            20,
            {"learning_rate": 2, "batch": 2, "loss": 2, "optimizer": 2},
        ),
        # Points of the file stay, and there are no more levels than values.
        (space(a={**UNIT, "grid": [0.5, 1.0]}, b=UNIT), 9, {"a": 2, "b": 4}),
        (space(a={"low": 1, "high": 3}, b=UNIT), 30, {"a": 3, "b": 10}),
        (space(a={"low": 2, "high": 2}, b={"low": 0.5, "high": 0.5}, c=UNIT), 9, {"a": 1, "b": 1, "c": 9}),
        (space(a=UNIT), 1, {"a": 1}),
        (space(a=UNIT, b=UNIT, c=UNIT, d=UNIT, e=UNIT), 64, {"a": 4, "b": 2, "c": 2, "d": 2, "e": 2}),
    ],
)
def test_how_many_levels(searched: SearchSpace, budget: int, expected: dict[str, int]) -> None:
    assert counts(searched, budget) == expected


def test_a_list_without_points_means_all_its_values_where_nothing_is_made() -> None:
    searched = space(a=["x", "y", "z"], b={**UNIT, "grid": [0.5]})
    assert counts(searched, 2) == {"a": 3, "b": 1}  # too many: the file is refused
    assert least_size(searched, GridSettings()) == 3
    assert [axis.kind for axis in axes(searched, 9).values()] == ["complete", "given"]
    assert axes(space(a={"low": 1, "high": 3}, b=UNIT), 30)["a"] == Axis((1, 2, 3), "complete")
    assert least_size(space(a=["x", "y", "z"], b=UNIT), GridSettings()) == 1
    assert least_size(space(a=["x", "y", "z"], b={**UNIT, "grid": [0, 1]}), GridSettings(levels="given")) == 6


def test_levels_that_are_given_must_be_there() -> None:
    with pytest.raises(ValueError, match="no grid points for b"):
        axes(space(a=UNIT | {"grid": [0.5]}, b=UNIT), 9, levels="given")


def test_a_large_budget_takes_no_time() -> None:
    start = time.process_time()
    assert counts(space(a=UNIT), 100_000) == {"a": 100_000}
    governed = {f"b{n}": {**UNIT, "when": {"a": ["x"]}} for n in range(3)}
    found = axes(space(a=["x", "y"], **governed), 100_000)
    assert 46**3 <= math.prod(len(found[name].points) for name in governed) < 100_000
    assert time.process_time() - start < 20


# Where levels sit


@pytest.mark.parametrize(
    ("written", "count", "levels", "offset", "expected"),
    [
        (UNIT, 4, "centred", 0.5, (0.125, 0.375, 0.625, 0.875)),
        (UNIT, 4, "offset", 0.0, (0.0, 0.25, 0.5, 0.75)),
        (UNIT, 4, "offset", 0.2, (0.05, 0.3, 0.55, 0.8)),
        (UNIT, 3, "ends", 0.5, (0.0, 0.5, 1.0)),
        (UNIT, 1, "ends", 0.5, (0.5,)),
        (RATE, 2, "centred", 0.5, (1e-3, 0.1)),
        (RATE, 3, "ends", 0.5, (1e-4, 1e-2, 1.0)),
        ({"low": 1, "high": 10}, 5, "centred", 0.5, (2, 4, 6, 8, 10)),
        ({"low": 1, "high": 10}, 2, "ends", 0.5, (1, 10)),
        ({"low": 0, "high": 1, "step": 0.1}, 2, "ends", 0.5, (0.0, 1.0)),
        ({"low": 0, "high": 0.9, "step": 0.1, "type": "float"}, 2, "centred", 0.5, (0.2, 0.7)),
        ({"low": 1, "high": 8, "log": True}, 8, "offset", 0.9, (1, 2, 3, 4, 5, 6, 7, 8)),
        ({"low": 1, "high": 100, "log": True}, 3, "ends", 0.5, (1, 10, 100)),
        # As in Optuna, an integer has the stretch half a step to its sides: from 0.5 to 8.5 here.
        ({"low": 1, "high": 8, "log": True}, 4, "centred", 0.5, (1, 2, 3, 6)),
        (["a", "b", "c", "d"], 2, "centred", 0.5, ("b", "d")),
        (["a", "b", "c", "d"], 2, "ends", 0.5, ("a", "d")),
        (["a", "b", "c", "d"], 2, "offset", 0.1, ("a", "c")),
    ],
)
def test_where_levels_sit(
    written: dict[str, object], count: int, levels: str, offset: float, expected: tuple[object, ...]
) -> None:
    assert values(written, count, levels, offset) == expected


def test_offsets_differ_between_replicates_and_axes_and_are_even() -> None:
    searched = space(a=UNIT, b=UNIT)
    drawn = [axes(searched, 4, replicate) for replicate in range(200)]
    assert axes(searched, 4, 3) == drawn[3]
    firsts = [float(found["a"].points[0]) for found in drawn]
    assert len({*firsts, *(float(found["b"].points[0]) for found in drawn)}) == 400
    # Uniform in the first cell [0, 0.5): mean 0.25, standard error 0.0102.
    assert sum(firsts) / 200 == pytest.approx(0.25, abs=0.04)
    assert all(found["a"].points[1] - found["a"].points[0] == pytest.approx(0.5, abs=1e-5) for found in drawn)
    assert [axes(searched, 4, index, levels="centred") for index in range(2)] == [
        {name: Axis((0.25, 0.75), "levels") for name in "ab"}
    ] * 2


def test_every_value_of_a_list_that_is_cut_has_the_same_chance() -> None:
    searched = space(a=list("abcde"), learning_rate=RATE)
    taken = Counter(value for replicate in range(500) for value in axes(searched, 5, replicate)["a"].points)
    assert sum(taken.values()) == 1000
    assert all(150 < taken[value] < 250 for value in "abcde")


def test_levels_are_short_numbers_except_where_that_would_lose_some() -> None:
    (found,) = [axis.points for axis in axes(space(learning_rate=RATE), 3).values()]
    assert all(float(f"{value:.6g}") == value for value in found)
    narrow = dimension_from({"low": 1.0, "high": 1.0 + 1e-9, "type": "float"})
    assert len(set(level_values(narrow, 4, "offset", 0.3))) == 4


# The points


def test_points_are_shuffled_in_every_replicate_unless_nested() -> None:
    searched = space(a=["x", "y", "z"], b={**UNIT, "grid": [0, 0.5, 1]})
    nested = points(searched, 9, order="nested")
    assert nested == [{"a": a, "b": b} for a in "xyz" for b in (0.0, 0.5, 1.0)]
    orders = [points(searched, 9, replicate) for replicate in range(4)]
    assert all(sorted(map(str, order)) == sorted(map(str, nested)) for order in orders)
    assert len({json.dumps(order) for order in orders}) == 4
    assert orders[0] == shuffled(nested, 7, 0)


def test_conditional_dimensions_get_levels_as_the_budget_allows() -> None:
    searched = space(
        optimizer=["sgd", "momentum"],
        learning_rate=RATE,
        **{"optimizer.momentum": {"low": 0.8, "high": 0.99, "when": {"optimizer": ["momentum"]}}},
    )
    # r levels of the rate for sgd, r · m for momentum: r · (1 + m) in all.
    found = counts(searched, 19)
    assert found == {"optimizer": 2, "learning_rate": 4, "optimizer.momentum": 3}
    assert counts(searched, 20) == {"optimizer": 2, "learning_rate": 4, "optimizer.momentum": 4}
    made = points(searched, 20)
    assert len(made) == 20
    assert all(searched.contains(point) for point in made)


@st.composite
def written_spaces(draw: st.DrawFn) -> dict[str, object]:
    written: dict[str, object] = {"first": draw(st.sampled_from([["p", "q"], ["p", "q", "r", "s"]]))}
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["list", "int", "logint", "step", "float", "log", "given"]))
        low = draw(st.integers(1, 20))
        form: dict[str, object]
        if kind == "list":
            form = {"values": list(range(draw(st.integers(1, 6))))}
        elif kind in ("int", "logint"):
            high = low + draw(st.integers(0, 300))
            form = {"low": low, "high": high, "log": kind == "logint", "type": "int"}
        elif kind == "step":
            form = {"low": 0.5, "high": 0.5 + 0.1 * low, "step": 0.1, "type": "float"}
            form["high"] = round(float(form["high"]), 1)  # type: ignore[arg-type]
        else:
            high = low * draw(st.floats(1.001, 1e6))
            form = {"low": float(low), "high": high, "log": kind == "log", "type": "float"}
            if kind == "given":
                form["grid"] = [float(low), high]
        if draw(st.booleans()):
            form["when"] = {"first": [draw(st.sampled_from(["p", "q"]))]}
        written[f"d{index}"] = form
    return written


@settings(max_examples=150, derandomize=True)
@given(
    written_spaces(),
    st.integers(1, 120),
    st.integers(0, 50),
    st.sampled_from(["offset", "centred", "ends"]),
)
def test_a_grid_is_possible_distinct_and_fills_its_budget(
    written: dict[str, object], budget: int, replicate: int, levels: str
) -> None:
    searched = space(**written)
    options = GridSettings.model_validate({"levels": levels})
    found = grid_axes(searched, options, budget, 7, replicate)
    made = grid_points(searched, options, budget, 7, replicate)
    assert made
    assert all(searched.contains(point) for point in made), made
    assert len({json.dumps(point, sort_keys=True) for point in made}) == len(made)
    assert searched.misfit(made[0]) is None
    if least_size(searched, options) > budget:
        return
    assert len(made) <= budget
    # No axis that may have one level more could have it: its k levels are a k-th of the points at most.
    for name, axis in found.items():
        dimension = searched.dimensions[name]
        most = number_of_values(dimension)
        free = isinstance(dimension, Range) and not dimension.when and axis.kind == "levels"
        if free and (most is None or len(axis.points) < most):
            assert len(made) + len(made) // len(axis.points) > budget
        if isinstance(dimension, Choices):
            assert len(axis.points) <= len(dimension.values)
