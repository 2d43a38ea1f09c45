"""The kernels of `triton_images.py`, in Triton's language; imported only where there is Triton.

Shapes: A images there are, R rows, M images of a row, N = R·M images of a step, C channels, H, W height and
width, T slots, J = R·C.

As those of `triton_step_kernels.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""As in `triton_kernels.py`."""


def _places(  # noqa: PLR0917 (a kernel's arguments are positional)
    order: tl.tensor,
    slots: tl.tensor,
    counts: tl.tensor,
    firsts: tl.tensor,
    places: tl.tensor,
    per_row: tl.tensor,
    pictures: tl.tensor,
    numbers: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """places_3N: of each image of a step the slot, its place in its trial's epoch, and which of all images it
    is, by order_TA; the first of both where it doesn't count. The grid: blocks of N.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = number < numbers
    row, image = number // per_row, number % per_row
    slot = tl.load(slots + row, mask=here, other=0)
    counting = image < tl.load(counts + row, mask=here, other=0)
    place = tl.where(counting, tl.load(firsts + row, mask=here, other=0) + image, 0)
    tl.store(places + number, slot, mask=here)
    tl.store(places + numbers + number, place, mask=here)
    which = tl.load(order + slot * pictures + place, mask=here, other=0)
    tl.store(places + 2 * numbers + number, which.to(tl.int64), mask=here)


def _below(words: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """As `objectives.chance.below`."""
    return (words * bound) >> 32


def _rounded(number: tl.tensor) -> tl.tensor:
    """The whole number next to a number that isn't negative; of two that are as near the even one."""
    low = tl.floor(number)
    rest, whole = number - low, low.to(tl.int64)
    return whole + tl.where(rest > 0.5, 1, tl.where(rest == 0.5, whole % 2, 0))


def _shown(  # noqa: PLR0917 (a kernel is one function; its arguments are positional)
    pictures: tl.tensor,
    indices: tl.tensor,
    slots: tl.tensor,
    mean: tl.tensor,
    std: tl.tensor,
    flip: tl.tensor,
    flip_words: tl.tensor,
    translation: tl.tensor,
    translation_words: tl.tensor,
    crop: tl.tensor,
    crop_words: tl.tensor,
    cutout: tl.tensor,
    cutout_words: tl.tensor,
    shown: tl.tensor,
    words_stride: tl.tensor,
    rows: tl.tensor,
    per_row: tl.tensor,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    FLIP: tl.constexpr,
    TRANSLATION: tl.constexpr,
    CROP: tl.constexpr,
    CUTOUT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> None:
    """pictures_ACHW → shown_MHWRC: normalised, and changed as `objectives.augment` would change them.

    Every pixel is followed back to where it comes from. The grid: blocks of HW, blocks of J, M.
    """
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    column, image = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J), tl.program_id(2)
    known, row, channel = column < rows * C, column // C, column % C
    slot = tl.load(slots + row, mask=known, other=0)
    number = row * per_row + image
    index = tl.load(indices + number, mask=known, other=0)
    y = (pixel // W)[:, None] + tl.zeros((BLOCK_P, BLOCK_J), dtype=tl.int64)
    x = (pixel % W)[:, None] + tl.zeros((BLOCK_P, BLOCK_J), dtype=tl.int64)
    inside = (pixel < H * W)[:, None] & known[None, :]
    if CUTOUT:
        side = tl.load(cutout + slot, mask=known, other=0.0).to(tl.int64)
        top = _below(tl.load(cutout_words + number, mask=known, other=0), H) - side // 2
        left = _below(tl.load(cutout_words + words_stride + number, mask=known, other=0), W) - side // 2
        down, right = y - top[None, :], x - left[None, :]
        erased = (down >= 0) & (down < side[None, :]) & (right >= 0) & (right < side[None, :])
        inside = inside & ~erased
    if CROP:
        most = tl.load(crop + slot, mask=known, other=0.0).to(tl.int64)
        down = _below(tl.load(crop_words + number, mask=known, other=0), 2 * most + 1) - most
        right = _below(tl.load(crop_words + words_stride + number, mask=known, other=0), 2 * most + 1) - most
        y, x = y - down[None, :], x - right[None, :]
        inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    if TRANSLATION:
        amount = tl.load(translation + slot, mask=known, other=0.0)
        most_down, most_right = _rounded(amount * H), _rounded(amount * W)
        word = tl.load(translation_words + number, mask=known, other=0)
        down = _below(word, 2 * most_down + 1) - most_down
        word = tl.load(translation_words + words_stride + number, mask=known, other=0)
        right = _below(word, 2 * most_right + 1) - most_right
        y, x = y - down[None, :], x - right[None, :]
        inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    if FLIP:
        word = tl.load(flip_words + number, mask=known, other=0)
        uniform = (word >> 8).to(tl.float32) * (1.0 / (1 << 24))
        mirrored = uniform < tl.load(flip + slot, mask=known, other=0.0).to(tl.float32)
        x = tl.where(mirrored[None, :], W - 1 - x, x)
    at = ((index * C + channel)[None, :] * H + y) * W + x
    found = tl.load(pictures + at, mask=inside, other=0).to(tl.float32)
    middle = tl.load(mean + slot * C + channel, mask=known, other=0.0)
    spread = tl.load(std + slot * C + channel, mask=known, other=1.0)
    found = tl.where(inside, tl.div_rn(found - middle[None, :], spread[None, :] + tl.zeros_like(found)), 0.0)
    to = ((image * (H * W) + pixel).to(tl.int64) * (rows * C))[:, None] + column[None, :]
    real = (pixel < H * W)[:, None] & known[None, :]
    tl.store(shown + to, found.to(shown.dtype.element_ty), mask=real)


_below = triton.jit(_below)
_rounded = triton.jit(_rounded)
places = triton.jit(
    _places,
    do_not_specialize=["per_row", "pictures", "numbers"],
    do_not_specialize_on_alignment=["order", "slots", "counts", "firsts", "places"],
)
shown = triton.jit(
    _shown,
    do_not_specialize=["words_stride", "rows", "per_row"],
    do_not_specialize_on_alignment=[
        *("pictures", "indices", "slots", "mean", "std", "shown", "flip", "flip_words"),
        *("translation", "translation_words", "crop", "crop_words", "cutout", "cutout_words"),
    ],
)
