"""F9: slices of the space. Trials, their mean and their best tenth against each dimension."""

from __future__ import annotations

import math

import numpy as np

from search.compare import cells
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    colour,
    counted,
    label,
    layout,
    marker,
    rounded,
    short,
    space_axis,
    spread_range,
    table,
    told,
    trace,
)
from search.compare.learned.arm import Arm
from search.compare.learned.dependence import FOR_A_DECILE, Bin, Dependence
from search.compare.learned.learn import NO_ARM, source
from search.compare.space import SpaceAxis, as_number, named
from search.compare.tables import Cell, Table, Value

KEY = "dependence"
TITLE = "How the value depends on each dimension"

DOTS = 500
"""Most trials that a panel shows as dots; means and deciles are of all."""
LEFT_OUT = 0.2
"""Share of the trials, the worst, that the axis may leave out at first."""
COLOURED = 6
"""Most levels that the panel of the learning rate tells apart."""
PANELS = 12


def dependence_figure(material: Material) -> Figure | Omitted:
    """A panel per dimension: dots, the mean with its interval, the best decile."""
    arm = material.learned.arm
    if arm is None:
        return Omitted(KEY, TITLE, NO_ARM)
    if not material.learned.dependences:
        return Omitted(KEY, TITLE, "No dimension varies.")
    drawn = material.learned.dependences[:PANELS]
    shown = min(DOTS, arm.n)
    dots = "every trial" if shown == arm.n else f"{shown} trials, drawn with a fixed seed"
    rest = len(material.learned.dependences) - len(drawn)
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"From {source(arm)}. Dots: {dots}; solid: mean of all trials with its 95 % interval over "
            "replicates (the partial dependence, since random search draws each dimension independently); "
            f"dashed: what the best tenth reach ({material.better}), if there are {FOR_A_DECILE} trials or "
            "more. Axes may leave out the worst fifth of the trials; double-click shows all."
            + (f" {counted(rest, 'further dimension')} in the CSV file only." if rest else "")
        ),
        panels=tuple(_panel(material, arm, one) for one in drawn),
        table=_table(material),
        data=_data(material),
        columns=2,
    )


