"""F10: the gap between training and validation loss, against the strength of regularisation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from search.compare import cells
from search.compare.base import TrialOutcome
from search.compare.figures.base import (
    Data,
    Figure,
    Material,
    Omitted,
    Panel,
    axis,
    counted,
    layout,
    rounded,
    short,
    space_axis,
    spread_range,
    table,
    trace,
)
from search.compare.learned.arm import Arm
from search.compare.learned.learn import NO_ARM
from search.compare.space import SpaceAxis, as_number, named

KEY = "gap"
TITLE = "Train–validation gap by λ"

PANELS = 6
DOTS = 300
"""Most trials that a panel shows as dots; medians are of all."""


def gap_figure(material: Material) -> Figure | Omitted:
    """Validation loss less training loss at the last epoch, against λ, per loss."""
    arm = material.learned.arm
    if arm is None:
        return Omitted(KEY, TITLE, NO_ARM)
    one = named(material.axes, "lambda", "weight_decay")
    if one is None or one.categorical:
        return Omitted(KEY, TITLE, "No λ is searched as a number.")
    found = _gaps(arm, one, named(material.axes, "loss"))
    if not found:
        return Omitted(KEY, TITLE, "No trial that was trained to its end has both losses.")
    total = sum(len(points) for points in found.values())
    out = sum(
        not low <= gap <= high
        for points in found.values()
        for low, high in [_fences([gap for _, gap in points])]
        for _, gap in points
    )
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            "Validation loss less training loss at the last epoch, of "
            f"{counted(total, 'trial')} of random search that were trained to their end; losses have units "
            "of their own, hence a panel for each. Dots: trials; line: median per range of λ."
            + (f" {counted(out, 'trial')} far out of a panel; double-click shows all." if out else "")
        ),
        panels=tuple(_gap_panel(one, name, points) for name, points in found.items()),
        table=table(
            KEY,
            TITLE,
            f"Median gap per range of {one.name}.",
            [("loss", "loss"), ("range", one.name), ("trials", "trials"), ("gap", "median gap")],
            [
                [
                    cells.text(name or "all"),
                    cells.text(part),
                    cells.count(len(gaps)),
                    cells.number(_median(gaps)),
                ]
                for name, points in found.items()
                for part, gaps in zip(one.parts, _binned(one, points), strict=True)
            ],
        ),
        data=Data(
            ("loss", one.name, "gap"),
            tuple((name, at, gap) for name, points in found.items() for at, gap in points),
        ),
        columns=3 if len(found) > 2 else 2 if len(found) == 2 else 1,
    )


def _gaps(arm: Arm, one: SpaceAxis, loss: SpaceAxis | None) -> dict[str, list[tuple[float, float]]]:
    """λ and gap of each trial, by loss; one group without a name if the loss doesn't vary."""
    groups = loss.levels[:PANELS] if loss is not None and loss.categorical else ("",)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
    for trial in arm.trials:
        gap = _gap(trial)
        if gap is None or one.name not in trial.params:
            continue
        name = ""
        if loss is not None and loss.categorical and loss.name in trial.params:
            name = loss.parts[loss.part(trial.params[loss.name])]
        if name in found:
            found[name].append((as_number(trial.params[one.name]), gap))
    return {name: points for name, points in found.items() if points}


def _gap(trial: TrialOutcome) -> float | None:
    if not trial.eligible or not trial.curve:
        return None
    last = trial.curve[-1]
    if last.train_loss is None or last.validation_loss is None:
        return None
    gap = last.validation_loss - last.train_loss
    return gap if math.isfinite(gap) else None


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def _binned(one: SpaceAxis, points: Sequence[tuple[float, float]]) -> list[list[float]]:
    bins: list[list[float]] = [[] for _ in one.parts]
    for at, gap in points:
        bins[one.part(at)].append(gap)
    return bins


def _fences(gaps: Sequence[float]) -> tuple[float, float]:
    """The ends of what isn't far out: three times the middle half beyond it (Tukey), or the last value.

    A few configs that failed would stretch the axis until the rest is one line.
    """
    low, high = (float(end) for end in np.quantile(gaps, (0.25, 0.75)))
    reach = 3 * (high - low)
    return max(min(gaps), low - reach), min(max(gaps), high + reach)


def _gap_panel(one: SpaceAxis, name: str, points: Sequence[tuple[float, float]]) -> Panel:
    shown = points
    if len(points) > DOTS:
        chosen = np.random.default_rng(0).choice(len(points), size=DOTS, replace=False)
        shown = [points[k] for k in sorted(chosen.tolist())]
    binned = zip(one.centres, _binned(one, points), strict=True)
    medians = [(c, m) for c, gaps in binned if (m := _median(gaps)) is not None]
    low, high = _fences([gap for _, gap in points])
    window = spread_range([low, high, 0.0, *(m for _, m in medians if low <= m <= high)])
    data = [
        trace(
            mode="markers",
            x=rounded(at for at, _ in shown),
            y=rounded(gap for _, gap in shown),
            marker={"size": 5, "opacity": 0.4, "color": "var(--quiet)"},
            hovertemplate="%{y:.3g} at %{x:.3g}<extra></extra>",
        ),
        trace(
            mode="lines+markers",
            x=rounded(at for at, _ in medians),
            y=rounded(m for _, m in medians),
            line={"color": "var(--text)", "width": 2},
            marker={"color": "var(--text)", "size": 6},
            hovertemplate="median %{y:.3g}<extra></extra>",
        ),
    ]
    spoken = ", ".join(f"{m:.3g}" for _, m in medians)
    return Panel(
        short(name, 30),
        {"data": data, "layout": layout(space_axis(one), axis("gap in the loss", range=window))},
        f"Median gap from low to high {one.name}: {spoken}.",
    )
