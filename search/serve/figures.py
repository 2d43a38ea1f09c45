"""Figures with the words that stand around them, as templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.serve.charts import NARROW, WIDE, Chart, Series, line_chart
from search.serve.views import hover_data, latest


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as a template takes it."""

    key: str
    title: str
    caption: str
    charts: Sequence[Chart]
    """The same in several sizes; the style sheet shows one."""
    data: Mapping[str, object]
    """For the script."""
    ends: Sequence[tuple[str, float, float, float, float]]
    x_name: str


def figure(
    key: str,
    title: str,
    lines: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    caption: str,
    y_range: tuple[float, float] | None = None,
    styles: Sequence[int] | None = None,
) -> Figure:
    """A figure of these lines, in both sizes."""
    sizes = [
        line_chart(lines, size, x_title=x_title, y_title=y_title, y_range=y_range, styles=styles)
        for size in (WIDE, NARROW)
    ]
    return Figure(
        key=key,
        title=title,
        caption=caption,
        charts=sizes,
        data=hover_data(lines, sizes[0].x_range) | {"xName": x_title},
        ends=latest(lines),
        x_name=x_title,
    )


def best_caption(metric: str, direction: str, *, banded: bool) -> str:
    """What stands under the best-so-far figure."""
    better = "higher" if direction == "maximize" else "lower"
    band = (
        " Line: median over replicates, of which one that has spent less keeps its best; "
        "band: lowest to highest replicate."
        if banded
        else ""
    )
    return (
        f"Best {metric} on the validation images among the trials that had ended ({better} is better).{band} "
        "The epochs of pruned, diverged and failed trials count in full."
    )
