"""Puts the images and dropout masks of a step where its rows want them.

Shapes: R rows, M images of a row, N = R·M images of a step, C channels, H, W height and width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.fused.rows import RowTable, Share


@dataclass(frozen=True, slots=True)
class Taken:
    """The images that a slot brings to a step."""

    share: Share
    indices: Tensor
    """Their places among all images, as many as the share has."""
    mean: Tensor
    """Of the trial's training images, per channel."""
    std: Tensor
    augmented: Tensor | None = None
    """The images themselves, normalised and changed; None: as they are."""
    kept: Sequence[Tensor | None] = ()
    """For each dropout layer, what these images are multiplied by; None: by nothing."""


def stage_images(images_ACHW: Tensor, rows: RowTable, taken: Sequence[Taken], dtype: torch.dtype) -> Tensor:
    """The images of all rows, normalised, as MHWRC; `images_ACHW` are all that there are.

    Those that don't count are some image or other. They are normalised in float32, whatever `dtype` is.
    """
    index_N = torch.zeros(rows.rows * rows.per_row, dtype=torch.long, device=images_ACHW.device)
    mean_RC = torch.zeros((rows.rows, images_ACHW.shape[1]), device=images_ACHW.device)
    std_RC = torch.ones_like(mean_RC)
    for part in taken:
        index_N[rows.place(part.share)] = part.indices
        mine = slice(part.share.first, part.share.first + part.share.rows)
        mean_RC[mine], std_RC[mine] = part.mean, part.std
    x_MHWRC = normalised(images_ACHW.index_select(0, index_N), mean_RC, std_RC, dtype)
    for part in taken:
        if part.augmented is not None:
            _place_images(x_MHWRC, rows, part.share, part.augmented)
    return x_MHWRC


def normalised(images_NCHW: Tensor, mean_RC: Tensor, std_RC: Tensor, dtype: torch.dtype) -> Tensor:
    """The pixels of a step's images, row after row, as `stage_images` gives them."""
    pixels_MHWRC = _by_row(images_NCHW, len(mean_RC))
    x_MHWRC = pixels_MHWRC.to(torch.float32, memory_format=torch.contiguous_format)
    return x_MHWRC.sub_(mean_RC).div_(std_RC).to(dtype)


def each_apart(x_MHWRC: Tensor) -> Tensor:
    """A step's images, row after row, as NCHW."""
    return x_MHWRC.permute(3, 0, 4, 1, 2).flatten(0, 1)


def by_row(images_NCHW: Tensor, rows: int) -> Tensor:
    """The same back again, as MHWRC."""
    return _by_row(images_NCHW, rows).contiguous()


def stage_masks(
    rows: RowTable, taken: Sequence[Taken], features: Sequence[int], dtype: torch.dtype
) -> list[Tensor | None]:
    """The mask RMF of each dropout layer; None where no trial of the step drops anything."""
    masks: list[Tensor | None] = []
    for layer, size in enumerate(features):
        if all(part.kept[layer] is None for part in taken):
            masks.append(None)
            continue
        mask_NF = torch.ones((rows.rows * rows.per_row, size), dtype=dtype, device=rows.device)
        for part in taken:
            kept = part.kept[layer]
            if kept is not None:
                mask_NF[rows.place(part.share)] = kept
        masks.append(mask_NF.view(rows.rows, rows.per_row, size))
    return masks


def _place_images(x_MHWRC: Tensor, rows: RowTable, share: Share, images_BCHW: Tensor) -> None:
    """Overwrite a share's images, and what is left of its last row with zeros."""
    mine = slice(share.first, share.first + share.rows)
    padded_BCHW = images_BCHW.new_zeros((share.rows * rows.per_row, *images_BCHW.shape[1:]))
    padded_BCHW[: share.images] = images_BCHW
    x_MHWRC[:, :, :, mine].copy_(_by_row(padded_BCHW, share.rows))


def _by_row(images_NCHW: Tensor, rows: int) -> Tensor:
    """As MHWRC, a view."""
    return images_NCHW.view(rows, -1, *images_NCHW.shape[1:]).permute(1, 3, 4, 0, 2)
