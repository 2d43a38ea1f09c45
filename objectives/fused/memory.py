"""What to do where memory is too short for a pool: smaller steps, then fewer slots; no trial is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from objectives.fused.rows import FEWEST_ROWS
from objectives.shortage import is_out_of_memory

T = TypeVar("T")


IMAGES_PER_ROW = 32
"""M. Smaller rows waste less on small batches and cost more copies of weights."""

ROWS = {"cpu": 8, "cuda": 128}
"""R at most, by kind of device: 256 images fit a CPU's caches; a GPU wants thousands."""

SLOTS = {"cpu": 16, "cuda": 64}
"""By kind of device."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a pool."""

    slots: int
    rows: int
    """Of a step, at most."""
    images_per_row: int
    """Shows in the last bits of a curve; the others don't."""

    def within(self, slots: int | None, rows: int | None) -> Sizes:
        """These, but no more than the given ones; None: no limit."""
        return replace(
            self,
            slots=self.slots if slots is None else min(self.slots, slots),
            rows=self.rows if rows is None else max(FEWEST_ROWS, min(self.rows, rows)),
        )


def usual_sizes(
    kind: str, slots: int | None = None, rows: int | None = None, images_per_row: int = IMAGES_PER_ROW
) -> Sizes:
    """Those of a kind of device, but for what is given."""
    return Sizes(slots or SLOTS[kind], max(FEWEST_ROWS, rows or ROWS[kind]), images_per_row)


def fewer(sizes: Sizes) -> Sizes | None:
    """What to try where a step had too little memory: half its rows, then half the slots; None: nothing."""
    if sizes.rows > FEWEST_ROWS:
        return replace(sizes, rows=max(FEWEST_ROWS, sizes.rows // 2))
    return fewer_slots(sizes)


def fewer_slots(sizes: Sizes) -> Sizes | None:
    """What to try where memory was too short for the slots themselves; None: nothing."""
    return replace(sizes, slots=sizes.slots // 2) if sizes.slots > 1 else None


def fitting(
    make: Callable[[Sizes], T], sizes: Sizes, smaller: Callable[[Sizes], Sizes | None] = fewer_slots
) -> tuple[T, Sizes]:
    """What `make` makes of the largest sizes that memory has room for, and those. Raises what it raises."""
    while True:
        try:
            return make(sizes), sizes
        except Exception as error:
            less = smaller(sizes) if is_out_of_memory(error) else None
            if less is None:
                raise
        sizes = less
