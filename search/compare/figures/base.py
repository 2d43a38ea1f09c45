"""What a figure is: panels in plotly's own JSON, made without importing plotly, and the words around it.

Colours are written `var(--name)`: the page's script looks them up in the style sheet when it
draws, so that a figure follows the reader's light or dark scheme. Methods are told apart by colour
*and* by dash or marker, and named at their lines where there is room; no one needs to tell colours
apart, and no line is smoothed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from search.compare.analysis import Analysis
from search.compare.base import Comparison
from search.compare.learned.learn import Learned, learn
from search.compare.space import SpaceAxis, space_axes
from search.compare.tables import Cell, Column, Table, Value
from search.formats import format_count, format_value

Json: TypeAlias = dict[str, object]

SERIES = 6
"""How many colours the style sheet has; methods beyond it begin again with another dash."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "cross")

MOST_LETTERS = 44
"""Of the names of levels that stand side by side below a drawing of half the page's width."""

LEGEND_ABOVE: Json = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
"""Names of lines that end where there is no room for them."""

DIGITS = 6
"""Significant digits of numbers in the page; the CSV files hold them in full."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing."""

    title: str
    """Above it, where a figure has several; empty: the figure's title says enough."""
    plot: Json
    """`data` and `layout` as plotly.js takes them, colours as `var(--…)`."""
    describes: str
    """What a screen reader says in its place."""
    rows: int = 0
    """How many rows a drawing of rows has, which gives it its height; 0: the usual height."""
    columns: int = 0
    """How many columns need room: on a narrow screen the drawing scrolls by itself; 0: it shrinks."""


@dataclass(frozen=True, slots=True)
class View:
    """One of several ways to look at a figure: traces whose `meta` is another view's key are hidden."""

    key: str
    label: str


@dataclass(frozen=True, slots=True)
class Data:
    """The numbers behind a figure, in full, for its CSV file."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure with its words, its table and its numbers."""

    key: str
    """Stable, for anchors and file names."""
    title: str
    caption: str
    """What is drawn, over how many, in one to three sentences."""
    panels: tuple[Panel, ...]
    table: Table
    """The figure for those who don't see it, short enough to be read out."""
    data: Data
    views: tuple[View, ...] = ()
    columns: Literal[1, 2, 3] = 1
    """How many panels stand beside each other on a wide screen."""
    exploratory: bool = True


@dataclass(frozen=True, slots=True)
class Omitted:
    """A figure that this experiment has no data for, and why."""

    key: str
    title: str
    why: str
    """A sentence."""


@dataclass(frozen=True, eq=False)
class Material:
    """What figures are made of, worked out once."""

    comparison: Comparison
    analysis: Analysis

    @cached_property
    def axes(self) -> tuple[SpaceAxis, ...]:
        """The dimensions that vary."""
        return space_axes(self.comparison)

    @cached_property
    def learned(self) -> Learned:
        """What random search's trials say of the space."""
        return learn(self.comparison)

    @property
    def metric(self) -> str:
        """The metric's name, safe for labels."""
        return label(self.comparison.metric)

    @property
    def better(self) -> str:
        """Which direction is good, in words."""
        return "higher is better" if self.comparison.direction == "maximize" else "lower is better"

    @property
    def replicates(self) -> str:
        """`30 replicates`, those that are counted."""
        return counted(len(self.analysis.replicates), "replicate")

    def index(self, method: str) -> int:
        """The method's place in the file, which gives it its colour."""
        return self.comparison.methods.index(method)


Builder: TypeAlias = Callable[[Material], "Figure | Omitted"]


def series(index: int) -> int:
    """The number of the colour of the index-th method, from 1."""
    return index % SERIES + 1


def colour(index: int) -> str:
    """The colour of the index-th method."""
    return f"var(--series-{series(index)})"


def soft(index: int) -> str:
    """The same, for areas."""
    return f"var(--series-{series(index)}-soft)"


