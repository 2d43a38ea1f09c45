"""Cells of the report's tables: a value at full precision for programs, and a text for people."""

from __future__ import annotations

import math
from datetime import datetime

from search.compare.cuts import Quartiles
from search.compare.statistics import wording
from search.compare.statistics.base import Interval
from search.compare.statistics.intervals import Distribution
from search.compare.statistics.targets import Ratio, SpeedUp
from search.compare.tables import Cell, Column, Value
from search.formats import NOTHING, format_count, format_number, format_seconds, format_time, format_value

EMPTY = Cell(None, NOTHING)


def left(key: str, title: str) -> Column:
    """A column of words."""
    return Column(key, title)


def right(key: str, title: str) -> Column:
    """A column of numbers."""
    return Column(key, title, "right")


def text(value: str) -> Cell:
    """Words."""
    return Cell(value, value or NOTHING)


def plain(value: object) -> Cell:
    """A value of a config or a setting."""
    if value is None:
        return EMPTY
    kept = value if isinstance(value, str | int | float | bool) else str(value)
    return Cell(kept, format_value(value) or NOTHING)


def number(value: float | None) -> Cell:
    """A number in four digits; nothing for NaN or infinity."""
    return EMPTY if value is None or not math.isfinite(value) else Cell(value, format_number(value))


def count(value: int | None) -> Cell:
    """A whole number."""
    return EMPTY if value is None else Cell(value, format_count(value))


def duration(seconds: float | None) -> Cell:
    """Seconds."""
    return EMPTY if seconds is None else Cell(seconds, format_seconds(seconds))


def moment(value: datetime | None) -> Cell:
    """A time."""
    return EMPTY if value is None else Cell(value.isoformat(), format_time(value))


def p_value(value: float | None) -> Cell:
    """A p-value in three decimals; none where nothing was tested."""
    if value is None:
        return EMPTY
    return Cell(value, "< 0.001" if value < 0.001 else f"{value:.3f}")


def median(distribution: Distribution | None) -> Cell:
    """The median."""
    return number(None if distribution is None else distribution.median)


def quartiles(distribution: Distribution | Quartiles | None) -> Cell:
    """The middle half."""
    if distribution is None:
        return EMPTY
    low, high = distribution.low_quartile, distribution.high_quartile
    return _between(low, high, f"{format_number(low)} to {format_number(high)}")


def _between(low: float, high: float, said: str) -> Cell:
    """Two ends in words, with their numbers beside."""
    return Cell(said, said, (("low", low), ("high", high)))


def median_and_quartiles(distribution: Quartiles | None, wanted: int) -> Cell:
    """Median with the middle half in brackets, and how many there are if not as many as wanted."""
    if distribution is None:
        return EMPTY
    beside = [quartiles(distribution).text] if distribution.n > 1 else []
    beside += [f"n = {distribution.n}"] if distribution.n != wanted else []
    half = f" [{', '.join(beside)}]" if beside else ""
    return Cell(
        distribution.median,
        f"{format_number(distribution.median)}{half}",
        (("n", distribution.n), ("low", distribution.low_quartile), ("high", distribution.high_quartile)),
    )


def ends(interval: Interval | None) -> Cell:
    """An interval's ends."""
    if interval is None or interval.low is None or interval.high is None:
        return EMPTY
    low, high = (format_number(end + 0.0) for end in (interval.low, interval.high))
    return _between(interval.low, interval.high, f"{low} to {high}")


def difference(interval: Interval | None, scale: float = 1.0) -> tuple[Cell, Cell]:
    """A difference with its sign, and its interval; texts are scaled, values are in their own unit."""
    if interval is None:
        return EMPTY, EMPTY
    estimate = Cell(interval.estimate, wording.signed(interval.estimate, interval, scale))
    if interval.low is None or interval.high is None:
        return estimate, EMPTY
    low, high = (wording.signed(end, interval, scale) for end in (interval.low, interval.high))
    return estimate, _between(interval.low, interval.high, f"{low} to {high}")


def with_interval(interval: Interval | None, *, digits: int = 4) -> Cell:
    """An estimate with its interval in brackets."""
    if interval is None:
        return EMPTY
    shown = format_number(interval.estimate) if digits == 4 else f"{interval.estimate:.{digits}g}"
    if interval.low is None or interval.high is None:
        return Cell(interval.estimate, shown)
    low, high = (
        format_number(end) if digits == 4 else f"{end:.{digits}g}" for end in (interval.low, interval.high)
    )
    return Cell(
        interval.estimate, f"{shown} ({low} to {high})", (("low", interval.low), ("high", interval.high))
    )


def probability(interval: Interval | None) -> Cell:
    """A probability in two decimals."""
    return EMPTY if interval is None else Cell(interval.estimate, f"{interval.estimate:.2f}")


def probability_ends(interval: Interval | None) -> Cell:
    """The ends of a probability's interval."""
    if interval is None or interval.low is None or interval.high is None:
        return EMPTY
    return _between(interval.low, interval.high, f"{interval.low:.2f} to {interval.high:.2f}")


def censored(value: float | None, budget: float) -> Cell:
    """A time, or that it is more than the budget."""
    if value is None:
        return Cell(None, f"> {format_number(budget)}", (("more_than", budget),))
    return number(value)


def speed_up(found: SpeedUp | None) -> tuple[Cell, Cell]:
    """The ratio and its interval; what is only a bound is no number."""
    if found is None:
        return EMPTY, EMPTY
    if found.low is None or found.high is None:
        return ratio(found.ratio), EMPTY
    parts = ("low", found.low), ("high", found.high)
    beside = [(name, value) for end, one in parts for name, value in _told(one, f"{end}_")]
    return ratio(found.ratio), Cell(found.interval, found.interval, tuple(beside))


def ratio(found: Ratio) -> Cell:
    """A ratio, or its bound in words."""
    value = found.value if found.bound == "exact" else None
    return Cell(value, str(found), _told(found, ""))


def _told(found: Ratio, prefix: str) -> tuple[tuple[str, Value], ...]:
    """The number under a name that says what it is: `exact`, `at_least` or `at_most`."""
    return ((f"{prefix}{found.bound}", found.value),)
