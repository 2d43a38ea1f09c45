"""The verdict in words, and what it doesn't show."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.conclusion import Conclusion
from tests.contracts.comparison_values import comparison, drawn, retraining, study, trial


def concluded(found: Comparison) -> Conclusion:
    return analyse(found, resamples=500).conclusion


def test_too_few_replicates_name_no_winner_however_large_the_difference() -> None:
    found = concluded(drawn(replicates=9, trials=60, shift={"tpe": 0.5}))
    assert found.verdict == (
        "Too few replicates for a claim: 9, where 10 are the least; no method is named the winner."
    )
    assert not found.claims
    assert any("fewer than 10 replicates" in sentence for sentence in found.not_shown)


def test_a_found_difference_is_said_with_its_size() -> None:
    found = concluded(drawn(replicates=12, trials=60, shift={"tpe": 0.5}))
    assert found.verdict.startswith("tpe is better than random over 12 replicates by ")
    amount = r"by (\S+) points on average \(95 % interval \+(\S+) to \+(\S+)\)"
    said = re.search(amount + r", with probability 1\.00: a meaningful difference\.", found.verdict)
    assert said is not None, found.verdict
    size, low, high = map(float, said.groups())
    assert low < size < high
    assert found.claims


def test_the_better_method_is_named_first_whichever_pair_was_declared() -> None:
    found = concluded(drawn(replicates=12, trials=60, shift={"random": 0.5}))
    assert found.verdict.startswith("random is better than tpe")
    assert re.search(r"\(95 % interval \+\S+ to \+\S+\), with probability 1\.00", found.verdict)


def test_equal_values_are_equivalent() -> None:
    studies = [study(m, r, [trial(0, 0.5)]) for m in ("random", "tpe") for r in range(12)]
    found = concluded(comparison(studies))
    assert found.verdict.startswith("tpe and random are equivalent within ± 0.5 points")
    assert not found.claims


def test_pairs_without_a_difference_are_said_in_one_sentence() -> None:
    found = concluded(drawn(["grid", "random", "tpe"], replicates=10, trials=1))
    pair = r"\(\+\d\.\d points, 95 % interval -\d\.\d to \+\d\.\d, p \(Holm\) = \d\.\d{3}\)"
    names = rf"random and grid {pair}, nor between tpe and grid {pair}, nor between tpe and random {pair}"
    said = f"No difference was found between {names}; that is no evidence of equality."
    assert re.match(said, found.verdict), found.verdict
    many = concluded(drawn(["a", "b", "c", "d"], replicates=10, trials=1))
    assert "between b and a; c and a; d and a; c and b; d and b; d and c; that is" in many.verdict
    assert any("may still be there" in sentence for sentence in found.not_shown)


def test_many_pairs_without_a_difference_are_counted() -> None:
    methods = ["grid", "random", "tpe", "gp", "qmc"]
    found = drawn(methods, replicates=10, trials=1, shift={"tpe": 0.5})
    assert " In 6 of 10 pairs no difference" not in concluded(found).verdict, "six are still named"
    found = drawn([*methods, "more"], replicates=10, trials=1, shift={"tpe": 0.5})
    assert "In 10 of 15 pairs no difference was found" in concluded(found).verdict


@pytest.mark.parametrize(("trials", "said"), [(49, True), (50, False)])
def test_small_studies_are_a_demonstration(trials: int, said: bool) -> None:
    assert ("A demonstration" in concluded(drawn(replicates=10, trials=trials)).verdict) is said


def test_an_experiment_that_goes_on_is_provisional() -> None:
    found = concluded(replace(drawn(replicates=12, shift={"tpe": 0.5}), state="running"))
    assert "Provisional" in found.verdict
    assert any("The final result" in sentence for sentence in found.not_shown)


@pytest.mark.parametrize(
    ("studies", "said"),
    [
        ([], "nothing to compare"),
        ([study("tpe", 0, [trial(0, None, state="failed")])], "nothing to compare"),
        ([study("tpe", 0, [trial(0, 0.5)])], "Only tpe was run"),
    ],
)
def test_nothing_to_compare_is_said(studies: list, said: str) -> None:
    assert said in concluded(comparison(studies)).verdict


def test_a_declared_pair_that_was_not_run_claims_nothing() -> None:
    assert "No declared pair" in concluded(drawn(pairs=[["gp", "random"]])).verdict


def test_retrained_winners_take_the_warning_of_selection_away() -> None:
    found = drawn(replicates=2, retrain={"seeds": 1})
    assert any("values were selected among many" in s for s in concluded(found).not_shown)
    readings = []
    for one in found.studies:
        best = max(one.trials, key=lambda trial: trial.value or 0)
        readings += retraining(one, best.number, [0.8])
    again = concluded(replace(found, readings=tuple(readings)))
    assert not any("values were selected among many" in s for s in again.not_shown)


@pytest.mark.parametrize(("seeds", "replicates", "said"), [(10, 12, True), (0, 12, False), (10, 9, False)])
def test_claims_about_the_search_say_that_winners_were_to_be_retrained(
    seeds: int, replicates: int, said: bool
) -> None:
    found = drawn(replicates=replicates, trials=60, shift={"tpe": 0.5}, retrain={"seeds": seeds})
    sentence = "winners were to be ranked after 10 retrainings each, and 0 of"
    assert (sentence in concluded(found).verdict) == said


@pytest.mark.parametrize(("in_flight", "said"), [(4, False), (5, True), (None, True)])
def test_wide_adaptive_studies_are_pointed_out(in_flight: int | None, said: bool) -> None:
    settings = {"tpe": {"in_flight": in_flight}, "random": {"in_flight": None}}
    found = replace(drawn(), spec={**drawn().spec, "methods": settings})
    wide = [s for s in concluded(found).not_shown if "side by side" in s]
    assert bool(wide) is said
    assert all("tpe" in sentence and "random" not in sentence for sentence in wide)


def test_a_grids_levels_are_pointed_out() -> None:
    assert any("levels" in s for s in concluded(drawn(["grid", "random"], 1, 1)).not_shown)
    assert not any("levels" in s for s in concluded(drawn(["tpe", "random"], 1, 1)).not_shown)


@pytest.mark.parametrize(("epochs", "said"), [(5, False), (9, True)])
def test_winners_of_unequal_epochs_are_pointed_out(epochs: int, said: bool) -> None:
    studies = [
        study("random", 0, [trial(0, 0.5, epochs=5)]),
        study("tpe", 0, [trial(0, 0.6, epochs=epochs)]),
    ]
    found = comparison(studies, spec={"comparison": {"retrain": {"seeds": 1}}})
    readings = (*retraining(studies[0], 0, [0.4]), *retraining(studies[1], 0, [0.4]))
    conclusion = concluded(replace(found, readings=readings))
    assert any("at equal epochs" in sentence for sentence in conclusion.not_shown) is said
