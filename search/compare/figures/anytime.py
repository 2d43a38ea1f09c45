"""F1 to F3: the best value so far against trials, epochs and seconds."""

from __future__ import annotations

from collections.abc import Sequence

from search.compare import cells
from search.compare.budgets import Anytime, AnytimeMethod, Axis
from search.compare.figures.base import (
    Builder,
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    View,
    axis,
    colour,
    dash,
    end_labels,
    label,
    label_margin,
    layout,
    note,
    rounded,
    soft,
    table,
    trace,
)
from search.compare.statistics.anytime import Band
from search.compare.statistics.base import FloatArray
from search.compare.tables import Cell, Table, Value
from search.formats import format_number

WORDS: dict[Axis, tuple[str, str, str]] = {
    "trials": ("trials", "trials per study", "Best so far against trials"),
    "epochs": ("epochs", "epochs per study", "Best so far against epochs"),
    "seconds": ("seconds", "device and sampler seconds per study", "Best so far against seconds"),
}
"""Axis → its unit, its title, the figure's title."""

EARLY = 0.2
"""Share of the budget whose values the axis may leave out at first."""

CUTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the common budget at which the table repeats the curves."""

VIEWS = (
    View("interval", "interval of the median"),
    View("quartiles", "middle half of replicates"),
    View("replicates", "every replicate"),
)


def figure_on(kind: Axis) -> Builder:
    """The builder of one axis's figure."""

    def build(material: Material) -> Figure | Omitted:
        found = next((entry for entry in material.analysis.anytime if entry.axis == kind), None)
        title = WORDS[kind][2]
        key = f"best-so-far-{kind}"
        if found is None or not any(method.curves for method in found.methods):
            return Omitted(key, title, "No trial was trained to its end.")
        return _figure(material, found, key, title)

    return build


def _figure(material: Material, found: Anytime, key: str, title: str) -> Figure:
    drawn = [method for method in found.methods if method.curves]
    several = any(len(method.curves) > 1 for method in drawn)
    window = _window(found)
    plot: Json = {
        "data": _traces(material, drawn, several=several),
        "layout": _layout(material, found, drawn, window),
    }
    return Figure(
        key=key,
        title=title,
        caption=_caption(material, found, several=several, cut=_is_cut(found, window)),
        panels=(Panel("", plot, f"{title}: one line per method; the table below gives the numbers."),),
        table=_table(material, found, key, title),
        data=_data(found),
        views=VIEWS if several else (),
        exploratory=not found.declared,
    )


def _traces(material: Material, drawn: Sequence[AnytimeMethod], *, several: bool) -> list[Json]:
    """Each method's line, over what shows its replicates where any method has `several`."""
    data: list[Json] = []
    for method in drawn:
        index = material.index(method.method)
        if several:
            data.extend(_replicates(method, index))
            if method.band is not None:
                data.extend(_areas(method.band, index))
        data.append(_line(method, index))
    return data


def _layout(
    material: Material, found: Anytime, drawn: Sequence[AnytimeMethod], window: Sequence[float]
) -> Json:
    """Methods are named at the ends of their lines, and the common budget has one of its own."""
    _, x_title, _ = WORDS[found.axis]
    ends = [(method.method, material.index(method.method), _last(method)) for method in drawn]
    marks = end_labels(ends, window[0], window[1])
    shapes: list[Json] = []
    if found.budget is not None:
        line, words = _budget(found.budget)
        shapes.append(line)
        marks.append(words)
    return layout(
        axis(x_title, rangemode="tozero"),
        axis(f"best {material.metric} so far", range=window),
        hovermode="x unified",
        annotations=marks,
        shapes=shapes,
        margin=label_margin(name for name, _, _ in ends),
    )


def _budget(at: float) -> tuple[Json, Json]:
    """The upright line at the common budget, and its name."""
    line: Json = {
        "type": "line",
        "x0": at,
        "x1": at,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"width": 1, "dash": "dot", "color": "var(--rule-strong)"},
        "layer": "below",
    }
    words = note("common budget", x=at, yref="paper", y=0, xanchor="right", yanchor="bottom", xshift=-4)
    return line, words


def _caption(material: Material, found: Anytime, *, several: bool, cut: bool) -> str:
    n = material.replicates
    text = (
        f"Line: median over {n} of the best {material.comparison.judged} so far "
        f"({material.better}); band: its 95 % interval, bootstrapped over replicates."
        if several
        else f"The best {material.comparison.judged} so far ({material.better}), {n}."
    )
    text += (
        " Pruned and diverged trials count in full, and each trial counts when it ends."
        if found.axis != "trials"
        else " Pruned and diverged trials count as trials."
    )
    if found.declared:
        text += " This is the budget that was declared as the first."
    return text + (
        " The axis leaves out the worst of the early values; double-click shows all." if cut else ""
    )


def _line(method: AnytimeMethod, index: int) -> Json:
    x, y = _central(method)
    several = len(method.curves) > 1
    hover = f"%{{y:.4g}}<extra>{label(method.method)}{', median' if several else ''}</extra>"
    return trace(
        mode="lines",
        name=label(method.method),
        x=x,
        y=y,
        line={"shape": "hv", "width": 2.4, "color": colour(index), "dash": dash(index)},
        hovertemplate=hover,
        meta="always",
        xhoverformat=".4~g",
    )


