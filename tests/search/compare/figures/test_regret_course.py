"""The figure of regret against the budget."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison, Direction
from search.compare.figures.base import Figure, Material, Omitted
from search.compare.figures.regret_course import regret_figure
from tests.contracts.comparison_values import comparison, study, trial

NO_PRUNING = {"pruner": {"name": "none"}, "comparison": {"axis": "trials"}}


def figure_of(found: Comparison) -> Figure:
    made = regret_figure(Material(found, analyse(found, resamples=200)))
    assert isinstance(made, Figure)
    return made


def found(direction: Direction = "maximize", tpe: float = 0.8, spread: float = 0.1) -> Comparison:
    """Three replicates: random ends 0.4, 0.3 and 0.2 below the best known, tpe 0.2, 0.1 and 0."""
    sign = 1 if direction == "maximize" else -1
    studies = [
        study(m, r, [trial(n, sign * v) for n, v in enumerate((worth - 0.2, worth + spread * r, -9.0))])
        for m, worth in (("random", tpe - 2 * spread), ("tpe", tpe))
        for r in range(3)
    ]
    return comparison(studies, direction=direction, spec=NO_PRUNING)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_is_the_distance_of_the_best_so_far_to_the_best_known(direction: Direction) -> None:
    made = figure_of(found(direction))
    rows = [dict(zip(made.data.columns, row, strict=True)) for row in made.data.rows]
    on_trials = [row for row in rows if row["axis"] == "trials"]
    replicate = {
        (row["method"], row["replicate"], row["spent"]): row["regret"]
        for row in on_trials
        if row["line"] == "replicate"
    }
    assert replicate["random", 0, 2.0] == pytest.approx(0.4)
    assert replicate["tpe", 2, 2.0] == pytest.approx(0)
    assert replicate["tpe", 2, 3.0] == pytest.approx(0), "it stays to the end"
    medians = {(r["method"], r["spent"]): r for r in on_trials if r["line"] == "median"}
    assert medians["tpe", 2.0]["regret"] == pytest.approx(0.1)
    assert medians["random", 3.0]["regret"] == pytest.approx(0.3)
    for row in medians.values():
        ends = [
            row[name] for name in ("interval_low", "quartile_low", "regret", "quartile_high", "interval_high")
        ]
        assert ends == sorted(ends)  # type: ignore[type-var]
        assert row["quartile_low"] >= 0  # type: ignore[operator]


def test_a_panel_per_budget_with_the_declared_one_first() -> None:
    one = found()
    made = figure_of(replace(one, spec={**one.spec, "comparison": {"axis": "seconds"}}))
    assert [panel.title for panel in made.panels] == ["Against seconds", "Against trials", "Against epochs"]
    assert made.table.key == "regret"
    assert [row[0].text for row in made.table.rows] == ["random", "tpe"]


def test_an_axis_is_logarithmic_where_medians_lie_far_apart_and_none_is_0() -> None:
    def axis_of(one: Comparison) -> dict[str, object]:
        return figure_of(one).panels[0].plot["layout"]["yaxis"]  # type: ignore[index]

    near = axis_of(found())
    assert "type" not in near
    assert near["range"][0] == 0  # type: ignore[index]
    far = [study("random", r, [trial(n, 0.5 if n < 2 else 0.6) for n in range(4)]) for r in range(3)] + [
        study("tpe", r, [trial(n, 0.999 if r < 2 else 1.0) for n in range(4)]) for r in range(3)
    ]
    wide = axis_of(comparison(far, spec=NO_PRUNING))
    assert wide["type"] == "log"
    assert wide["range"][0] == pytest.approx(math.log10(0.001 / 3))  # type: ignore[index]
    zero = [study("random", r, [trial(0, 0.5)]) for r in range(3)]
    zero += [study("tpe", r, [trial(0, 1.0)]) for r in range(3)]
    assert "type" not in axis_of(comparison(zero, spec=NO_PRUNING)), "a logarithm has no 0"


def test_without_a_value_it_is_left_out_with_the_reason() -> None:
    nothing = comparison([study("random", 0, [trial(0, None, state="failed")])])
    made = regret_figure(Material(nothing, analyse(nothing, resamples=200)))
    assert isinstance(made, Omitted)
    assert "trained to its end" in made.why