def _panel(material: Material, arm: Arm, found: Dependence) -> Panel:
    one = found.axis
    beside = named(arm.axes, "optimizer") if one.name == "learning_rate" else None
    if beside is not None and not (beside.categorical and len(beside.levels) <= COLOURED):
        beside = None
    data = _dots(arm, one, beside)
    data.extend(_lines(found))
    extra: Json = {}
    if beside is not None:
        extra["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 11.5}}
    title = short(one.name, 30) + (f", by {beside.name}" if beside is not None else "")
    means = [f"{b.part}: {b.mean.estimate:.4g}" for b in found.bins if b.mean is not None]
    return Panel(
        title,
        {
            "data": data,
            "layout": layout(space_axis(one), axis(material.metric, range=window(arm, found)), **extra),
        },
        f"Mean {material.comparison.metric} by {one.name}: {'; '.join(means)}.",
    )


def window(arm: Arm, found: Dependence) -> list[float]:
    """The axis without the worst fifth of the trials, but with every mean and its interval."""
    gain = np.sort(arm.gain)
    kept = [float(gain[int(LEFT_OUT * gain.size)]), float(gain[-1])]
    sign = 1.0 if arm.direction == "maximize" else -1.0
    means = [one.mean for one in found.bins if one.mean is not None]
    ends = [end for mean in means for end in (mean.estimate, mean.low, mean.high) if end is not None]
    return spread_range([*(sign * value for value in kept), *ends])


def chosen(arm: Arm, axis_: SpaceAxis) -> list[int]:
    """The trials that are drawn as dots: all, or `DOTS` of them by a fixed seed."""
    has = [k for k, trial in enumerate(arm.trials) if axis_.name in trial.params]
    if len(has) <= DOTS:
        return has
    return sorted(np.random.default_rng(0).choice(has, size=DOTS, replace=False).tolist())


def _dots(arm: Arm, one: SpaceAxis, beside: SpaceAxis | None) -> list[Json]:
    groups: list[tuple[str, int | None, list[int]]] = [("", None, chosen(arm, one))]
    if beside is not None:
        kept = [k for k in groups[0][2] if beside.name in arm.trials[k].params]
        of = {k: beside.part(arm.trials[k].params[beside.name]) for k in kept}
        groups = [(level, i, [k for k in kept if of[k] == i]) for i, level in enumerate(beside.levels)]
    traces = []
    for name, index, members in groups:
        looks: Json = {"size": 5, "opacity": 0.4, "color": "var(--quiet)"}
        if index is not None:
            looks = {"size": 6, "opacity": 0.6, "color": colour(index), "symbol": marker(index)}
        traces.append(
            trace(
                mode="markers",
                name=label(name),
                showlegend=index is not None,
                x=rounded(_place(one, arm.trials[k].params[one.name], k) for k in members),
                y=rounded(arm.values[k] for k in members),
                customdata=[told(arm.trials[k].params[one.name]) for k in members],
                marker=looks,
                hovertemplate=f"%{{y:.4g}} at %{{customdata}}<extra>{label(name)}</extra>",
            )
        )
    return traces


def _place(one: SpaceAxis, value: object, k: int) -> float:
    """Where a dot stands; dots of a level are spread by the golden ratio, which never lumps."""
    if not one.categorical:
        return as_number(value)
    return one.part(value) + 0.56 * ((k * 0.6180339887498949) % 1 - 0.5)


def _lines(found: Dependence) -> list[Json]:
    one = found.axis
    kept = [(k, b) for k, b in enumerate(found.bins) if b.mean is not None]
    centres = range(len(one.parts)) if one.categorical else one.centres
    x = rounded(centres[k] for k, _ in kept)
    means = [b.mean for _, b in kept if b.mean is not None]
    mode = "markers" if one.categorical else "lines+markers"
    symbol = "line-ew-open" if one.categorical else "triangle-up"
    bars: Json = {}
    if all(m.low is not None and m.high is not None for m in means):
        bars["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded((m.high or m.estimate) - m.estimate for m in means),
            "arrayminus": rounded(m.estimate - (m.low or m.estimate) for m in means),
            "color": "var(--text)",
            "thickness": 1.6,
            "width": 4,
        }
    mean = trace(
        mode=mode,
        x=x,
        y=rounded(m.estimate for m in means),
        customdata=[[b.part, b.trials] for _, b in kept],
        line={"color": "var(--text)", "width": 2},
        marker={"color": "var(--text)", "size": 7},
        hovertemplate="mean %{y:.4g} of %{customdata[1]} trials<br>%{customdata[0]}<extra></extra>",
        **bars,
    )
    # A range of too few trials has none: the line breaks there, and tells nothing of it.
    decile = trace(
        mode=mode,
        x=x,
        y=rounded(math.nan if b.decile is None else b.decile for _, b in kept),
        customdata=[b.part for _, b in kept],
        line={"color": "var(--text)", "width": 1.6, "dash": "dash"},
        marker={"color": "var(--text)", "size": 11 if one.categorical else 7, "symbol": symbol},
        hovertemplate="the best tenth reach %{y:.4g}<br>%{customdata}<extra></extra>",
    )
    return [mean, decile]


def _table(material: Material) -> Table:
    rows = [
        [
            cells.text(one.name),
            Cell(part.part, part.part),
            cells.count(part.trials),
            cells.with_interval(part.mean),
            cells.number(part.decile),
        ]
        for one, part in _rows(material)
    ]
    return table(
        KEY,
        TITLE,
        f"Mean {material.comparison.metric} with its 95 % interval, and what the best tenth reach, per level "
        "or range of each dimension.",
        [
            ("dimension", "dimension"),
            ("part", "level or range"),
            ("trials", "trials"),
            ("mean", "mean (interval)"),
            ("best_tenth", "best tenth"),
        ],
        rows,
    )


def _rows(material: Material) -> list[tuple[SpaceAxis, Bin]]:
    return [(found.axis, one) for found in material.learned.dependences for one in found.bins]


def _data(material: Material) -> Data:
    rows: list[tuple[Value, ...]] = []
    for one, part in _rows(material):
        mean, diverged = part.mean, part.diverged
        rows.append(
            (
                one.name,
                part.part,
                part.trials,
                mean.estimate if mean else None,
                mean.low if mean else None,
                mean.high if mean else None,
                part.decile,
                diverged.estimate if diverged else None,
                diverged.low if diverged else None,
                diverged.high if diverged else None,
            )
        )
    return Data(
        (
            "dimension",
            "part",
            "trials",
            "mean",
            "mean_low",
            "mean_high",
            "best_tenth",
            "diverged",
            "diverged_low",
            "diverged_high",
        ),
        tuple(rows),
    )
