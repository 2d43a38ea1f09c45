"""What a reader is told before the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison, State
from tests.contracts.comparison_values import comparison, drawn, lifelike, study, trial


def kinds(found: Comparison) -> list[str]:
    return [note.kind for note in analyse(found, resamples=100).notes]


def texts(found: Comparison) -> dict[str, str]:
    return {note.kind: note.text for note in analyse(found, resamples=100).notes}


@pytest.mark.parametrize(("replicates", "said"), [(9, True), (10, False)])
def test_too_few_replicates_are_said_to_be(replicates: int, said: bool) -> None:
    assert ("too_few_replicates" in kinds(drawn(["random"], replicates, 1))) is said


@pytest.mark.parametrize(("trials", "said"), [(49, True), (50, False)])
def test_small_studies_are_called_a_demonstration(trials: int, said: bool) -> None:
    assert ("demonstration" in kinds(drawn(["random"], 1, trials))) is said


def test_a_grid_that_fits_less_than_the_budget_is_no_demonstration() -> None:
    """48 points where the budget says 50: as many as fit."""
    budget = {"budget": {"trials": 50, "epochs": None}}

    def grid_of(points: int, random: int, state: State = "complete") -> Comparison:
        grid = [trial(n, 0.5, state=state if n == 0 else "complete") for n in range(points)]
        return comparison(
            [study("grid", 0, grid), study("random", 0, [trial(n, 0.6) for n in range(random)])], spec=budget
        )

    assert "demonstration" not in kinds(grid_of(48, 50))
    assert "unequal_trials" in kinds(grid_of(48, 50)), "which is said for what it is"
    assert "demonstration" in kinds(grid_of(48, 49)), "random search was to have 50"
    assert "demonstration" in kinds(grid_of(48, 50, state="running")), "a grid that goes on"
    small = replace(grid_of(48, 50), spec={**grid_of(1, 1).spec, "budget": {"trials": 49}})
    assert "demonstration" in kinds(small), "the budget itself is small"


def test_a_trial_that_failed_for_good_makes_a_whole_study_no_demonstration() -> None:
    trials = [*(trial(n, 0.5) for n in range(49)), trial(49, None, state="failed")]
    found = comparison([study("random", 0, trials)], spec={"budget": {"trials": 50}})
    assert "demonstration" not in kinds(found)
    assert "failed_trials" in kinds(found)


def test_failed_trials_make_no_study_larger() -> None:
    trials = [trial(n, 0.5) for n in range(49)]
    found = comparison([study("random", 0, [*trials, trial(49, None, state="failed")])])
    assert {"demonstration", "failed_trials"} <= set(kinds(found))
    assert "failed_trials" not in kinds(comparison([study("grid", 0, [trial(0, 0.5)])]))


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


def test_an_open_experiment_says_which_replicates_are_compared() -> None:
    whole, part = [trial(0, 0.5), trial(1, 0.6)], [trial(0, 0.5)]
    found = comparison(
        [study("random", 0, whole), study("random", 1, part)], state="stopped", spec={"budget": {"trials": 2}}
    )
    assert "whole: 1 of 2" in texts(found)["provisional"]


def test_trials_that_a_budget_of_epochs_left_out_are_said() -> None:
    found = comparison([study("grid", 0, [trial(0, 0.5), trial(1, None, state="waiting")])], state="finished")
    assert "never begun: 1." in texts(found)["trials_not_begun"]


def test_unequal_budgets_are_said() -> None:
    short = study("grid", 0, [trial(0, 0.5, epochs=5)])
    long = study("tpe", 0, [trial(0, 0.5, epochs=5), trial(1, 0.6, epochs=5)])
    assert {"unequal_trials", "unequal_epochs"} <= set(kinds(comparison([short, long])))
    assert not {"unequal_trials", "unequal_epochs"} & set(
        kinds(comparison([long, study("grid", 0, long.trials)]))
    )


def test_studies_without_a_value_are_named() -> None:
    found = comparison([study("tpe", 0, [trial(0, 0.5)]), study("tpe", 1, [trial(0, 0.5, state="pruned")])])
    assert "digits/tpe/1" in texts(found)["studies_without_value"]


def test_selection_is_said_where_there_is_something_selected() -> None:
    assert "selection" in kinds(drawn(["random"], 1, 2))
    assert "selection" not in kinds(comparison([study("random", 0, [])]))


def test_no_note_claims_a_winner() -> None:
    text = " ".join(texts(lifelike(replicates=12, trials=60)).values()).lower()
    assert "significant" not in text
    assert " p " not in text
    assert "better than" not in text
