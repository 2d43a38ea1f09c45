"""Normalised regret of each method in each experiment, for `shoal compare`."""

from __future__ import annotations

from search.compare import cells
from search.compare.across import Across
from search.compare.figures.base import (
    LEGEND_ABOVE,
    Data,
    Figure,
    Json,
    Omitted,
    Panel,
    axis,
    colour,
    counted,
    label,
    layout,
    line_at,
    marker,
    rounded,
    short,
    table,
    trace,
)

KEY = "regrets"
TITLE = "Normalised regret in each experiment"


def regrets_figure(across: Across) -> Figure | Omitted:
    """A row per experiment, a mark per method."""
    blocks = [block for block in across.blocks if any(m in block.regrets for m in across.methods)]
    if not blocks:
        return Omitted(KEY, TITLE, "Without trials of random search there is nothing to measure it by.")
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            "Mean over replicates of the distance of a study's best value in the search to the best known in "
            "its experiment: 0 is the best known, 1 (the line) what a typical random trial is worth."
        ),
        panels=(
            Panel(
                "",
                _plot(across, [block.experiment for block in blocks], _regrets(across)),
                "Normalised regrets; the table below gives the numbers.",
                rows=len(blocks),
            ),
        ),
        table=table(
            KEY,
            TITLE,
            f"Mean normalised regret, {counted(len(blocks), 'experiment')}.",
            [("experiment", "experiment"), *((method, method) for method in across.methods)],
            [
                [cells.text(b.experiment), *(cells.number(b.regrets.get(m)) for m in across.methods)]
                for b in blocks
            ],
        ),
        data=Data(
            ("experiment", "method", "normalised_regret"),
            tuple((b.experiment, m, b.regrets[m]) for b in blocks for m in across.methods if m in b.regrets),
        ),
    )


def _regrets(across: Across) -> dict[str, dict[str, float]]:
    """Method → experiment → mean normalised regret."""
    return {
        method: {b.experiment: b.regrets[method] for b in across.blocks if method in b.regrets}
        for method in across.methods
    }


def _plot(across: Across, experiments: list[str], regrets: dict[str, dict[str, float]]) -> Json:
    # The first experiment stands on top, which is the last one for plotly.
    place = {name: -row for row, name in enumerate(experiments)}
    data: list[Json] = []
    for index, method in enumerate(across.methods):
        found = regrets[method]
        data.append(
            trace(
                mode="markers",
                name=label(method),
                showlegend=True,
                x=rounded(found.values()),
                y=[place[name] for name in found],
                customdata=[label(name) for name in found],
                marker={"size": 11, "color": colour(index), "symbol": marker(index), "opacity": 0.9},
                hovertemplate=f"%{{customdata}}: %{{x:.3f}}<extra>{label(method)}</extra>",
            )
        )
    names = [short(label(name), 24) for name in experiments]
    down = axis(
        "",
        ticks="",
        tickvals=[place[name] for name in experiments],
        ticktext=names,
        range=[-len(experiments) + 0.4, 0.6],
    )
    return {
        "data": data,
        "layout": layout(
            axis("normalised regret (0: the best known)", rangemode="tozero"),
            down,
            shapes=[line_at(1.0, horizontal=False, strong=False)],
            legend=LEGEND_ABOVE,
        ),
    }
