"""F10: parallel coordinates of trials, drawn as lines.

plotly's own `parcoords` needs WebGL and compiles code at run time, which the page's content
security policy forbids. Lines over evenly spaced axes need neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from search.compare import cells
from search.compare.base import TrialOutcome
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
    note,
    rounded,
    short,
    table,
    trace,
)
from search.compare.space import SpaceAxis
from search.compare.tables import Cell, Table, Value
from search.formats import format_value

KEY = "parallel"
TITLE = "Configs side by side"

BEST = 60
"""Most trials of the best group that are drawn."""
REST = 200
"""Most other trials."""
SHARE = 0.05
"""The share of trials that counts as the best."""
AXES = 10
"""Most dimensions; the page has no room for more."""

OfMethod: TypeAlias = tuple[str, TrialOutcome]
"""A trial, after the name of its method."""


def parallel_figure(material: Material) -> Figure | Omitted:
    """Each trial a line over the dimensions; the best of all methods stand out."""
    axes = material.axes[:AXES]
    trials = _ranked(material, axes)
    if len(axes) < 2 or len(trials) < 2:
        return Omitted(KEY, TITLE, "Fewer than two dimensions vary over fewer than two finished trials.")
    best, others = divided(trials)
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"Each line is a config, the last axis its {material.comparison.metric}. Bold: the best "
            f"{len(best)} of {len(trials)} trials of all methods that were trained to their end; thin: "
            f"{len(others)} of the others, drawn with a fixed seed. It shows where good configs were found, "
            "and so also where the methods looked."
        ),
        panels=(
            Panel(
                "",
                _plot(material, axes, [t for _, t in best], [t for _, t in others]),
                "Parallel coordinates; the table below lists the best configs.",
                columns=len(axes) + 1,
            ),
        ),
        table=_table(material, axes, best[:10]),
        data=Data(
            ("method", "trial", "group", *(one.name for one in axes), "value"),
            tuple(
                (method, trial.number, group, *(_value(trial, one) for one in axes), trial.value)
                for group, members in (("best", best), ("other", others))
                for method, trial in members
            ),
        ),
    )


def _ranked(material: Material, axes: Sequence[SpaceAxis]) -> list[OfMethod]:
    """The trials that have a value and a place on every axis, the best first."""
    trials = [
        (study.method, trial)
        for study in material.comparison.studies
        for trial in study.trials
        if trial.eligible and all(one.name in trial.params for one in axes)
    ]
    sign = -1 if material.comparison.direction == "maximize" else 1
    return sorted(trials, key=lambda pair: sign * (pair[1].value or 0.0))


def divided(trials: Sequence[OfMethod]) -> tuple[Sequence[OfMethod], Sequence[OfMethod]]:
    """Of ranked trials those that are drawn: the best, and of the others a few, drawn with a fixed seed."""
    head = max(1, min(BEST, round(SHARE * len(trials))))
    best, others = trials[:head], trials[head:]
    if len(others) > REST:
        chosen = np.random.default_rng(0).choice(len(others), size=REST, replace=False)
        others = [others[k] for k in sorted(chosen.tolist())]
    return best, others


def _table(material: Material, axes: Sequence[SpaceAxis], best: Sequence[OfMethod]) -> Table:
    return table(
        KEY,
        TITLE,
        "The best ten trials of all methods.",
        [
            ("method", "method"),
            *((one.name, one.name) for one in axes),
            ("value", material.comparison.metric),
        ],
        [
            [cells.text(method), *(_param(trial, one) for one in axes), cells.number(trial.value)]
            for method, trial in best
        ],
    )


def _param(trial: TrialOutcome, one: SpaceAxis) -> Cell:
    return Cell(_value(trial, one), format_value(trial.params[one.name]))


def _value(trial: TrialOutcome, one: SpaceAxis) -> Value:
    value = trial.params[one.name]
    return value if isinstance(value, str | int | float | bool) else str(value)


def _plot(
    material: Material, axes: tuple[SpaceAxis, ...], best: list[TrialOutcome], others: list[TrialOutcome]
) -> Json:
    values = [trial.value or 0.0 for trial in (*best, *others)]
    low, high = min(values), max(values)
    thin: Json = {"line": {"width": 0.8, "color": "var(--rule-strong)"}, "opacity": 0.55}
    bold: Json = {"line": {"width": 1.6, "color": "var(--accent)"}, "opacity": 0.75}
    data = [
        _lines(axes, others, low, high, **thin),
        _lines(axes, best, low, high, **bold),
    ]
    width = len(axes)
    shapes: list[Json] = [
        {
            "type": "line",
            "x0": k,
            "x1": k,
            "y0": 0,
            "y1": 1,
            "line": {"width": 1, "color": "var(--rule-strong)"},
        }
        for k in range(width + 1)
    ]
    marks: list[Json] = []
    for k, one in enumerate(axes):
        ticks = one.levels if one.categorical else (format_value(one.low), format_value(one.high))
        for tick, level in enumerate(ticks):
            at = tick / max(1, len(ticks) - 1)
            marks.append(_tick(short(label(level), 14), k, at))
    marks.append(_tick(f"{low:.3g}", width, 0))
    marks.append(_tick(f"{high:.3g}", width, 1))
    names = [short(label(one.name), 16) for one in axes] + [short(material.metric, 16)]
    marks.extend(
        note(f"<b>{name}</b>", x=k, y=1.12, xanchor="left", xshift=-4, font={"size": 12.5})
        for k, name in enumerate(names)
    )
    x = axis("", visible=False, range=[-0.06, width + 0.55])
    y = axis("", visible=False, range=[-0.06, 1.18])
    plain = layout(x, y, shapes=shapes, annotations=marks, hovermode=False)
    plain["margin"] = {"l": 10, "r": 10, "t": 6, "b": 6}
    return {"data": data, "layout": plain}


def _lines(
    axes: tuple[SpaceAxis, ...], trials: list[TrialOutcome], low: float, high: float, **looks: object
) -> Json:
    """All trials as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for trial in trials:
        heights = [one.share(trial.params[one.name]) for one in axes]
        heights.append(((trial.value or 0.0) - low) / (high - low) if high > low else 0.5)
        x.extend([*map(float, range(len(axes) + 1)), None])
        y.extend([*rounded(round(height, 4) for height in heights), None])
    return trace(mode="lines", x=x, y=y, hoverinfo="skip", **looks)


def _tick(text: str, k: int, at: float) -> Json:
    return note(
        text,
        x=k,
        y=at,
        xanchor="left",
        xshift=4,
        bgcolor="var(--card-soft)",
        borderpad=1,
        font={"color": "var(--text)", "size": 11},
    )
