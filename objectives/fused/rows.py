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
from functools import cached_property

import torch
from torch import Tensor

FEWEST_ROWS = 2
"""A convolution of one group is another kernel than one of several, with other rounding: never take it, so
that a trial's numbers are the same to the bit whether it has neighbours or not."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a slot could do next."""

    slot: int
    images: int
    """Left of its batch."""
    whole: bool
    """Whether these images must go through the model in one step (batch statistics)."""


@dataclass(frozen=True, slots=True)
class Share:
    """A slot's part of a step: `images` of them, from row `first` on."""

    slot: int
    first: int
    rows: int
    images: int


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

    @property
    def used(self) -> int:
        """Rows that belong to a slot."""
        return sum(share.rows for share in self.shares)

    @cached_property
    def slots(self) -> Tensor:
        """The slot of each row, R."""
        slots = [self.idle] * self.rows
        for share in self.shares:
            slots[share.first : share.first + share.rows] = [share.slot] * share.rows
        return sent(slots, self.device)

    @cached_property
    def valid(self) -> Tensor:
        """Which images count, RM."""
        valid_N = torch.zeros(self.rows * self.per_row, dtype=torch.bool)
        for share in self.shares:
            valid_N[self.place(share)] = True
        return valid_N.view(self.rows, self.per_row).to(self.device)

    @cached_property
    def images(self) -> Tensor:
        """Images in this step of the slot that each row belongs to, R; 1 for idle rows, as a divisor."""
        images = [1] * self.rows
        for share in self.shares:
            images[share.first : share.first + share.rows] = [share.images] * share.rows
        return sent(images, self.device)

    def place(self, share: Share) -> slice:
        """Where a share's images are among the N of the step, in their order."""
        start = share.first * self.per_row
        return slice(start, start + share.images)

    def sum_slots(self, rows_RX: Tensor) -> Tensor:
        """For every row the sum over all rows of its slot: RX → RX. Differentiable, exact for one row.

        Rows are added one after the other and no slot's numbers meet another's: neither neighbours nor a
        NaN among them change a sum.
        """
        total_TX = rows_RX.new_zeros((self.idle + 1, *rows_RX.shape[1:]))
        return total_TX.index_add(0, self.slots, rows_RX).index_select(0, self.slots)


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers of the host on the device, without waiting for it."""
    gpu = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.long, pin_memory=gpu).to(device, non_blocking=gpu)


def buckets(capacity: int) -> tuple[int, ...]:
    """The numbers of rows that steps may have: 2, 3, 4, 6, 8, 12 … up to `capacity`, which is one of them."""
    sizes = {capacity}
    size = FEWEST_ROWS
    while size < capacity:
        sizes |= {size, size * 3 // 2} if size * 3 // 2 < capacity else {size}
        size *= 2
    return tuple(sorted(sizes))


def pack(wants: Sequence[Want], capacity: int, per_row: int) -> list[Share]:
    """Fill up to `capacity` rows with what slots want, the first in line first.

    A batch that needn't be whole may be cut between two rows: its gradients add up in the same order. One
    that must be whole and has no room waits, but for the first in line, which gets a step of its own, with
    more rows than `capacity` if it needs them.
    """
    shares: list[Share] = []
    free = capacity
    for want in wants:
        needed = -(-want.images // per_row)
        if needed > free and want.whole:
            if not shares:
                return [Share(want.slot, 0, needed, want.images)]
            continue
        rows = min(needed, free)
        if rows:
            images = min(want.images, rows * per_row)
            shares.append(Share(want.slot, capacity - free, rows, images))
            free -= rows
    return shares


def table(shares: Sequence[Share], capacity: int, per_row: int, idle: int, device: torch.device) -> RowTable:
    """The table of a step with these shares, of the smallest bucket that holds them."""
    used = sum(share.rows for share in shares)
    fitting = [size for size in buckets(max(capacity, FEWEST_ROWS)) if size >= used]
    return RowTable(tuple(shares), fitting[0] if fitting else used, per_row, idle, device)
