"""The whole analysis: what holds for any comparison, and every kind of experiment goes through it."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.compare.analysis import Analysis, analyse
from search.compare.base import Comparison
from search.compare.cells import EMPTY, median_and_quartiles
from search.compare.cuts import Quartiles
from search.compare.document import document
from search.compare.render import render_markdown
from search.compare.report_tables import TABLES, tables_of
from search.compare.statistics.base import Sample
from search.compare.statistics.verdict import compare_pairs
from search.formats import NOTHING
from tests.contracts.comparison_values import comparison, drawn, lifelike, retraining, study, trial

RESAMPLES = 100


def numbers(comparison: Comparison, analysis: Analysis) -> str:
    """All numbers and sentences, as the report holds them."""
    return json.dumps(document(comparison, analysis, tables_of(comparison, analysis)), allow_nan=False)


def shuffled(found: Comparison, seed: int) -> Comparison:
    """The same studies with their trials in another order."""
    rng = random.Random(seed)
    return replace(
        found,
        studies=tuple(
            replace(one, trials=tuple(rng.sample(one.trials, len(one.trials)))) for one in found.studies
        ),
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_order_of_trials_changes_nothing(seed: int) -> None:
    found = lifelike(replicates=3, trials=8, seed=seed)
    other = shuffled(found, seed)
    assert numbers(found, analyse(found, resamples=RESAMPLES)) == numbers(
        other, analyse(other, resamples=RESAMPLES)
    )


def renumbered(found: Comparison, seed: int) -> Comparison:
    """The same trials as if they had been drawn in another order: numbers and end times move, values stay."""
    rng = random.Random(seed)
    studies = []
    for one in found.studies:
        values = rng.sample([t.value for t in one.trials], len(one.trials))
        studies.append(
            replace(one, trials=tuple(replace(t, value=v) for t, v in zip(one.trials, values, strict=True)))
        )
    return replace(found, studies=tuple(studies))


def test_permuting_trials_in_time_changes_curves_and_no_final_number() -> None:
    found = drawn(["grid", "random", "tpe"], replicates=10, trials=12)
    first, second = (analyse(one, resamples=RESAMPLES) for one in (found, renumbered(found, 3)))
    assert first.primary.values == second.primary.values
    assert [m.score for m in first.methods] == [m.score for m in second.methods]
    assert [p.result for p in first.pairs] == [p.result for p in second.pairs]
    assert first.regret == second.regret
    assert [cut.values for cut in first.cuts[0].cuts[-3:]] == [cut.values for cut in second.cuts[0].cuts[-3:]]
    assert list(first.anytime[0].methods[0].curves[0].values) != list(
        second.anytime[0].methods[0].curves[0].values
    )


def test_both_directions_of_a_pair_add_up() -> None:
    found = analyse(drawn(replicates=12, trials=3), resamples=RESAMPLES)
    (pair,) = found.pairs
    samples = [Sample(method, values) for method, values in found.primary.values.items()]
    (other,) = compare_pairs(samples, [(pair.result.second, pair.result.first)], found.rules)
    assert pair.result.superiority is not None
    assert other.superiority is not None
    assert pair.result.superiority.estimate + other.superiority.estimate == pytest.approx(1)
    assert pair.result.holm_p == other.holm_p


def test_turning_the_metric_turns_nothing_but_signs() -> None:
    found = drawn(replicates=12, trials=3, shift={"tpe": 0.02})
    turned = replace(
        found,
        direction="minimize",
        studies=tuple(
            replace(one, trials=tuple(replace(t, value=-(t.value or 0)) for t in one.trials))
            for one in found.studies
        ),
    )
    one, other = (analyse(c, resamples=RESAMPLES).pairs[0].result for c in (found, turned))
    assert (one.verdict, one.better, one.holm_p) == (other.verdict, other.better, other.holm_p)
    assert one.difference is not None
    assert other.difference is not None
    assert one.difference.estimate == pytest.approx(other.difference.estimate)


def constant(methods: int, replicates: int = 12) -> Comparison:
    names = ["random", *(f"m{n}" for n in range(1, methods))]
    return comparison([study(m, r, [trial(0, 0.5), trial(1, 0.5)]) for m in names for r in range(replicates)])


def ties() -> Comparison:
    values = [0.9, 0.9, 0.8, 0.9, 0.8, 0.8, 0.9, 0.9, 0.8, 0.9, 0.9, 0.8]
    return comparison([study(m, r, [trial(0, v)]) for m in ("random", "tpe") for r, v in enumerate(values)])


def holes() -> Comparison:
    """One method lacks some replicates, one has only failures, one only diverged, one only pruned trials."""
    return comparison(
        [
            *(study("random", r, [trial(0, 0.5 + r / 100), trial(1, 0.4)]) for r in range(12)),
            *(study("tpe", r, [trial(0, 0.6)]) for r in range(0, 12, 2)),
            *(study("broken", r, [trial(0, None, state="failed")]) for r in range(12)),
            *(study("dead", r, [trial(0, 0.1, diverged=True)]) for r in range(12)),
            *(study("pruned", r, [trial(0, 0.9, state="pruned", epochs=1)]) for r in range(12)),
        ]
    )


KINDS = {
    "no studies": comparison([], state="created"),
    "no trials": comparison([study("grid", 0, []), study("random", 0, [])]),
    "only failures": comparison([study("grid", 0, [trial(0, None, state="failed")])]),
    "only diverged": comparison([study("random", r, [trial(0, 0.1, diverged=True)]) for r in range(2)]),
    "one trial": comparison([study("random", 0, [trial(0, 0.4)])], direction="minimize", metric="log_loss"),
    "one replicate": drawn(replicates=1),
    "one method": drawn(["tpe"], replicates=12),
    "two methods": drawn(),
    "eight methods": lifelike(["random", *(f"m{n}" for n in range(1, 8))], replicates=2, trials=3),
    "constant": constant(8),
    "ties": ties(),
    "holes": holes(),
    "unfinished": replace(lifelike(replicates=3, trials=6), state="running"),
    "not a number": comparison(
        [study(m, r, [trial(0, float("nan")), trial(1, 0.5), trial(2, float("inf"))])
         for m in ("random", "tpe") for r in range(2)]
    ),
    "no cost": comparison([study("random", r, [trial(0, 0.5, seconds=0.0)]) for r in range(2)]),
    "not in file": comparison([study("odd", 0, [trial(0, 0.5)])], spec={"methods": {}, "space": None}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_experiment_has_a_whole_analysis(kind: str) -> None:
    found = KINDS[kind]
    analysis = analyse(found, resamples=RESAMPLES)
    text = numbers(found, analysis)
    assert "NaN" not in text
    assert "Infinity" not in text
    for table in tables_of(found, analysis):
        for row in table.rows:
            for cell in row:
                assert cell.text
                assert "nan" not in cell.text.lower().split()
                assert "inf" not in cell.text.lower().split()
    assert analysis.conclusion.verdict
    assert analysis.conclusion.not_shown


def test_holes_are_compared_where_both_have_a_replicate() -> None:
    found = analyse(holes(), resamples=RESAMPLES)
    by_name = {frozenset((p.result.first, p.result.second)): p.result for p in found.pairs}
    assert by_name[frozenset(("random", "tpe"))].replicates == 6
    assert by_name[frozenset(("random", "broken"))].replicates == 0
    assert by_name[frozenset(("random", "pruned"))].replicates == 0
    assert by_name[frozenset(("random", "dead"))].better == "random"


def test_one_replicate_prints_no_p_value_anywhere() -> None:
    found = drawn(replicates=1, trials=60, shift={"tpe": 0.5})
    analysis = analyse(found, resamples=RESAMPLES)
    for table in tables_of(found, analysis):
        if table.key.startswith("pairs"):
            keys = [column.key for column in table.columns]
            for row in table.rows:
                assert row[keys.index("p")].text == row[keys.index("holm_p")].text == NOTHING
    words = " ".join((analysis.conclusion.verdict, *(pair.text for pair in analysis.pairs)))
    assert "p =" not in words
    assert "p <" not in words


def test_the_analysis_is_the_same_every_time() -> None:
    found = lifelike(replicates=3, trials=10)
    assert numbers(found, analyse(found)) == numbers(found, analyse(found))


def test_points_are_for_shares_only() -> None:
    found = drawn(replicates=2, trials=1)
    assert (analyse(found, resamples=RESAMPLES).rules.scale, found.metric) == (100, "accuracy")
    other = analyse(replace(found, metric="log_loss"), resamples=RESAMPLES)
    assert (other.rules.scale, other.rules.unit) == (1, "")


def test_every_declared_value_is_in_the_rules() -> None:
    found = drawn(alpha=0.01, smallest_difference=0.02, meaningful=0.8, power=0.7)
    rules = analyse(found, resamples=RESAMPLES).rules
    assert (rules.alpha, rules.smallest_difference, rules.meaningful, rules.power) == (0.01, 0.02, 0.8, 0.7)


def test_pruned_epochs_count_in_full_against_an_equal_budget() -> None:
    """Both spend 10 epochs; tpe's pruned trials left it one trial fewer."""
    found = comparison(
        [
            study("random", 0, [trial(0, 0.5), trial(1, 0.6)]),
            study("tpe", 0, [trial(n, 0.9, state="pruned", epochs=3) for n in range(2)] + [trial(2, 0.7)]),
        ],
        spec={"pruner": {"name": "asha"}},
    )
    analysis = analyse(found, resamples=RESAMPLES)
    assert (analysis.primary.axis, analysis.primary.budget) == ("epochs", 10)
    # tpe's winner ended after 11 epochs, one more than the budget.
    assert analysis.primary.values == {"random": {0: 0.6}, "tpe": {}}
    assert analysis.studies[1].searched == 0.7


