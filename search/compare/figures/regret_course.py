"""Regret against the budget: how far the best so far is from the best value known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.compare.budgets import Anytime, AnytimeMethod, Axis
from search.compare.figures.anytime import EARLY
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    colour,
    dash,
    end_labels,
    label,
    label_margin,
    layout,
    rounded,
    soft,
    trace,
)
from search.compare.figures.targets import UNITS
from search.compare.result_tables import regret as regret_table
from search.compare.statistics.base import FloatArray
from search.compare.tables import Value
from search.formats import format_number

KEY = "regret"
TITLE = "Regret: the distance to the best value known"

SPREAD = 10.0
"""From this ratio of the largest to the smallest median on, the axis is logarithmic."""
BELOW = 3.0
"""A logarithmic axis begins at the smallest median over this."""
PIXELS = 215
"""About how high the drawing area of one of three panels is."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One method's regret: median, its interval and the middle half, from a position on."""

    method: AnytimeMethod
    at: FloatArray
    median: FloatArray
    quartiles: FloatArray
    """Two rows: the smaller regret, the larger one."""
    ends: FloatArray | None
    """Likewise of the median's interval; None for one replicate."""

    @property
    def upper(self) -> FloatArray:
        """The highest that is drawn."""
        return self.median if self.ends is None else self.ends[1]


def regret_figure(material: Material) -> Figure | Omitted:
    """One panel per budget, the declared one first; a line per method."""
    found = material.analysis.regret
    if found is None:
        return Omitted(KEY, TITLE, "No study has a trial that was trained to its end without diverging.")
    declared = material.analysis.protocol.declared_axis
    lines = {entry.axis: _lines(entry, found.best_known) for entry in material.analysis.anytime}
    drawn = [entry for entry in material.analysis.anytime if lines[entry.axis]]
    drawn.sort(key=lambda entry: entry.axis != declared)
    if not drawn:
        return Omitted(KEY, TITLE, "The methods' curves have no stretch in common.")
    logarithmic = all(_is_wide(entry, lines[entry.axis]) for entry in drawn)
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"From the best so far to {format_number(found.best_known)}, the best "
            f"{material.comparison.judged} of any study; median over {material.replicates}, band: its 95 % "
            "interval, bootstrapped over replicates. Lower is better, whichever way the metric goes. The "
            "best known was selected among all trials, so regrets are a little too large. The axis may leave "
            "out early values; double-click shows all."
            + (" The axis is logarithmic; a band that leaves it goes on to 0." if logarithmic else "")
        ),
        panels=tuple(
            Panel(
                f"Against {entry.axis}",
                _plot(material, entry, lines[entry.axis], logarithmic=logarithmic),
                f"Regret against {entry.axis}; the table below gives what is left in the end.",
            )
            for entry in drawn
        ),
        table=regret_table(material.comparison, material.analysis),
        data=_data(drawn, lines, found.best_known),
        columns=3,
    )


def _lines(entry: Anytime, best: float) -> list[_Line]:
    """The methods that have a band; the median of distances is the distance of the median."""
    found = []
    for method in entry.methods:
        band = method.band
        if band is None:
            continue
        quartiles = np.sort(np.abs(best - np.stack([band.low_quartile, band.high_quartile])), axis=0)
        ends = None
        if band.low is not None and band.high is not None:
            ends = np.sort(np.abs(best - np.stack([band.low, band.high])), axis=0)
        found.append(_Line(method, band.axis, np.abs(best - band.median), quartiles, ends))
    return found


def _later(line: _Line, heights: FloatArray, budget: float) -> FloatArray:
    """Heights after the first fifth of the budget: what comes before would be most of the axis."""
    later: FloatArray = heights[line.at >= min(EARLY * budget, line.at[-1])]
    return later


def _is_wide(entry: Anytime, lines: Sequence[_Line]) -> bool:
    """Whether medians differ so much that only a logarithm shows all of them; none may be 0."""
    medians = np.concatenate([_later(line, line.median, entry.budget or 0.0) for line in lines])
    return bool(medians.min() > 0 and medians.max() > SPREAD * medians.min())


def _plot(material: Material, entry: Anytime, lines: Sequence[_Line], *, logarithmic: bool) -> Json:
    budget = entry.budget or 0.0
    highest = float(max(_later(line, line.upper, budget).max() for line in lines))
    low, high = 0.0, highest * 1.05 or 1.0
    if logarithmic:
        lowest = min(_later(line, line.median, budget).min() for line in lines)
        low, high = math.log10(lowest / BELOW), math.log10(highest) + 0.05
    data: list[Json] = []
    for line in lines:
        data.extend(_drawn(line, material.index(line.method.method), 10**low if logarithmic else 0.0))
    ends = [
        (line.method.method, material.index(line.method.method), _place(float(line.median[-1]), logarithmic))
        for line in lines
    ]
    y = axis(f"regret in {material.metric}", range=[low, high])
    if logarithmic:
        y |= {"type": "log", "dtick": 1 if high - low > 2 else "D2", "exponentformat": "power"}
    return {
        "data": data,
        "layout": layout(
            axis(UNITS[entry.axis], rangemode="tozero"),
            y,
            hovermode="x unified",
            annotations=end_labels(ends, low, high, PIXELS),
            margin=label_margin(name for name, _, _ in ends),
        ),
    }


def _place(height: float, logarithmic: bool) -> float:
    """Where a height lies on the axis, in plotly's terms."""
    return math.log10(height) if logarithmic else height


def _drawn(line: _Line, index: int, floor: float) -> list[Json]:
    """The band, cut off where a logarithmic axis begins, and the median."""
    name = label(line.method.method)
    found = []
    if line.ends is not None:
        edge: Json = {
            "mode": "lines",
            "x": rounded(line.at),
            "line": {"shape": "hv", "width": 0, "color": colour(index)},
            "hoverinfo": "skip",
        }
        low, high = np.maximum(line.ends, floor)
        found = [
            trace(**edge, y=rounded(low)),
            trace(**edge, y=rounded(high), fill="tonexty", fillcolor=soft(index)),
        ]
    found.append(
        trace(
            mode="lines",
            name=name,
            x=rounded(line.at),
            y=rounded(line.median),
            line={"shape": "hv", "width": 2.4, "color": colour(index), "dash": dash(index)},
            hovertemplate=f"%{{y:.3g}}<extra>{name}, median</extra>",
            xhoverformat=".4~g",
        )
    )
    return found


def _data(entries: Sequence[Anytime], lines: dict[Axis, list[_Line]], best: float) -> Data:
    rows: list[tuple[Value, ...]] = []
    for entry in entries:
        for line in lines[entry.axis]:
            name = line.method.method
            for replicate, curve in line.method.curves.items():
                points = [*zip(curve.positions, curve.values, strict=True), (curve.end, curve.values[-1])]
                rows.extend(
                    (entry.axis, name, "replicate", replicate, float(at), abs(best - float(value)))
                    + (None,) * 4
                    for at, value in points
                )
            for k, at in enumerate(line.at):
                ends = (None, None) if line.ends is None else tuple(map(float, line.ends[:, k]))
                quartiles = map(float, line.quartiles[:, k])
                rows.append(
                    (entry.axis, name, "median", None, float(at), float(line.median[k]), *ends, *quartiles)
                )
    return Data(
        (
            "axis",
            "method",
            "line",
            "replicate",
            "spent",
            "regret",
            "interval_low",
            "interval_high",
            "quartile_low",
            "quartile_high",
        ),
        tuple(rows),
    )
