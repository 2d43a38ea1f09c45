"""Products of the matrices of many rows: to the bit the same for a row, whatever rows lie beside it.

Shapes: R rows, and for each of them a matrix AB times a matrix BC.

A processor's library multiplies otherwise, and rounds otherwise, where a matrix doesn't begin at a cache
line. Where matrices of odd sizes lie close together, each begins where its place among the others has it
begin: the last bits of a gradient would tell in which row it was computed (7 numbers times 10 of 32 images,
MKL 2024.2 with AVX-512). So every matrix that goes into a product, or comes out of one, begins at a line.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LINE = 64
"""Bytes."""


def products(left_RAB: Tensor, right_RBC: Tensor, added_R1C: Tensor | None = None) -> Tensor:
    """RAC: each row's product, and what is added to all of its lines. Not differentiable."""
    left_RAB, right_RBC = aligned(left_RAB), aligned(right_RBC)
    return into(room(left_RAB, (left_RAB.shape[1], right_RBC.shape[2])), left_RAB, right_RBC, added_R1C)


def into(result_RAC: Tensor, left_RAB: Tensor, right_RBC: Tensor, added_R1C: Tensor | None = None) -> Tensor:
    """`products` of matrices that are `aligned`, written to where they belong, which has to be so as well."""
    if added_R1C is None:
        return torch.bmm(left_RAB, right_RBC, out=result_RAC)
    return torch.baddbmm(added_R1C, left_RAB, right_RBC, out=result_RAC)


def aligned(x_RX: Tensor) -> Tensor:
    """The same numbers, those of each row from the beginning of a line on; copied only if they are not so.

    On a GPU as they are: there, a kernel is chosen by the sizes of matrices.
    """
    return x_RX if begins_lines(x_RX) else room(x_RX, x_RX.shape[1:]).copy_(x_RX)


def begins_lines(x_RX: Tensor) -> bool:
    """Whether each row begins at a line, or needn't."""
    if x_RX.device.type != "cpu":
        return True
    return x_RX.data_ptr() % LINE == 0 and x_RX.stride(0) * x_RX.element_size() % LINE == 0


def room(like_RX: Tensor, shape: tuple[int, ...]) -> Tensor:
    """For as many rows of `shape`, of the type and device of what is given; `aligned`."""
    size = wide = math.prod(shape)
    if like_RX.device.type == "cpu":
        per_line = LINE // like_RX.element_size()
        wide = -(-size // per_line) * per_line
    return like_RX.new_empty((len(like_RX), wide))[:, :size].view(len(like_RX), *shape)