def _central(method: AnytimeMethod) -> tuple[list[float | None], list[float | None]]:
    """The median's positions and values; a single curve as it is, to its end."""
    if method.band is not None and len(method.curves) > 1:
        return rounded(method.band.axis), rounded(method.band.median)
    curve = next(iter(method.curves.values()))
    return rounded([*curve.positions, curve.end]), rounded([*curve.values, curve.values[-1]])


def _areas(band: Band, index: int) -> list[Json]:
    """The interval of the median, and the middle half of the replicates."""
    pairs = [("quartiles", band.low_quartile, band.high_quartile)]
    if band.low is not None and band.high is not None:
        pairs.append(("interval", band.low, band.high))
    found = []
    for view, low, high in pairs:
        edge: Json = {
            "mode": "lines",
            "x": rounded(band.axis),
            "line": {"shape": "hv", "width": 0, "color": colour(index)},
            "hoverinfo": "skip",
            "meta": view,
        }
        found.append(trace(**edge, y=rounded(low)))
        found.append(trace(**edge, y=rounded(high), fill="tonexty", fillcolor=soft(index)))
    return found


def _replicates(method: AnytimeMethod, index: int) -> list[Json]:
    """All replicates' curves as one trace with gaps, which draws much faster than one for each."""
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in method.curves.values():
        x.extend([*rounded([*curve.positions, curve.end]), None])
        y.extend([*rounded([*curve.values, curve.values[-1]]), None])
    line: Json = {"shape": "hv", "width": 1, "color": colour(index)}
    return [trace(mode="lines", x=x, y=y, line=line, opacity=0.45, hoverinfo="skip", meta="replicates")]


def _last(method: AnytimeMethod) -> float:
    return float(_central(method)[1][-1] or 0.0)


def _drawn_values(found: Anytime, start: float) -> list[float]:
    """Heights of medians and bands from a position on."""
    values: list[float] = []
    for method in found.methods:
        if method.band is None or len(method.curves) < 2:
            for curve in method.curves.values():
                at = [v for p, v in zip(curve.positions, curve.values, strict=True) if p >= start]
                values.extend([*at, float(curve.values[-1])])
                if curve.start <= start <= curve.end:
                    values.append(float(curve.at(start) or 0.0))
            continue
        band = method.band
        rows: Sequence[FloatArray] = [band.median, band.low_quartile, band.high_quartile]
        rows = [*rows, *(row for row in (band.low, band.high) if row is not None)]
        kept = band.axis >= min(start, band.axis[-1])
        values.extend(float(v) for row in rows for v in row[kept])
    return values


def _window(found: Anytime) -> list[float]:
    """The part of the value axis that matters after the first fifth of the budget.

    The first values of a search are often so bad that everything later becomes one flat line. The
    whole range, where it is at most twice as wide.
    """
    everything = _drawn_values(found, 0.0)
    later = _drawn_values(found, EARLY * (found.budget or 0.0))
    whole, part = max(everything) - min(everything), max(later) - min(later)
    chosen = later if part > 0 and whole > 2 * part else everything
    low, high = min(chosen), max(chosen)
    margin = 0.06 * (high - low) if high > low else max(1e-3, 0.01 * abs(high))
    return [low - margin, high + margin]


def _is_cut(found: Anytime, window: Sequence[float]) -> bool:
    values = _drawn_values(found, 0.0)
    return min(values) < window[0] or max(values) > window[1]


def _table(material: Material, found: Anytime, key: str, title: str) -> Table:
    unit, _, _ = WORDS[found.axis]
    budget = found.budget or 0.0
    positions = [share * budget for share in CUTS] if budget else []
    rows: list[list[Cell]] = []
    for position in positions:
        row = [Cell(position, f"{format_number(position)}")]
        for method in found.methods:
            values = [v for c in method.curves.values() if (v := c.at(position)) is not None]
            row.append(_median_cell(values))
        rows.append(row)
    return table(
        key,
        title,
        f"Median over replicates of the best {material.comparison.metric} so far, with the middle half and "
        f"the number of replicates that have a value, after so many {unit} per study.",
        [(unit, unit.capitalize()), *((m.method, m.method) for m in found.methods)],
        rows,
        exploratory=not found.declared,
    )


def _median_cell(values: Sequence[float]) -> Cell:
    import numpy as np

    if not values:
        return cells.number(None)
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    if len(values) == 1:
        return cells.number(median)
    return Cell(
        median,
        f"{format_number(median)} ({format_number(low)} to {format_number(high)}; n = {len(values)})",
    )


def _data(found: Anytime) -> Data:
    rows: list[tuple[Value, ...]] = []
    for method in found.methods:
        for replicate, curve in method.curves.items():
            points = [*zip(curve.positions, curve.values, strict=True), (curve.end, curve.values[-1])]
            rows.extend(
                (method.method, "replicate", replicate, float(x), float(y), None, None, None, None)
                for x, y in points
            )
        band = method.band
        if band is None:
            continue
        for k, x in enumerate(band.axis):
            low = None if band.low is None else float(band.low[k])
            high = None if band.high is None else float(band.high[k])
            quartiles = float(band.low_quartile[k]), float(band.high_quartile[k])
            rows.append(
                (method.method, "median", None, float(x), float(band.median[k]), low, high, *quartiles)
            )
    return Data(
        (
            "method",
            "line",
            "replicate",
            found.axis,
            "value",
            "interval_low",
            "interval_high",
            "quartile_low",
            "quartile_high",
        ),
        tuple(rows),
    )
