"""Figures for other programs: colours, one view, and JSON that plotly takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from plotly.graph_objects import Figure as Drawing

from search.compare.analysis import analyse
from search.compare.contents import contents_of
from search.compare.figures.base import Figure
from search.compare.figures.standalone import light_colours, standalone
from tests.contracts.simulated_experiment import simulated


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    found = simulated(replicates=10, trials=30, pruned=True)
    return {figure.key: figure for figure in contents_of(found, analyse(found, resamples=100)).figures}


def test_colours_are_those_of_the_light_scheme() -> None:
    colours = light_colours()
    assert (colours["--card"], colours["--text"], colours["--series-1"]) == ("#ffffff", "#1b2430", "#0b6bcb")


def test_plotly_takes_every_figure(figures: dict[str, Figure]) -> None:
    assert len(figures) > 12
    for key, figure in figures.items():
        drawn = standalone(figure)
        assert len(drawn) == len(figure.panels), key
        for plot in drawn:
            assert "var(--" not in json.dumps(plot), key
            # Raises for a property that plotly doesn't know, or a value that it doesn't take.
            made = Drawing(data=plot["data"], layout=plot["layout"])
            assert made.layout.paper_bgcolor == "#ffffff"
            assert made.layout.title.text.startswith(figure.title)


def test_the_first_view_is_kept(figures: dict[str, Figure]) -> None:
    figure = figures["best-so-far-epochs"]
    (plot,) = standalone(figure)
    all_traces = figure.panels[0].plot["data"]
    assert isinstance(all_traces, list)
    kept = plot["data"]
    assert isinstance(kept, list)
    assert {trace.get("meta") for trace in all_traces} > {figure.views[0].key, "always"}
    assert {trace.get("meta") for trace in kept} == {figure.views[0].key, "always"}


def test_a_panel_s_title_is_text(figures: dict[str, Figure]) -> None:
    figure = figures["importances"]
    figure = replace(figure, panels=(replace(figure.panels[0], title="<a href='x'>y</a>"),))
    (plot,) = standalone(figure)
    assert "<a" not in json.dumps(plot["layout"])
