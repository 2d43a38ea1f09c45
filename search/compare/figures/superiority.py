"""F6: how often one method is ahead of another, against the budget spent."""

from __future__ import annotations

import numpy as np

from search.compare import cells
from search.compare.budgets import Anytime
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    label,
    layout,
    line_at,
    note,
    rounded,
    short,
    table,
    trace,
)
from search.compare.pairs import PairFinding
from search.compare.statistics.base import Interval, larger_is_better
from search.compare.statistics.intervals import paired_superiority
from search.compare.tables import Cell, Value

KEY = "superiority"
TITLE = "How often one method is ahead"

POSITIONS = 40
"""So many budgets at which the probability is worked out."""
RESAMPLES = 1_999
MOST = 6
"""Pairs that are drawn; the table of pairs has them all."""


def superiority_figure(material: Material) -> Figure | Omitted:
    """P(A ahead of B) within a replicate, with its interval, along the declared budget."""
    declared = material.analysis.protocol.declared_axis
    curves = material.analysis.curves(declared)
    pairs = [pair for pair in material.analysis.pairs if pair.declared][:MOST]
    courses = [(pair, _course(material, curves, pair)) for pair in pairs]
    courses = [(pair, course) for pair, course in courses if course]
    if not courses:
        return Omitted(KEY, TITLE, "No declared pair has two replicates in common.")
    rows = [_row(pair, course) for pair, course in courses]
    meaningful = material.analysis.rules.meaningful
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            "Share of replicates in which the first method's best so far is ahead, ties counting half, with "
            f"its 95 % interval; {material.replicates}. At 0.5 neither is ahead; {meaningful:g} is what a "
            "meaningful difference can exceed (Bouthillier et al. 2021)."
        ),
        panels=tuple(_panel(material, pair, course) for pair, course in courses),
        table=table(
            KEY,
            TITLE,
            f"Probability that the first method is ahead, at shares of the budget of {declared}.",
            [("pair", "pair"), *((f"at_{share}", f"At {share} %") for share in (25, 50, 75, 100))],
            rows,
        ),
        data=_data(courses, declared),
        columns=3 if len(courses) > 2 else 2 if len(courses) == 2 else 1,
    )


def _course(material: Material, curves: Anytime, pair: PairFinding) -> list[tuple[float, Interval]]:
    """Positions from where all curves of both have begun to the common budget, with P at each."""
    by_name = {method.method: method.curves for method in curves.methods}
    first, second = by_name.get(pair.result.first, {}), by_name.get(pair.result.second, {})
    both = sorted(first.keys() & second.keys())
    if len(both) < 2:
        return []
    drawn = [found[r] for found in (first, second) for r in both]
    start, end = max(c.start for c in drawn), min(c.end for c in drawn)
    if start >= end:
        return []
    course = []
    positions = np.linspace(start, end, POSITIONS)
    if curves.axis != "seconds":
        positions = np.unique(np.ceil(positions))
    for position in positions[positions <= end]:
        values = [[found[r].at(float(position)) or 0.0 for r in both] for found in (first, second)]
        a, b = (larger_is_better(of_method, material.comparison.direction) for of_method in values)
        course.append((float(position), paired_superiority(a, b, resamples=RESAMPLES)))
    return course


def _panel(material: Material, pair: PairFinding, course: list[tuple[float, Interval]]) -> Panel:
    x = rounded(position for position, _ in course)
    low = [p.estimate if p.low is None else p.low for _, p in course]
    high = [p.estimate if p.high is None else p.high for _, p in course]
    edge: Json = {
        "mode": "lines",
        "x": x,
        "line": {"width": 0, "color": "var(--accent)"},
        "hoverinfo": "skip",
    }
    hover = "%{y:.2f} (%{customdata[0]:.2f} to %{customdata[1]:.2f}) after %{x:.4~g}<extra></extra>"
    data = [
        trace(**edge, y=rounded(low)),
        trace(**edge, y=rounded(high), fill="tonexty", fillcolor="var(--accent-soft)"),
        trace(
            mode="lines",
            x=x,
            y=rounded(p.estimate for _, p in course),
            customdata=[rounded(ends) for ends in zip(low, high, strict=True)],
            line={"width": 2.2, "color": "var(--accent)"},
            hovertemplate=hover,
        ),
    ]
    meaningful = material.analysis.rules.meaningful
    unit = material.analysis.protocol.declared_axis
    first, second = short(label(pair.result.first)), short(label(pair.result.second))
    words = [
        note(f"{first} ahead ↑", xref="paper", x=1, xanchor="right", y=1.02, yanchor="bottom"),
        note(f"{second} ahead ↓", xref="paper", x=1, xanchor="right", y=-0.02, yanchor="top"),
    ]
    return Panel(
        pair.name,
        {
            "data": data,
            "layout": layout(
                axis(f"{unit} per study", rangemode="tozero"),
                axis("probability", range=[-0.18, 1.18], tickvals=[0, 0.25, 0.5, 0.75, 1], showgrid=False),
                shapes=[
                    line_at(0.5),
                    line_at(meaningful, strong=False),
                    line_at(1 - meaningful, strong=False),
                ],
                annotations=words,
            ),
        },
        f"{pair.name}: {course[-1][1].estimate:.2f} at the end of the budget.",
    )


def _row(pair: PairFinding, course: list[tuple[float, Interval]]) -> list[Cell]:
    end = course[-1][0]
    row = [Cell(pair.name, pair.name)]
    for share in (0.25, 0.5, 0.75, 1.0):
        before = [p for position, p in course if position <= share * end]
        row.append(cells.with_interval(before[-1] if before else None))
    return row


def _data(courses: list[tuple[PairFinding, list[tuple[float, Interval]]]], unit: str) -> Data:
    rows: list[tuple[Value, ...]] = [
        (pair.result.first, pair.result.second, position, p.estimate, p.low, p.high)
        for pair, course in courses
        for position, p in course
    ]
    return Data(("first", "second", unit, "probability", "interval_low", "interval_high"), tuple(rows))
