"""Which outcome the declared comparison is about, and which winners count in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison, Reading, Retrainings
from search.compare.budgets import Axis
from search.compare.document import document
from search.compare.primary import Lacking, budget_axis, named
from search.compare.render import render_markdown
from search.compare.report_tables import tables_of
from tests.contracts.comparison_values import comparison, retraining, study, trial

SEEDS = 6


def analysed(found: Comparison) -> Analysis:
    return analyse(found, resamples=200)


@pytest.mark.parametrize(
    ("declared", "pruner", "expected"),
    [
        ("epochs", "none", "trials"),
        ("epochs", "asha", "epochs"),
        ("trials", "asha", "trials"),
        ("seconds", "none", "seconds"),
    ],
)
def test_the_budget_is_counted_in_trials_where_nothing_is_pruned(
    declared: Axis, pruner: str, expected: Axis
) -> None:
    assert budget_axis(declared, pruner) == expected


def retrained(
    lost: dict[tuple[str, int], int] | None = None,
    *,
    replicates: int = 12,
    at_least: int = 4,
    state: str = "finished",
    retrain: dict[str, int] | None = None,
) -> Comparison:
    """Two methods, one trial each; tpe is worth 0.2 more. `lost`: how many seeds of a winner failed."""
    lost = lost or {}
    studies = [study(m, r, [trial(0, 0.9)]) for m in ("random", "tpe") for r in range(replicates)]
    readings: list[Reading] = []
    for one in studies:
        worth = 0.5 + 0.2 * (one.method == "tpe") + one.replicate / 1000
        values = [worth + k / 100 for k in range(SEEDS)]
        readings += retraining(one, 0, values[lost.get((one.method, one.replicate), 0) :], None)
    settings = {"retrain": retrain or {"seeds": SEEDS, "at_least": at_least}}
    return replace(
        comparison(
            studies,
            state=state,
            spec={"pruner": {"name": "none"}, "comparison": settings, "budget": {"trials": 1}},
            readings=readings,
        ),
        retrainings={f"digits/{m}/{r}": Retrainings(failed=n) for (m, r), n in lost.items()},
    )


def test_with_all_seeds_nothing_is_lacking() -> None:
    found = analysed(retrained())
    assert (found.primary.kind, found.primary.retrained, found.primary.ranked) == ("retrained", 24, 24)
    assert found.primary.lacking == found.primary.left_out == found.primary.beyond == ()
    assert found.primary.text == (
        "Each study's winner was trained again with 6 fresh seeds and scored on the sealed test set; a study "
        "counts with the mean over them."
    )
    assert not {note.kind for note in found.notes} & {"retraining_incomplete", "retraining_unfinished"}


def test_a_failed_retraining_costs_a_seed_and_not_the_outcome() -> None:
    found = analysed(retrained({("tpe", 3): 2}))
    primary = found.primary
    assert (primary.kind, primary.retrained, primary.ranked, primary.needed) == ("retrained", 23, 24, 4)
    assert primary.lacking == (Lacking(study="digits/tpe/3", seeds=4, failed=2),)
    assert primary.left_out == primary.missing == ()
    # The mean over seeds 2 to 5 of those that finished.
    assert primary.values["tpe"][3] == pytest.approx(0.703 + 0.035)
    said = (
        "All 6 seeds finished for 23 of 24 winners. With those that finished, at least 4, count: "
        "digits/tpe/3 (4, 2 failed)."
    )
    assert primary.text.endswith(said)
    assert {note.kind: note.text for note in found.notes}["retraining_incomplete"] == said
    assert found.conclusion.verdict.startswith("tpe is better than random over 12 replicates")


def test_a_winner_with_too_few_seeds_is_left_out_by_name() -> None:
    found = retrained({("tpe", 3): 3, ("random", 5): 1})
    analysis = analysed(found)
    primary = analysis.primary
    assert (primary.kind, primary.ranked, primary.to_retrain) == ("retrained", 23, 24)
    assert [one.study for one in primary.left_out] == ["digits/tpe/3"]
    assert primary.missing == ("digits/tpe/3",)
    assert 3 not in primary.values["tpe"]
    assert 3 in primary.values["random"]
    (pair,) = [pair for pair in analysis.pairs if pair.declared]
    assert pair.result.replicates == 11, "paired on what both have"
    notes = {note.kind: note.text for note in analysis.notes}
    assert "Left out, with fewer than 4: digits/tpe/3 (3, 3 failed)." in notes["retraining_incomplete"]
    assert "studies_without_value" not in notes
    assert any("1 of 24 winners are worth" in sentence for sentence in analysis.conclusion.not_shown)
    assert "Left out, with fewer than 4" in render_markdown(found, analysis)
    held = document(found, analysis, tables_of(found, analysis))["primary"]
    assert held["lacking"] == [  # type: ignore[index]
        {"study": "digits/random/5", "seeds": 5, "failed": 1},
        {"study": "digits/tpe/3", "seeds": 3, "failed": 3},
    ]


@pytest.mark.parametrize("state", ["stopped", "failed", "finished"])
def test_a_method_without_any_retrained_winner_is_not_replaced_by_search_values(state: str) -> None:
    found = analysed(retrained({("tpe", r): SEEDS for r in range(12)}, state=state))
    assert found.primary.kind == "retrained"
    assert found.primary.values["tpe"] == {}
    notes = {note.kind for note in found.notes}
    assert "no_completed_trial" not in notes, "its trials were trained to their end"
    assert "retraining_incomplete" in notes
    assert not found.conclusion.claims


@pytest.mark.parametrize("lost", [SEEDS, 3])
def test_without_any_winner_that_counts_search_values_are_compared(lost: int) -> None:
    found = analysed(retrained({(m, r): lost for m in ("random", "tpe") for r in range(12)}))
    assert (found.primary.kind, found.primary.ranked) == ("searched", 0)
    assert found.primary.values["tpe"] == dict.fromkeys(range(12), 0.9)
    notes = {note.kind: note.text for note in found.notes}
    if lost == SEEDS:
        assert "selection" in notes
    else:
        assert "at least 4 seeds: 0 of 24. As long as none has" in notes["retraining_unfinished"]
        assert "no winner has been retrained with 4 seeds" in found.primary.text


def test_while_it_runs_search_values_stand_in_until_every_winner_counts() -> None:
    lacking = analysed(retrained({("tpe", 3): 3}, state="running"))
    assert (lacking.primary.kind, lacking.primary.ranked) == ("searched", 23)
    assert "only 23 of 24 winners" in lacking.primary.text
    assert "Until all have" in {n.kind: n.text for n in lacking.notes}["retraining_unfinished"]
    assert analysed(retrained({("tpe", 3): 2}, state="running")).primary.kind == "retrained"


def test_the_least_seeds_are_never_more_than_all() -> None:
    found = retrained(retrain={"seeds": SEEDS, "at_least": 1000})
    assert (analysed(found).primary.needed, analysed(found).primary.kind) == (SEEDS, "retrained")
    one_lost = retrained({("tpe", 3): 1}, retrain={"seeds": SEEDS, "at_least": 1000})
    assert [one.study for one in analysed(one_lost).primary.left_out] == ["digits/tpe/3"]


@pytest.mark.parametrize("lacking", ["the current winner", "the metric"])
def test_readings_of_something_else_do_not_count(lacking: str) -> None:
    found = retrained(replicates=1)
    change = {"trial": 7} if lacking == "the current winner" else {"metrics": {"log_loss": 0.1}}
    readings = [replace(r, **change) if r.method == "tpe" else r for r in found.readings]  # type: ignore[arg-type]
    primary = analysed(replace(found, readings=tuple(readings))).primary
    assert primary.missing == ("digits/tpe/0",)


def unequal(axis: str = "trials") -> Comparison:
    """A grid of 2 trials, and random searches of 3, whose winners are the second trial and the third."""
    studies = [
        *(study("grid", r, [trial(0, 0.5), trial(1, 0.6)]) for r in range(2)),
        study("random", 0, [trial(0, 0.5), trial(1, 0.9), trial(2, 0.7)]),
        study("random", 1, [trial(0, 0.5), trial(1, 0.7), trial(2, 0.9)]),
    ]
    readings = [
        *retraining(studies[0], 1, [0.5]), *retraining(studies[1], 1, [0.5]),
        *retraining(studies[2], 1, [0.8]), *retraining(studies[3], 2, [0.8]),
    ]  # fmt: skip
    pruner = "none" if axis == "trials" else "median"
    settings = {"pruner": {"name": pruner}, "comparison": {"axis": axis, "retrain": {"seeds": 1}}}
    return comparison(studies, readings=readings, spec=settings)


def test_winners_that_longer_studies_found_later_are_counted_and_named() -> None:
    found = analysed(unequal())
    assert (found.primary.kind, found.primary.common) == ("retrained", 2)
    assert found.primary.beyond == ("digits/random/1",)
    said = "1 of 4 were found after the 2 trials that all studies have"
    assert found.primary.text.endswith(f"{said}.")
    notes = {note.kind: note.text for note in found.notes}
    assert notes["winners_beyond_budget"].endswith(f"{said}: digits/random/1.")
    assert any("equal trials: 1 of 4" in sentence for sentence in found.conclusion.not_shown)
    searched = analysed(replace(unequal(), readings=()))
    assert searched.primary.beyond == ()


@pytest.mark.parametrize("axis", ["trials", "epochs"])
def test_what_winners_are_worth_at_equal_epochs_is_left_open_in_one_sentence(axis: str) -> None:
    said = analysed(unequal(axis)).conclusion.not_shown
    [sentence] = [one for one in said if "at equal epochs" in one]
    assert ("1 of 4" in sentence) == (axis == "epochs")


def test_many_names_are_counted() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([f"s{n}" for n in range(9)]) == "s0, s1, s2, s3, s4, s5 and 3 more"
