"""What single figures draw, from values written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison, EpochPoint, TrialOutcome
from search.compare.figures.across import parallelism_figure, ranks_figure
from search.compare.figures.anytime import figure_on
from search.compare.figures.base import Builder, Figure, Material, Omitted
from search.compare.figures.curves import pruned_figure, winners_figure
from search.compare.figures.gap import gap_figure
from search.compare.figures.maps import pair_map
from search.compare.figures.parallel import parallel_figure
from search.compare.figures.scores import scores_figure, within_replicates
from search.compare.figures.superiority import superiority_figure
from search.compare.figures.targets import target_figure
from search.compare.figures.timeline import timeline_figure
from search.compare.figures.values import values_figure
from tests.contracts.comparison_values import comparison, study, trial
from tests.contracts.simulated_experiment import simulated


def material(found: Comparison) -> Material:
    return Material(found, analyse(found, resamples=200))


def made(build: Builder, found: Comparison) -> Figure:
    figure = build(material(found))
    assert isinstance(figure, Figure), figure
    return figure


def omitted(build: Builder, found: Comparison) -> str:
    figure = build(material(found))
    assert isinstance(figure, Omitted), figure
    return figure.why


def traces(figure: Figure, panel: int = 0) -> list[Any]:
    data = figure.panels[panel].plot["data"]
    assert isinstance(data, list)
    return data


def layout(figure: Figure, panel: int = 0) -> Mapping[str, Any]:
    found = figure.panels[panel].plot["layout"]
    assert isinstance(found, dict)
    return found


def two_methods(random: list[list[float]], tpe: list[list[float]], **settings: Any) -> Comparison:
    """Trials of one epoch; a list per replicate."""
    return comparison(
        [
            study(method, r, [trial(n, value, epochs=1) for n, value in enumerate(values)])
            for method, replicates in (("random", random), ("tpe", tpe))
            for r, values in enumerate(replicates)
        ],
        **settings,
    )


def test_anytime_draws_median_band_and_replicates() -> None:
    found = two_methods([[0.5, 0.7, 0.6], [0.1, 0.2, 0.9], [0.3, 0.4, 0.4]], [[0.8] * 3] * 3)
    figure = made(figure_on("trials"), found)
    by_kind = [trace.get("meta") for trace in traces(figure)]
    assert (by_kind.count("always"), by_kind.count("replicates")) == (2, 2)
    assert (by_kind.count("interval"), by_kind.count("quartiles")) == (4, 4)
    median = next(t for t in traces(figure) if t.get("meta") == "always")
    assert (median["x"], median["y"]) == ([1, 2, 3], [0.3, 0.4, 0.7])
    assert [view.key for view in figure.views] == ["interval", "quartiles", "replicates"]
    rows = [row for row in figure.data.rows if row[:2] == ("random", "median")]
    assert [row[3:5] for row in rows] == [(1, 0.3), (2, 0.4), (3, 0.7)]
    assert figure.exploratory, "epochs were declared, not trials"


def test_a_single_replicate_is_a_line_to_its_end_without_a_band() -> None:
    figure = made(figure_on("epochs"), two_methods([[0.5, 0.7, 0.6]], [[0.8] * 3]))
    assert [trace.get("meta") for trace in traces(figure)] == ["always", "always"]
    assert (traces(figure)[0]["x"], traces(figure)[0]["y"]) == ([1, 2, 3], [0.5, 0.7, 0.7])
    assert figure.views == ()


def test_bad_beginnings_are_left_out_of_the_axis_and_it_is_said() -> None:
    late = [0.1, 0.1, *(0.9 + n / 1000 for n in range(18))]
    figure = made(figure_on("epochs"), two_methods([late], [late]))
    low, high = layout(figure)["yaxis"]["range"]
    assert 0.85 < low < 0.91
    assert 0.917 < high < 0.93
    assert "double-click" in figure.caption
    even = made(figure_on("epochs"), two_methods([[0.5 + n / 100 for n in range(20)]], [[0.5] * 20]))
    assert layout(even)["yaxis"]["range"][0] < 0.5
    assert "double-click" not in even.caption


def test_the_table_repeats_the_curve_at_shares_of_the_budget() -> None:
    found = two_methods([[0.5 + r / 10 + n / 100 for n in range(8)] for r in range(3)], [[0.5] * 8] * 3)
    rows = made(figure_on("epochs"), found).table.rows
    assert [row[0].value for row in rows] == [2, 4, 6, 8]
    assert rows[1][1].text == "0.63 (0.58 to 0.68; n = 3)"


def test_scores_join_replicates_and_turn_differences() -> None:
    found = two_methods([[0.5], [0.6]], [[0.4], [0.7]], direction="minimize")
    pair = material(found).analysis.pairs[0]
    differences = dict(within_replicates(material(found), pair))
    sign = 1 if pair.result.first == "tpe" else -1
    assert differences == {0: pytest.approx(sign * 0.1), 1: pytest.approx(-sign * 0.1)}
    figure = made(scores_figure, found)
    joins = traces(figure)[0]
    assert joins["y"] == [0.5, 0.4, None, 0.6, 0.7, None]
    assert len(figure.panels) == 2
    assert set(figure.data.rows) == {
        ("random", 0, 0.5), ("random", 1, 0.6), ("tpe", 0, 0.4), ("tpe", 1, 0.7),
    }  # fmt: skip


def test_targets_count_studies_that_got_there() -> None:
    found = two_methods([[0.5, 0.6], [0.5, 0.8], [0.1, 0.2]], [[0.6, 0.9], [0.7, 0.9], [0.1, 0.3]])
    figure = made(target_figure, found)
    assert "0.6" in figure.caption
    tpe = traces(figure)[1]
    assert tpe["y"][-1] == pytest.approx(2 / 3, abs=1e-5)
    reached = {(row[0].value, row[2].value) for row in figure.table.rows if "trials" in row[1].text}
    assert reached == {("random", 2), ("tpe", 2)}
    assert "two replicates" in omitted(target_figure, two_methods([[0.5]], [[0.6]]))


def test_superiority_is_the_share_of_replicates_ahead() -> None:
    found = two_methods([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], [[0.4, 0.6]] * 3 + [[0.4, 0.5]])
    figure = made(superiority_figure, found)
    first, last = (row for row in figure.data.rows if row[2] in (1, 2))
    if first[0] == "random":
        assert (first[3], last[3]) == (1, 0.125)
    else:
        assert (first[3], last[3]) == (0, 0.875)
    heights = {shape["y0"] for shape in layout(figure)["shapes"]}
    assert heights == {0.5, 0.75, 0.25}


def test_values_are_a_distribution_function() -> None:
    figure = made(values_figure, two_methods([[0.4, 0.1], [0.3, 0.2]], [[0.9, 0.9]] * 2))
    random = traces(figure)[0]
    assert (random["x"], random["y"]) == ([0.1, 0.2, 0.3, 0.4], [0.25, 0.5, 0.75, 1])


def test_maps_need_their_dimensions_and_enough_trials() -> None:
    build = pair_map("k", "t", ("loss",), ("optimizer",))
    found = comparison([study("random", 0, [trial(n, 0.5, params={"loss": "ab"[n % 2]}) for n in range(9)])])
    assert omitted(build, found) == "No optimizer varies in this experiment."
    assert "no random search" in omitted(build, simulated(("tpe",), replicates=1, trials=12))
    assert "cells" in omitted(build, simulated(("random",), replicates=2, trials=10))
    figure = made(build, simulated(("random",), replicates=5, trials=60))
    (heat,) = traces(figure)
    assert len(heat["z"]) == 3
    assert max(value for row in heat["z"] for value in row) == max(heat["z"][0]), "cross-entropy is the best"
    worse = made(build, replace(simulated(("random",), replicates=5, trials=60), direction="minimize"))
    assert traces(worse)[0]["reversescale"]


def curves(values: list[float | None], train: float = 0.2, validation: float = 0.5) -> tuple[EpochPoint, ...]:
    return tuple(
        EpochPoint(epoch=k, value=v, train_loss=train, validation_loss=validation, seconds=1.0)
        for k, v in enumerate(values, 1)
    )


def test_winners_have_a_median_where_half_of_them_trained() -> None:
    longest = replace(trial(0, 0.9, epochs=3), curve=curves([0.1, 0.5, 0.9]))
    shorter = replace(trial(0, 0.7, epochs=2), curve=curves([0.3, 0.7]))
    third = replace(trial(0, 0.8, epochs=2), curve=curves([0.2, 0.8]))
    found = comparison([study("random", r, [one]) for r, one in enumerate((longest, shorter, third))])
    figure = made(winners_figure, found)
    median = traces(figure)[1]
    assert (median["x"], median["y"]) == ([1, 2], [0.2, 0.7])
    assert len(figure.data.rows) == 7
    assert len(figure.panels) == 2


def test_pruned_and_kept_trials_are_sampled() -> None:
    found = simulated(("random",), replicates=10, trials=40, pruned=True)
    figure = made(pruned_figure, found)
    assert figure.table.rows[0][2].value == sum(t.state == "pruned" for s in found.studies for t in s.trials)
    crosses = traces(figure)[2]
    assert len(crosses["x"]) == 40
    assert "No trial was pruned" in omitted(pruned_figure, simulated(("random",), replicates=1, trials=9))


def test_the_gap_is_validation_less_training_loss_at_the_end() -> None:
    trials = [
        replace(
            trial(n, 0.5, params={"lambda": 10.0 ** -(1 + n % 4), "loss": "ab"[n % 2]}),
            curve=curves([0.5], train=0.2, validation=0.2 + n / 100),
        )
        for n in range(8)
    ]
    figure = made(gap_figure, comparison([study("random", 0, trials)], spec={"space": {}}))
    assert [panel.title for panel in figure.panels] == ["a", "b"]
    assert sorted(row[2] for row in figure.data.rows) == pytest.approx([n / 100 for n in range(8)])


def test_configs_that_failed_do_not_stretch_the_axis_of_the_gap() -> None:
    """More than one in ten of the losses is astronomic, which quantiles of the whole would let in."""

    def one(number: int) -> TrialOutcome:
        gap = -1e17 if number % 8 == 0 else 0.1 + number / 1000
        made = trial(number, 0.5, params={"lambda": 10 ** (-6 + number / 10)})
        last = replace(made.curve[-1], train_loss=0.0, validation_loss=gap)
        return replace(made, curve=(*made.curve[:-1], last))

    spec = {"space": {"lambda": {"low": 1e-6, "high": 1e-2, "log": True}}}
    figure = made(gap_figure, comparison([study("random", 0, [one(n) for n in range(40)])], spec=spec))
    low, high = layout(figure)["yaxis"]["range"]
    assert -0.1 < low < 0 < 0.14 < high < 0.3
    assert "5 trials far out of a panel" in figure.caption


@pytest.mark.parametrize(("epochs", "whole"), [(3, True), (8, True), (9, False)])
def test_few_epochs_have_a_tick_each(epochs: int, whole: bool) -> None:
    figure = made(winners_figure, comparison([study("tpe", 0, [trial(0, 0.5, epochs=epochs)])]))
    assert (layout(figure)["xaxis"].get("dtick") == 1) is whole


def test_parallel_lines_run_over_all_axes_to_the_value() -> None:
    trials = [trial(n, float(n), params={"x": float(n), "level": "ab"[n % 2]}) for n in range(5)]
    figure = made(parallel_figure, comparison([study("random", 0, trials)], spec={"space": {}}))
    thin, bold = traces(figure)
    assert bold["y"] == [1, 0, 1, None]
    assert len(thin["y"]) == 16
    assert figure.table.rows[0][-1].value == 4


def test_timeline_heights_hold_all_the_time_that_was_spent() -> None:
    trials = [trial(n, 0.5, ended=n + 1, lasted=60, seconds=30.0) for n in range(10)]
    figure = made(timeline_figure, comparison([study("random", 0, trials)]))
    width = 600 / len(figure.data.rows)
    assert sum(row[2] for row in figure.data.rows) * width == pytest.approx(600)  # type: ignore[misc]
    assert sum(row[3] for row in figure.data.rows) * width == pytest.approx(300)  # type: ignore[misc]
    assert "minutes" in layout(figure)["xaxis"]["title"]["text"]
    assert "began and ended" in omitted(timeline_figure, comparison([study("random", 0, [trial(0, 0.5)])]))


def test_ranks_need_six_datasets_and_draw_who_is_not_told_apart() -> None:
    row = {"grid": 0.8, "random": 0.81, "tpe": 0.9}
    assert isinstance(ranks_figure({f"d{n}": row for n in range(5)}, "maximize"), Omitted)
    figure = ranks_figure({f"d{n}": row for n in range(8)}, "maximize")
    assert isinstance(figure, Figure)
    assert [(r[0].value, r[1].value) for r in figure.table.rows] == [("tpe", 1), ("random", 2), ("grid", 3)]
    bars = [t for t in traces(figure) if t["mode"] == "lines"]
    assert [t["x"] for t in bars] == [[1, 2], [2, 3]]
    assert "8 datasets" in figure.caption


def test_parallelism_is_drawn_where_it_was_varied() -> None:
    assert isinstance(parallelism_figure({"tpe": {1: [0.1, 0.2]}}, "accuracy"), Omitted)
    figure = parallelism_figure({"random": {1: [0.3]}, "tpe": {8: [0.2, 0.4], 1: [0.1, 0.1]}}, "accuracy")
    assert isinstance(figure, Figure)
    (line,) = traces(figure)
    assert (line["x"], line["y"]) == ([1, 8], [0.1, 0.3])
