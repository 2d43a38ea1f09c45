"""From what the storage answers to what a page shows. Pure functions: no database, no clock, no markup."""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search.formats import format_number, format_value
from search.serve.charts import Axis, Series, Strand, Tick, nice_ticks, tick_label

if TYPE_CHECKING:
    from storage.page_values import Improvement, SampledTrial
    from storage.records import EpochRecord, StudyProgress, StudyRecord

STATES = ("complete", "pruned", "failed", "running", "paused", "waiting")
"""A trial's states in the order in which bars show them."""

EARLY = 0.1
"""Share of the epochs whose values a best-so-far figure may leave out: the first are often far off."""

STRAND_CLASSES = 5
"""How many shades parallel coordinates have, from the worst trials to the best."""

MANY_CHOICES = 12
"""More choices than this are not all labelled."""


ENDED = frozenset({"finished", "stopped", "failed"})
"""States in which no process needs to run an experiment."""


def shown_state(state: str, *, controlled: bool) -> str:
    """An experiment's state as `shoal status` calls it: one that nobody runs any more is interrupted."""
    return state if controlled or state in ENDED else "interrupted"


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a long table is shown."""

    number: int
    """From 1."""
    size: int
    total: int

    @property
    def offset(self) -> int:
        """How many rows come before."""
        return (self.number - 1) * self.size

    @property
    def first(self) -> int:
        """Number of the first row, from 1; 0 where there is none."""
        return min(self.offset + 1, self.total)

    @property
    def last(self) -> int:
        """Number of the last row."""
        return min(self.offset + self.size, self.total)

    @property
    def pages(self) -> int:
        """How many there are, at least one."""
        return max(1, -(-self.total // self.size))


def number_of(asked: str, otherwise: int) -> int:
    """The number that a request asks for, from 1; `otherwise` for anything that is none or is too large."""
    return max(1, int(asked)) if asked.isascii() and asked.isdigit() and len(asked) < 10 else otherwise


def page_of(asked: str, size: int, total: int) -> Page:
    """The page of that number, or the nearest there is."""
    return Page(min(number_of(asked, 1), max(1, -(-total // size))), size, total)


def shares(counts: Mapping[str, int], planned: int) -> list[tuple[str, int, float, float]]:
    """A bar's pieces: state, how many, where the piece begins and how wide it is, in percent."""
    total = max(planned, sum(counts.values()), 1)
    pieces, begin = [], 0.0
    for state in STATES:
        width = 100 * counts[state] / total
        if width:
            pieces.append((state, counts[state], begin, width))
        begin += width
    return pieces


def best_so_far(
    improvements: Iterable[Improvement], studies: Iterable[StudyRecord], methods: Sequence[str]
) -> list[Series]:
    """A line per method: the median of its replicates, with a band from the lowest to the highest.

    A replicate that has spent fewer epochs than others keeps its best, so that the line doesn't jump
    where one of them ends; one without a value doesn't count yet. A method without any has no points.
    """
    curves: dict[int, list[tuple[int, float | None]]] = {}
    for one in improvements:
        curves.setdefault(one.study_id, []).append((one.epochs, one.best))
    of_method: dict[str, list[list[tuple[int, float]]]] = {method: [] for method in methods}
    for study in studies:
        known = [(epochs, best) for epochs, best in curves.get(study.id, []) if best is not None]
        if known and study.method in of_method:
            of_method[study.method].append(known)
    return [_median(method, of_method[method]) for method in methods]


def _median(method: str, curves: Sequence[Sequence[tuple[int, float]]]) -> Series:
    points, band = [], []
    for epochs in sorted({epochs for curve in curves for epochs, _ in curve}):
        values = [
            curve[bisect_right(curve, epochs, key=lambda point: point[0]) - 1][1]
            for curve in curves
            if curve[0][0] <= epochs
        ]
        points.append((float(epochs), statistics.median(values)))
        band.append((float(epochs), min(values), max(values)))
    return Series(method, points, band if len(curves) > 1 else (), step=True)


def zoomed(series: Sequence[Series]) -> tuple[float, float] | None:
    """The range of values after the early epochs; None where that leaves out little."""
    far = max((x for one in series for x, _ in one.points), default=0.0)
    everything = [y for one in series for _, y in one.points]
    everything += [edge for one in series for _, low, high in one.band for edge in (low, high)]
    later: list[float] = []
    for one in series:
        start = max((x for x, _ in one.points if x <= EARLY * far), default=0.0)
        later += [y for x, y in one.points if x >= start]
        later += [edge for x, low, high in one.band if x >= start for edge in (low, high)]
    if not later or max(everything) - min(everything) <= 1.5 * (max(later) - min(later)):
        return None
    return min(later), max(later)


def latest(series: Sequence[Series]) -> list[tuple[str, float, float, float, float]]:
    """The ends of the lines, as a table gives them: name, x, value, low, high."""
    rows = []
    for one in series:
        if one.points:
            x, y = one.points[-1]
            low, high = one.band[-1][1:] if one.band else (y, y)
            rows.append((one.name, x, y, low, high))
    return rows


