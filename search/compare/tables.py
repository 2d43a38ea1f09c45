"""A table of the report as a value: what it says, apart from how HTML, Markdown or JSON write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Align: TypeAlias = Literal["left", "right"]
Value: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What a program reads, and what a person does."""

    value: Value
    """Full precision, for CSV and JSON; None for nothing."""
    text: str
    """As it is shown; never empty (`formats.NOTHING` stands for nothing)."""
    parts: tuple[tuple[str, Value], ...] = ()
    """What the text says beside the value, by name, in full: `low` and `high` of an interval, or that the
    value is a bound. Columns of their own in the table's data file."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name for programs, its heading, and the side on which it is aligned."""

    key: str
    title: str
    align: Align = "left"


@dataclass(frozen=True, slots=True)
class Table:
    """One of the report's tables T1 to T11."""

    key: str
    """Stable, for anchors, file names and keys of JSON: `headline`, `pairs`, …"""
    title: str
    caption: str
    """What is counted and how, with n; one to three sentences."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    exploratory: bool = False
    """Not declared before the run: to be read as a hint."""

    def __post_init__(self) -> None:
        """Every row has every column."""
        assert all(len(row) == len(self.columns) for row in self.rows)
