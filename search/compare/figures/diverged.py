"""F9: in which parts of the space trials diverge."""

from __future__ import annotations

from search.compare import cells
from search.compare.figures.base import (
    Data,
    Figure,
    Json,
    Material,
    Omitted,
    Panel,
    axis,
    counted,
    layout,
    rounded,
    short,
    space_axis,
    table,
    trace,
)
from search.compare.figures.maps import CELLS, heat_map
from search.compare.learned.arm import Arm
from search.compare.learned.dependence import Dependence, diverged_map
from search.compare.learned.learn import NO_ARM, source
from search.compare.space import SpaceAxis, named
from search.compare.tables import Value

KEY = "diverged"
TITLE = "Where trials diverge"
PANELS = 6


def diverged_figure(material: Material) -> Figure | Omitted:
    """Shares of diverged trials per level or range, and per learning rate and optimizer together."""
    arm = material.learned.arm
    if arm is None:
        return Omitted(KEY, TITLE, NO_ARM)
    if not arm.diverged.any():
        return Omitted(KEY, TITLE, "No trial of random search diverged.")
    if not arm.axes:
        return Omitted(KEY, TITLE, "No dimension varies.")
    spread = sorted(material.learned.dependences, key=_range, reverse=True)[:PANELS]
    panels = [_panel(one) for one in spread]
    x, y = named(arm.axes, "learning_rate"), named(arm.axes, "optimizer")
    if x is not None and y is not None and len(x.parts) * len(y.parts) <= CELLS:
        panels.insert(0, _map(arm, x, y))
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"{counted(int(arm.diverged.sum()), 'trial')} diverged; from {source(arm)}. Dots: "
            "share of diverged trials with its 95 % interval over replicates; the dimension over which the "
            "share varies most stands first."
        ),
        panels=tuple(panels),
        table=table(
            KEY,
            TITLE,
            "Share of random search's trials that diverged, with its 95 % interval over replicates.",
            [
                ("dimension", "dimension"),
                ("part", "level or range"),
                ("trials", "trials"),
                ("diverged", "share diverged (interval)"),
            ],
            [
                [
                    cells.text(found.axis.name),
                    cells.text(one.part),
                    cells.count(one.trials),
                    cells.with_interval(one.diverged),
                ]
                for found in spread
                for one in found.bins
            ],
        ),
        data=_data(material),
        columns=2,
    )


def _range(found: Dependence) -> float:
    shares = [one.diverged.estimate for one in found.bins if one.diverged is not None]
    return max(shares, default=0.0) - min(shares, default=0.0)


def _panel(found: Dependence) -> Panel:
    one = found.axis
    centres = range(len(one.parts)) if one.categorical else one.centres
    kept = [(centres[k], b, b.diverged) for k, b in enumerate(found.bins) if b.diverged is not None]
    bars: Json = {}
    if all(share.low is not None and share.high is not None for _, _, share in kept):
        bars["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded((share.high or 0.0) - share.estimate for _, _, share in kept),
            "arrayminus": rounded(share.estimate - (share.low or 0.0) for _, _, share in kept),
            "color": "var(--accent)",
            "thickness": 1.6,
            "width": 4,
        }
    data = trace(
        mode="markers" if one.categorical else "lines+markers",
        x=rounded(place for place, _, _ in kept),
        y=rounded(share.estimate for _, _, share in kept),
        customdata=[[b.part, b.trials] for _, b, _ in kept],
        line={"color": "var(--accent)", "width": 1.6},
        marker={"color": "var(--accent)", "size": 8},
        hovertemplate="%{y:.0%} of %{customdata[1]} trials<br>%{customdata[0]}<extra></extra>",
        **bars,
    )
    y = axis("share diverged", rangemode="tozero", tickformat=".0%")
    spoken = "; ".join(f"{b.part}: {share.estimate:.0%}" for _, b, share in kept)
    return Panel(
        short(one.name, 30),
        {"data": [data], "layout": layout(space_axis(one), y)},
        f"Share of diverged trials by {one.name}: {spoken}.",
    )


def _map(arm: Arm, x: SpaceAxis, y: SpaceAxis) -> Panel:
    everyone, diverged = diverged_map(arm, x, y)
    rows, columns = everyone.shape
    share = [
        [float(diverged[i, k] / everyone[i, k]) if everyone[i, k] else None for k in range(columns)]
        for i in range(rows)
    ]
    words = [["" if one is None else f"{one:.0%}" for one in row] for row in share]
    hover = [
        [f"{y.parts[i]}, {x.parts[k]}<br>{diverged[i, k]} of {everyone[i, k]} trials" for k in range(columns)]
        for i in range(rows)
    ]
    return Panel(
        f"{x.name} and {y.name}",
        heat_map(share, words, hover, x, y),
        f"Share of diverged trials by {x.name} and {y.name}.",
    )


def _data(material: Material) -> Data:
    rows: list[tuple[Value, ...]] = []
    for found in material.learned.dependences:
        for one in found.bins:
            share = one.diverged
            ends = (share.estimate, share.low, share.high) if share else (None, None, None)
            rows.append((found.axis.name, one.part, one.trials, *ends))
    return Data(("dimension", "part", "trials", "diverged", "low", "high"), tuple(rows))
