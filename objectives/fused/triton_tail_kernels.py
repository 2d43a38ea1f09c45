"""The kernels of `triton_tails.py`, in Triton's language; imported only where there is Triton.

Shapes: M images, H, W height and width of a map, X channels of all rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""As in `triton_kernels.py`."""


def _tail(  # noqa: PLR0917 (a kernel's arguments are positional)
    y: tl.tensor,
    bias: tl.tensor,
    shown: tl.tensor,
    chosen: tl.tensor,
    numbers: tl.tensor,
    channels: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    BIAS: tl.constexpr,
    CHOOSES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """y_MHWX and bias_X → of each square of `SIDE` places the largest after a ReLU, of which there are so
    many `numbers`, and which one it was. The grid: blocks of these.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = number < numbers
    lines: tl.constexpr = HEIGHT // SIDE
    columns: tl.constexpr = WIDTH // SIDE
    channel, place = number % channels, number // channels
    image, line, column = place // (lines * columns), place // columns % lines, place % columns
    added = tl.zeros((BLOCK,), dtype=tl.float32)
    if BIAS:
        added = tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)
    best = tl.zeros((BLOCK,), dtype=tl.float32)
    which = tl.zeros((BLOCK,), dtype=tl.int32)
    for part in tl.static_range(SIDE * SIDE):
        at = (image * HEIGHT + line * SIDE + part // SIDE) * WIDTH + column * SIDE + part % SIDE
        found = tl.load(y + at * channels + channel, mask=here, other=0.0).to(tl.float32) + added
        found = found.to(y.dtype.element_ty).to(tl.float32)
        if part == 0:
            best = found
        else:
            # Of those that are equally large the first; NaN before all.
            better = (found > best) | ~(found <= float("inf"))
            best, which = tl.where(better, found, best), tl.where(better, part, which)
    flat = best <= 0
    tl.store(shown + number, tl.where(flat, 0.0, best).to(shown.dtype.element_ty), mask=here)
    if CHOOSES:
        tl.store(chosen + number, tl.where(flat, SIDE * SIDE, which).to(tl.uint8), mask=here)


def _tail_gradient(  # noqa: PLR0917 (a kernel's arguments are positional)
    dshown: tl.tensor,
    choice: tl.tensor,
    dy: tl.tensor,
    numbers: tl.tensor,
    channels: tl.tensor,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The gradient of what `_tail` shows, and its choice, → dy_MHWX, with so many `numbers`; 0 where a place
    was not chosen, or is in no whole square. The grid: blocks of it.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = number < numbers
    lines: tl.constexpr = HEIGHT // SIDE
    columns: tl.constexpr = WIDTH // SIDE
    channel, place = number % channels, number // channels
    image, line, column = place // (HEIGHT * WIDTH), place // WIDTH % HEIGHT, place % WIDTH
    whole = here & (line < lines * SIDE) & (column < columns * SIDE)
    at = ((image * lines + line // SIDE) * columns + column // SIDE) * channels + channel
    which = tl.load(choice + at, mask=whole, other=SIDE * SIDE)
    found = tl.load(dshown + at, mask=whole, other=0.0)
    chosen = which == line % SIDE * SIDE + column % SIDE
    tl.store(dy + number, tl.where(chosen, found, 0.0), mask=here)


tail = triton.jit(_tail, do_not_specialize=["numbers", "channels"])
tail_gradient = triton.jit(_tail_gradient, do_not_specialize=["numbers", "channels"])
