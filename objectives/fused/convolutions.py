"""Convolutions of many rows whose maps are small: the weights' gradient as batched products.

Shapes: R rows, M images of a row, C, O channels in and out of a row, H, W a kernel's, or a map's, height and
width, N = M·H·W places of a map out, K = H·W·C numbers under a kernel.

A grouped convolution's gradient with respect to its weights is slow in oneDNN where the map out has few
places. Milliseconds of one thread, 8 rows of 32 images, 64 to 64 channels, kernels of 3×3, product against
convolution: maps of 2×2 1.7 and 3.1 (and 0.9 saved where the gradient is brought into its order), of 3×3 3.1
and 3.5, of 4×4 5.5 and 4.5 (torch 2.13, Xeon with AVX-512, medians of 9).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_PLACES = 9
"""Of a map out. It shows in the last bits of a curve, so it is not measured."""


def suits(module: nn.Conv2d, x: Tensor) -> bool:
    """Whether `SmallMaps` is for this convolution of a map."""
    if x.device.type != "cpu" or module.dilation != (1, 1) or not isinstance(module.padding, tuple):
        return False
    sides = zip(x.shape[2:], module.kernel_size, module.stride, module.padding, strict=True)
    places = [(side + 2 * padding - kernel) // stride + 1 for side, kernel, stride, padding in sides]
    return places[0] * places[1] <= MOST_PLACES


class SmallMaps(torch.autograd.Function):
    """(map M(R·C)HW, kernel_ROHWC, bias_RO, stride, padding) → map M(R·O)HW; all maps are channels last."""

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any,
        x: Tensor,
        kernel_ROHWC: Tensor,
        bias_RO: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, kernel_ROHWC)
        ctx.stride, ctx.padding = stride, padding
        kernel = kernel_ROHWC.flatten(0, 1).permute(0, 3, 1, 2)
        return functional.conv2d(x, kernel, bias_RO.flatten(), stride, padding, groups=len(bias_RO))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel_ROHWC = ctx.saved_tensors
        rows, out = kernel_ROHWC.shape[:2]
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = None
        if ctx.needs_input_grad[0]:
            kernel = kernel_ROHWC.flatten(0, 1).permute(0, 3, 1, 2)
            sizes = ([rows * out], ctx.stride, ctx.padding, (1, 1), False, (0, 0), rows)
            dx = torch.ops.aten.convolution_backward(dy, x, kernel, *sizes, (True, False, False))[0]
        dy_RNO = dy.permute(0, 2, 3, 1).reshape(-1, rows, out).transpose(0, 1)
        dkernel_ROK = torch.bmm(dy_RNO.transpose(1, 2), _under_kernels(x, kernel_ROHWC, ctx))
        ones_R1N = dy_RNO.new_ones((rows, 1, dy_RNO.shape[1]))
        dbias_RO = torch.bmm(ones_R1N, dy_RNO)[:, 0]
        return dx, dkernel_ROK.view_as(kernel_ROHWC), dbias_RO, None, None


def _under_kernels(x: Tensor, kernel_ROHWC: Tensor, ctx: Any) -> Tensor:
    """For each place of the map out the numbers that it was computed from, RNK."""
    rows, _, height, width, channels = kernel_ROHWC.shape
    x_MHWRC = x.permute(0, 2, 3, 1).view(len(x), *x.shape[2:], rows, channels)
    if any(ctx.padding):
        above, left = ctx.padding
        x_MHWRC = functional.pad(x_MHWRC, (0, 0, 0, 0, left, left, above, above))
    windows: Tensor = x_MHWRC.unfold(1, height, ctx.stride[0]).unfold(2, width, ctx.stride[1])
    return windows.permute(3, 0, 1, 2, 5, 6, 4).reshape(rows, -1, height * width * channels)
