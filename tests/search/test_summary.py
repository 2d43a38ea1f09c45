"""Numbers of the report on values written by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.compare.base import Direction, State, TrialOutcome
from search.compare.summary import (
    BandPoint,
    Point,
    Spread,
    band,
    best_so_far,
    count,
    incumbent,
    summarise,
    summarise_study,
    value_at,
)
from tests.contracts.comparison_values import comparison, lifelike, study, trial


def kinds(found: object) -> list[str]:
    return [note.kind for note in summarise(found).notes]  # type: ignore[arg-type]


def test_spread_of_known_numbers() -> None:
    spread = Spread((0.9, 0.8, 1.0, 0.7))
    assert (spread.n, spread.low, spread.high) == (4, 0.7, 1.0)
    assert spread.mean == pytest.approx(0.85)
    assert spread.median == pytest.approx(0.85)
    assert spread.sd == pytest.approx((0.05 / 3) ** 0.5)


def test_spread_of_one_value_has_no_standard_deviation() -> None:
    assert Spread((0.9,)).sd is None
    assert Spread((0.9,)).median == 0.9


def test_curve_counts_every_trial_in_the_order_of_ending() -> None:
    trials = [
        trial(0, 0.5, epochs=5, ended=3),
        trial(1, 0.9, state="pruned", epochs=2, ended=1),
        trial(2, 0.7, epochs=5, ended=2),
        trial(3, 0.6, epochs=5, ended=4),
        trial(4, None, state="failed", epochs=1, ended=5),
    ]
    # The pruned 0.9 is worth nothing, but its two epochs come first.
    assert best_so_far(trials, "maximize") == (Point(7, 0.7), Point(12, 0.7), Point(17, 0.7), Point(18, 0.7))


def test_curve_of_a_minimised_metric_falls() -> None:
    trials = [trial(0, 0.5), trial(1, 0.8), trial(2, 0.3)]
    assert best_so_far(trials, "minimize") == (Point(5, 0.5), Point(10, 0.5), Point(15, 0.3))


def test_trials_that_are_not_finished_are_not_in_the_curve() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, state="running"), trial(2, None, state="waiting", epochs=1)]
    assert best_so_far(trials, "maximize") == (Point(5, 0.5),)


def test_diverged_trials_cost_epochs_and_are_never_best() -> None:
    trials = [trial(0, 1.0, diverged=True, epochs=1), trial(1, 0.2)]
    assert best_so_far(trials, "maximize") == (Point(6, 0.2),)
    best = incumbent(trials, "maximize")
    assert best is not None
    assert best.number == 1


def test_a_pruned_trial_is_never_the_incumbent() -> None:
    assert incumbent([trial(0, 0.99, state="pruned"), trial(1, None, state="failed")], "maximize") is None


@pytest.mark.parametrize(("direction", "number"), [("maximize", 1), ("minimize", 0)])
def test_incumbent_ties_go_to_the_lower_number(direction: Direction, number: int) -> None:
    best = incumbent([trial(3, 0.1), trial(2, 0.9), trial(1, 0.9), trial(0, 0.1)], direction)
    assert best is not None
    assert best.number == number


def test_value_at_steps() -> None:
    curve = (Point(5, 0.5), Point(10, 0.7))
    assert [value_at(curve, x) for x in (4, 5, 9, 10, 99)] == [None, 0.5, 0.5, 0.7, 0.7]
    assert value_at((), 5) is None


def test_band_spans_where_all_replicates_have_a_value() -> None:
    first = (Point(2, 0.5), Point(6, 0.8), Point(10, 0.9))
    second = (Point(4, 0.6), Point(8, 0.7))
    third = (Point(3, 0.1), Point(9, 0.2))
    assert band([first, second, third]) == (
        BandPoint(4, 0.5, 0.1, 0.6),
        BandPoint(6, 0.6, 0.1, 0.8),
        BandPoint(8, 0.7, 0.1, 0.8),
    )


def test_band_without_a_common_stretch_is_empty() -> None:
    assert band([(Point(1, 0.5), Point(2, 0.6)), (Point(5, 0.5),)]) == ()
    assert band([]) == ()


def test_band_of_one_replicate_is_its_curve() -> None:
    assert band([(Point(2, 0.5), Point(6, 0.8))]) == (
        BandPoint(2, 0.5, 0.5, 0.5),
        BandPoint(6, 0.8, 0.8, 0.8),
    )


def test_counts_keep_diverged_trials_apart() -> None:
    counts = count(
        [
            trial(0, 0.5),
            trial(1, 0.0, diverged=True, attempts=3),
            trial(2, 0.3, state="pruned"),
            trial(3, None, state="failed", attempts=2),
            trial(4, None, state="running"),
            trial(5, None, state="waiting", attempts=0),
        ]
    )
    assert (counts.complete, counts.diverged, counts.pruned, counts.failed) == (1, 1, 1, 1)
    assert (counts.running, counts.waiting, counts.total, counts.finished) == (1, 1, 6, 4)
    assert counts.retried == 3


def test_method_over_replicates() -> None:
    found = comparison(
        [
            study("random", 0, [trial(0, 0.5, epochs=4, seconds=2), trial(1, 0.7, epochs=6, seconds=3)]),
            study("random", 1, [trial(0, 0.9, epochs=5, seconds=1), trial(1, 0.8, state="pruned", epochs=1)]),
        ]
    )
    summary = summarise(found)
    (method,) = summary.methods
    assert method.best == Spread((0.7, 0.9))
    assert (method.epochs, method.seconds) == (16, pytest.approx(7))
    assert summary.common_epochs == 6
    assert method.at_common_epochs == Spread((0.5, 0.9))
    assert method.incumbent is not None
    assert (method.incumbent.replicate, method.incumbent.trial.number) == (1, 0)
    assert (method.counts.complete, method.counts.pruned) == (3, 1)


def test_best_config_ties_go_to_the_earlier_replicate() -> None:
    summary = summarise(comparison([study("tpe", r, [trial(0, 0.9)]) for r in range(3)]))
    assert summary.methods[0].incumbent is not None
    assert summary.methods[0].incumbent.replicate == 0


def test_methods_stay_in_the_order_of_the_file() -> None:
    found = comparison([study(m, 0, [trial(0, 0.5)]) for m in ("tpe", "grid", "random")])
    assert [method.method for method in summarise(found).methods] == ["tpe", "grid", "random"]


def test_a_method_without_a_completed_trial_has_no_value() -> None:
    found = comparison(
        [study("grid", 0, [trial(0, 0.5)]), study("tpe", 0, [trial(0, 0.9, state="pruned")])],
    )
    summary = summarise(found)
    empty = summary.methods[1]
    assert (empty.best, empty.at_common_epochs, empty.incumbent, empty.curve) == (None, None, None, ())
    (note,) = [n for n in summary.notes if n.kind == "no_completed_trial"]
    assert "tpe" in note.text
    assert "grid" not in note.text


def test_no_studies_at_all() -> None:
    summary = summarise(comparison([], state="created"))
    assert summary.methods == summary.studies == ()
    assert summary.common_epochs is None
    assert [note.kind for note in summary.notes] == ["provisional"]


@pytest.mark.parametrize(("replicates", "said"), [(9, True), (10, False)])
def test_too_few_replicates_are_said_to_be(replicates: int, said: bool) -> None:
    found = comparison([study("random", r, [trial(0, 0.5)]) for r in range(replicates)])
    assert ("too_few_replicates" in kinds(found)) is said


@pytest.mark.parametrize(("trials", "said"), [(49, True), (50, False)])
def test_small_studies_are_called_a_demonstration(trials: int, said: bool) -> None:
    found = comparison([study("random", 0, [trial(n, 0.5) for n in range(trials)])])
    assert ("demonstration" in kinds(found)) is said


@pytest.mark.parametrize(
    ("state", "last", "said"),
    [
        ("finished", "complete", False),
        ("running", "complete", True),
        ("finished", "running", True),
        ("finished", "waiting", False),
    ],
)
def test_open_experiments_are_provisional(state: str, last: State, said: bool) -> None:
    found = comparison([study("random", 0, [trial(0, 0.5), trial(1, 0.5, state=last)])], state=state)
    assert ("provisional" in kinds(found)) is said


def test_trials_that_a_budget_of_epochs_left_out_are_said() -> None:
    found = comparison([study("grid", 0, [trial(0, 0.5), trial(1, None, state="waiting")])], state="finished")
    (note,) = [note for note in summarise(found).notes if note.kind == "trials_not_begun"]
    assert "never begun: 1." in note.text


def test_unequal_budgets_are_said() -> None:
    short = study("grid", 0, [trial(0, 0.5, epochs=5)])
    long = study("tpe", 0, [trial(0, 0.5, epochs=5), trial(1, 0.6, epochs=5)])
    assert {"unequal_trials", "unequal_epochs"} <= set(kinds(comparison([short, long])))
    assert not {"unequal_trials", "unequal_epochs"} & set(
        kinds(comparison([long, study("grid", 0, long.trials)]))
    )


def test_failed_trials_are_said() -> None:
    assert "failed_trials" in kinds(comparison([study("grid", 0, [trial(0, None, state="failed")])]))
    assert "failed_trials" not in kinds(comparison([study("grid", 0, [trial(0, 0.5)])]))


def test_nothing_claims_a_winner_or_a_p_value() -> None:
    text = " ".join(note.text for note in summarise(lifelike(replicates=12, trials=60)).notes).lower()
    assert "significant" not in text
    assert " p " not in text
    assert "better than" not in text


@st.composite
def histories(draw: st.DrawFn) -> list[TrialOutcome]:
    states = st.sampled_from(["complete", "pruned", "failed", "running", "waiting"])
    drawn = draw(
        st.lists(
            st.tuples(states, st.floats(0, 1), st.integers(1, 9), st.booleans(), st.integers(0, 50)),
            max_size=25,
        )
    )
    return [
        trial(
            n,
            None if state in {"failed", "waiting"} else value,
            state=state,
            epochs=epochs,
            ended=ended,
            diverged=diverged and state == "complete",
        )
        for n, (state, value, epochs, diverged, ended) in enumerate(drawn)
    ]


@given(history=histories(), direction=st.sampled_from(["maximize", "minimize"]))
def test_curves_of_any_history(history: list[TrialOutcome], direction: Direction) -> None:
    summary = summarise_study(study("random", 0, history), direction)
    curve = summary.curve
    assert (summary.incumbent is None) == (not curve)
    assert all(a.epochs < b.epochs for a, b in itertools.pairwise(curve))
    signed = [p.value if direction == "maximize" else -p.value for p in curve]
    assert signed == sorted(signed)
    if curve:
        assert summary.incumbent is not None
        assert curve[-1] == Point(summary.epochs, summary.incumbent.value)
