"""F11: when trials ran, and how busy the devices were."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from search.compare import cells
from search.compare.base import TrialOutcome
from search.compare.figures.base import (
    LEGEND_ABOVE,
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
from search.compare.statistics.base import FloatArray
from search.compare.tables import Table

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


@dataclass(frozen=True, slots=True)
class Span:
    """When a trial ran: its ends in seconds of the epoch, and its device seconds."""

    start: float
    end: float
    device_seconds: float


@dataclass(frozen=True)
class Period:
    """From the beginning of the first trial, in seconds of the epoch, to the end of the last; in seconds."""

    first: float
    length: float

    @property
    def unit(self) -> tuple[int, str]:
        """In what it is told: seconds per unit, and the unit's name."""
        return next((per, unit) for least, per, unit in UNITS if self.length >= least)

    @cached_property
    def edges(self) -> FloatArray:
        """The ends of the stretches, in seconds since the first trial began."""
        return np.linspace(0, self.length, BINS + 1)

    def mean_height(self, heights: Iterable[tuple[Span, float]]) -> FloatArray:
        """The mean over each stretch of the summed heights of the spans."""
        # The integral of a sum of steps at each edge: every span adds height · (part of it before the edge).
        area = np.zeros(self.edges.size)
        for span, height in heights:
            start, end = span.start - self.first, span.end - self.first
            area += height * (np.clip(self.edges, start, end) - start)
        return np.asarray(np.diff(area) / np.diff(self.edges))


@dataclass(frozen=True, slots=True)
class Course:
    """How many trials and devices a method had at once, stretch by stretch."""

    method: str
    spans: Sequence[Span]
    in_flight: FloatArray
    devices: FloatArray


def timeline_figure(material: Material) -> Figure | Omitted:
    """Trials in flight and devices busy, by method, over the time since the first trial began."""
    spans = {method: found for method in material.comparison.methods if (found := _spans(material, method))}
    everything = [span for found in spans.values() for span in found]
    if not everything:
        return Omitted(KEY, TITLE, "No trial says when it began and ended.")
    period = period_of(everything)
    if period.length <= 0:
        return Omitted(KEY, TITLE, "All trials began and ended at the same moment.")
    courses = [course(method, found, period) for method, found in spans.items()]
    return Figure(
        key=KEY,
        title=TITLE,
        caption=(
            f"{counted(len(everything), 'trial')} with times, means over {BINS} equal stretches. Trials in "
            "flight wait for slots and pruners as well; devices in use are device seconds per second of the "
            "clock, a trial's share of a fused program where several train at once."
        ),
        panels=(
            _panel(material, period, "Trials in flight", "trials", {c.method: c.in_flight for c in courses}),
            _panel(material, period, "Devices in use", "devices", {c.method: c.devices for c in courses}),
        ),
        table=_table(courses, period),
        data=_data(courses, period),
        columns=2,
    )


def _spans(material: Material, method: str) -> list[Span]:
    """Of the method's trials that say when they began and ended."""
    trials = (trial for study in material.comparison.studies_of(method) for trial in study.trials)
    return [span for trial in trials if (span := span_of(trial)) is not None]


def span_of(trial: TrialOutcome) -> Span | None:
    """When a trial ran; None if it doesn't say, or says that it ended before it began."""
    if trial.started_at is None or trial.ended_at is None or trial.ended_at < trial.started_at:
        return None
    return Span(trial.started_at.timestamp(), trial.ended_at.timestamp(), trial.seconds)


def period_of(spans: Sequence[Span]) -> Period:
    """The time in which all of the spans lie."""
    first = min(span.start for span in spans)
    return Period(first, max(span.end for span in spans) - first)


def course(method: str, spans: Sequence[Span], period: Period) -> Course:
    """A method's course: a trial in flight counts as one, and as its share of a device's time in devices."""
    lasting = [span for span in spans if span.end > span.start]
    return Course(
        method,
        spans,
        in_flight=period.mean_height((span, 1.0) for span in spans),
        devices=period.mean_height((span, span.device_seconds / (span.end - span.start)) for span in lasting),
    )


def _panel(
    material: Material, period: Period, title: str, what: str, heights: Mapping[str, FloatArray]
) -> Panel:
    """One drawing: how many of `what` each method had."""
    per, unit = period.unit
    data: list[Json] = []
    for method, of_method in heights.items():
        index = material.index(method)
        data.append(
            trace(
                mode="lines",
                name=label(method),
                showlegend=True,
                x=rounded(period.edges[:-1] / per),
                y=rounded(of_method),
                line={"width": 1.8, "color": colour(index), "dash": dash(index), "shape": "hv"},
                hovertemplate=f"%{{y:.2f}} {what}<extra>{label(method)}</extra>",
            )
        )
    x = axis(f"{unit} since the first trial began", rangemode="tozero")
    y = axis(what, rangemode="tozero")
    return Panel(
        title,
        {"data": data, "layout": layout(x, y, legend=LEGEND_ABOVE)},
        f"{title} over time, by method.",
    )


def _table(courses: Sequence[Course], period: Period) -> Table:
    per, unit = period.unit
    rows = []
    for one in courses:
        spent = sum(span.device_seconds for span in one.spans)
        rows.append(
            [
                cells.text(one.method),
                cells.count(len(one.spans)),
                cells.number(spent / per),
                cells.number(spent / period.length),
                cells.number(float(one.in_flight.max())),
            ]
        )
    return table(
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
        rows,
    )


def _data(courses: Sequence[Course], period: Period) -> Data:
    return Data(
        ("method", "seconds", "trials_in_flight", "devices_in_use"),
        tuple(
            (one.method, float(at), float(trials), float(devices))
            for one in courses
            for at, trials, devices in zip(period.edges[:-1], one.in_flight, one.devices, strict=True)
        ),
    )
