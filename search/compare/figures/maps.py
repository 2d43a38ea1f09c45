"""F9: two dimensions at once. Loss and optimizer, learning rate and batch size, each cell tuned."""

from __future__ import annotations

from collections.abc import Sequence

from search.compare import cells
from search.compare.figures.base import (
    Builder,
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    label,
    layout,
    short,
    table,
    told,
    trace,
)
from search.compare.learned.effects import LEAST, Effect, TunedBest, effect_of
from search.compare.learned.learn import NO_ARM, source
from search.compare.space import SpaceAxis, named
from search.compare.tables import Value

CELLS = 200
"""A map with more cells is left out: they can't be read."""
FILLED = 0.5
"""A map with a smaller share of cells that have enough trials is left out: it would be mostly holes."""


def pair_map(key: str, title: str, rows: tuple[str, ...], columns: tuple[str, ...]) -> Builder:
    """The builder of a map of two dimensions, each given by the names that it may have."""

    def build(material: Material) -> Figure | Omitted:
        arm = material.learned.arm
        if arm is None:
            return Omitted(key, title, NO_ARM)
        y, x = named(arm.axes, *rows), named(arm.axes, *columns)
        if x is None or y is None:
            missing = [names[0] for names, found in ((rows, y), (columns, x)) if found is None]
            return Omitted(key, title, f"No {' and no '.join(missing)} varies in this experiment.")
        if len(x.parts) * len(y.parts) > CELLS:
            return Omitted(key, title, f"{len(x.parts)} × {len(y.parts)} cells are too many to read.")
        beside = named(arm.axes, "learning_rate")
        effect = effect_of(arm, y, x, beside=None if beside in (x, y) else beside)
        filled = sum(level.best is not None for level in effect.levels)
        if filled < FILLED * len(effect.levels):
            return Omitted(
                key,
                title,
                f"Only {filled} of {len(effect.levels)} cells have {LEAST} of random search's trials.",
            )
        return _figure(material, effect, key, title)

    return build


def _figure(material: Material, effect: Effect, key: str, title: str) -> Figure:
    assert material.learned.arm is not None
    y, x = effect.axes
    asked = any(level.at[0] is not None for level in effect.levels)
    empty = sum(level.best is None for level in effect.levels)
    best = effect.best
    assert best is not None
    return Figure(
        key=key,
        title=title,
        caption=(
            f"Tuned best per cell: what the best of {effect.n} random trials with that {y.name} and {x.name} "
            f"is worth ({material.better}), whatever else they had. From {source(material.learned.arm)}."
            + (" Under the value: the learning rate of the cell's best trial." if asked else "")
            + (f" Cells with fewer than {LEAST} trials are empty." if empty else "")
        ),
        panels=(
            Panel(
                "",
                _plot(material, effect),
                f"Map of {y.name} and {x.name}; the best cell is {', '.join(best.parts)}.",
                rows=len(y.parts),
            ),
        ),
        table=table(
            key,
            title,
            "Tuned bests with 95 % intervals over replicates, and how far each cell is behind the best.",
            [
                (y.name, y.name),
                (x.name, x.name),
                ("trials", "trials"),
                ("best", "tuned best (interval)"),
                ("behind", "behind the best"),
            ],
            [
                [
                    cells.text(level.parts[0]),
                    cells.text(level.parts[1]),
                    cells.count(level.trials),
                    cells.with_interval(level.best),
                    cells.with_interval(level.behind),
                ]
                for level in effect.levels
            ],
        ),
        data=_data(effect),
    )


def _plot(material: Material, effect: Effect) -> Json:
    y, x = effect.axes
    width = len(x.parts)
    rows = [effect.levels[k : k + width] for k in range(0, len(effect.levels), width)]
    return heat_map(
        [[level.best.estimate if level.best else None for level in row] for row in rows],
        [[_words(level) for level in row] for row in rows],
        [[_hover(level) for level in row] for row in rows],
        x,
        y,
        reverse=material.comparison.direction == "minimize",
    )


def heat_map(
    z: Sequence[Sequence[float | None]],
    words: Sequence[Sequence[str]],
    hover: Sequence[Sequence[str]],
    x: SpaceAxis,
    y: SpaceAxis,
    *,
    reverse: bool = False,
) -> Json:
    """A map in one hue, darker (in the dark: lighter) for better, with its numbers written in it."""
    scale = [[0, "var(--map-low)"], [1, "var(--map-high)"]]
    data = trace(
        "heatmap",
        z=[list(row) for row in z],
        text=[list(row) for row in words],
        customdata=[list(row) for row in hover],
        x=_ticks(x),
        y=_ticks(y),
        texttemplate="%{text}",
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        colorscale=scale,
        reversescale=reverse,
        showscale=False,
        xgap=2,
        ygap=2,
    )
    category: Json = {"type": "category", "showgrid": False, "ticks": ""}
    across = axis(_title(x), **category)
    down = axis(_title(y), autorange="reversed", **category)
    return {"data": [data], "layout": layout(across, down)}


def _ticks(one: SpaceAxis) -> list[str]:
    """Levels, or the middles of bins, which leave more room than their ends."""
    if one.categorical:
        return [short(label(part), 18) for part in one.parts]
    return [f"{centre:.2g}" for centre in one.centres]


def _title(one: SpaceAxis) -> str:
    return short(label(one.name), 28) + ("" if one.categorical else " (middle of each range)")


def _words(level: TunedBest) -> str:
    if level.best is None:
        return ""
    at = level.at[0]
    return f"{level.best.estimate:.3g}" + (f"<br>at {told(at)}" if at is not None else "")


def _hover(level: TunedBest) -> str:
    names = label(", ".join(level.parts))
    if level.best is None:
        return f"{names}: {level.trials} trials, too few"
    ends = ""
    if level.best.low is not None and level.best.high is not None:
        ends = f" ({level.best.low:.4g} to {level.best.high:.4g})"
    return f"{names}<br>{level.best.estimate:.4g}{ends}, {level.trials} trials"


def _data(effect: Effect) -> Data:
    y, x = effect.axes
    rows: list[tuple[Value, ...]] = []
    for level in effect.levels:
        best, behind = level.best, level.behind
        rows.append(
            (
                *level.parts,
                level.trials,
                effect.n,
                best.estimate if best else None,
                best.low if best else None,
                best.high if best else None,
                behind.estimate if behind else None,
                behind.low if behind else None,
                behind.high if behind else None,
                level.at[0],
            )
        )
    columns = ("trials", "n", "tuned_best", "low", "high", "behind", "behind_low", "behind_high")
    return Data((y.name, x.name, *columns, "learning_rate_of_best"), tuple(rows))
