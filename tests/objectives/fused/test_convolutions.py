"""Convolutions of small maps have torch's own gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from objectives.fused import convolutions
from objectives.fused.convolutions import SmallMaps, suits

ROWS, IMAGES, CHANNELS, OUT = 3, 5, 2, 4


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [(4, (3, 3), (1, 1), (0, 0)), (3, (3, 2), (1, 1), (1, 0)), (6, (2, 3), (2, 3), (0, 2))],
)
def test_gradients_are_those_of_the_convolution(
    side: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    x = torch.randn(IMAGES, side, side, ROWS * CHANNELS, dtype=torch.float64).permute(0, 3, 1, 2)
    weight = torch.randn(ROWS, OUT, *kernel, CHANNELS, dtype=torch.float64)
    bias = torch.randn(ROWS, OUT, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    plain = functional.conv2d(
        x, weight.flatten(0, 1).permute(0, 3, 1, 2), bias.flatten(), stride, padding, groups=ROWS
    )
    own = SmallMaps.apply(x, weight, bias, stride, padding)
    assert torch.equal(own, plain)
    dy = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, leaves, dy)
    for got, wanted in zip(torch.autograd.grad(own, leaves, dy), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    strided = dy.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)  # a gradient that is laid out otherwise
    for got, wanted in zip(
        torch.autograd.grad(SmallMaps.apply(x, weight, bias, stride, padding), leaves, strided),
        expected,
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "side", "expected"),
    [
        (nn.Conv2d(1, 1, 3), 5, True),  # 3×3 places
        (nn.Conv2d(1, 1, 3), 6, False),
        (nn.Conv2d(1, 1, 3, stride=2), 7, True),
        (nn.Conv2d(1, 1, 3, padding=1), 4, False),
        (nn.Conv2d(1, 1, 3, padding="same"), 3, False),
        (nn.Conv2d(1, 1, 2, dilation=2), 4, False),
    ],
)
def test_only_small_maps_are_done_so(module: nn.Conv2d, side: int, expected: bool) -> None:
    assert convolutions.MOST_PLACES == 9
    assert suits(module, torch.zeros(1, 1, side, side)) is expected
