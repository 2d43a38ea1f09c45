"""How numbers, durations and times are written for people, in terminals and reports alike."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

NOTHING = "–"
"""Stands where there is no value."""


def format_number(value: float | None) -> str:
    """Four significant digits; large numbers without an exponent up to ten million."""
    if value is None:
        return NOTHING
    short = f"{value:.4g}"
    return f"{float(short):,.0f}" if 1e4 <= abs(float(short)) < 1e7 else short


def format_spread(value: float | None) -> str:
    """A standard deviation: two significant digits, more would be noise."""
    return NOTHING if value is None else f"{value:.2g}"


def format_value(value: object) -> str:
    """A value of a config or a setting, as the experiment file writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    return NOTHING if value is None else str(value)


def format_count(value: int) -> str:
    """Digits in groups of three."""
    return f"{value:,}"


def format_number_of(count: int, thing: str) -> str:
    """``1 study``, ``1,200 studies``; of words that form their plural as these do."""
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{format_count(count)} {thing if count == 1 else plural}"


def format_backends(backends: Mapping[str, str]) -> str:
    """The layers of each backend, as in ``0, 3 grouped; 6 im2col``."""
    layers: dict[str, list[str]] = {}
    for layer, backend in backends.items():
        layers.setdefault(backend, []).append(layer)
    return "; ".join(f"{', '.join(names)} {backend}" for backend, names in layers.items())


def format_seconds(seconds: float) -> str:
    """A duration in the two units that matter."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_time(moment: datetime | None) -> str:
    """Date and time to the minute; storage gives UTC."""
    return NOTHING if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def format_revision(revision: object) -> str:
    """A git revision with its mark for changes, the hash short enough to read."""
    commit, plus, mark = str(revision).partition("+")
    return f"{commit[:12]}{plus}{mark}"
