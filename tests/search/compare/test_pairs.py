"""Which pairs are declared, and what is found of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.pairs import declared_pairs, find_pairs, other_pairs
from search.compare.statistics.verdict import Rules
from tests.contracts.comparison_values import drawn, retraining

RULES = Rules(direction="maximize", smallest_difference=0.005, resamples=200)


def test_without_a_declaration_every_pair_is_declared_the_later_method_first() -> None:
    assert declared_pairs(None, ["grid", "random", "tpe"]) == (
        ("random", "grid"), ("tpe", "grid"), ("tpe", "random"),
    )  # fmt: skip
    assert declared_pairs(None, ["grid"]) == declared_pairs(None, []) == ()


def test_declared_pairs_keep_their_order_and_leave_out_what_was_not_run() -> None:
    written = [("tpe", "random"), ("gp", "random"), ("random", "tpe"), ("grid", "grid"), ("grid", "random")]
    methods = ["grid", "random", "tpe"]
    assert declared_pairs(written, methods) == (("tpe", "random"), ("grid", "random"))
    assert other_pairs(declared_pairs(written, methods), methods) == (("tpe", "grid"),)


def test_a_method_without_a_value_is_nothing_found() -> None:
    (pair,) = find_pairs({"a": {0: 0.5}, "b": {}}, [("a", "b")], RULES, outcome="searched", declared=True)
    assert (pair.result.verdict, pair.result.replicates, pair.result.difference) == ("too_few", 0, None)
    assert "nothing can be said" in pair.text


def test_the_rest_is_exploratory_and_not_in_holms_correction() -> None:
    found = analyse(drawn(["grid", "random", "tpe"], pairs=[["tpe", "random"]]), resamples=200)
    assert [(pair.name, pair.declared, pair.result.pairs_tested) for pair in found.pairs] == [
        ("tpe – random", True, 1), ("random – grid", False, 2), ("tpe – grid", False, 2),
    ]  # fmt: skip
    for pair in found.pairs:
        assert pair.text.startswith("Exploratory") is not pair.declared


def test_with_retrained_scores_search_values_are_exploratory() -> None:
    found = drawn(retrain={"seeds": 1})
    readings = []
    for study in found.studies:
        best = max(study.trials, key=lambda trial: trial.value or 0)
        readings += retraining(study, best.number, [0.9 + best.number / 1000])
    analysis = analyse(replace(found, readings=tuple(readings)), resamples=200)
    assert [(pair.outcome, pair.declared) for pair in analysis.pairs] == [
        ("retrained", True), ("searched", False),
    ]  # fmt: skip


@pytest.mark.parametrize("replicates", [1, 2, 9])
def test_fewer_than_ten_replicates_have_no_p_value(replicates: int) -> None:
    found = analyse(drawn(replicates=replicates, shift={"tpe": 0.5}), resamples=200)
    (pair,) = found.pairs
    assert (pair.result.test, pair.result.holm_p, pair.result.verdict) == (None, None, "too_few")
    assert "p =" not in pair.text
    assert "p <" not in pair.text


def test_the_ahead_one_wins_with_ten_replicates() -> None:
    (pair,) = analyse(drawn(replicates=10, shift={"tpe": 0.5}), resamples=200).pairs
    assert (pair.result.verdict, pair.result.better) == ("meaningful", "tpe")
