"""Ways to train the trials of a benchmark fused, in so many slots and in several precisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from objectives.base import Precision
from objectives.bench import FUSED, ROWS_PER_SLOT, Way, Work, lived_through, task_of
from objectives.choices import AlwaysFused
from objectives.fused import FusedEngine


def fused_ways(
    work_of: Callable[[int], Work], device: str, slots: Sequence[int], precisions: Sequence[Precision]
) -> dict[str, tuple[Way, Work]]:
    """Name → fused in so many slots and in this precision, with the work that fills them."""

    def engine(work: Work, count: int, precision: Precision) -> FusedEngine:
        task, rows = task_of(work, device, precision), ROWS_PER_SLOT * count
        return FusedEngine(task, device, slots=count, rows=rows, choices=AlwaysFused())

    return {
        f"{FUSED}, {count} slots, {precision}": (
            lived_through(partial(engine, work, count, precision), work.starts(), work.ends()),
            work,
        )
        for count in slots
        for work in (work_of(count),)
        for precision in precisions
    }
