"""F12 and F13: several experiments together. Ranks over datasets, and trials in flight.

Both take values of several experiments and are drawn by `shoal compare`; a single experiment's
report names them among the figures that it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.compare import cells
from search.compare.base import Direction
from search.compare.figures.base import (
    LEGEND_ABOVE,
    Data,
    Figure,
    Json,
    Omitted,
    Panel,
    axis,
    colour,
    dash,
    label,
    layout,
    marker,
    note,
    rounded,
    short,
    table,
    trace,
)
from search.compare.statistics.across_datasets import BLOCKS_FOR_RANKS, RankComparison, compare_ranks
from search.compare.statistics.intervals import describe
from search.compare.tables import Cell, Value

RANKS = ("ranks", "Average ranks over datasets")
PARALLELISM = ("parallelism", "Regret against trials in flight")


def ranks_figure(
    scores: Mapping[str, Mapping[str, float]], direction: Direction, *, alpha: float = 0.05
) -> Figure | Omitted:
    """The critical-difference diagram (Demšar 2006): `scores` is dataset → method → mean over replicates.

    Only methods that every dataset has are ranked.
    """
    key, title = RANKS
    common = [m for m in next(iter(scores.values()), {}) if all(m in row for row in scores.values())]
    if len(scores) < BLOCKS_FOR_RANKS:
        return Omitted(key, title, f"{len(scores)} datasets, and {BLOCKS_FOR_RANKS} are the least for ranks.")
    if len(common) < 2:
        return Omitted(key, title, "Fewer than two methods ran on every dataset.")
    found = compare_ranks(
        [[row[m] for m in common] for row in scores.values()], tuple(common), direction, alpha=alpha
    )
    assert found.critical_difference is not None
    p = (
        ""
        if found.friedman_p is None
        else f" Friedman's test that all rank alike: p = {found.friedman_p:.3g}."
    )
    return Figure(
        key=key,
        title=title,
        caption=(
            f"1 is best; {found.blocks} datasets as blocks. Methods under one bar aren't told apart: their "
            f"ranks differ by less than Nemenyi's critical difference, {found.critical_difference:.2f} at "
            f"{alpha:g}.{p}"
        ),
        panels=(Panel("", _diagram(found), "Average ranks; the table below gives the numbers."),),
        table=table(
            key,
            title,
            f"Average rank over {found.blocks} datasets.",
            [("method", "method"), ("rank", "average rank")],
            [[cells.text(m), cells.number(r)] for m, r in _sorted(found)],
        ),
        data=Data(
            ("dataset", "method", "score"),
            tuple((dataset, m, row[m]) for dataset, row in scores.items() for m in common),
        ),
    )


def _sorted(found: RankComparison) -> list[tuple[str, float]]:
    return sorted(zip(found.methods, found.average_ranks, strict=True), key=lambda pair: pair[1])


def _diagram(found: RankComparison) -> Json:
    """Names on two sides of the scale as they are usually drawn would overlap on phones: a row for each."""
    order = _sorted(found)
    place = {method: row for row, (method, _) in enumerate(order)}
    ranks = dict(order)
    data: list[Json] = []
    marks: list[Json] = []
    for method, rank in order:
        index = found.methods.index(method)
        data.append(
            trace(
                mode="markers",
                x=rounded([rank]),
                y=[-place[method]],
                marker={"size": 11, "color": colour(index), "symbol": marker(index)},
                hovertemplate=f"rank %{{x:.2f}}<extra>{label(method)}</extra>",
            )
        )
        marks.append(
            note(
                f"<b>{short(label(method))}</b> {rank:.2f}",
                x=rank,
                y=-place[method],
                xanchor="left",
                xshift=10,
                font={"color": colour(index), "size": 12.5},
            )
        )
    for row, group in enumerate(found.groups):
        ends = [ranks[method] for method in group]
        data.append(
            trace(
                mode="lines",
                x=rounded([min(ends), max(ends)]),
                y=[1 + 0.45 * row] * 2,
                line={"width": 5, "color": "var(--quiet)"},
                hovertemplate=f"not told apart: {label(', '.join(group))}<extra></extra>",
            )
        )
    top = 1.4 + 0.45 * len(found.groups)
    return {
        "data": data,
        "layout": layout(
            axis("average rank (1 is best)", range=[0.8, len(order) + 0.9], dtick=1),
            axis("", visible=False, range=[-len(order) + 0.4, top]),
            annotations=marks,
        ),
    }


def parallelism_figure(regrets: Mapping[str, Mapping[int, Sequence[float]]], metric: str) -> Figure | Omitted:
    """Final regret against how many trials of a study run at once: method → trials in flight → replicates."""
    key, title = PARALLELISM
    several = {method: by_q for method, by_q in regrets.items() if len(by_q) > 1}
    if not several:
        return Omitted(key, title, "Each method ran with one number of trials in flight.")
    data: list[Json] = []
    table_rows: list[list[Cell]] = []
    rows: list[tuple[Value, ...]] = []
    for index, (method, by_q) in enumerate(regrets.items()):
        if method not in several:
            continue
        found = [(q, describe(values, "minimize")) for q, values in sorted(by_q.items()) if values]
        data.append(
            trace(
                mode="lines+markers",
                name=label(method),
                showlegend=True,
                x=[q for q, _ in found],
                y=rounded(one.median for _, one in found),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": rounded(one.high_quartile - one.median for _, one in found),
                    "arrayminus": rounded(one.median - one.low_quartile for _, one in found),
                    "color": colour(index),
                },
                line={"color": colour(index), "dash": dash(index), "width": 2},
                marker={"color": colour(index), "symbol": marker(index), "size": 8},
                hovertemplate=f"%{{y:.3g}} with %{{x}} in flight<extra>{label(method)}</extra>",
            )
        )
        table_rows.extend([cells.text(method), cells.number(q), cells.number(one.median)] for q, one in found)
        rows.extend((method, q, value) for q, values in sorted(by_q.items()) for value in values)
    return Figure(
        key=key,
        title=title,
        caption="Median over replicates of the distance to the best value known, with the middle half.",
        panels=(
            Panel(
                "",
                {
                    "data": data,
                    "layout": layout(
                        axis("trials of a study in flight (log scale)", type="log", dtick="D2"),
                        axis(f"regret in {label(metric)}", rangemode="tozero"),
                        legend=LEGEND_ABOVE,
                    ),
                },
                "Regret against trials in flight; the table below gives medians.",
            ),
        ),
        table=table(
            key,
            title,
            "Median regret.",
            [("method", "method"), ("in_flight", "trials in flight"), ("regret", "median regret")],
            table_rows,
        ),
        data=Data(("method", "in_flight", "regret"), tuple(rows)),
    )
