"""How batches of different sizes share one step of fixed shape: a table of rows.

Shapes: T slots, R rows of a step, M images of a row, N = R·M images of a step.

A row is M images of one slot; a batch of B images is the next ⌈B/M⌉ rows, the last of them filled up with
images that count for nothing. Rows that no slot needs belong to the idle slot. So the shapes of a step depend
on R alone, and R is one of a few buckets; which trials share a step, and with which batch sizes, is only a
matter of the numbers in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
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


class Want(NamedTuple):
    """What a slot could do next."""

    slot: int
    images: int
    """Left of its batch."""
    whole: bool
    """Whether these images must go through the model in one step (batch statistics)."""


class Share(NamedTuple):
    """A slot's part of a step: `images` of them, from row `first` on."""

    slot: int
    first: int
    rows: int
    images: int


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

    shares: tuple[Share, ...]
    rows: int
    """R."""
    per_row: int
    """M."""
    idle: int
    """The idle slot: T."""
    device: torch.device
    given: Tensor | None = None
    """The tensor `table`, where it is written elsewhere, and `shares` is empty."""
    turns: int = 0
    """Then no share has more rows."""

    @cached_property
    def columns(self) -> Whole:
        """Slots, first rows, rows and images of shares, 4 × as many."""
        flat = np.fromiter(chain.from_iterable(self.shares), np.int64, 4 * len(self.shares))
        return flat.reshape(-1, 4).T

    @cached_property
    def used_rows(self) -> Spread:
        """Those that belong to a share."""
        _, firsts, rows, _ = self.columns
        shares = np.repeat(np.arange(len(rows)), rows)
        within = np.arange(len(shares)) - (np.cumsum(rows) - rows)[shares]
        return Spread(firsts[shares] + within, shares, within)

    @property
    def used(self) -> int:
        """Rows that belong to a slot."""
        return sum(share.rows for share in self.shares)

    def numbers(self) -> Whole:
        """What the host knows of the rows, 5 × R: the slot of each, the first row of its share, the rows of
        its share, the images that count in it, and the images of its share (1 for idle rows, as a divisor).
        """
        found: Whole = np.empty((ROW_NUMBERS, self.rows), dtype=np.int64)
        found[0], found[1], found[2], found[3], found[4] = self.idle, np.arange(self.rows), 1, 0, 1
        (slots, firsts, rows, images), used = self.columns, self.used_rows
        found[0, used.rows], found[1, used.rows] = slots[used.shares], firsts[used.shares]
        found[2, used.rows], found[4, used.rows] = rows[used.shares], images[used.shares]
        found[3, used.rows] = np.minimum(images[used.shares] - used.within * self.per_row, self.per_row)
        return found

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

    @property
    def most_rows(self) -> int:
        """Rows of the share that has most, or no fewer."""
        return self.turns or max((share.rows for share in self.shares), default=1)


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


def pack(wants: Sequence[Want], capacity: int, per_row: int, most_rows: int | None = None) -> list[Share]:
    """Fill up to `capacity` rows with what slots want, the first in line first, each with at most `most_rows`
    if it may be cut.

    A batch that needn't be whole may be cut between two rows: its gradients add up in the same order. One
    that must be whole and has no room waits, but for the first in line, which gets a step of its own, with
    more rows than `capacity` if it needs them.
    """
    shares: list[Share] = []
    free = capacity
    for slot, images, whole in wants:
        rows = -(-images // per_row)
        if whole and rows > free:
            if not shares:
                return [Share(slot, 0, rows, images)]
            continue
        if not whole:
            rows = min(rows, free, most_rows or free)
        if rows:
            shares.append(Share(slot, capacity - free, rows, min(images, rows * per_row)))
            free -= rows
        if not free:
            break
    return shares


def table(shares: Sequence[Share], capacity: int, per_row: int, idle: int, device: torch.device) -> RowTable:
    """The table of a step with these shares, of the smallest bucket that holds them."""
    used = sum(share.rows for share in shares)
    fitting = [size for size in buckets(max(capacity, FEWEST_ROWS)) if size >= used]
    return RowTable(tuple(shares), fitting[0] if fitting else used, per_row, idle, device)
