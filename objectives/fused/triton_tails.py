"""What follows a convolution by one kernel: the bias, a ReLU and a pool; and by one more backward.

Shapes: R rows, O channels out of a row, M images, H, W height and width of a map, X = R·O.

For where cuDNN computes the convolution: by operations the bias, the ReLU and the pool each read and write
the map, and the pool keeps where the largest were in 64 bits. Here the map is read once and what is kept is a
byte; see `triton_convolutions.py` for a convolution that doesn't write the map at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.fused.functions import applied

AT_ONCE = 1024
"""Numbers that one program computes."""


def grouped_with_tail(
    x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d, tail: int
) -> Tensor:
    """A `RunBlock`: a convolution in R groups, and its tail."""
    y = functional.conv2d(
        x,
        kernel_ROHWC.flatten(0, 1).permute(0, 3, 1, 2),
        None,
        module.stride,
        module.padding,
        module.dilation,
        groups=len(kernel_ROHWC),
    )
    return applied(Tail, y, None if bias_RO is None else bias_RO.flatten(), tail, torch.is_grad_enabled())


class Tail(torch.autograd.Function):
    """(map MXHW, bias X or None, tail, whether it learns) → what the tail makes of it, channels last."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias_X: Tensor | None, tail: int, learns: bool) -> Tensor:
        from objectives.fused import triton_tail_kernels as kernels

        y_MHWX = y.permute(0, 2, 3, 1).contiguous()
        images, height, width, channels = y_MHWX.shape
        shown_MHWX = y_MHWX.new_empty((images, height // tail, width // tail, channels))
        choice_MHWX = torch.empty_like(shown_MHWX, dtype=torch.uint8) if learns else None
        numbers = shown_MHWX.numel()
        with torch.cuda.device_of(y):
            kernels.tail[-(-numbers // AT_ONCE),](
                y_MHWX,
                None if bias_X is None else bias_X.contiguous(),
                shown_MHWX,
                choice_MHWX,
                numbers,
                channels,
                HEIGHT=height,
                WIDTH=width,
                SIDE=tail,
                BIAS=bias_X is not None,
                CHOOSES=learns,
                BLOCK=AT_ONCE,
            )
        ctx.save_for_backward(choice_MHWX)
        ctx.shape, ctx.tail = y_MHWX.shape, tail
        return shown_MHWX.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dshown: Tensor) -> tuple[Tensor | None, ...]:
        from objectives.fused import triton_tail_kernels as kernels

        (choice_MHWX,) = ctx.saved_tensors
        dshown_MHWX = dshown.permute(0, 2, 3, 1).contiguous()
        dy_MHWX = dshown_MHWX.new_empty(ctx.shape)
        numbers = dy_MHWX.numel()
        with torch.cuda.device_of(dshown):
            kernels.tail_gradient[-(-numbers // AT_ONCE),](
                dshown_MHWX,
                choice_MHWX,
                dy_MHWX,
                numbers,
                ctx.shape[3],
                HEIGHT=ctx.shape[1],
                WIDTH=ctx.shape[2],
                SIDE=ctx.tail,
                BLOCK=AT_ONCE,
            )
        dbias_X = None
        if ctx.needs_input_grad[1]:
            # Of the numbers that are shown, which are fewer: each goes to one place, or to none.
            dbias_X = torch.where(choice_MHWX < ctx.tail**2, dshown_MHWX, 0.0).sum((0, 1, 2))
        return dy_MHWX.permute(0, 3, 1, 2), dbias_X, None, None
