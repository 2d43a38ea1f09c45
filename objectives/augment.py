"""Augmentations: random changes of a batch of training images, each image with its own.

Shapes: B images, C channels, H rows, W columns; floating point. Every augmentation is
`(images_BCHW, generator, *, amount) -> images_BCHW`; `amount` 0 is off and draws nothing. What lies
outside an image is 0, the mean colour where images are normalised first.

All chance comes from the generator, on whose device numbers are drawn: the same state gives the
same result, and a generator on the CPU gives the same changes whatever device the images are on.

To add one: write the function and add its line to `AUGMENTATIONS`, at its place in the order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor
from torch.nn import functional

from objectives.base import Scalar
from objectives.ranges import Count, Share


def flip(images_BCHW: Tensor, generator: Generator, *, amount: Share = 0.0) -> Tensor:
    """Mirror left and right, each image with probability `amount`. Not for digits or letters."""
    if amount == 0:
        return images_BCHW
    mirrored_B = _uniform(images_BCHW, generator) < amount
    return torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def rotation(
    images_BCHW: Tensor, generator: Generator, *, amount: Annotated[float, Interval(ge=0, le=180)] = 0.0
) -> Tensor:
    """Turn about the centre by an angle drawn evenly from ±`amount` degrees; bilinear, corners are 0."""
    if amount == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    angle_B = (2 * _uniform(images_BCHW, generator) - 1) * math.radians(amount)
    cos_B, sin_B, zero_B = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    # `affine_grid` measures both axes from −1 to 1; the ratios keep a rotation one when H ≠ W.
    rows_X = (cos_B, -sin_B * height / width, zero_B, sin_B * width / height, cos_B, zero_B)
    theta_B23 = torch.stack(rows_X, dim=-1).view(-1, 2, 3).to(images_BCHW.dtype)
    grid_BHW2 = functional.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW, grid_BHW2, padding_mode="zeros", align_corners=False)


def translation(images_BCHW: Tensor, generator: Generator, *, amount: Share = 0.0) -> Tensor:
    """Shift by whole pixels, each axis evenly up to ±`amount` of the image's height or width."""
    if amount == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    return _shift(images_BCHW, generator, round(amount * height), round(amount * width))


def crop(images_BCHW: Tensor, generator: Generator, *, amount: Count = 0) -> Tensor:
    """Pad by `amount` pixels of 0 on all sides and cut the original size out at a random place.

    Reference: He et al. 2016, *Deep Residual Learning*, section 4.2 (4 pixels for CIFAR-10).
    """
    if amount == 0:
        return images_BCHW
    return _shift(images_BCHW, generator, amount, amount)


def cutout(images_BCHW: Tensor, generator: Generator, *, amount: Count = 0) -> Tensor:
    """Erase a square of `amount` pixels a side, centred on a random pixel, so often cut by the border.

    Reference: DeVries & Taylor 2017, *Improved Regularization of Convolutional Neural Networks with Cutout*.
    """
    if amount == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    top_B = _integers(images_BCHW, generator, height) - amount // 2
    left_B = _integers(images_BCHW, generator, width) - amount // 2
    y_BH = _positions(images_BCHW, height) - top_B[:, None]
    x_BW = _positions(images_BCHW, width) - left_B[:, None]
    inside_BH, inside_BW = (y_BH >= 0) & (y_BH < amount), (x_BW >= 0) & (x_BW < amount)
    erased_BHW = inside_BH[:, :, None] & inside_BW[:, None, :]
    return torch.where(erased_BHW[:, None], 0.0, images_BCHW)


def augment(images_BCHW: Tensor, amounts: Mapping[str, Scalar], generator: Generator) -> Tensor:
    """All augmentations of ``amounts`` (name → amount, as in `TrialConfig.augment`).

    Their order is that of `AUGMENTATIONS`, whatever the order in ``amounts``. The images given are
    never changed in place.
    """
    for name, function in AUGMENTATIONS.items():
        if name in amounts:
            images_BCHW = function(images_BCHW, generator, amount=amounts[name])
    return images_BCHW


def _uniform(images_BCHW: Tensor, generator: Generator) -> Tensor:
    """A number in [0, 1) per image, float32, on the images' device."""
    numbers_B = torch.rand(len(images_BCHW), generator=generator, device=generator.device)
    return numbers_B.to(images_BCHW.device)


def _integers(images_BCHW: Tensor, generator: Generator, below: int) -> Tensor:
    """A number from 0 to ``below`` − 1 per image, on the images' device."""
    numbers_B = torch.randint(below, (len(images_BCHW),), generator=generator, device=generator.device)
    return numbers_B.to(images_BCHW.device)


def _positions(images_BCHW: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=images_BCHW.device)[None, :]


def _shift(images_BCHW: Tensor, generator: Generator, most_down: int, most_right: int) -> Tensor:
    """Move each image by up to so many pixels along both axes, either way; 0 comes in."""
    height, width = images_BCHW.shape[-2:]
    down_B = _integers(images_BCHW, generator, 2 * most_down + 1) - most_down
    right_B = _integers(images_BCHW, generator, 2 * most_right + 1) - most_right
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
