"""All figures of the report: what holds for each of them, and odd experiments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison, EpochPoint
from search.compare.contents import Contents, contents_of
from search.compare.figures.base import Figure, Material, end_labels, label_margin
from search.compare.figures.registry import FIGURES, figures_of
from search.compare.figures.scores import scores_figure
from tests.contracts.comparison_values import comparison, drawn, lifelike, study, trial
from tests.contracts.simulated_experiment import simulated

STYLE = (Path(__file__).parents[4] / "search/compare/templates/report.css").read_text(encoding="utf-8")


@cache
def contents() -> Contents:
    found = simulated(replicates=12, trials=52, pruned=True)
    return contents_of(found, analyse(found, resamples=200))


def figures() -> Iterator[Figure]:
    yield from contents().figures


def texts(value: object) -> Iterator[str]:
    """Every string in a plot."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from texts(entry)


def test_a_whole_experiment_has_every_figure_of_one_experiment() -> None:
    assert [figure.key for figure in figures()] == list(FIGURES)
    assert [one.key for one in contents().omitted] == ["ranks", "parallelism"]


def test_figures_are_json_with_colours_of_the_style_sheet() -> None:
    defined = set(re.findall(r"(--[\w-]+):", STYLE))
    for figure in figures():
        for panel in figure.panels:
            json.dumps(panel.plot, allow_nan=False)
            named = {name for text in texts(panel.plot) for name in re.findall(r"var\((--[\w-]+)\)", text)}
            assert named
            assert named <= defined, figure.key
            assert not [t for t in texts(panel.plot) if re.fullmatch(r"#[0-9a-f]{3,8}|rgb\(.*", t)]


def test_every_figure_has_words_a_table_and_numbers() -> None:
    for figure in figures():
        sentences = re.findall(r"[.:](?:\s|$)", figure.caption)
        assert 1 <= len(sentences) <= 8, figure.key
        assert re.search(r"\d", figure.caption), f"{figure.key}: n"
        assert figure.table.rows, figure.key
        assert figure.table.caption, figure.key
        assert figure.data.rows, figure.key
        assert {len(row) for row in figure.data.rows} == {len(figure.data.columns)}, figure.key
        assert len(set(figure.data.columns)) == len(figure.data.columns), figure.key
        assert all(panel.describes for panel in figure.panels), figure.key


def test_every_axis_with_numbers_says_what_they_are() -> None:
    for figure in figures():
        for panel in figure.panels:
            layout = panel.plot["layout"]
            assert isinstance(layout, dict)
            for name in ("xaxis", "yaxis"):
                axis = layout[name]
                named = axis.get("title") or axis.get("ticktext") or axis.get("visible") is False
                assert named, (figure.key, panel.title, name)


def test_nothing_is_smoothed() -> None:
    assert "spline" not in {
        text for figure in figures() for panel in figure.panels for text in texts(panel.plot)
    }


def test_captions_count_replicates() -> None:
    for key in ("scores", "best-so-far-epochs", "superiority", "time-to-target", "importances", "dependence"):
        figure = next(one for one in figures() if one.key == key)
        assert "12 replicates" in figure.caption, key


def test_no_trace_needs_webgl() -> None:
    """WebGL compiles code while it runs, which the page's policy forbids."""
    kinds = {
        str(trace["type"])
        for figure in figures()
        for panel in figure.panels
        for trace in panel.plot["data"]  # type: ignore[attr-defined]
    }
    assert kinds == {"scatter", "bar", "heatmap"}


def test_ten_thousand_trials_stay_small() -> None:
    """What the page holds grows with methods and dimensions, not with trials."""
    small = simulated(replicates=30, trials=52, retrained=0)
    large = simulated(replicates=30, trials=112, retrained=0)
    assert sum(len(one.trials) for one in large.studies) > 10_000
    sizes = []
    for found in (small, large):
        made = contents_of(found, analyse(found, resamples=100)).figures
        sizes.append(len(json.dumps([panel.plot for figure in made for panel in figure.panels])))
        points = {
            figure.key: sum(
                len(trace.get("x", ()))
                for panel in figure.panels
                for trace in panel.plot["data"]  # type: ignore[attr-defined]
            )
            for figure in made
        }
        assert max(points.values()) < 6_000, points
    assert sizes[1] < 1.25 * sizes[0]
    assert sizes[1] < 1_500_000


