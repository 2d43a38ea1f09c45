"""Augmentations: random changes of a batch of training images, each image with its own.

Shapes: B images, C channels, H rows, W columns; floating point. Every augmentation is
`(images_BCHW, numbers, *, amount) -> images_BCHW`. `amount` is a number, or a tensor B of float64 with one
for each image: so the same function serves one trial, and the images of many beside each other. An image
whose amount is 0 stays as it is, to the bit. What lies outside an image is 0, the mean colour where images
are normalised first.

All chance comes from `numbers`, of which every image has four for each augmentation: what happens to an
image depends on nothing else, neither on the images beside it nor on the device.

To add one: write the function and add its line to `AUGMENTATIONS`, at its place in the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from objectives.base import Scalar
from objectives.chance import Numbers, Purpose
from objectives.ranges import Count, Share


def flip(images_BCHW: Tensor, numbers: Numbers, *, amount: Share = 0.0) -> Tensor:
    """Mirror left and right, each image with probability `amount`. Not for digits or letters."""
    mirrored_B = numbers.uniform(0) < _each(amount, images_BCHW).float()
    return torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def rotation(
    images_BCHW: Tensor, numbers: Numbers, *, amount: Annotated[float, Interval(ge=0, le=180)] = 0.0
) -> Tensor:
    """Turn about the centre by an angle drawn evenly from ±`amount` degrees; bilinear, corners are 0."""
    height, width = images_BCHW.shape[-2:]
    amount_B = _each(amount, images_BCHW)
    angle_B = (2 * numbers.uniform(0) - 1) * (amount_B * (math.pi / 180)).float()
    cos_B, sin_B = (part.to(images_BCHW.dtype)[:, None, None] for part in (angle_B.cos(), angle_B.sin()))
    y_H1, x_W = _centred(images_BCHW, height)[:, None], _centred(images_BCHW, width)
    # `grid_sample` measures both axes from −1 to 1; the ratios keep a rotation one when H ≠ W.
    x_BHW = cos_B * x_W - sin_B * (height / width) * y_H1
    y_BHW = sin_B * (width / height) * x_W + cos_B * y_H1
    grid_BHW2 = torch.stack([x_BHW, y_BHW], dim=-1)
    turned_BCHW = functional.grid_sample(images_BCHW, grid_BHW2, padding_mode="zeros", align_corners=False)
    return torch.where((amount_B > 0)[:, None, None, None], turned_BCHW, images_BCHW)


def translation(images_BCHW: Tensor, numbers: Numbers, *, amount: Share = 0.0) -> Tensor:
    """Shift by whole pixels, each axis evenly up to ±`amount` of the image's height or width."""
    amount_B = _each(amount, images_BCHW)
    most_down_B, most_right_B = ((amount_B * length).round().long() for length in images_BCHW.shape[-2:])
    return _shift(images_BCHW, numbers, most_down_B, most_right_B)


def crop(images_BCHW: Tensor, numbers: Numbers, *, amount: Count = 0) -> Tensor:
    """Pad by `amount` pixels of 0 on all sides and cut the original size out at a random place.

    Reference: He et al. 2016, *Deep Residual Learning*, section 4.2 (4 pixels for CIFAR-10).
    """
    most_B = _each(amount, images_BCHW).long()
    return _shift(images_BCHW, numbers, most_B, most_B)


def cutout(images_BCHW: Tensor, numbers: Numbers, *, amount: Count = 0) -> Tensor:
    """Erase a square of `amount` pixels a side, centred on a random pixel, so often cut by the border.

    Reference: DeVries & Taylor 2017, *Improved Regularization of Convolutional Neural Networks with Cutout*.
    """
    height, width = images_BCHW.shape[-2:]
    side_B = _each(amount, images_BCHW).long()
    top_B, left_B = (numbers.below(axis, length) - side_B // 2 for axis, length in enumerate((height, width)))
    y_BH = _positions(images_BCHW, height) - top_B[:, None]
    x_BW = _positions(images_BCHW, width) - left_B[:, None]
    inside_BH, inside_BW = ((at >= 0) & (at < side_B[:, None]) for at in (y_BH, x_BW))
    erased_BHW = inside_BH[:, :, None] & inside_BW[:, None, :]
    return torch.where(erased_BHW[:, None], 0.0, images_BCHW)


def augment(
    images_BCHW: Tensor,
    amounts: Mapping[str, Scalar | Tensor],
    numbers: Callable[[Purpose], Numbers],
) -> Tensor:
    """All augmentations of ``amounts`` (name → amount, as in `TrialConfig.augment`, or one for each image).

    ``numbers`` gives those of the images for a purpose. The order is that of `AUGMENTATIONS`, whatever the
    order in ``amounts``. The images given are never changed in place.
    """
    for name, function in AUGMENTATIONS.items():
        amount = amounts.get(name, 0)
        if isinstance(amount, Tensor) or amount != 0:
            images_BCHW = function(images_BCHW, numbers(purpose(name)), amount=amount)
    return images_BCHW


def purpose(name: str) -> Purpose:
    """What an augmentation's numbers are for."""
    return "augment", name


def _each(amount: float | Tensor, images_BCHW: Tensor) -> Tensor:
    """An amount for each image, float64; of length 1 where all have the same."""
    if isinstance(amount, Tensor):
        return amount
    return torch.full((1,), amount, dtype=torch.float64, device=images_BCHW.device)


def _positions(images_BCHW: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=images_BCHW.device)[None, :]


def _centred(images_BCHW: Tensor, length: int) -> Tensor:
    """Where the middles of pixels are along an axis that goes from −1 to 1."""
    places = torch.arange(length, device=images_BCHW.device, dtype=images_BCHW.dtype)
    return (2 * places + 1) / length - 1


def _shift(images_BCHW: Tensor, numbers: Numbers, most_down_B: Tensor, most_right_B: Tensor) -> Tensor:
    """Move each image by up to so many pixels along both axes, either way; 0 comes in."""
    height, width = images_BCHW.shape[-2:]
    down_B = numbers.below(0, 2 * most_down_B + 1) - most_down_B
    right_B = numbers.below(1, 2 * most_right_B + 1) - most_right_B
    y_BH = _positions(images_BCHW, height) - down_B[:, None]
    x_BW = _positions(images_BCHW, width) - right_B[:, None]
    inside_BHW = ((y_BH >= 0) & (y_BH < height))[:, :, None] & ((x_BW >= 0) & (x_BW < width))[:, None, :]
    image_B11 = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None, None]
    y_BH1, x_B1W = y_BH.clamp(0, height - 1)[:, :, None], x_BW.clamp(0, width - 1)[:, None, :]
    moved_BHWC = images_BCHW[image_B11, :, y_BH1, x_B1W]
    return torch.where(inside_BHW[:, None], moved_BHWC.permute(0, 3, 1, 2), 0.0)


AUGMENTATIONS: Mapping[str, Callable[..., Tensor]] = {
    "flip": flip,
    "rotation": rotation,
    "translation": translation,
    "crop": crop,
    "cutout": cutout,
}
"""In the order in which they are applied."""