def test_tables_come_in_order_and_hold_the_numbers() -> None:
    found = drawn(["random", "tpe"], replicates=2, trials=2, retrain={"seeds": 2})
    readings = []
    for one in found.studies:
        best = max(one.trials, key=lambda t: t.value or 0)
        readings += retraining(one, best.number, [0.5, 0.6], [0.7, 0.8])
    found = replace(found, readings=tuple(readings))
    analysis = analyse(found, resamples=RESAMPLES)
    tables = {table.key: table for table in tables_of(found, analysis)}
    assert list(tables) == [key for key in TABLES if key in tables]
    assert set(TABLES) - set(tables) == set(), "every table has a row here"
    headline = tables["headline"]
    keys = [column.key for column in headline.columns]
    row = dict(zip(keys, headline.rows[0], strict=True))
    assert (row["method"].text, row["n"].value, row["median"].text) == ("random", 2, "0.55")
    winners = tables["winners"]
    assert len(winners.rows) == 4
    row = dict(zip([c.key for c in winners.columns], winners.rows[0], strict=True))
    assert (row["retrained_test"].text, row["retrained_validation"].text, row["seeds"].value) == (
        "0.55", "0.75", 2,
    )  # fmt: skip
    assert row["params.loss"].text == "cross_entropy"
    assert len(tables["test-readings"].rows) == 8
    assert {table.key for table in tables.values() if table.exploratory} == {
        "pairs-exploratory", "cuts", "efficiency", "edges", "regret", "expected-best",
    }  # fmt: skip


