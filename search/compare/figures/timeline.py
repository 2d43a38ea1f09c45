"""F11: when trials ran, and how busy the devices were."""

from __future__ import annotations

from datetime import datetime

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
    colour,
    counted,
    dash,
    label,
    layout,
    rounded,
    table,
    trace,
)
from search.compare.tables import Value

KEY = "timeline"
TITLE = "When trials ran"

BINS = 80
"""So many stretches of equal length, over which the lines are means."""
UNITS = (
    (2 * 86_400, 86_400, "days"),
    (2 * 3_600, 3_600, "hours"),
    (2 * 60, 60, "minutes"),
    (0, 1, "seconds"),
)
"""From so many seconds on: seconds per unit, and its name."""


def timeline_figure(material: Material) -> Figure | Omitted:
    """Trials in flight and devices busy, by method, over the time since the first trial began."""
    spans = {
        method: [
            span
            for study in material.comparison.studies_of(method)
            for trial in study.trials
            if (span := _span(trial)) is not None
        ]
        for method in material.comparison.methods
    }
    spans = {method: found for method, found in spans.items() if found}
    if not spans:
        return Omitted(KEY, TITLE, "No trial says when it began and ended.")
    first = min(start for found in spans.values() for start, _, _ in found)
    length = max(end for found in spans.values() for _, end, _ in found) - first
    if length <= 0:
        return Omitted(KEY, TITLE, "All trials began and ended at the same moment.")
    per, unit = next((per, unit) for least, per, unit in UNITS if length >= least)
    edges = np.linspace(0, length, BINS + 1)
    flight: list[Json] = []
    busy: list[Json] = []
    rows: list[tuple[Value, ...]] = []
    table_rows = []
    for method, found in spans.items():
        index = material.index(method)
        in_flight = _mean_height([(a - first, b - first, 1.0) for a, b, _ in found], edges)
        devices = _mean_height([(a - first, b - first, s / (b - a)) for a, b, s in found if b > a], edges)
        looks: Json = {"width": 1.8, "color": colour(index), "dash": dash(index), "shape": "hv"}
        for traces, heights, what in ((flight, in_flight, "trials"), (busy, devices, "devices")):
            traces.append(
                trace(
                    mode="lines",
                    name=label(method),
                    showlegend=True,
                    x=rounded(edges[:-1] / per),
                    y=rounded(heights),
                    line=looks,
                    hovertemplate=f"%{{y:.2f}} {what}<extra>{label(method)}</extra>",
                )
            )
        rows.extend(
            (method, float(at), float(a), float(b))
            for at, a, b in zip(edges[:-1], in_flight, devices, strict=True)
        )
        spent = sum(seconds for _, _, seconds in found)
        table_rows.append(
            [
                cells.text(method),
                cells.count(len(found)),
                cells.number(spent / per),
                cells.number(spent / length),
                cells.number(float(in_flight.max())),
            ]
        )
    total = counted(sum(len(found) for found in spans.values()), "trial")
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    x = axis(f"{unit} since the first trial began", rangemode="tozero")
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"{total} with times, means over {BINS} equal stretches. Trials in flight wait for slots and "
            "pruners as well; devices in use are device seconds per second of the clock, a trial's share of "
            "a fused program where several train at once."
        ),
        panels=(
            Panel(
                "Trials in flight",
                {"data": flight, "layout": layout(x, axis("trials", rangemode="tozero"), legend=legend)},
                "Trials in flight over time, by method.",
            ),
            Panel(
                "Devices in use",
                {"data": busy, "layout": layout(x, axis("devices", rangemode="tozero"), legend=legend)},
                "Devices in use over time, by method.",
            ),
        ),
        table=table(
            KEY,
            TITLE,
            f"Device time in {unit}, and means over the whole run.",
            [
                ("method", "method"),
                ("trials", "trials"),
                ("device_time", f"Device time ({unit})"),
                ("devices", "devices in use, mean"),
                ("in_flight", "trials in flight, most"),
            ],
            table_rows,
        ),
        data=Data(("method", "seconds", "trials_in_flight", "devices_in_use"), tuple(rows)),
        columns=2,
    )


def _span(trial: TrialOutcome) -> tuple[float, float, float] | None:
    """Beginning and end as seconds of the epoch, and device seconds."""
    if trial.started_at is None or trial.ended_at is None or trial.ended_at < trial.started_at:
        return None
    return _seconds(trial.started_at), _seconds(trial.ended_at), trial.seconds


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


def _mean_height(
    spans: list[tuple[float, float, float]], edges: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean over each stretch of the summed heights of the spans (start, end, height)."""
    # The integral of a sum of steps at each edge: every span adds height · (part of it before the edge).
    area = np.zeros(edges.size)
    for start, end, height in spans:
        area += height * (np.clip(edges, start, end) - start)
    return np.asarray(np.diff(area) / np.diff(edges))
