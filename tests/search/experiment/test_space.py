"""Dimensions and search spaces: bounds, conditions, grids, and independence of the order of keys."""

from __future__ import annotations

import json
import random
import time

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from search.experiment.dimensions import Choices, Range, dimension_from, same
from search.experiment.space import MAX_COUNTED, SearchSpace, condition_findings


def space(**dimensions: object) -> SearchSpace:
    return SearchSpace({name: dimension_from(written) for name, written in dimensions.items()})


CONDITIONAL = {
    "optimizer": ["sgd", "momentum", "adam"],
    "momentum": {"values": [0.5, 0.9], "when": {"optimizer": ["momentum"]}},
    "beta": {"low": 0.8, "high": 0.99, "grid": [0.9], "when": {"optimizer": ["adam"]}},
    "deep": {"values": [True, False], "when": {"momentum": [0.9]}},
    "batch": [32, "full"],
}


# One dimension


def test_a_list_means_its_values() -> None:
    assert dimension_from([1, "full", True]) == Choices(values=(1, "full", True))


@pytest.mark.parametrize(
    "written",
    [
        [],
        [None],
        [[1]],
        [float("nan")],
        [10**16],
        ["x" * 300],
        {"values": [1], "step": 1},
        {"low": 1},
        {"low": "1", "high": 2},
        {"low": True, "high": 2},
        {"low": 0, "high": float("inf")},
        {"low": 0, "high": 1, "log": 1},
        {"low": 0, "high": 1, "type": "double"},
        {"low": 0, "high": 1, "grid": []},
        {"low": 0, "high": 1, "when": {"a": []}},
        {"values": list(range(1001))},
        {},
        3,
    ],
)
def test_malformed_dimensions_are_refused(written: object) -> None:
    with pytest.raises(ValidationError):
        dimension_from(written)


