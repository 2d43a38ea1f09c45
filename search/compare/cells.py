"""Cells of the report's tables: a value at full precision for programs, and a text for people."""

from __future__ import annotations

import math
from datetime import datetime

from search.compare.cuts import Quartiles
from search.compare.statistics.base import Interval
from search.compare.statistics.intervals import Distribution
from search.compare.statistics.targets import Censored, SpeedUp
from search.compare.tables import Cell, Column
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


def signed(value: float | None, scale: float = 1.0) -> Cell:
    """A difference, with its sign; the text is scaled, the value is in its own unit."""
    return EMPTY if value is None else Cell(value, f"{value * scale + 0.0:+.3g}")


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
    return text(f"{format_number(distribution.low_quartile)} to {format_number(distribution.high_quartile)}")


def median_and_quartiles(distribution: Quartiles | None, wanted: int) -> Cell:
    """Median with the middle half in brackets, and how many there are if not as many as wanted."""
    if distribution is None:
        return EMPTY
    beside = [quartiles(distribution).text] if distribution.n > 1 else []
    beside += [f"n = {distribution.n}"] if distribution.n != wanted else []
    half = f" [{', '.join(beside)}]" if beside else ""
    return Cell(distribution.median, f"{format_number(distribution.median)}{half}")


def ends(interval: Interval | None, scale: float = 1.0, *, sign: bool = False) -> Cell:
    """An interval's ends."""
    if interval is None or interval.low is None or interval.high is None:
        return EMPTY
    low, high = (
        f"{end * scale + 0.0:+.3g}" if sign else format_number(end * scale + 0.0)
        for end in (interval.low, interval.high)
    )
    return text(f"{low} to {high}")


def probability(interval: Interval | None) -> Cell:
    """A probability in two decimals."""
    return EMPTY if interval is None else Cell(interval.estimate, f"{interval.estimate:.2f}")


def probability_ends(interval: Interval | None) -> Cell:
    """The ends of a probability's interval."""
    if interval is None or interval.low is None or interval.high is None:
        return EMPTY
    return text(f"{interval.low:.2f} to {interval.high:.2f}")


def censored(value: float | None, budget: float) -> Cell:
    """A time, or that it is more than the budget."""
    return Cell(None, f"> {format_number(budget)}") if value is None else number(value)


def speed_up(found: SpeedUp | None) -> tuple[Cell, Cell]:
    """The ratio and its interval."""
    if found is None:
        return EMPTY, EMPTY
    return _ratio(found.ratio), EMPTY if found.low is None else text(f"{found.low} to {found.high}")


def _ratio(found: Censored) -> Cell:
    return Cell(None if found.censored else found.value, str(found))
