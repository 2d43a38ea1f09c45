"""How batches of different sizes share one step of fixed shape: a table of rows.

Shapes: T slots, R rows of a step, M images of a row, N = R·M images of a step.

A row is M images of one slot; a batch of B images is the next ⌈B/M⌉ rows, the last of them filled up with
images that count for nothing. Rows that no slot needs belong to the idle slot. So the shapes of a step depend
on R alone, and R is one of a few buckets; which trials share a step, and with which batch sizes, is only a
matter of the numbers in the table.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.devices import moved

FEWEST_ROWS = 2
"""A convolution of one group is another kernel than one of several, with other rounding: never take it, so
that a trial's numbers are the same to the bit whether it has neighbours or not."""


ROW_NUMBERS = 5
"""Of each row, see `RowTable.numbers`."""

Whole: TypeAlias = NDArray[np.int64]


class Wants(NamedTuple):
    """What slots could do next, those that have waited longest first."""

    slots: Whole
    images: Whole
    """Left of the batch of each, at least one."""
    whole: NDArray[np.bool_]
    """Whether these images must go through the model in one step (batch statistics)."""


class Share(NamedTuple):
    """A slot's part of a step: `images` of them, from row `first` on."""

    slot: int
    first: int
    rows: int
    images: int


def stacked(shares: Sequence[Share]) -> Whole:
    """The columns of shares: slots, first rows, rows and images, 4 × as many."""
    return np.array(shares, dtype=np.int64).reshape(-1, 4).T


NO_SHARES = stacked(())
"""The columns of a step of idle rows."""


class Spread(NamedTuple):
    """The rows of some shares, one share after the other."""

    rows: Whole
    """Their places in the step."""
    shares: Whole
    """The place of each one's share among the shares."""
    within: Whole
    """Its place in its share."""