def test_a_function_has_no_points_no_images_and_no_test_set() -> None:
    """A function may call anything `error`; what the trainer calls so is a share."""
    spec: dict[str, object] = {
        "objective": {"function": "mine:f"}, "data": None, "model": None,
        "comparison": {"retrain": {"seeds": 1}},
    }  # fmt: skip
    studies = [study(m, r, [trial(0, 7.0 + r)]) for m in ("random", "tpe") for r in range(2)]
    readings = [again for one in studies for again in retraining(one, 0, [8.0], metric="error")]
    found = comparison(studies, metric="error", direction="minimize", spec=spec, readings=readings)
    for shown in (found, replace(found, readings=())):
        analysis = analyse(shown, resamples=RESAMPLES)
        assert (analysis.rules.scale, analysis.rules.unit) == (1.0, "")
        tables = tables_of(shown, analysis)
        words = [
            analysis.conclusion.verdict,
            *analysis.conclusion.not_shown,
            render_markdown(shown, analysis),
        ]
        words += [note.text for note in analysis.notes]
        words += [text for t in tables for text in (t.title, t.caption, *(c.title for c in t.columns))]
        words += [cell.text for t in tables for row in t.rows for cell in row]
        for wrong in ("validation", "images", "sealed", "test error", "test set", "test, retrained"):
            assert not [text for text in words if wrong in text]


