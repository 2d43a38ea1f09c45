"""The report's figures as plotly's own JSON, made without importing plotly.

Colours are written `var(--name)`: the page's script looks them up in the style sheet when it
draws, so that a figure follows the reader's light or dark scheme.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.compare.base import Comparison
from search.compare.summary import MethodSummary, Point, StudySummary, Summary, value_at

Json = dict[str, object]

SERIES = 6
"""How many colours the style sheet has; methods beyond it begin again with another dash."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Line styles beside the colours, so that no one needs to tell colours apart."""

EARLY = 0.25
"""Share of the common epochs whose values the axis may leave out at first."""

CUTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the common epochs at which a table repeats the curves in numbers."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell under a figure: a method's median and range at a cut."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A table row under a figure: what each method had reached after so many epochs."""

    epochs: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with the words that stand around it."""

    key: str
    title: str
    caption: str
    plot: Json
    """`data` and `layout` as plotly.js takes them, colours as `var(--…)`."""
    cuts: tuple[Cut, ...]
    has_replicates: bool
    """Whether thin lines per replicate can be shown."""


def series(index: int) -> int:
    """The number of the colour of the index-th method, from 1."""
    return index % SERIES + 1


def best_so_far_figure(comparison: Comparison, summary: Summary) -> Figure:
    """Best value so far against epochs spent: a line and a range per method."""
    data: list[Json] = []
    for index, method in enumerate(summary.methods):
        studies = [s for s in summary.studies if s.study.method == method.method and s.curve]
        data.extend(_replicate_lines(index, studies))
        if not method.curve:
            continue
        data.extend(_band(index, method))
        data.append(_median_line(index, method))
    zoom = _zoom(summary)
    better = "higher is better" if comparison.direction == "maximize" else "lower is better"
    return Figure(
        key="best-so-far",
        title="Best so far against epochs spent",
        caption=(
            f"Line: median over replicates of the best {comparison.metric} on the validation images so far "
            f"({better}). Band: smallest to largest replicate. Pruned, diverged and failed trials' epochs "
            "count in full; a line ends where the first replicate had spent all its epochs."
            + (" The axis leaves out the worst of the early values; double-click shows all." if zoom else "")
        ),
        plot={"data": data, "layout": _layout(f"best {html.escape(comparison.metric)} so far", zoom)},
        cuts=_cuts(summary),
        has_replicates=any(len(s.curve) > 0 for s in summary.studies) and comparison.replicates > 1,
    )


def _replicate_lines(index: int, studies: Sequence[StudySummary]) -> list[Json]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _label(f"{study.study.method} / {study.study.replicate}"),
            "x": [point.epochs for point in study.curve],
            "y": [point.value for point in study.curve],
            "line": {"shape": "hv", "width": 1, "color": _colour(index), "dash": _dash(index)},
            "opacity": 0.5,
            "legendgroup": _label(study.study.method),
            "showlegend": False,
            "visible": False,
            "meta": "replicate",
            "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
        }
        for study in studies
    ]


def _band(index: int, method: MethodSummary) -> list[Json]:
    """Two invisible lines with the area between them filled."""
    edge: Json = {
        "type": "scatter",
        "mode": "lines",
        "x": [point.epochs for point in method.curve],
        "line": {"shape": "hv", "width": 0, "color": _colour(index)},
        "legendgroup": _label(method.method),
        "showlegend": False,
        "hoverinfo": "skip",
        "meta": "band",
    }
    low: Json = {**edge, "y": [point.low for point in method.curve]}
    high: Json = {
        **edge,
        "y": [point.high for point in method.curve],
        "fill": "tonexty",
        "fillcolor": f"var(--series-{series(index)}-soft)",
    }
    return [low, high]


def _median_line(index: int, method: MethodSummary) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": _label(method.method),
        "x": [point.epochs for point in method.curve],
        "y": [point.median for point in method.curve],
        "customdata": [[point.low, point.high] for point in method.curve],
        "line": {"shape": "hv", "width": 2.5, "color": _colour(index), "dash": _dash(index)},
        "legendgroup": _label(method.method),
        "meta": "median",
        "hovertemplate": "%{y:.4g} (%{customdata[0]:.4g} to %{customdata[1]:.4g})"
        "<extra>%{fullData.name}</extra>",
    }


def _zoom(summary: Summary) -> list[float] | None:
    """The part of the value axis that matters after the first quarter of the epochs.

    The first values of a search are often so bad that everything later becomes one flat line.
    None where the whole range is at most twice as wide, so that nothing needs leaving out.
    """
    if summary.common_epochs is None:
        return None
    curves = [study.curve for study in summary.studies if study.curve]
    everything = [point.value for curve in curves for point in curve]
    start = int(summary.common_epochs * EARLY)
    later = [value for curve in curves if (value := value_at(curve, start)) is not None]
    later += [point.value for curve in curves for point in curve if point.epochs >= start]
    if not later:
        return None
    low, high = min(later), max(later)
    if high <= low or max(everything) - min(everything) <= 2 * (high - low):
        return None
    margin = 0.06 * (high - low)
    return [low - margin, high + margin]


def _layout(ylabel: str, zoom: list[float] | None) -> Json:
    axis: Json = {
        "gridcolor": "var(--rule)",
        "linecolor": "var(--rule-strong)",
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": "var(--rule-strong)",
    }
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--text)", "family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 56, "r": 12, "t": 8, "b": 48},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--card)", "bordercolor": "var(--rule-strong)"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": {**axis, "title": {"text": "epochs spent per study"}, "rangemode": "tozero"},
        "yaxis": {**axis, "title": {"text": ylabel}} | ({"range": zoom} if zoom else {}),
    }


def _cuts(summary: Summary) -> tuple[Cut, ...]:
    if summary.common_epochs is None:
        return ()
    at = dict.fromkeys(max(1, round(share * summary.common_epochs)) for share in CUTS)
    curves = [[s.curve for s in summary.studies if s.study.method == m.method] for m in summary.methods]
    return tuple(Cut(epochs, tuple(_cell(of_method, epochs) for of_method in curves)) for epochs in at)


def _cell(curves: Iterable[tuple[Point, ...]], epochs: int) -> Cell | None:
    values = [value for curve in curves if (value := value_at(curve, epochs)) is not None]
    if not values:
        return None
    return Cell(statistics.median(values), min(values), max(values), len(values))


def _colour(index: int) -> str:
    return f"var(--series-{series(index)})"


def _dash(index: int) -> str:
    return DASHES[(index // SERIES + index) % len(DASHES)]


def _label(text: str) -> str:
    """Text for plotly, which reads some tags in its labels."""
    return html.escape(text)