@dataclass(frozen=True)
class RowTable:
    """Which rows of a step belong to which slot."""

    columns: Whole
    """Those of `stacked`; shares follow one another, from the first row on."""
    rows: int
    """R."""
    per_row: int
    """M."""
    idle: int
    """The idle slot: T."""
    device: torch.device
    given: Tensor | None = None
    """The tensor `table`, where it is written elsewhere, and there are no `columns`."""
    turns: int = 0
    """Then no share has more rows."""

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """The same, share by share."""
        return tuple(map(Share._make, self.columns.T.tolist()))

    @cached_property
    def used_rows(self) -> Spread:
        """Those that belong to a share."""
        _, firsts, rows, _ = self.columns
        shares = np.arange(len(rows)).repeat(rows)
        places = np.arange(len(shares))
        return Spread(places, shares, places - firsts[shares])

    @property
    def used(self) -> int:
        """Rows that belong to a slot."""
        return _rows_of(self.columns)

    def numbers(self) -> Whole:
        """What the host knows of the rows, 5 × R: the slot of each, the first row of its share, the rows of
        its share, the images that count in it, and the images of its share (1 for idle rows, as a divisor).
        """
        found = _idle_numbers(self.rows, self.idle).copy()
        self.fill(found)
        return found

    def fill(self, found: Whole) -> None:
        """Write them where there are those of idle rows."""
        shares, within, end = self.used_rows.shares, self.used_rows.within, self.used
        found[:3, :end] = self.columns[:3].take(shares, axis=1)
        found[4, :end] = images = self.columns[3].take(shares)
        np.minimum(images - within * self.per_row, self.per_row, out=found[3, :end])

    @cached_property
    def table(self) -> Tensor:
        """`numbers` on the device: those that were given, where somebody keeps them there."""
        if self.given is not None:
            return self.given
        return moved(torch.from_numpy(self.numbers()), self.device)

    @property
    def slots(self) -> Tensor:
        """The slot of each row, R."""
        return self.table[0]

    @cached_property
    def valid(self) -> Tensor:
        """Which images count, RM."""
        return torch.arange(self.per_row, device=self.device) < self.table[3, :, None]

    @property
    def images(self) -> Tensor:
        """Images in this step of the slot that each row belongs to, R; 1 for idle rows, as a divisor."""
        return self.table[4]

    def place(self, share: Share) -> slice:
        """Where a share's images are among the N of the step, in their order."""
        start = share.first * self.per_row
        return slice(start, start + share.images)

    def sum_slots(self, rows_RX: Tensor) -> Tensor:
        """For every row the sum over all rows of its slot: RX → RX. Differentiable, exact for one row.

        Rows are added one after the other and no slot's numbers meet another's: neither neighbours nor a
        NaN among them change a sum.
        """
        if self.device.type == "cpu" and self.given is None:
            total_TX = rows_RX.new_zeros((self.idle + 1, *rows_RX.shape[1:]))
            return total_TX.index_add(0, self.slots, rows_RX).index_select(0, self.slots)
        # `index_add` of several rows to one adds them in any order on a GPU.
        first_R, rows_R = self.table[1], self.table[2]
        total_RX = rows_RX.index_select(0, first_R)
        for turn in range(1, self.most_rows):
            more_R = (rows_R > turn).view(-1, *[1] * (rows_RX.ndim - 1))
            next_RX = rows_RX.index_select(0, (first_R + turn).clamp(max=self.rows - 1))
            total_RX = torch.where(more_R, total_RX + next_RX, total_RX)
        return total_RX

    @cached_property
    def most_rows(self) -> int:
        """Rows of the share that has most, or no fewer."""
        return self.turns or int(self.columns[2].max(initial=1))


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers of the host on the device, without waiting for it."""
    return moved(torch.tensor(numbers, dtype=torch.long), device)


@lru_cache(maxsize=64)
def buckets(capacity: int) -> tuple[int, ...]:
    """The numbers of rows that steps may have: 2, 3, 4, 6, 8, 12 … up to `capacity`, which is one of them."""
    sizes = {capacity}
    size = FEWEST_ROWS
    while size < capacity:
        sizes |= {size, size * 3 // 2} if size * 3 // 2 < capacity else {size}
        size *= 2
    return tuple(sorted(sizes))


def pack(wants: Wants, capacity: int, per_row: int, most_rows: int | None = None) -> Whole:
    """Fill up to `capacity` rows with what slots want, the first in line first, each with at most `most_rows`
    if it may be cut. Returns the columns of the shares, see `stacked`.

    A batch that needn't be whole may be cut between two rows: its gradients add up in the same order. One
    that must be whole and has no room waits, but for the first in line, which gets a step of its own, with
    more rows than `capacity` if it needs them.
    """
    rows = -(-wants.images // per_row)
    if most_rows is not None:
        rows = np.where(wants.whole, rows, np.minimum(rows, most_rows))
    ends = rows.cumsum()
    places = np.arange(int(ends.searchsorted(capacity, side="right")))  # they all get what they want
    free = capacity - int(ends[len(places) - 1]) if len(places) else capacity
    if free and len(places) < len(rows):
        if not len(places) and wants.whole[0]:
            return stacked([Share(int(wants.slots[0]), 0, int(rows[0]), int(wants.images[0]))])
        later, cut = _squeeze(rows[len(places) :].tolist(), wants.whole[len(places) :].tolist(), free)
        places = np.concatenate([places, np.array(later, dtype=np.int64) + len(places)])
        rows = rows[places]
        rows[len(rows) - len(cut) :] = cut
    else:
        rows = rows[: len(places)]
    images = np.minimum(wants.images[places], rows * per_row)
    return np.array([wants.slots[places], rows.cumsum() - rows, rows, images])


def _squeeze(rows: Sequence[int], whole: Sequence[bool], free: int) -> tuple[list[int], list[int]]:
    """Which of those that want so many rows get some of the few that are free, and how many."""
    places, given = [], []
    for place, (wanted, all_of_it) in enumerate(zip(rows, whole, strict=True)):
        if wanted > free and all_of_it:
            continue
        places.append(place)
        given.append(min(wanted, free))
        free -= given[-1]
        if not free:
            break
    return places, given


def table(columns: Whole, capacity: int, per_row: int, idle: int, device: torch.device) -> RowTable:
    """The table of a step with the shares of these columns, of the smallest bucket that holds them."""
    used = _rows_of(columns)
    sizes = buckets(max(capacity, FEWEST_ROWS))
    place = bisect_left(sizes, used)
    return RowTable(columns, sizes[place] if place < len(sizes) else used, per_row, idle, device)


def _rows_of(columns: Whole) -> int:
    """Of all shares: up to the end of the last."""
    return int(columns[1, -1] + columns[2, -1]) if columns.shape[1] else 0


@lru_cache(maxsize=64)
def _idle_numbers(rows: int, idle: int) -> Whole:
    """`RowTable.numbers` where nobody has a share; not to be changed."""
    found: Whole = np.empty((ROW_NUMBERS, rows), dtype=np.int64)
    found[0], found[1], found[2], found[3], found[4] = idle, np.arange(rows), 1, 0, 1
    return found
