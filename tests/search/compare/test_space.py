"""The dimensions of the space as reports see them."""

from __future__ import annotations

import math

import pytest

from search.compare.space import BINS, SpaceAxis, named, space_axes
from tests.contracts.comparison_values import comparison, study, trial


def axes(params: list[dict[str, object]], space: object) -> dict[str, SpaceAxis]:
    trials = [trial(n, 0.5, params=one) for n, one in enumerate(params)]
    found = space_axes(comparison([study("random", 0, trials)], spec={"space": space}))
    return {axis.name: axis for axis in found}


def test_kinds_come_from_the_file_and_from_the_values() -> None:
    found = space_axes(
        comparison(
            [
                study(
                    "random",
                    0,
                    [
                        trial(
                            0, 0.1, params={"rate": 0.01, "loss": "b", "width": 4, "fixed": 3, "deep": 1.5}
                        ),
                        trial(1, 0.2, params={"rate": 0.1, "loss": "a", "width": 8, "fixed": 3}),
                    ],
                )
            ],
            spec={
                "space": {
                    "loss": {"values": ["a", "b", "c"]},
                    "rate": {"low": 1e-3, "high": 1.0, "log": True},
                    "deep": {"low": 1.0, "high": 2.0},
                }
            },
        )
    )
    assert [axis.name for axis in found] == ["loss", "rate", "width"]
    loss, rate, width = found
    assert (loss.scale, loss.levels) == ("category", ("a", "b"))
    assert (rate.scale, rate.low, rate.high) == ("log", 1e-3, 1.0)
    assert (width.scale, width.low, width.high) == ("linear", 4, 8)
    assert not loss.conditional


def test_a_dimension_that_some_trials_lack_is_conditional() -> None:
    found = axes([{"momentum": 0.5, "x": 1}, {"momentum": 0.9, "x": 2}, {"x": 3}], {})
    assert found["momentum"].conditional
    assert not found["x"].conditional


def test_numbers_among_texts_are_levels() -> None:
    (axis,) = axes([{"batch": 16}, {"batch": "full"}, {"batch": True}], "not a space").values()
    assert axis.levels == ("16", "full", "true")


def test_bins_lie_evenly_on_the_scale_and_hold_both_ends() -> None:
    (rate,) = space_axes(
        comparison(
            [study("random", 0, [trial(0, 0.1, params={"r": 1e-4}), trial(1, 0.1, params={"r": 1.0})])],
            spec={"space": {"r": {"low": 1e-4, "high": 1.0, "log": True}}},
        )
    )
    assert rate.edges == pytest.approx([10 ** (-4 + k / 2) for k in range(BINS + 1)])
    assert rate.centres[0] == pytest.approx(10**-3.75)
    assert [rate.part(value) for value in (1e-4, 1.1e-4, 10**-3.49, 0.99, 1.0)] == [0, 0, 1, 7, 7]
    assert rate.share(1e-2) == pytest.approx(0.5)
    assert len(rate.parts) == BINS
    assert rate.parts[0] == "0.0001 to 0.00032"


def test_values_beyond_the_declared_ends_widen_them() -> None:
    (axis,) = axes([{"x": -5.0}, {"x": 2.0}], {"x": {"low": 0.0, "high": 1.0, "log": True}}).values()
    assert (axis.low, axis.high, axis.scale) == (-5.0, 2.0, "linear")


def test_what_is_not_finite_is_a_level() -> None:
    (axis,) = axes([{"x": math.inf}, {"x": 2.0}], {}).values()
    assert axis.categorical


def test_named_takes_the_first_that_is_there() -> None:
    found = space_axes(
        comparison([study("r", 0, [trial(0, 1.0, params={"a": 1}), trial(1, 1, params={"a": 2})])])
    )
    assert named(found, "b", "a") is found[0]
    assert named(found, "b") is None
