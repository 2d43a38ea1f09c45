"""The images of recorded steps by kernels of our own: selected, normalised, changed and laid out in one pass.

Shapes: A images there are, R rows, M images of a row, N = R·M images of a step, C channels, H, W height and
width, T slots.

By operations an image is written a dozen times in float32 before the first layer reads it; here it is read
as the bytes that it is, and written once as that layer takes it. Flips, shifts and erased squares move
pixels, and change none: so the bits are the same. A rotation mixes pixels; where a trial brings one, images
are made by operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from objectives.chance import Numbers
from objectives.fused.triton_tried import takes

if TYPE_CHECKING:
    from objectives.fused.tables import TrialTables

SHOWS = "images of steps"
"""The kernels' name, for `triton_tried.takes`."""

MOVED = ("flip", "translation", "crop", "cutout")
"""Augmentations that the kernel knows; it goes back through them from the last."""

PLACES_AT_ONCE = 256

PIXELS, COLUMNS = 32, 64
"""Of a program: pixels of an image, and channels of rows that lie beside each other."""


def shows(pictures_ACHW: Tensor, amounts: Mapping[str, Tensor]) -> bool:
    """Whether a step's images are made by the kernel."""
    return (
        pictures_ACHW.dtype == torch.uint8
        and pictures_ACHW.is_contiguous()
        and set(amounts) <= set(MOVED)
        and takes(SHOWS, pictures_ACHW.device)
    )


def places_by_triton(
    order_TA: Tensor, of_rows: tuple[Tensor, Tensor, Tensor], per_row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The slot of each image of a step, N; its place in its trial's epoch; and which of all images it is.

    `of_rows`: the slot of each row, its images that count, and the place of its first.
    """
    from objectives.fused import triton_image_kernels as kernels

    numbers = len(of_rows[0]) * per_row
    places_3N = of_rows[0].new_empty((3, numbers))
    with torch.cuda.device_of(order_TA):
        kernels.places[-(-numbers // PLACES_AT_ONCE),](
            order_TA, *of_rows, places_3N, per_row, order_TA.shape[1], numbers, BLOCK=PLACES_AT_ONCE
        )
    slot_N, place_N, index_N = places_3N.unbind(0)
    return slot_N, place_N, index_N


def images_by_triton(  # noqa: PLR0917 (all that they depend on)
    pictures_ACHW: Tensor,
    index_N: Tensor,
    slots_R: Tensor,
    trials: TrialTables,
    numbers: Mapping[tuple[str | int, ...], Numbers],
    dtype: torch.dtype,
) -> Tensor:
    """The images of all rows, normalised and changed, MHWRC."""
    from objectives.fused import triton_image_kernels as kernels

    (channels, height, width), rows = pictures_ACHW.shape[1:], len(slots_R)
    per_row = len(index_N) // rows
    words = {name: numbers["augment", name].words for name in trials.amounts}
    shown_MHWRC = pictures_ACHW.new_empty((per_row, height, width, rows, channels), dtype=dtype)
    grid = -(-height * width // PIXELS), -(-rows * channels // COLUMNS), per_row
    with torch.cuda.device_of(pictures_ACHW):
        kernels.shown[grid](
            pictures_ACHW,
            index_N,
            slots_R,
            trials.mean_TC,
            trials.std_TC,
            *(each.get(name) for name in MOVED for each in (trials.amounts, words)),
            shown_MHWRC,
            next((each.stride(0) for each in words.values()), 0),
            rows,
            per_row,
            C=channels,
            H=height,
            W=width,
            **{name.upper(): name in words for name in MOVED},
            BLOCK_P=PIXELS,
            BLOCK_J=COLUMNS,
        )
    return shown_MHWRC
