"""What trials cost, which replicates count, and best-so-far curves, on values written by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.compare.base import Direction, TrialOutcome
from search.compare.budgets import (
    AXES,
    BAND_POSITIONS,
    Axis,
    anytime,
    counted_replicates,
    is_over,
    spent,
    study_curve,
    worst_value,
)
from tests.contracts.comparison_values import comparison, lifelike, study, trial

HISTORY = [
    trial(0, 0.5, epochs=5, seconds=2, sampler_seconds=0.5, ended=3),
    trial(1, 0.9, state="pruned", epochs=2, ended=1),
    trial(2, 0.7, epochs=5, ended=2),
    trial(3, 0.1, epochs=1, diverged=True, ended=4),
    trial(4, None, state="failed", epochs=4, ended=5),
    trial(5, 0.99, state="running", epochs=3),
]


@pytest.mark.parametrize(("axis", "amount"), [("trials", 4), ("epochs", 13), ("seconds", 5.5)])
def test_failed_and_open_trials_cost_nothing_and_all_others_their_full_cost(
    axis: Axis, amount: float
) -> None:
    assert spent(study("random", 0, HISTORY), axis) == pytest.approx(amount)


def test_curve_counts_trials_in_the_order_of_ending() -> None:
    # The pruned 0.9 is worth nothing, but its two epochs come first; 0.5 changes nothing.
    curve = study_curve(study("random", 0, HISTORY), "epochs", "maximize", 0.1)
    assert curve is not None
    assert (list(curve.positions), list(curve.values), curve.end) == ([7], [0.7], 13)
    by_trials = study_curve(study("random", 0, HISTORY), "trials", "maximize", 0.1)
    assert by_trials is not None
    assert (list(by_trials.positions), by_trials.end) == ([2], 4)


def test_curve_of_a_minimised_metric_falls() -> None:
    history = [trial(0, 0.5), trial(1, 0.8), trial(2, 0.3)]
    curve = study_curve(study("random", 0, history), "epochs", "minimize", 0.8)
    assert curve is not None
    assert (list(curve.positions), list(curve.values), curve.end) == ([5, 15], [0.5, 0.3], 15)


def test_a_diverged_trial_is_worth_the_worst_value_whatever_it_was_told() -> None:
    history = [trial(0, 1.0, diverged=True, epochs=1), trial(1, 0.2)]
    found = study("random", 0, history)
    worst = worst_value(comparison([found]))
    assert worst == 0.2
    curve = study_curve(found, "epochs", "maximize", worst)
    assert curve is not None
    assert (list(curve.positions), list(curve.values)) == ([1], [0.2])


def test_trials_without_an_end_come_last() -> None:
    imported = [TrialOutcome(number=0, state="complete", value=0.8, params={}, epochs=3, seconds=1)]
    curve = study_curve(study("random", 0, [*imported, trial(1, 0.5)]), "epochs", "maximize", 0.5)
    assert curve is not None
    assert list(curve.positions) == [5, 8]


@pytest.mark.parametrize("states", [[], ["pruned"], ["failed", "running"]])
def test_no_trained_trial_has_no_curve(states: list[str]) -> None:
    history = [trial(n, 0.5, state=state) for n, state in enumerate(states)]  # type: ignore[arg-type]
    assert study_curve(study("random", 0, history), "epochs", "maximize", None) is None


def test_worst_value_turns_with_the_direction() -> None:
    studies = [study("random", 0, [trial(0, 0.2), trial(1, 0.1, state="pruned"), trial(2, 0.7)])]
    assert worst_value(comparison(studies)) == 0.2
    assert worst_value(comparison(studies, direction="minimize")) == 0.7
    assert worst_value(comparison([])) is None


def test_a_study_is_over_by_trials_epochs_or_a_grids_end() -> None:
    two = study("random", 0, [trial(0, 0.5), trial(1, 0.5)])
    assert is_over(two, {"trials": 2, "epochs": None})
    assert not is_over(two, {"trials": 3, "epochs": None})
    assert is_over(two, {"trials": 3, "epochs": 10})
    assert not is_over(two, {"trials": 3, "epochs": 11})
    assert not is_over(two, None)
    assert is_over(study("grid", 0, [trial(0, 0.5)]), {"trials": 9})
    assert not is_over(study("grid", 0, []), {"trials": 9})
    assert not is_over(study("grid", 0, [trial(0, 0.5), trial(1, None, state="waiting")]), {"trials": 1})


def test_an_experiment_that_goes_on_counts_its_whole_replicates() -> None:
    whole, part = [trial(0, 0.5), trial(1, 0.6)], [trial(0, 0.5)]
    studies = [
        study("random", 0, whole), study("tpe", 0, whole), study("random", 1, whole), study("tpe", 1, part),
    ]  # fmt: skip
    budget = {"budget": {"trials": 2, "epochs": None}}
    assert counted_replicates(comparison(studies, state="running", spec=budget)) == (0,)
    assert counted_replicates(comparison(studies, state="finished", spec=budget)) == (0, 1)
    assert counted_replicates(comparison(studies[2:], state="running", spec=budget)) == (1,)
    assert counted_replicates(comparison([])) == ()


def test_common_budget_is_the_least_that_a_study_with_a_value_spent() -> None:
    found = anytime(
        comparison(
            [
                study("random", 0, [trial(0, 0.5), trial(1, 0.6)]),
                study("tpe", 0, [trial(0, 0.5)]),
                study("grid", 0, [trial(0, None, state="failed")]),
            ]
        ),
        "epochs",
        (0,),
        declared=True,
        resamples=100,
    )
    assert (found.axis, found.declared, found.budget) == ("epochs", True, 5)
    assert [(entry.method, len(entry.curves)) for entry in found.methods] == [
        ("random", 1), ("tpe", 1), ("grid", 0),
    ]  # fmt: skip
    assert found.methods[2].band is None
    assert found.methods[2].areas == {}


def test_bands_span_where_all_replicates_have_a_value() -> None:
    def ending(*moments: tuple[int, float]) -> list[TrialOutcome]:
        costs = [moments[0][0], *(b[0] - a[0] for a, b in itertools.pairwise(moments))]
        return [
            trial(n, value, epochs=cost)
            for n, (cost, (_, value)) in enumerate(zip(costs, moments, strict=True))
        ]

    studies = [
        study("random", 0, ending((2, 0.5), (6, 0.8), (10, 0.9))),
        study("random", 1, ending((4, 0.6), (8, 0.7))),
        study("random", 2, ending((3, 0.1), (9, 0.2))),
    ]
    (method,) = anytime(comparison(studies), "epochs", (0, 1, 2), declared=True, resamples=100).methods
    assert method.band is not None
    assert list(method.band.axis) == [4, 6, 8]
    assert list(method.band.median) == [0.5, 0.6, 0.7]
    assert list(method.band.low_quartile) == pytest.approx([0.3, 0.35, 0.4])


def test_bands_have_a_bounded_number_of_positions_and_both_ends() -> None:
    rising = [
        study("random", r, [trial(n, 0.1 + n / 1000 + r / 10000, epochs=1 + r) for n in range(300)])
        for r in range(3)
    ]
    (method,) = anytime(comparison(rising), "epochs", (0, 1, 2), declared=True, resamples=100).methods
    assert method.band is not None
    assert len(method.band.axis) <= BAND_POSITIONS
    assert (method.band.axis[0], method.band.axis[-1]) == (3, 300)


@given(seed=st.integers(0, 10_000), direction=st.sampled_from(["maximize", "minimize"]))
def test_curves_of_any_history(seed: int, direction: Direction) -> None:
    found = lifelike(["random"], replicates=1, trials=12, seed=seed)
    (only,) = found.studies
    worst = worst_value(comparison([only], direction=direction))
    for axis in AXES:
        curve = study_curve(only, axis, direction, worst)
        has_value = any(t.state == "complete" for t in only.trials)
        assert (curve is not None) is has_value
        if curve is not None:
            assert curve.end == pytest.approx(spent(only, axis))
            signed = list(curve.values) if direction == "maximize" else [-v for v in curve.values]
            assert all(a < b for a, b in itertools.pairwise(signed))


def test_areas_are_over_one_stretch_for_all_methods() -> None:
    found = comparison(
        [
            study("random", 0, [trial(0, 0.2), trial(1, 0.4), trial(2, 0.9)]),
            study("tpe", 0, [trial(0, 0.9, state="pruned"), trial(1, 0.6), trial(2, 0.8)]),
        ]
    )
    random, tpe = anytime(found, "trials", (0,), declared=False, resamples=100).methods
    # From 2, where tpe begins, to 3: the values in between.
    assert (random.areas, tpe.areas) == ({0: 0.4}, {0: 0.6})
    short = comparison([study("random", 0, [trial(0, 0.2)])])
    assert anytime(short, "trials", (0,), declared=False, resamples=100).methods[0].areas == {}