def test_one_replicate_has_neither_quartiles_nor_a_plural() -> None:
    found = drawn(["random", "tpe"], replicates=1, trials=4)
    analysis = analyse(found, resamples=RESAMPLES)
    tables = {table.key: table for table in tables_of(found, analysis)}
    assert "1 replicates" not in render_markdown(found, analysis)
    headline = tables["headline"]
    row = dict(zip([c.key for c in headline.columns], headline.rows[0], strict=True))
    assert row["quartiles"] == EMPTY


def test_a_cut_says_of_how_few_replicates_it_is() -> None:
    one = Quartiles(n=1, median=0.5, low_quartile=0.5, high_quartile=0.5)
    assert median_and_quartiles(one, 1).text == "0.5"
    assert median_and_quartiles(one, 3).text == "0.5 [n = 1]"
    two = Quartiles(n=2, median=0.5, low_quartile=0.4, high_quartile=0.6)
    assert median_and_quartiles(two, 2).text == "0.5 [0.4 to 0.6]"
    assert median_and_quartiles(two, 3).text == "0.5 [0.4 to 0.6, n = 2]"


def test_differences_are_told_in_points_and_kept_in_the_metrics_unit() -> None:
    found = comparison(
        [study("random", r, [trial(0, 0.5)]) for r in range(2)]
        + [study("tpe", r, [trial(0, 0.51)]) for r in range(2)]
    )
    tables = {t.key: t for t in tables_of(found, analyse(found, resamples=RESAMPLES))}
    table = tables["pairs"]
    row = dict(zip([c.key for c in table.columns], table.rows[0], strict=True))
    assert row["difference"].text == "+1"
    assert row["difference"].value == pytest.approx(0.01)
    assert row["verdict"].value == "too_few"


def test_a_budget_of_seconds_that_nothing_costs_is_counted_in_trials() -> None:
    found = comparison(
        [study(m, 0, [trial(0, 0.5, seconds=0.0)]) for m in ("random", "tpe")],
        spec={"comparison": {"axis": "seconds"}},
    )
    primary = analyse(found, resamples=RESAMPLES).primary
    assert (primary.axis, primary.budget) == ("trials", 1)
    assert primary.values == {"random": {0: 0.5}, "tpe": {0: 0.5}}


def test_cuts_by_hand() -> None:
    values = {"random": [0.1, 0.4, 0.3, 0.6], "tpe": [0.5, 0.2, 0.7, 0.1]}
    found = comparison(
        [study(m, 0, [trial(n, v, epochs=2) for n, v in enumerate(vs)]) for m, vs in values.items()]
    )
    analysis = analyse(found, resamples=RESAMPLES)
    trials, epochs, _ = analysis.cuts
    seen = [(c.fraction, c.position, c.method, c.values and c.values.median) for c in trials.cuts]
    assert seen == [
        (0.25, 1, "random", 0.1), (0.25, 1, "tpe", 0.5), (0.5, 2, "random", 0.4), (0.5, 2, "tpe", 0.5),
        (1.0, 4, "random", 0.6), (1.0, 4, "tpe", 0.7),
    ]  # fmt: skip
    assert [c.position for c in epochs.cuts[::2]] == [2, 4, 8]