ODD: dict[str, Comparison] = {
    "no studies": comparison([], state="created"),
    "no trials": comparison([study("random", 0, [])]),
    "only failures": comparison([study("random", 0, [trial(0, None, state="failed")])]),
    "one trial": comparison([study("random", 0, [trial(0, 0.4)])], direction="minimize", metric="error"),
    "equal values": comparison(
        [study(m, r, [trial(n, 0.5) for n in range(25)]) for m in ("random", "tpe") for r in range(3)]
    ),
    "no params": comparison([study("random", 0, [trial(n, n / 30, params={}) for n in range(30)])]),
    "all diverged": comparison(
        [study("random", r, [trial(n, 0.1, diverged=True) for n in range(30)]) for r in range(2)]
    ),
    "nothing in common": comparison(
        [study("random", 0, [trial(n, n / 9) for n in range(9)]), study("tpe", 1, [trial(0, 0.1)])]
    ),
    "eight methods": lifelike([f"m{n}" for n in range(8)], replicates=2, trials=3),
    "one replicate": simulated(replicates=1, trials=20, retrained=0),
    "minimised": drawn(),
    "signs": comparison(
        [
            study("<b>", r, [trial(n, n / 30, params={"<i>": n, "%{x}": "<u>"}) for n in range(30)])
            for r in range(2)
        ],
        metric="<s>",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_experiments_have_figures_or_reasons(name: str) -> None:
    found = ODD[name]
    made = contents_of(found, analyse(found, resamples=100))
    assert {one.key for one in made.figures} | {one.key for one in made.omitted} == {
        *FIGURES,
        "ranks",
        "parallelism",
    }
    for figure in made.figures:
        json.dumps([panel.plot for panel in figure.panels], allow_nan=False)
        assert not [
            text
            for panel in figure.panels
            for text in texts(panel.plot)
            if re.search(r"<(?!/?b>|br>|extra>|/extra>)", text)
        ], figure.key
    for one in made.omitted:
        assert one.why.endswith("."), one
        assert one.why[0].isupper(), one


def test_labels_at_line_ends_do_not_lie_on_each_other() -> None:
    marks = end_labels([("a", 0, 0.5), ("b", 1, 0.501), ("c", 2, 0.9), ("d", 3, 0.9)], 0.0, 1.0, 200)
    heights = sorted(float(str(m["y"])) * 200 + float(str(m["yshift"])) for m in marks)
    assert min(b - a for a, b in pairwise(heights)) >= 15.9
    assert max(heights) <= 200.1, "inside the panel"
    assert [m["text"] for m in marks] == ["<b>a</b>", "<b>b</b>", "<b>c</b>", "<b>d</b>"]


def test_labels_of_lines_outside_the_window_stand_at_its_edge() -> None:
    (mark,) = end_labels([("low", 0, -5.0)], 0.0, 1.0, 200)
    assert (mark["y"], mark["yshift"]) == (0.0, 0.0)
    assert end_labels([], 0.0, 1.0) == []
    assert label_margin(["ab" * 40])["r"] == label_margin(["x" * 18])["r"]


def test_methods_differ_by_more_than_colour() -> None:
    figure = next(one for one in figures() if one.key == "best-so-far-epochs")
    lines = [t["line"] for t in figure.panels[0].plot["data"] if t.get("meta") == "always"]  # type: ignore[attr-defined]
    assert len({line["dash"] for line in lines}) == 3
    found = simulated(replicates=2, trials=5, retrained=0)
    made = scores_figure(Material(found, analyse(found, resamples=100)))
    assert isinstance(made, Figure)
    symbols = {t["marker"]["symbol"] for t in made.panels[0].plot["data"] if "marker" in t}  # type: ignore[attr-defined]
    assert len(symbols) == 3


def test_figures_of_a_function_speak_of_no_images() -> None:
    found = simulated(replicates=10, trials=12)
    studies = tuple(
        replace(one, trials=tuple(replace(trial, curve=_without_losses(trial.curve)) for trial in one.trials))
        for one in found.studies
    )
    spec = {**found.spec, "objective": {"function": "mine:f"}, "data": None, "model": None}
    found = replace(found, studies=studies, spec=spec)
    shown = contents_of(found, analyse(found, resamples=200)).figures
    assert {"best-so-far-trials", "learning-curves", "trial-values"} <= {figure.key for figure in shown}
    for figure in shown:
        for text in (figure.caption, *(panel.title for panel in figure.panels)):
            assert not re.search("validation|images", text, re.IGNORECASE), figure.key


def _without_losses(curve: tuple[EpochPoint, ...]) -> tuple[EpochPoint, ...]:
    return tuple(replace(point, train_loss=None, validation_loss=None) for point in curve)


def test_figures_are_the_same_each_time() -> None:
    found = simulated(replicates=3, trials=20, pruned=True)
    first, second = (figures_of(Material(found, analyse(found, resamples=100))) for _ in range(2))
    assert first == second


def test_the_line_of_the_best_tenth_breaks_where_trials_are_too_few() -> None:
    """Forty trials at either end of the range, and two between."""
    places = [0.01 + 0.001 * k for k in range(20)] + [0.5, 0.51] + [0.95 + 0.001 * k for k in range(20)]
    studies = [
        study("random", r, [trial(k, 0.1 + 0.01 * k, params={"x": x}) for k, x in enumerate(places)])
        for r in range(2)
    ]
    found = comparison(studies, spec={"methods": {"random": {}}, "space": {"x": {"low": 0.0, "high": 1.0}}})
    made = FIGURES["dependence"](Material(found, analyse(found, resamples=100)))
    assert isinstance(made, Figure)
    mean, tenth = made.panels[0].plot["data"][-2:]  # type: ignore[index]
    assert tenth["x"] == mean["x"]
    assert [y is None for y in tenth["y"]] == [False, True, False]
    assert None not in mean["y"]