def hover_data(series: Sequence[Series], x_range: tuple[float, float]) -> dict[str, object]:
    """What the page's script needs to tell values under the pointer."""
    return {
        "far": x_range[1],
        "series": [
            {
                "name": one.name,
                "step": one.step,
                "points": [[x, y] for x, y in one.points],
                "band": [[low, high] for _, low, high in one.band],
            }
            for one in series
        ],
    }


def curve_series(epochs: Sequence[EpochRecord], metric: str) -> tuple[list[Series], list[Series]]:
    """A trial's losses, and its metric, by epoch."""

    def line(name: str, values: Iterable[float | None]) -> Series:
        points = [(float(e.epoch), y) for e, y in zip(epochs, values, strict=True) if y is not None]
        return Series(name, points)

    losses = [
        line("training loss", (epoch.train_loss for epoch in epochs)),
        line("validation loss", (epoch.validation_loss for epoch in epochs)),
    ]
    return [one for one in losses if one.points], [line(metric, (e.metrics.get(metric) for e in epochs))]


def total_trials(rows: Iterable[StudyProgress], method: str | None, state: str | None) -> int:
    """How many trials a filter lets through."""
    chosen = [row for row in rows if method is None or row.study.method == method]
    if state == "waiting":
        return sum(row.waiting - row.paused for row in chosen)
    return sum(row.trials if state is None else int(getattr(row, state)) for row in chosen)


def parallel_coordinates(
    trials: Sequence[SampledTrial], metric: str, link: str = "/trials/{}"
) -> tuple[list[Axis], list[Strand]]:
    """An axis per dimension and one for the metric, and a strand per trial; the best trials come last."""
    ranges: dict[str, _Range] = {}
    for trial in trials:
        for name, distribution in zip(trial.names, trial.distributions, strict=True):
            found = _range(distribution)
            ranges[name] = ranges[name].joined(found) if name in ranges else found
    values = [trial.value for trial in trials]
    result = _Range(min(values, default=0.0), max(values, default=1.0), log=False, choices=())
    axes = [Axis(name, one.ticks()) for name, one in ranges.items()] + [Axis(metric, result.ticks())]
    strands = []
    for place, trial in enumerate(trials):
        drawn = dict(zip(trial.names, trial.numbers, strict=True))
        places = [one.place(drawn[name]) if name in drawn else None for name, one in ranges.items()]
        shade = min(STRAND_CLASSES, 1 + STRAND_CLASSES * place // max(1, len(trials)))
        label = f"{trial.method} / {trial.replicate}, trial {trial.number}: {format_number(trial.value)}"
        strands.append(
            Strand(label, link.format(trial.trial_id), f"q{shade}", [*places, result.place(trial.value)])
        )
    return axes, strands


@dataclass(frozen=True, slots=True)
class _Range:
    """What an axis spans."""

    low: float
    high: float
    log: bool
    choices: tuple[Any, ...]
    whole: bool = False
    """Whether there is nothing between two whole numbers."""

    def joined(self, other: _Range) -> _Range:
        """Of both: a dimension may have grown between two runs."""
        if self == other:
            return self
        choices = self.choices if len(self.choices) >= len(other.choices) else other.choices
        low, high = min(self.low, other.low), max(self.high, other.high)
        return _Range(low, high, self.log and other.log, choices, self.whole and other.whole)

    def place(self, value: float) -> float:
        """From 0 to 1."""
        if self.choices:
            return (value + 0.5) / len(self.choices)
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return 0.5 if high <= low else min(1.0, max(0.0, (at - low) / (high - low)))

    def ticks(self) -> list[Tick]:
        """Marks with labels, from the bottom."""
        if self.choices:
            every = -(-len(self.choices) // MANY_CHOICES)
            named = list(enumerate(self.choices))[::every]
            return [Tick(self.place(place), shorten(format_value(choice))) for place, choice in named]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            marks = [10.0**power for power in range(first, last + 1)]
            if len(marks) < 2:
                marks = [self.low, self.high]
        else:
            marks = nice_ticks(self.low, self.high, 6, least=float(self.whole))
        return [Tick(self.place(mark), tick_label(mark)) for mark in marks]


def _range(distribution: str) -> _Range:
    described = json.loads(distribution)
    attributes = described.get("attributes", described)
    choices = tuple(attributes.get("choices", ()))
    if choices:
        return _Range(0.0, 1.0, log=False, choices=choices)
    name = str(described.get("name", ""))
    log = bool(attributes.get("log", name.startswith("Log"))) and attributes["low"] > 0
    whole = name.startswith("Int")
    return _Range(float(attributes["low"]), float(attributes["high"]), log, (), whole)


def shorten(text: str, most: int = 18) -> str:
    """Text for a small place."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
