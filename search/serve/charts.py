"""The geometry of figures: from numbers to SVG paths, ticks and labels. Pure functions, no markup.

Colours, strokes and fonts belong to the style sheet: a line says only which series it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

SERIES = 6
"""How many colours the style sheet has; series beyond it begin again with another dash."""

MOST_POINTS = 400
"""Points of a line; more would lie on the same pixels."""

LABEL_ROOM, FOOT_ROOM, TOP_ROOM, RIGHT_ROOM = 58, 44, 10, 14
"""Pixels around the plot, for ticks and titles."""


@dataclass(frozen=True, slots=True)
class Size:
    """A figure's size in its own pixels; the page scales it to its column."""

    width: int
    height: int


WIDE, NARROW = Size(960, 340), Size(380, 300)
"""For a desk's screen and a phone's: text must not shrink with the figure."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Series:
    """What a line shows: points by x, with a low and a high where there is a band."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    step: bool = False
    """Whether a value holds until the next point."""


@dataclass(frozen=True, slots=True)
class Line:
    """A series as drawn."""

    name: str
    style: str
    """Class names: colour and dash."""
    path: str
    band: str
    """An area's path; empty without a band."""
    dots: Sequence[tuple[float, float]] = ()
    """Where a single point stands, which a path can't show."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure of lines over two axes."""

    size: Size
    left: float
    right: float
    top: float
    bottom: float
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    x_range: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """A vertical axis of parallel coordinates: values from 0 (bottom) to 1 (top)."""

    name: str
    ticks: Sequence[Tick]


@dataclass(frozen=True, slots=True)
class Strand:
    """A trial in parallel coordinates."""

    label: str
    link: str
    style: str
    places: Sequence[float | None]
    """From 0 to 1 per axis; None where the trial doesn't have the dimension."""


@dataclass(frozen=True, slots=True)
class Parallel:
    """A figure of parallel coordinates, its axes from left to right."""

    size: Size
    top: float
    bottom: float
    axes: Sequence[tuple[float, Axis]]
    strands: Sequence[tuple[Strand, str]]
    """Each with its path."""
    ticks: Sequence[Sequence[Tick]] = field(default=())
    """Per axis, in pixels from the top."""


def style(index: int) -> str:
    """The class names of the index-th series: a colour, and a dash so that no one needs to see colours."""
    return f"s{index % SERIES + 1} d{(index // SERIES + index) % SERIES + 1}"


def nice_ticks(low: float, high: float, most: int = 6, *, least: float = 0.0) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from low to high, at most so many, `least` apart."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = max(least, (high - low) / max(1, most - 1))
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's number, short."""
    if value != 0 and (abs(value) >= 1e7 or abs(value) < 1e-4):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}"


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about so many of the points, with each stretch's smallest and largest value kept."""
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    buckets = max(1, most // 2)
    for bucket in range(buckets):
        places = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        kept.add(min(places, key=lambda place: points[place][1]))
        kept.add(max(places, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]


def line_chart(
    series: Sequence[Series],
    size: Size,
    *,
    x_title: str,
    y_title: str,
    y_range: tuple[float, float] | None = None,
    styles: Sequence[int] | None = None,
) -> Chart:
    """Lines over a common x axis of whole numbers from zero; values outside `y_range` leave the frame."""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [
        edge for one in series for _, low, high in one.band for edge in (low, high)
    ]
    low, high = y_range or (min(ys, default=0.0), max(ys, default=1.0))
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    else:
        margin = 0.04 * (high - low)
        low, high = low - margin, high + margin
    far = max(xs, default=1.0) or 1.0
    if all(len(one.points) <= 1 for one in series):
        far *= 2  # not on the frame's edge
    left, right = float(LABEL_ROOM), float(size.width - RIGHT_ROOM)
    top, bottom = float(TOP_ROOM), float(size.height - FOOT_ROOM)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / far, bottom - (bottom - top) * (y - low) / (high - low)

    lines = [
        Line(
            name=one.name,
            style=style(number),
            path=_path([place(*point) for point in thin(one.points)], step=one.step),
            band=_area(
                [place(x, y) for x, _, y in one.band], [place(x, y) for x, y, _ in one.band], step=one.step
            ),
            dots=[place(*one.points[0])] if len(one.points) == 1 else [],
        )
        for number, one in zip(styles or range(len(series)), series, strict=True)
    ]
    wide = size.width > NARROW.width
    return Chart(
        size=size,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_title=x_title,
        y_title=y_title,
        x_ticks=[
            Tick(place(x, low)[0], tick_label(x)) for x in nice_ticks(0.0, far, 8 if wide else 4, least=1.0)
        ],
        y_ticks=[Tick(place(0, y)[1], tick_label(y)) for y in nice_ticks(low, high, 6)],
        lines=lines,
        x_range=(0.0, far),
    )


def parallel(axes: Sequence[Axis], strands: Sequence[Strand], height: int = 360) -> Parallel:
    """The strands over the axes; later strands lie above earlier ones."""
    gap = 150
    width = 120 + gap * max(1, len(axes) - 1)
    top, bottom = 34.0, float(height - 14)
    at = [60.0 + gap * place for place in range(len(axes))]
    return Parallel(
        size=Size(width, height),
        top=top,
        bottom=bottom,
        axes=list(zip(at, axes, strict=True)),
        ticks=[[Tick(bottom - (bottom - top) * tick.at, tick.label) for tick in axis.ticks] for axis in axes],
        strands=[
            (
                strand,
                _path(
                    [
                        (x, bottom - (bottom - top) * place)
                        for x, place in zip(at, strand.places, strict=True)
                        if place is not None
                    ]
                ),
            )
            for strand in strands
        ],
    )


def _path(points: Sequence[tuple[float, float]], *, step: bool = False) -> str:
    if not points:
        return ""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for x, y in points[1:]:
        parts.append(f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}")
    return "".join(parts)


def _area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], *, step: bool) -> str:
    """Along the upper edge, back along the lower one."""
    if len(upper) < 2:
        return ""
    forth = _path(upper, step=step)
    back = list(reversed(lower))
    parts = [f"L{back[0][0]:.1f} {back[0][1]:.1f}"]
    for x, y in back[1:]:
        # Backwards the step comes first: the value on the left holds up to here.
        parts.append(f"V{y:.1f}H{x:.1f}" if step else f"L{x:.1f} {y:.1f}")
    return f"{forth}{''.join(parts)}Z"