@pytest.mark.parametrize(
    ("written", "path", "words"),
    [
        ({"low": 2, "high": 1}, ("low",), "low 2 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, ("low",), "log needs low above 0, not 0"),
        ({"low": -1.5, "high": 1, "log": True}, ("low",), "log needs low above 0, not -1.5"),
        ({"low": 1, "high": 9, "log": True, "step": 2}, ("step",), "step and log don't go together"),
        ({"low": 1, "high": 9, "step": 0}, ("step",), "step must be above 0, not 0"),
        ({"low": 1, "high": 9, "step": -1}, ("step",), "step must be above 0, not -1"),
        ({"low": 1, "high": 9, "step": 3}, ("high",), "can't be reached from low 1 by steps of 3"),
        ({"low": 0, "high": 1e9, "step": 1e-9}, ("step",), "makes more than 1,000,000 values"),
        ({"low": 1.5, "high": 9, "type": "int"}, ("low",), "1.5 is not a whole number"),
        ({"low": 0.0, "high": 1, "grid": [0.5, 1.5]}, ("grid", 1), "grid point 1.5 is outside 0.0 … 1"),
        ({"low": 0, "high": 4, "grid": [1.5]}, ("grid", 0), "grid point 1.5 is not a whole number"),
        ({"low": 0, "high": 4, "step": 2, "grid": [0, 3]}, ("grid", 1), "plus a multiple of step 2"),
        ({"low": 0, "high": 4, "grid": [1, 2, 1]}, ("grid", 2), "1 is there twice"),
        ({"values": ["a", "b", "a"]}, ("values", 2), "'a' is there twice"),
        ({"values": [1, True]}, ("values", 1), "true is there twice"),
        ({"values": ["a"], "grid": ["b"]}, ("grid", 0), "'b' is not one of the values"),
    ],
)
def test_contradictions_are_found(written: object, path: tuple[object, ...], words: str) -> None:
    found = dimension_from(written).findings()
    assert [finding[0] for finding in found] == [path]
    assert words in found[0][1]


def test_all_contradictions_of_a_dimension_are_listed() -> None:
    written = {"low": 3, "high": -1, "log": True, "step": 1, "grid": [1, 1]}
    found = dimension_from({**written, "low": -0.5, "high": -1, "type": "float"}).findings()
    assert [finding[0] for finding in found] == [("low",), ("low",), ("step",), ("grid", 1)]


def test_the_remedy_for_an_unreachable_end_is_the_last_step() -> None:
    assert dimension_from({"low": 0.1, "high": 1.0, "step": 0.4}).findings()[0][2] == "high: 0.9"


def test_steps_are_decimal() -> None:
    dimension = Range(low=0.1, high=0.7, step=0.2)
    assert dimension.findings() == []
    assert dimension.contains(0.3)
    assert dimension.contains(0.1 + 0.2 * 2)
    assert not dimension.contains(0.4)


@pytest.mark.parametrize(
    ("written", "integer"),
    [
        ({"low": 1, "high": 3}, True),
        ({"low": 1, "high": 3.0}, False),
        ({"low": 1, "high": 3, "step": 0.5}, False),
        ({"low": 1, "high": 3, "type": "float"}, False),
        ({"low": 1.0, "high": 3.0, "type": "int"}, True),
    ],
)
def test_what_kind_of_number(written: dict[str, object], integer: bool) -> None:
    dimension = dimension_from({**written, "grid": [2]})
    assert isinstance(dimension, Range)
    assert dimension.integer is integer
    assert [type(point) for point in dimension.points()] == [int if integer else float]
    wanted = "IntDistribution" if integer else "FloatDistribution"
    assert type(dimension.distribution()).__name__ == wanted


def test_true_and_one_are_not_the_same() -> None:
    assert same(1, 1.0)
    assert not same(True, 1)
    assert not Choices(values=(1, 2)).contains(True)
    assert not Range(low=0, high=2).contains(True)
    assert not Range(low=0, high=2).contains("1")


# Spaces


def test_parents_come_before_what_they_govern_and_names_decide_the_rest() -> None:
    chained = space(
        a={"values": [1], "when": {"z": [1]}}, z={"values": [1], "when": {"m": [1]}}, m=[1], b=[1]
    )
    assert chained.order == ("b", "m", "z", "a")


def test_active_dimensions_follow_the_values_through_chains() -> None:
    searched = space(**CONDITIONAL)
    assert set(searched.active({"optimizer": "sgd"})) == {"optimizer", "batch"}
    assert set(searched.active({"optimizer": "momentum", "momentum": 0.9})) == {
        "optimizer", "batch", "momentum", "deep",
    }  # fmt: skip
    # A value for a dimension that is not part of the trial governs nothing.
    assert "deep" not in searched.active({"optimizer": "sgd", "momentum": 0.9})


def test_contains_wants_exactly_the_active_dimensions() -> None:
    searched = space(**CONDITIONAL)
    assert searched.contains({"optimizer": "sgd", "batch": 32})
    assert not searched.contains({"optimizer": "sgd"})
    assert not searched.contains({"optimizer": "sgd", "batch": 32, "momentum": 0.5})
    assert not searched.contains({"optimizer": "sgd", "batch": 33})


def test_all_of_several_conditions_must_hold() -> None:
    searched = space(a=[1, 2], b=[1, 2], c={"values": [7], "when": {"a": [1], "b": [2]}})
    assert "c" in searched.active({"a": 1, "b": 2})
    assert "c" not in searched.active({"a": 1, "b": 1})


def test_grid_points_leave_out_what_is_not_active() -> None:
    points = space(**CONDITIONAL).grid_points()
    without_batch = [
        {k: v for k, v in point.items() if k != "batch"} for point in points if point["batch"] == 32
    ]
    assert without_batch == [
        {"optimizer": "sgd"},
        {"momentum": 0.5, "optimizer": "momentum"},
        {"momentum": 0.9, "optimizer": "momentum", "deep": True},
        {"momentum": 0.9, "optimizer": "momentum", "deep": False},
        {"beta": 0.9, "optimizer": "adam"},
    ]
    assert len(points) == 10
    assert size(space(**CONDITIONAL)) == 10


def test_a_grid_needs_points_of_every_range() -> None:
    searched = space(a=[1, 2], b={"low": 0, "high": 1}, c={"low": 0, "high": 1, "grid": [0]})
    assert searched.without_points() == ("b",)
    with pytest.raises(ValueError, match="no grid points for b"):
        searched.grid_points()


def size(searched: SearchSpace, limit: int = MAX_COUNTED) -> int:
    return searched.count({name: each.points() for name, each in searched.dimensions.items()}, limit)


def test_grids_too_large_to_make_are_counted_all_the_same() -> None:
    start = time.process_time()
    free = space(**{f"d{n}": list(range(100)) for n in range(30)})
    assert size(free) == 100**30
    chained = {f"d{n}": {"values": list(range(50)), "when": {f"d{n - 1}": [1]}} for n in range(1, 6)}
    assert size(space(d0=list(range(50)), **chained)) == 49 * 6 + 1
    wide = {f"c{n}": {"values": list(range(50)), "when": {"p": [1]}} for n in range(10)}
    assert size(space(p=[1, 2], **wide), 50**11) == 50**10 + 1
    assert size(space(p=[1, 2], **wide)) > MAX_COUNTED
    parents = {f"p{n}": list(range(50)) for n in range(10)}
    children = {f"c{n}": {"values": [1, 2], "when": {f"p{n}": [1]}} for n in range(10)}
    assert size(space(**parents, **children), 1000) > 1000
    assert time.process_time() - start < 5


def test_numbers_of_points_are_enough_for_what_governs_nothing() -> None:
    searched = space(a=[1, 2, 3], b={"values": [7, 8], "when": {"a": [1, 3]}}, c=[1, 2])
    assert searched.count({"a": [1, 3], "b": 2, "c": 2}) == 2 * 2 * 2
    assert searched.count({"a": [1, 2], "b": 2, "c": 2}) == (2 + 1) * 2


@pytest.mark.parametrize(
    ("dimensions", "path", "words"),
    [
        ({"a": {"values": [1], "when": {"b": [1]}}}, ("a", "when", "b"), "there is no dimension 'b'"),
        ({"a": {"values": [1], "when": {"b": [3]}}, "b": [1, 2]}, ("a", "when", "b", 0), "b is never 3"),
        (
            {"a": {"values": [1], "when": {"b": [True]}}, "b": [1, 2]},
            ("a", "when", "b", 0),
            "b is never true",
        ),
        (
            {"a": {"values": [1], "when": {"b": [9]}}, "b": {"low": 1, "high": 3}},
            ("a", "when", "b", 0),
            "never 9",
        ),
        (
            {"a": {"values": [1], "when": {"b": [0.5]}}, "b": {"low": 0.0, "high": 1}},
            ("a", "when", "b"),
            "a range of floats",
        ),
        ({"a": {"values": [1], "when": {"a": [1]}}}, ("a", "when"), "go in a circle"),
        (
            {"a": {"values": [1], "when": {"b": [1]}}, "b": {"values": [1], "when": {"a": [1]}}},
            ("a", "when"),
            "the conditions of a, b go in a circle",
        ),
    ],
)
def test_impossible_conditions(dimensions: dict[str, object], path: tuple[object, ...], words: str) -> None:
    made = {name: dimension_from(written) for name, written in dimensions.items()}
    found = condition_findings(made)
    assert [finding[0] for finding in found] == [path]
    assert words in found[0][1]
    with pytest.raises(ValueError, match=r"."):
        SearchSpace(made)


def test_nothing_is_said_of_parents_that_could_not_be_read() -> None:
    child = dimension_from({"values": [1], "when": {"b": [1]}})
    assert condition_findings({"a": child}, broken={"b"}) == []


# Properties

NAMES = [f"d{n}" for n in range(6)]


@st.composite
def written_spaces(draw: st.DrawFn) -> dict[str, object]:
    """Random spaces in which a dimension may depend on any two that come before it in a random order."""
    names = draw(st.permutations(NAMES[: draw(st.integers(1, 6))]))
    written: dict[str, object] = {}
    for index, name in enumerate(names):
        when = {}
        for parent in (
            draw(st.lists(st.sampled_from(names[:index]), max_size=2, unique=True)) if index else []
        ):
            above = written[parent]
            if isinstance(above, dict) and "values" in above:
                when[parent] = draw(
                    st.lists(st.sampled_from(above["values"]), min_size=1, max_size=2, unique=True)
                )
        kind = draw(st.sampled_from(["values", "int", "log", "step", "float"]))
        if kind == "values":
            pool = [1, 2.5, "full", "a", "b", 7]
            form: dict[str, object] = {
                "values": draw(st.lists(st.sampled_from(pool), min_size=1, unique=True))
            }
        elif kind == "int":
            low = draw(st.integers(1, 50))
            form = {
                "low": low,
                "high": low + draw(st.integers(0, 50)),
                "log": draw(st.booleans()),
                "grid": [low],
            }
        elif kind == "log":
            low = draw(st.floats(1e-6, 1))
            form = {
                "low": low,
                "high": low * draw(st.floats(1, 1e6)),
                "log": True,
                "type": "float",
                "grid": [low],
            }
        elif kind == "step":
            form = {"low": 0.5, "high": 2.0, "step": 0.25, "grid": [0.5, 1.75]}
        else:
            low = draw(st.floats(-1e6, 1e6))
            form = {"low": low, "high": low + draw(st.floats(0, 1e6)), "type": "float", "grid": [low]}
        written[name] = {**form, "when": when}
    return written


def shuffled(written: dict[str, object], seed: int) -> dict[str, object]:
    keys = list(written)
    random.Random(seed).shuffle(keys)
    return {key: written[key] for key in keys}


def samples(searched: SearchSpace, seed: int, count: int) -> list[dict[str, object]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [dict(searched.suggest(study.ask())) for _ in range(count)]


@settings(max_examples=60, derandomize=True)
@given(written_spaces(), st.integers(0, 1000))
def test_suggested_values_are_always_possible_and_the_order_of_keys_changes_nothing(
    written: dict[str, object], seed: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searched = space(**written)
    drawn = samples(searched, seed, 5)
    for values in drawn:
        assert searched.contains(values), values
    assert samples(space(**shuffled(written, seed)), seed, 5) == drawn


@settings(max_examples=60, derandomize=True)
@given(written_spaces(), st.integers(0, 1000))
def test_grid_points_are_possible_and_distinct_and_counted(written: dict[str, object], seed: int) -> None:
    searched = space(**written)
    points = searched.grid_points()
    assert points
    assert all(searched.contains(point) for point in points)
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points)
    assert size(searched) == len(points)
    assert space(**shuffled(written, seed)).grid_points() == points


@settings(max_examples=60, derandomize=True)
@given(written_spaces())
def test_spaces_survive_storage(written: dict[str, object]) -> None:
    searched = space(**written)
    stored = json.loads(json.dumps(searched.to_json(), sort_keys=True))
    assert SearchSpace.from_json(stored) == searched
    assert SearchSpace.from_json(stored).distributions() == searched.distributions()


def test_optuna_takes_grid_points_as_they_are() -> None:
    searched = space(**CONDITIONAL)
    study = optuna.create_study()
    for point in searched.grid_points():
        study.enqueue_trial(point)
        assert searched.suggest(study.ask()) == point
