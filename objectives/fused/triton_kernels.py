"""The kernels of `triton_convolutions.py` and `triton_chance.py`, in Triton's language; imported only where
there is Triton.

Shapes: R rows, M images of a row, C, O channels in and out of a row, H, W height and width, N places of M
maps, K = H·W·C numbers under a kernel.

Those of convolutions are products of matrices, one for each row, a side of which is read from the map as it
is needed: what lies under the kernel is never laid out in memory (Chetlur et al. 2014, "cuDNN: Efficient
Primitives for Deep Learning", section 3.1). A program of the grid computes one block of one row's result,
adds up in one order, and writes what no other program writes. So no number depends on how many rows there
are, on which of them a trial has, or on what is in the others; and what isn't read because it lies outside is
zero.

Arguments in capitals are fixed when a kernel is compiled. `rows` and `images` are not, and the compiler is
told not to look at them: a step of fewer rows runs the same machine code. Places in memory are counted in 64
bits where rows multiply them: many rows of large maps have more than 2³¹ numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether kernels are run by Triton's interpreter, one block after the other, on whatever there is."""


def _forward(  # noqa: PLR0917 (a kernel's arguments are positional)
    x: tl.tensor,
    kernel: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    chosen: tl.tensor,
    rows: tl.tensor,
    images: tl.tensor,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ABOVE: tl.constexpr,
    LEFT: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    RELU: tl.constexpr,
    CHOOSES: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """x_MHWRC, kernel_ROK, bias_RO → y_MHWRO. The grid: blocks of places, blocks of channels out, rows.

    With `RELU`, y is the largest of each square of `SIDE` places after a ReLU, and `chosen` which one it was.
    """
    row = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    under_all: tl.constexpr = HIGH * WIDE * CHANNELS
    lines: tl.constexpr = LINES // SIDE
    columns: tl.constexpr = COLUMNS // SIDE
    image = place // (lines * columns)
    counts = place < images * (lines * columns)
    best = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.float32)
    which = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.int32)
    for part in range(SIDE * SIDE):
        top = (place % (lines * columns) // columns * SIDE + part // SIDE) * DOWN - ABOVE
        left = (place % columns * SIDE + part % SIDE) * ACROSS - LEFT
        total = tl.zeros((BLOCK_N, BLOCK_O), dtype=tl.float32)
        for first in range(0, under_all, BLOCK_K):
            under = first + tl.arange(0, BLOCK_K)
            tap = under // CHANNELS
            line = top[:, None] + (tap // WIDE)[None, :]
            column = left[:, None] + (tap % WIDE)[None, :]
            inside = counts[:, None] & (under < under_all)[None, :]
            inside = inside & (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
            from_x = (image[:, None] * HEIGHT + line) * WIDTH + column
            from_x = (from_x.to(tl.int64) * rows + row) * CHANNELS + (under % CHANNELS)[None, :]
            x_NK = tl.load(x + from_x, mask=inside, other=0.0)
            from_kernel = (row * OUT + out)[None, :] * under_all + under[:, None]
            known = (out < OUT)[None, :] & (under < under_all)[:, None]
            kernel_KO = tl.load(kernel + from_kernel, mask=known, other=0.0)
            if WIDEN:
                x_NK, kernel_KO = x_NK.to(tl.float32), kernel_KO.to(tl.float32)
            total = tl.dot(x_NK, kernel_KO, total, input_precision=PRECISION)
        if BIAS:
            bias_O = tl.load(bias + row * OUT + out, mask=out < OUT, other=0.0)
            total += bias_O.to(tl.float32)[None, :]
        if SIDE == 1:
            best = total
        else:
            # Of those that are equally large when they are rounded the first; NaN before all.
            total = total.to(y.dtype.element_ty).to(tl.float32)
            better = (part == 0) | (total > best) | ~(total <= float("inf"))
            best, which = tl.where(better, total, best), tl.where(better, part, which)
    to_y = (place.to(tl.int64) * rows + row)[:, None] * OUT + out[None, :]
    shown = counts[:, None] & (out < OUT)[None, :]
    best = best.to(y.dtype.element_ty)
    if RELU:
        flat = best.to(tl.float32) <= 0
        best = tl.where(flat, 0.0, best)
        if CHOOSES:
            tl.store(chosen + to_y, tl.where(flat, SIDE * SIDE, which).to(tl.uint8), mask=shown)
    tl.store(y + to_y, best, mask=shown)


def _images_gradient(  # noqa: PLR0917 (a kernel's arguments are positional)
    dy: tl.tensor,
    choice: tl.tensor,
    kernel: tl.tensor,
    dx: tl.tensor,
    rows: tl.tensor,
    images: tl.tensor,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ABOVE: tl.constexpr,
    LEFT: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """dy_MHWRO, kernel_ROK → dx_MHWRC. The grid: blocks of places in each phase, blocks of channels, rows.

    With `RELU`, dy_MHWRO is that of what `_forward` gives then, and `choice` which place each of it goes to.

    With strides, a place lies under some of the kernel's numbers alone: every `DOWN`th line and `ACROSS`th
    column. Places under the same ones are a phase, and only those numbers are gone through.
    """
    row = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    phase_lines: tl.constexpr = (HEIGHT + DOWN - 1) // DOWN
    phase_columns: tl.constexpr = (WIDTH + ACROSS - 1) // ACROSS
    taps_high: tl.constexpr = (HIGH + DOWN - 1) // DOWN
    taps_wide: tl.constexpr = (WIDE + ACROSS - 1) // ACROSS
    through: tl.constexpr = taps_high * taps_wide * OUT
    lines: tl.constexpr = LINES // SIDE
    columns: tl.constexpr = COLUMNS // SIDE
    places = images * (phase_lines * phase_columns)
    blocks = tl.cdiv(places, BLOCK_N)
    phase, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    first_high, first_wide = phase // ACROSS, phase % ACROSS
    place = block * BLOCK_N + tl.arange(0, BLOCK_N)
    image = place // (phase_lines * phase_columns)
    line = place % (phase_lines * phase_columns) // phase_columns * DOWN
    line += (first_high + ABOVE * (DOWN - 1)) % DOWN  # `first_high` - `ABOVE`, of that phase and not negative
    column = place % phase_columns * ACROSS
    column += (first_wide + LEFT * (ACROSS - 1)) % ACROSS
    counts = (place < places) & (line < HEIGHT) & (column < WIDTH)
    # Whole numbers: the phase is what makes them so.
    bottom, right = (line + ABOVE - first_high) // DOWN, (column + LEFT - first_wide) // ACROSS
    total = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for first in range(0, through, BLOCK_K):
        number = first + tl.arange(0, BLOCK_K)
        tap, out = number // OUT, number % OUT
        tap_high, tap_wide = tap // taps_wide, tap % taps_wide
        high, wide = first_high + tap_high * DOWN, first_wide + tap_wide * ACROSS
        known = (number < through) & (high < HIGH) & (wide < WIDE)
        y_line, y_column = bottom[:, None] - tap_high[None, :], right[:, None] - tap_wide[None, :]
        inside = counts[:, None] & known[None, :]
        inside = inside & (y_line >= 0) & (y_line < lines * SIDE) & (y_column >= 0)
        inside = inside & (y_column < columns * SIDE)
        from_dy = (image[:, None] * lines + y_line // SIDE) * columns + y_column // SIDE
        from_dy = (from_dy.to(tl.int64) * rows + row) * OUT + out[None, :]
        dy_NK = tl.load(dy + from_dy, mask=inside, other=0.0)
        if RELU:
            which = tl.load(choice + from_dy, mask=inside, other=SIDE * SIDE)
            dy_NK = tl.where(which == y_line % SIDE * SIDE + y_column % SIDE, dy_NK, 0.0)
        from_kernel = (row * OUT + out) * (HIGH * WIDE) + high * WIDE + wide
        from_kernel = from_kernel[:, None] * CHANNELS + channel[None, :]
        kernel_KC = tl.load(
            kernel + from_kernel, mask=known[:, None] & (channel < CHANNELS)[None, :], other=0.0
        )
        if WIDEN:
            dy_NK, kernel_KC = dy_NK.to(tl.float32), kernel_KC.to(tl.float32)
        total = tl.dot(dy_NK, kernel_KC, total, input_precision=PRECISION)
    to_dx = ((image * HEIGHT + line) * WIDTH + column).to(tl.int64)
    to_dx = (to_dx * rows + row)[:, None] * CHANNELS + channel[None, :]
    shown = counts[:, None] & (channel < CHANNELS)[None, :]
    tl.store(dx + to_dx, total.to(dx.dtype.element_ty), mask=shown)


def _kernel_gradient(  # noqa: PLR0917 (a kernel's arguments are positional)
    x: tl.tensor,
    dy: tl.tensor,
    choice: tl.tensor,
    dkernel: tl.tensor,
    dbias: tl.tensor,
    rows: tl.tensor,
    images: tl.tensor,
    CHANNELS: tl.constexpr,
    OUT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
    ABOVE: tl.constexpr,
    LEFT: tl.constexpr,
    LINES: tl.constexpr,
    COLUMNS: tl.constexpr,
    SIDE: tl.constexpr,
    RELU: tl.constexpr,
    BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """x_MHWRC, dy_MHWRO → the sums over each part of the places, dkernel_PROK and dbias_PRO.

    The grid: blocks of the kernel, P parts of `LENGTH` places, rows. With `RELU`, as `_images_gradient`; then
    places that lie in no whole square are left out.
    """
    part, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    under_all: tl.constexpr = HIGH * WIDE * CHANNELS
    blocks: tl.constexpr = (under_all + BLOCK_K - 1) // BLOCK_K
    out = tl.program_id(0) // blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    under = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    tap = under // CHANNELS
    lines: tl.constexpr = LINES // SIDE
    columns: tl.constexpr = COLUMNS // SIDE
    of_image: tl.constexpr = lines * SIDE * columns * SIDE
    begin = part * LENGTH
    end = tl.minimum(begin + LENGTH, images * of_image)
    total = tl.zeros((BLOCK_O, BLOCK_K), dtype=tl.float32)
    over_places = tl.zeros((BLOCK_O, BLOCK_N), dtype=tl.float32)
    for first in range(begin, end, BLOCK_N):
        place = first + tl.arange(0, BLOCK_N)
        counts = place < end
        image = place // of_image
        y_line, y_column = place % of_image // (columns * SIDE), place % (columns * SIDE)
        from_dy = (image * lines + y_line // SIDE) * columns + y_column // SIDE
        from_dy = (from_dy.to(tl.int64) * rows + row)[None, :] * OUT + out[:, None]
        given = counts[None, :] & (out < OUT)[:, None]
        dy_ON = tl.load(dy + from_dy, mask=given, other=0.0)
        if RELU:
            which = tl.load(choice + from_dy, mask=given, other=SIDE * SIDE)
            dy_ON = tl.where(which == (y_line % SIDE * SIDE + y_column % SIDE)[None, :], dy_ON, 0.0)
        line = (y_line * DOWN - ABOVE)[:, None] + (tap // WIDE)[None, :]
        column = (y_column * ACROSS - LEFT)[:, None] + (tap % WIDE)[None, :]
        inside = counts[:, None] & (under < under_all)[None, :]
        inside = inside & (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
        from_x = (image[:, None] * HEIGHT + line) * WIDTH + column
        from_x = (from_x.to(tl.int64) * rows + row) * CHANNELS + (under % CHANNELS)[None, :]
        x_NK = tl.load(x + from_x, mask=inside, other=0.0)
        if WIDEN:
            dy_ON, x_NK = dy_ON.to(tl.float32), x_NK.to(tl.float32)
        total = tl.dot(dy_ON, x_NK, total, input_precision=PRECISION)
        if BIAS:
            over_places += dy_ON.to(tl.float32)
    to_out = (part * rows + row) * OUT + out
    to_kernel = to_out[:, None] * under_all + under[None, :]
    known = (out < OUT)[:, None] & (under < under_all)[None, :]
    tl.store(dkernel + to_kernel, total.to(dkernel.dtype.element_ty), mask=known)
    if BIAS and tl.program_id(0) % blocks == 0:
        tl.store(dbias + to_out, tl.sum(over_places, 1).to(dbias.dtype.element_ty), mask=out < OUT)


def _add_parts(
    found: tl.tensor, result: tl.tensor, parts: tl.tensor, numbers: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """found_PX, with X `numbers`, → result_X, from the first part to the last. The grid: blocks of X."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = number < numbers
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    part = found + number
    for _ in range(parts):
        total += tl.load(part, mask=here, other=0.0)
        part += numbers
    tl.store(result + number, total.to(result.dtype.element_ty), mask=here)


def _philox_words(  # noqa: PLR0917 (a kernel's arguments are positional)
    counter: tl.tensor,
    places: tl.tensor,
    keys: tl.tensor,
    words: tl.tensor,
    numbers: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """As `objectives.chance.words_of`: for B images and C `blocks` of each, B·C `numbers`, words_4BC.

    The grid: blocks of BC.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = number < numbers
    image, block = number // blocks, number % blocks
    c0 = tl.load(counter + block, mask=here, other=0).to(tl.uint32)
    c1 = tl.load(places + image, mask=here, other=0).to(tl.uint32)
    c2 = tl.load(counter + blocks + block, mask=here, other=0).to(tl.uint32)
    c3 = tl.load(counter + 2 * blocks + block, mask=here, other=0).to(tl.uint32)
    k0 = tl.load(keys + 2 * image, mask=here, other=0).to(tl.uint32)
    k1 = tl.load(keys + 2 * image + 1, mask=here, other=0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, 10)
    tl.store(words + number, w0.to(tl.int64), mask=here)
    tl.store(words + numbers + number, w1.to(tl.int64), mask=here)
    tl.store(words + 2 * numbers + number, w2.to(tl.int64), mask=here)
    tl.store(words + 3 * numbers + number, w3.to(tl.int64), mask=here)


forward = triton.jit(_forward, do_not_specialize=["rows", "images"])
images_gradient = triton.jit(_images_gradient, do_not_specialize=["rows", "images"])
kernel_gradient = triton.jit(_kernel_gradient, do_not_specialize=["rows", "images"])
add_parts = triton.jit(_add_parts, do_not_specialize=["parts", "numbers"])
philox_words = triton.jit(_philox_words, do_not_specialize=["numbers", "blocks"])
