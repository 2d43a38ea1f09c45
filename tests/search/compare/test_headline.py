"""Winners, retrained scores, selection bias and the primary outcome, on values written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison, Direction, Reading
from search.compare.headline import incumbent
from tests.contracts.comparison_values import comparison, retraining, study, trial


def analysed(found: Comparison) -> Analysis:
    return analyse(found, resamples=200)


@pytest.mark.parametrize(("direction", "number"), [("maximize", 1), ("minimize", 0)])
def test_ties_go_to_the_lower_number(direction: Direction, number: int) -> None:
    best = incumbent([trial(3, 0.1), trial(2, 0.9), trial(1, 0.9), trial(0, 0.1)], direction)
    assert best is not None
    assert best.number == number


def test_pruned_diverged_failed_and_infinite_trials_never_win() -> None:
    history = [
        trial(0, 0.99, state="pruned"), trial(1, 0.98, diverged=True), trial(2, None, state="failed"),
        trial(3, float("inf")), trial(4, float("nan")),
    ]  # fmt: skip
    assert incumbent(history, "maximize") is None
    best = incumbent([*history, trial(5, 0.1)], "maximize")
    assert best is not None
    assert best.number == 5


def two_studies(**spec: Any) -> Comparison:
    """Winners: random 0.7 after 2 trials, tpe 0.9 after 3 (0.6 after 2)."""
    return comparison(
        [
            study("random", 0, [trial(0, 0.5), trial(1, 0.7)]),
            study("tpe", 0, [trial(0, 0.5), trial(1, 0.6), trial(2, 0.9)]),
        ],
        spec={"pruner": {"name": "none"}, **spec},
    )


def test_without_retraining_values_are_compared_at_the_budget_that_all_spent() -> None:
    found = analysed(two_studies())
    primary = found.primary
    assert (primary.kind, primary.axis, primary.budget) == ("searched", "trials", 2)
    assert primary.values == {"random": {0: 0.7}, "tpe": {0: 0.6}}
    assert [study.searched for study in found.studies] == [0.7, 0.9]
    assert [method.score and method.score.median for method in found.methods] == [0.7, 0.6]
    assert [method.searched and method.searched.median for method in found.methods] == [0.7, 0.9]
    assert "2 trials" in primary.text
    assert "have not been retrained" in primary.text


def with_readings(found: Comparison, *readings: list[Reading]) -> Comparison:
    return replace(found, readings=tuple(reading for some in readings for reading in some))


def retrained_studies(seeds: int = 2) -> Comparison:
    found = two_studies(comparison={"retrain": {"seeds": seeds}})
    first, second = found.studies
    return with_readings(
        found,
        retraining(first, 1, [0.62, 0.66], [0.65, 0.67]),
        retraining(second, 2, [0.80, 0.84], [0.86, 0.84]),
    )


def test_retrained_scores_are_compared_when_every_winner_has_them() -> None:
    found = analysed(retrained_studies())
    assert (found.primary.kind, found.primary.budget) == ("retrained", None)
    assert found.primary.values["random"] == {0: pytest.approx(0.64)}
    assert found.primary.values["tpe"] == {0: pytest.approx(0.82)}
    assert [s.selection_bias for s in found.studies] == [pytest.approx(0.04), pytest.approx(0.05)]
    assert found.studies[0].retrained is not None
    assert found.studies[0].retrained.seeds == (1000, 1001)
    assert "sealed test set" in found.primary.text


def test_bias_flatters_when_positive_also_if_smaller_is_better() -> None:
    only = study("random", 0, [trial(0, 0.3)])
    found = comparison(
        [only], direction="minimize", spec={"comparison": {"retrain": {"seeds": 1}}}, metric="error"
    )
    found = with_readings(found, retraining(only, 0, [0.5], [0.4], metric="error"))
    assert analysed(found).studies[0].selection_bias == pytest.approx(0.1)


def test_readings_by_hand_are_no_retraining_and_a_seed_counts_once() -> None:
    found = retrained_studies()
    by_hand = tuple(replace(reading, purpose="score") for reading in found.readings)
    assert all(s.retrained is None for s in analysed(replace(found, readings=by_hand)).studies)
    twice = tuple(replace(r, metrics={"accuracy": 0.0}) for r in found.readings)
    again = analysed(replace(found, readings=(*found.readings, *twice)))
    assert again.primary.values["random"] == {0: pytest.approx(0.64)}


def test_where_everything_diverged_nothing_is_equivalent() -> None:
    studies = [study(m, r, [trial(0, 0.1, diverged=True)]) for m in ("random", "tpe") for r in range(12)]
    found = analysed(comparison(studies))
    assert found.primary.values == {"random": {}, "tpe": {}}
    assert [pair.result.verdict for pair in found.pairs] == ["too_few"]
    assert found.conclusion.verdict.startswith("No trial has been trained to its end without diverging")
    assert "no_completed_trial" in [note.kind for note in found.notes]


def test_a_study_that_only_diverged_is_worth_the_worst_value() -> None:
    found = comparison(
        [study("random", 0, [trial(0, 0.7), trial(1, 0.3)]), study("tpe", 0, [trial(0, 0.1, diverged=True)])],
        spec={"pruner": {"name": "none"}, "comparison": {"retrain": {"seeds": 1}}},
    )
    analysis = analysed(found)
    assert analysis.primary.values == {"random": {0: 0.7}, "tpe": {0: 0.1}}
    assert analysis.studies[1].incumbent is None
    again = analysed(with_readings(found, retraining(found.studies[0], 0, [0.6])))
    assert again.primary.kind == "retrained"
    assert again.primary.values == {"random": {0: 0.6}, "tpe": {0: 0.1}}


def test_a_study_without_a_trained_trial_is_missing_by_name() -> None:
    found = analysed(
        comparison(
            [study("grid", 0, [trial(0, 0.5)]), study("tpe", 0, [trial(0, 0.9, state="pruned")])],
        )
    )
    assert found.primary.missing == ("digits/tpe/0",)
    assert found.methods[1].score is None
    (note,) = [note for note in found.notes if note.kind == "no_completed_trial"]
    assert "tpe" in note.text
    assert "grid" not in note.text


@pytest.mark.parametrize(("direction", "replicate"), [("maximize", 1), ("minimize", 0)])
def test_a_methods_best_study_has_the_best_primary_outcome(direction: Direction, replicate: int) -> None:
    studies = [study("tpe", r, [trial(0, value)]) for r, value in enumerate((0.5, 0.9, 0.9, 0.7))]
    found = analysed(comparison(studies, direction=direction))
    assert found.methods[0].best is not None
    assert found.methods[0].best.replicate == replicate
