"""Tables that can be read at every width: nothing that distinguishes rows, and no digit, is cut off.

Rich makes a table that is too wide fit by cutting cells and by dropping whole columns, the first ones as
well; a number that is cut looks like another number, and a row without its name says nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

LEAST_TEXT = 12
"""Columns of a terminal in which a text may be folded; with fewer, its rows are written as lists."""

GAP = 2
"""Columns between two columns of a table."""


class FittingTable(Table):
    """A table that gives way where the terminal is narrow.

    Headings of numbers are broken into their words first, then bars are left out, and where even that
    doesn't do each row is written as a list of names and values. Made for tables without a box and with
    `GAP` columns between their columns.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The widest of these forms that fits."""
        broken = [_broken(column) for column in self.columns]
        without_bars = [column for column in broken if not _is_bar(column)]
        for columns in (self.columns, broken, without_bars):
            # Without headings a list would have no names: two columns of facts are one already.
            if _least_width(columns) <= options.max_width or not self.show_header:
                yield from self._side_by_side(columns, console, options)
                return
        yield self._lists(without_bars)

    def _side_by_side(
        self, columns: Sequence[Column], console: Console, options: ConsoleOptions
    ) -> RenderResult:
        shown = copy.copy(self)
        # Rich looks up a column's cells by its place.
        shown.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
        return Table.__rich_console__(shown, console, options)

    def _lists(self, columns: Sequence[Column]) -> Table:
        made = Table(box=None, pad_edge=False, show_edge=False, show_header=False, padding=(0, GAP, 0, 0))
        made.title, made.title_justify, made.title_style = self.title, self.title_justify, self.title_style
        made.add_column(style="bold", overflow="fold")
        made.add_column(overflow="fold")
        for place, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            if place:
                made.add_row()
            for column, cell in zip(columns, cells, strict=True):
                name = " ".join(str(column.header).split())
                made.add_row(*((name, cell) if name else (cell,)))
        return made


def _broken(column: Column) -> Column:
    """The same with its heading on as many lines as it has words, where the column can't be folded."""
    if not column.no_wrap:
        return column
    return replace(column, header="\n".join(str(column.header).split()))


def _is_bar(column: Column) -> bool:
    """Whether it has no text of its own."""
    return any(not isinstance(cell, str | Text) for cell in column.cells)


def _least_width(columns: Sequence[Column]) -> int:
    return sum(map(_least, columns)) + GAP * (len(columns) - 1)


def _least(column: Column) -> int:
    """What it needs to be read: all of what can't be folded, some of what can."""
    if _is_bar(column):
        return column.min_width or 0
    whole = max(_width(cell) for cell in (column.header, *column.cells))
    return whole if column.no_wrap else min(whole, LEAST_TEXT)


def _width(cell: RenderableType) -> int:
    return max(map(cell_len, str(cell).split("\n")))
