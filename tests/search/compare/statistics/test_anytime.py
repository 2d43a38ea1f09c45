"""Best-so-far curves, bands, areas and cuts, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.compare.statistics.anytime import (
    StepCurve,
    Traces,
    align,
    anytime_area,
    band,
    best_so_far,
    cuts,
)


def curve(values: list[float], costs: list[float] | None = None) -> StepCurve:
    found = best_so_far(values, [1.0] * len(values) if costs is None else costs, "maximize")
    assert found is not None
    return found


def test_costs_of_all_trials_count_and_values_of_eligible_ones() -> None:
    values = [np.nan, 0.5, 0.9, 0.6, 0.7]
    found = best_so_far(values, [2, 3, 1, 5, 4], "maximize", [False, True, False, True, True])
    assert found is not None
    assert found.positions.tolist() == [5, 11, 15]
    assert found.values.tolist() == [0.5, 0.6, 0.7]
    assert (found.start, found.end) == (5, 15)


def test_budget_spent_after_the_last_eligible_trial_is_part_of_the_curve() -> None:
    found = best_so_far([0.5, np.nan], [1, 4], "maximize", [True, False])
    assert found is not None
    assert [found.at(position) for position in (0.5, 1, 5, 5.5)] == [None, 0.5, 0.5, None]


def test_trials_that_cost_nothing_share_a_position() -> None:
    found = curve([0.1, 0.3, 0.2], [1, 0, 1])
    assert found.positions.tolist() == [1, 2]
    assert found.values.tolist() == [0.3, 0.3]


def test_smaller_may_be_better() -> None:
    found = best_so_far([0.5, 0.7, 0.4], [1, 1, 1], "minimize")
    assert found is not None
    assert found.values.tolist() == [0.5, 0.5, 0.4]
    assert (found.reached(0.45, "minimize"), found.reached(0.39, "minimize")) == (3.0, None)


def test_no_eligible_trial_has_no_curve() -> None:
    assert best_so_far([np.nan], [1], "maximize", [False]) is None


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="eligible trials: 1 values are NaN"):
        best_so_far([0.5, np.nan], [1, 1], "maximize")
    with pytest.raises(ValueError, match="less than nothing"):
        best_so_far([0.5], [-1], "maximize")
    with pytest.raises(ValueError, match="costs"):
        best_so_far([0.5, 0.5], [1], "maximize")
    with pytest.raises(ValueError, match="marks"):
        best_so_far([0.5, 0.5], [1, 1], "maximize", [True])
    with pytest.raises(ValueError, match="never gets worse"):
        StepCurve(np.array([1.0, 2, 3]), np.array([1.0, 2, 1]), 3)
    with pytest.raises(ValueError, match="increase strictly"):
        StepCurve(np.array([1.0, 1]), np.array([1.0, 2]), 3)
    with pytest.raises(ValueError, match="increase strictly"):
        StepCurve(np.array([1.0]), np.array([1.0]), 0.5)
    with pytest.raises(ValueError, match="can't have"):
        StepCurve(np.array([1.0]), np.array([1.0, 2.0]), 3)
    with pytest.raises(ValueError, match="columns"):
        Traces(np.array([1.0, 2.0]), np.array([[1.0]]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.randoms())
def test_the_order_of_trials_moves_the_curve_and_not_its_end(values: list[float], random: object) -> None:
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    one, other = curve(values), curve(shuffled)
    assert one.values[-1] == other.values[-1] == max(values)
    assert (np.diff(one.values) >= 0).all()


def test_curves_are_aligned_where_all_have_values() -> None:
    traces = align([curve([0.1, 0.4], [2, 2]), curve([0.2, 0.3, 0.5], [1, 2, 4])])
    assert traces is not None
    assert traces.axis.tolist() == [2, 3, 4]
    assert traces.values.tolist() == [[0.1, 0.1, 0.4], [0.2, 0.3, 0.3]]


def test_an_axis_of_ones_own_must_lie_within() -> None:
    curves = [curve([0.1, 0.4], [2, 2]), curve([0.2], [5])]
    assert align(curves) is None
    traces = align(curves[:1], [2.5, 4])
    assert traces is not None
    assert traces.values.tolist() == [[0.1, 0.4]]
    with pytest.raises(ValueError, match="from 2 to 4 only"):
        align(curves[:1], [1, 4])
    with pytest.raises(ValueError, match="No curve"):
        align([])


def test_a_band_by_hand() -> None:
    found = band(Traces(np.array([1.0, 2.0]), np.array([[1.0, 2], [2, 4], [3, 6], [4, 8], [5, 10]])))
    assert found.median.tolist() == [3, 6]
    assert found.low_quartile.tolist() == [2, 4]
    assert found.high_quartile.tolist() == [4, 8]
    assert found.low is not None
    assert found.high is not None
    assert (found.low.tolist(), found.high.tolist()) == ([1, 2], [5, 10])


def test_a_band_does_not_know_the_order_of_replicates_nor_how_it_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.maximum.accumulate(np.random.default_rng(1).normal(size=(12, 40)), axis=1)
    axis = np.arange(40.0)
    one = band(Traces(axis, values), resamples=299)
    monkeypatch.setattr("search.compare.statistics.anytime._CHUNK", 299 * 12 * 7)
    other = band(Traces(axis, values[::-1]), resamples=299)
    assert one.low is not None
    assert np.array_equal(one.low, other.low)  # type: ignore[arg-type]
    assert (one.low <= one.median).all()
    assert (np.diff(one.median) >= 0).all()


def test_one_replicate_has_a_line_and_no_band() -> None:
    found = band(Traces(np.array([1.0]), np.array([[0.5]])))
    assert (found.median.tolist(), found.low, found.high) == ([0.5], None, None)


def test_areas_by_hand() -> None:
    """0.2 from 1 to 3 and 0.6 from 3 to 5: 0.4 on average; from 2 to 4 the same; from 2 to 3 0.2."""
    steps = curve([0.2, 0.6, 0.1], [1, 2, 2])
    assert anytime_area(steps, start=1, end=5) == pytest.approx(0.4)
    assert anytime_area(steps, start=2, end=4) == pytest.approx(0.4)
    assert anytime_area(steps, start=2, end=3) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="covers 1 to 5"):
        anytime_area(steps, start=0, end=5)


def test_cuts_at_equal_budgets() -> None:
    late = best_so_far([np.nan, 0.9], [4, 4], "maximize", [False, True])
    found = cuts({1: late, 0: curve([0.1, 0.4, 0.3, 0.8], [2, 2, 2, 2]), 2: None, 3: curve([0.7], [6])}, 8)
    assert [(cut.position, dict(cut.values), cut.missing) for cut in found] == [
        (2, {0: 0.1}, (1, 2, 3)),
        (4, {0: 0.4}, (1, 2, 3)),
        (8, {0: 0.8, 1: 0.9}, (2, 3)),
    ]
    sample = found[2].sample("tpe")
    assert sample is not None
    assert sample.array.tolist() == [0.8, 0.9]
    assert cuts({0: None}, 8)[0].sample("tpe") is None
    with pytest.raises(ValueError, match="budget"):
        cuts({0: None}, 0)
    with pytest.raises(ValueError, match="fractions"):
        cuts({0: None}, 8, [1.5])