def dash(index: int) -> str:
    """The line style of the index-th method."""
    return DASHES[(index // SERIES + index) % len(DASHES)]


def marker(index: int) -> str:
    """The marker of the index-th method or level."""
    return MARKERS[(index // SERIES + index) % len(MARKERS)]


def label(text: object) -> str:
    """Text for plotly, which reads some tags in its labels."""
    return html.escape(str(text))


def short(text: str, length: int = 18) -> str:
    """A name that fits beside a figure."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def counted(n: int, noun: str) -> str:
    """`1 trial`, `12 trials`."""
    return f"{format_count(n)} {noun}{'' if n == 1 else 's'}"


def rounded(values: Iterable[float]) -> list[float | None]:
    """Numbers for the page: few digits, and null for what isn't finite."""
    return [float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in map(float, values)]


def trace(kind: str = "scatter", /, **settings: object) -> Json:
    """A trace without what plotly adds of itself."""
    return {"type": kind, "showlegend": False, **settings}


def axis(title: str = "", **settings: object) -> Json:
    """An axis as all figures have it."""
    plain: Json = {
        "gridcolor": "var(--rule)",
        "linecolor": "var(--rule-strong)",
        "tickcolor": "var(--rule-strong)",
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
    }
    if title:
        plain["title"] = {"text": title, "font": {"size": 12.5}, "standoff": 8}
    return plain | settings


def space_axis(of: SpaceAxis, **settings: object) -> Json:
    """The axis of a numeric dimension on its own scale; levels go by their numbers."""
    if of.categorical:
        names = [short(label(level), 14) for level in of.levels]
        ticks: Json = {"tickvals": list(range(len(names))), "ticktext": names}
        if sum(map(len, names)) > MOST_LETTERS:
            # Turned so that the last one ends at its tick: plotly leaves out what would cross the border.
            ticks["tickangle"] = -30
        return axis("", showgrid=False, range=[-0.6, len(names) - 0.4], **ticks | settings)
    low, high = of.place(of.low), of.place(of.high)
    margin = 0.04 * (high - low)
    kind: Json = {}
    if of.scale == "log":
        kind = {"type": "log", "dtick": max(1, round((high - low) / 5)), "exponentformat": "power"}
        kind["tickfont"] = {"size": 11}
    title = f"{short(label(of.name), 28)}{' (log scale)' if of.scale == 'log' else ''}"
    return axis(title, range=[low - margin, high + margin], **kind | settings)


def layout(x: Mapping[str, object], y: Mapping[str, object], **settings: object) -> Json:
    """The layout that all figures share; further axes and annotations as settings."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--text)", "family": "system-ui, sans-serif", "size": 12.5},
        "margin": {"l": 52, "r": 14, "t": 10, "b": 44},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "var(--card)",
            "bordercolor": "var(--rule-strong)",
            "font": {"color": "var(--text)"},
        },
        "xaxis": dict(x),
        "yaxis": dict(y),
        **settings,
    }


def line_at(value: float, *, horizontal: bool = True, strong: bool = True) -> Json:
    """A reference line over the whole panel."""
    x, y = ("xref", "yref") if horizontal else ("yref", "xref")
    ends = {"x0": 0, "x1": 1, "y0": value, "y1": value}
    if not horizontal:
        ends = {"y0": 0, "y1": 1, "x0": value, "x1": value}
    line = {"width": 1.2, "color": "var(--quiet)", "dash": "solid" if strong else "dot"}
    return {"type": "line", x: "paper", y: y[0], "line": line, "layer": "below", **ends}


def note(text: str, **settings: object) -> Json:
    """Words in a panel."""
    return {"text": text, "showarrow": False, "font": {"color": "var(--quiet)", "size": 12}, **settings}


PANEL_PIXELS = 300
"""About how high the drawing area of a wide panel is."""
LINE_PIXELS = 16


def end_labels(
    names: Sequence[tuple[str, int, float]], low: float, high: float, pixels: int = PANEL_PIXELS
) -> list[Json]:
    """Names at the right ends of lines, moved apart where they would lie on each other.

    `names`: text, number of the colour, height of the line's end; `low` and `high` end the axis.
    """
    scale = pixels / (high - low) if high > low else 0.0
    order = sorted(names, key=lambda entry: entry[2])
    wanted = [(min(max(y, low), high) - low) * scale for _, _, y in order]
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + LINE_PIXELS) if placed else height)
    surplus = max(0.0, placed[-1] - max(pixels, wanted[-1])) if placed else 0.0
    return [
        {
            "text": f"<b>{short(label(text))}</b>",
            "showarrow": False,
            "xref": "paper",
            "x": 1,
            "xanchor": "left",
            "xshift": 5,
            "y": min(max(y, low), high),
            "yshift": round(at - surplus - want, 1),
            "font": {"color": colour(index), "size": 12.5},
        }
        for (text, index, y), want, at in zip(order, wanted, placed, strict=True)
    ]


def label_margin(names: Iterable[str]) -> Json:
    """Room on the right for the names."""
    longest = max((len(short(name)) for name in names), default=0)
    return {"l": 52, "r": 16 + round(7.8 * longest), "t": 10, "b": 44}


def spread_range(values: Sequence[float], margin: float = 0.06) -> list[float]:
    """An axis range that holds the values with a margin, also where they are all equal."""
    low, high = min(values), max(values)
    width = (high - low) * margin if high > low else max(abs(high), 1.0) * margin
    return [low - width, high + width]


def table(
    key: str,
    title: str,
    caption: str,
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[Cell]],
    *,
    exploratory: bool = True,
) -> Table:
    """A table whose first column is text and whose others are numbers; columns are key and heading."""
    return Table(
        key=key,
        title=title,
        caption=caption,
        columns=tuple(
            Column(name, heading, "left" if place == 0 else "right")
            for place, (name, heading) in enumerate(columns)
        ),
        rows=tuple(tuple(row) for row in rows),
        exploratory=exploratory,
    )


def told(value: object) -> str:
    """A config's value in a hover label."""
    return label(format_value(value))
