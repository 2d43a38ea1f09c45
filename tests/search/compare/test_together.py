"""Several experiments put together: what is refused, what is said, and what is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.differing import MOST_ROWS, difference_table, differences, remarks
from search.compare.statistics.hypothesis_tests import holm
from search.compare.together import NotComparable, Together, together, trials_in_flight
from tests.contracts.comparison_values import comparison, drawn, study, trial

METHODS = ("random", "b", "c")


def experiment(
    name: str,
    *,
    data: str | None = None,
    methods: tuple[str, ...] = METHODS,
    replicates: int = 12,
    seed: int = 0,
    **spec: object,
) -> Comparison:
    """Three methods of which c is best, then b."""
    found = drawn(methods, replicates=replicates, trials=6, seed=seed, shift={"b": 0.2, "c": 0.4})
    studies = tuple(replace(one, name=f"{name}/{one.method}/{one.replicate}") for one in found.studies)
    own = {**found.spec, "experiment": name, "data": {"name": data or name}, **spec}
    return replace(found, experiment=name, studies=studies, spec=own)


def put(*found: Comparison, methods: tuple[str, ...] | None = None) -> Together:
    return together([(one, analyse(one, resamples=100)) for one in found], methods=methods)


def texts(found: Together, key: str) -> list[list[str]]:
    table = next(table for table in found.tables if table.key == key)
    return [[cell.text for cell in row] for row in table.rows]


def test_methods_that_one_lacks_are_named() -> None:
    with pytest.raises(NotComparable) as refused:
        put(experiment("x"), experiment("y", methods=("random", "c")))
    (only,) = refused.value.obstacles
    assert (only.experiment, only.text, only.choosable) == ("y", "didn't run b", True)
    found = put(experiment("x"), experiment("y", methods=("random", "c")), methods=("random", "c"))
    assert found.across.methods == ("random", "c")
    assert any(said.startswith("Left out: b;") for said in found.remarks)
    assert {row[1] for row in texts(found, "headlines")} == {"random", "c"}
    assert {row[1] for row in texts(found, "pairs")} == {"c – random"}


def test_a_method_without_a_value_is_in_the_way() -> None:
    other = experiment("y")
    failed = tuple(
        study("b", one.replicate, [trial(0, None, state="failed")]) if one.method == "b" else one
        for one in other.studies
    )
    with pytest.raises(NotComparable, match="y: has no trial of b that was trained to its end"):
        put(experiment("x"), replace(other, studies=failed))


def test_an_experiment_without_a_value_is_in_the_way() -> None:
    with pytest.raises(NotComparable, match="empty: no trial was trained"):
        put(experiment("x"), comparison([], experiment="empty"))


def test_one_method_can_not_be_compared() -> None:
    alone = [experiment(name, methods=("c",)) for name in "xy"]
    with pytest.raises(NotComparable, match="only c: two methods"):
        put(*alone)


@pytest.mark.parametrize(("count", "drawn_figures"), [(2, ["regrets"]), (6, ["ranks", "regrets"])])
def test_ranks_are_drawn_from_six_experiments_on(count: int, drawn_figures: list[str]) -> None:
    found = put(*(experiment(f"e{n}", seed=n) for n in range(count)))
    assert [figure.key for figure in found.figures] == drawn_figures
    assert [table.key for table in found.tables] == [
        "across", "experiments", "headlines", "pairs", "differences",
    ]  # fmt: skip
    assert ("none is made, and no method is named the winner" in found.across.text) is (count < 6)


def test_ranks_are_not_drawn_where_data_are_shared() -> None:
    found = put(*(experiment(f"e{n}", data="digits") for n in range(6)))
    assert {figure.key: figure.why for figure in found.omitted}[
        "ranks"
    ] == "Some experiments share their data."


def test_holm_is_taken_over_all_experiments() -> None:
    found = put(experiment("x"), experiment("y", seed=5))
    rows = texts(found, "pairs")
    assert [row[:2] for row in rows][:4] == [["x", "b – random"], ["x", "c – random"], ["x", "c – b"],
                                            ["y", "b – random"]]  # fmt: skip
    raw = [
        pair.result.test.p_value
        for _, analysis in found.found
        for pair in analysis.pairs
        if pair.declared and pair.result.test is not None
    ]
    table = next(table for table in found.tables if table.key == "pairs")
    assert [row[8].value for row in table.rows] == list(holm(raw))
    assert len(raw) == 6
    assert "over the 6 tests" in table.caption


def test_too_few_replicates_have_no_p_value() -> None:
    found = put(experiment("x"), experiment("y", replicates=3))
    rows = texts(found, "pairs")
    assert [row[8] for row in rows[3:]] == ["–"] * 3
    assert all(row[8] != "–" for row in rows[:3])


def test_each_experiment_is_named_with_its_best_mean() -> None:
    found = put(experiment("x"), experiment("y"))
    assert [row[:6] for row in texts(found, "experiments")] == [
        [name, name, "accuracy, higher is better", "12", "6", "c"] for name in "xy"
    ]


def test_what_differs_is_said() -> None:
    x = experiment("x", budget={"trials": 10, "epochs": None})
    y = replace(
        experiment("y", budget={"trials": 20, "epochs": None}, space={"lr": {"low": 0.1, "high": 1.0}}),
        direction="minimize",
        metric="log_loss",
        state="running",
    )
    y = replace(y, spec={**y.spec, "methods": {**dict(x.spec["methods"]), "c": {"order": "nested"}}})  # type: ignore[call-overload]
    said = " ".join(remarks([x, y], ["random", "c"]))
    for words in (
        "Provisional: y has not ended",
        "Metrics differ (x: accuracy, maximize; y: log_loss, minimize)",
        "Budgets differ (x: trials: 10; y: trials: 20)",
        "c did not have the same settings",
        "Search spaces differ",
        "Left out: b",
    ):
        assert words in said
    assert "random did not" not in said
    rows = {row.place: row.texts for row in differences([x, y])}
    assert rows["direction"] == ("maximize", "minimize")
    assert rows["budget.trials"] == ("10", "20")
    assert rows["space.lr.low"] == ("–", "0.1")
    assert rows["methods.c.order"] == ("–", "nested")
    assert "budget.epochs" not in rows
    assert "experiment" not in rows


def test_experiments_alike_differ_in_nothing() -> None:
    x, y = experiment("x", data="digits"), experiment("y", data="digits", seed=1)
    assert differences([x, y]) == ()
    assert remarks([x, y], METHODS) == ()
    assert "differences" not in [table.key for table in put(x, y).tables]


def test_a_long_list_of_differences_is_cut_and_counted() -> None:
    x = experiment("x", data="digits")
    y = replace(x, experiment="y", spec={**x.spec, "many": {f"k{n}": n for n in range(MOST_ROWS + 7)}})
    table = difference_table([x, y])
    assert len(table.rows) == MOST_ROWS
    assert "7 more settings differ" in table.caption


def test_regret_against_trials_in_flight() -> None:
    def wide(name: str, at_once: int, **settings: object) -> Comparison:
        methods = {method: {"in_flight": at_once if method == "c" else 1} for method in METHODS}
        return experiment(name, data="digits", **{"methods_run": methods} | settings)

    def as_run(one: Comparison) -> Comparison:
        return replace(one, spec={**one.spec, "methods": one.spec["methods_run"], "methods_run": None})

    found = put(*map(as_run, (wide("one", 1), wide("eight", 8), wide("other", 16, budget={"trials": 9}))))
    figure = next(figure for figure in found.figures if figure.key == "parallelism")
    # The third has another budget, and random search ran with one number in flight.
    assert {row[:2] for row in figure.data.rows} == {("c", 1), ("c", 8)}
    assert len(figure.data.rows) == 24
    assert min(float(str(row[2])) for row in figure.data.rows) == 0


def test_regrets_are_drawn_per_experiment() -> None:
    found = put(experiment("x"), experiment("y", seed=3))
    figure = next(figure for figure in found.figures if figure.key == "regrets")
    assert [(str(row[0]), str(row[1]), row[2]) for row in figure.data.rows] == [
        (block.experiment, method, block.regrets[method])
        for block in found.across.blocks
        for method in METHODS
    ]
    traces = figure.panels[0].plot["data"]
    assert isinstance(traces, list)
    assert [trace["name"] for trace in traces] == list(METHODS)
    assert [trace["y"] for trace in traces] == [[0, -1]] * 3


def test_regrets_need_random_search() -> None:
    found = put(*(experiment(name, methods=("b", "c")) for name in "xy"))
    assert "regrets" not in [figure.key for figure in found.figures]
    assert {figure.key for figure in found.omitted} >= {"regrets"}
    assert found.across.regrets == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tpe": {}}, 1),
        ({"tpe": {"in_flight": 4}}, 4),
        ({"tpe": {"in_flight": None}}, None),
        ({}, 1),
        (None, 1),
    ],
)
def test_trials_in_flight_are_those_of_the_file(settings: object, expected: int | None) -> None:
    found = replace(experiment("x"), spec={"methods": settings})
    assert trials_in_flight(found, "tpe") == expected
