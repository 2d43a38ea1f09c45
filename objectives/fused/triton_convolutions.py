"""Convolutions of many rows by kernels of our own, written in Triton: forward and both gradients.

Shapes: R rows, M images of a row, C, O channels in and out of a row, H, W height and width, N places of M
maps, K = H·W·C numbers under a kernel, P parts of the places.

Between a grouped convolution, whose kernels in cuDNN do badly with few channels in a group, and products over
what lies under the kernel (`Im2col`), which write and read every number of a map once for each number of the
kernel: here the product reads it from the map itself. Float32, in TF32 where that is the precision of
products, and bfloat16, added up in float32. Float64 isn't taken: it would be added up in float32.

Which block a program of the grid computes is settled by a convolution's own sizes alone, with no measuring of
variants: two of them would add up in two orders. Triton comes with torch's builds for CUDA; elsewhere the
kernels run in its interpreter, slowly, where `TRITON_INTERPRET=1` was set before it was first imported.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from objectives.fused.functions import applied
from objectives.fused.triton_there import has_triton

if TYPE_CHECKING:
    from objectives.fused.convolutions import Setting, Shape

Numbers: TypeAlias = dict[str, object]
"""Argument of a kernel that is fixed when it is compiled → its value."""

LEAST = 16
"""Lines and columns of the smallest block that tensor cores multiply, and Triton's `dot` takes."""

MOST = 64
"""Lines and columns of the largest block: with more, a program for an A100 runs out of registers."""

PART = 8192
"""Places over which one program adds up a kernel's gradient. Where there are more, several do, each for a
part of them, and the parts are added one after the other: few rows would else be few programs for a GPU."""

ADDED = 1024
"""Numbers that one program adds up over the parts."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a convolution of one row: what its kernels are compiled for."""

    channels: int
    out: int
    height: int
    width: int
    high: int
    """Lines of the kernel."""
    wide: int
    down: int
    """The stride from line to line."""
    across: int
    above: int
    """The padding."""
    left: int
    tail: int = 0
    """What is computed with it, see `objectives.fused.tails`."""

    @property
    def lines(self) -> int:
        """Of the map out."""
        return (self.height + 2 * self.above - self.high) // self.down + 1

    @property
    def columns(self) -> int:
        """Of the map out."""
        return (self.width + 2 * self.left - self.wide) // self.across + 1

    @property
    def side(self) -> int:
        """Of the squares of places of which the largest is given on."""
        return max(1, self.tail)

    @property
    def shown(self) -> tuple[int, int]:
        """Lines and columns of what is given on."""
        return self.lines // self.side, self.columns // self.side

    @property
    def under(self) -> int:
        """K."""
        return self.high * self.wide * self.channels

    @property
    def numbers(self) -> Numbers:
        """As the kernels name them."""
        return {
            "CHANNELS": self.channels,
            "OUT": self.out,
            "HEIGHT": self.height,
            "WIDTH": self.width,
            "HIGH": self.high,
            "WIDE": self.wide,
            "DOWN": self.down,
            "ACROSS": self.across,
            "ABOVE": self.above,
            "LEFT": self.left,
            "LINES": self.lines,
            "COLUMNS": self.columns,
            "SIDE": self.side,
            "RELU": self.tail > 0,
        }


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of the blocks of a product: of its result, and of what is added up at a time."""

    long: int
    """Of the result's side that is long: places, or channels out for a kernel's gradient."""
    short: int
    added: int
    stages: int
    """Of reading ahead."""
    warps: int = 4


def blocks_of(long: int | None, short: int, added: int, dtype: torch.dtype) -> Blocks:
    """The blocks of a product of `long` × `added` by `added` × `short` numbers; None: of very many.

    Large enough that what is read is used often, small enough for a program's registers; no larger than what
    there is to compute. Numbers in float32 are twice as large, and have fewer stages of reading ahead.
    """
    half = dtype == torch.bfloat16
    return Blocks(
        long=_within(MOST if long is None else long, MOST),
        short=_within(short, MOST),
        added=_within(added, MOST if half else MOST // 2),
        stages=3 if half else 2,
    )


def takes_triton(shape: Shape, setting: Setting) -> bool:
    """Where Triton can be had: a GPU that it compiles for, or anywhere in its interpreter."""
    return (
        shape.windows
        and setting.dtype in {torch.float32, torch.bfloat16}
        and (setting.capability >= (8, 0) if setting.type == "cuda" else _interpreting())
        and has_triton()
    )


def takes_block(shape: Shape, setting: Setting) -> bool:
    """Where there is a tail besides."""
    return shape.tail > 0 and takes_triton(shape, setting)


def by_triton(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    """A `Run`, as `CONVOLUTIONS` has them."""
    return block_by_triton(x, kernel_ROHWC, bias_RO, module, 0)


def block_by_triton(
    x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d, tail: int
) -> Tensor:
    """A `RunBlock`: the tail with it."""
    learns = torch.is_grad_enabled()
    return applied(TritonConvolution, x, kernel_ROHWC, bias_RO, module.stride, module.padding, tail, learns)


class TritonConvolution(torch.autograd.Function):
    """A kernel for each of the map out, the gradient of the map in, and those of kernel and bias.

    With a tail, the map out is what that makes of it, and all that backward needs of it besides is a byte for
    each of its numbers: which place of the map it was, or that the ReLU gives no gradient on.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any,
        x: Tensor,
        kernel_ROHWC: Tensor,
        bias_RO: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        tail: int,
        learns: bool,
    ) -> Tensor:
        out, high, wide, channels = kernel_ROHWC.shape[1:]
        (down, across), (above, left) = stride, padding
        sides = x.shape[2], x.shape[3]
        geometry = Geometry(channels, out, *sides, high, wide, down, across, above, left, tail)
        x_MHWX, kernel_ROHWC = _plain(x.permute(0, 2, 3, 1)), _plain(kernel_ROHWC)
        choice_MHWX = _blank(x_MHWX, len(kernel_ROHWC), geometry, torch.uint8) if tail and learns else None
        ctx.save_for_backward(x_MHWX, kernel_ROHWC, choice_MHWX)
        # Asked here: the thread that goes backward may run after the settings are as they were.
        ctx.geometry, ctx.precision = geometry, torch.backends.cuda.matmul.fp32_precision
        y_MHWX = map_out(x_MHWX, kernel_ROHWC, bias_RO, geometry, ctx.precision, choice_MHWX)
        return y_MHWX.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_MHWX, kernel_ROHWC, choice_MHWX = ctx.saved_tensors
        dy_MHWX = _plain(dy.permute(0, 2, 3, 1))
        how = ctx.geometry, ctx.precision, choice_MHWX
        dx = None
        if ctx.needs_input_grad[0]:
            dx = images_gradient(dy_MHWX, kernel_ROHWC, *how).permute(0, 3, 1, 2)
        found = kernel_gradient(x_MHWX, dy_MHWX, len(kernel_ROHWC), *how, bias=ctx.needs_input_grad[2])
        return dx, found[0].view_as(kernel_ROHWC), found[1], None, None, None, None


def map_out(  # noqa: PLR0917 (what a convolution is computed from, and how)
    x_MHWX: Tensor,
    kernel_ROHWC: Tensor,
    bias_RO: Tensor | None,
    geometry: Geometry,
    precision: str,
    choice_MHWX: Tensor | None = None,
) -> Tensor:
    """y_MHWX, X its rows' channels out. With a tail, which places those are of is written into the last."""
    from objectives.fused import triton_kernels as kernels

    rows, images = len(kernel_ROHWC), len(x_MHWX)
    y_MHWX = _blank(x_MHWX, rows, geometry, x_MHWX.dtype)
    places = images * math.prod(geometry.shown)
    blocks = blocks_of(MOST // 2 if geometry.side > 1 else None, geometry.out, geometry.under, x_MHWX.dtype)
    grid = _times(places, blocks.long), _times(geometry.out, blocks.short), rows
    with _on(x_MHWX):
        kernels.forward[grid](
            x_MHWX,
            kernel_ROHWC,
            None if bias_RO is None else _plain(bias_RO),
            y_MHWX,
            choice_MHWX,
            rows,
            images,
            **geometry.numbers,
            **_how(x_MHWX, precision, blocks),
            CHOOSES=choice_MHWX is not None,
            BIAS=bias_RO is not None,
            BLOCK_N=blocks.long,
            BLOCK_O=blocks.short,
            BLOCK_K=blocks.added,
        )
    return y_MHWX


def images_gradient(
    dy_MHWX: Tensor,
    kernel_ROHWC: Tensor,
    geometry: Geometry,
    precision: str,
    choice_MHWX: Tensor | None = None,
) -> Tensor:
    """dx_MHWX, X its rows' channels. With a tail, the gradient given is that of what it made of the map."""
    from objectives.fused import triton_kernels as kernels

    rows, images = len(kernel_ROHWC), len(dy_MHWX)
    dx_MHWX = dy_MHWX.new_empty((images, geometry.height, geometry.width, rows * geometry.channels))
    phases = geometry.down * geometry.across
    in_phase = _times(geometry.height, geometry.down) * _times(geometry.width, geometry.across)
    through = _times(geometry.high, geometry.down) * _times(geometry.wide, geometry.across) * geometry.out
    blocks = blocks_of(None, geometry.channels, through, dy_MHWX.dtype)
    grid = phases * _times(images * in_phase, blocks.long), _times(geometry.channels, blocks.short), rows
    with _on(dy_MHWX):
        kernels.images_gradient[grid](
            dy_MHWX,
            choice_MHWX,
            kernel_ROHWC,
            dx_MHWX,
            rows,
            images,
            **geometry.numbers,
            **_how(dy_MHWX, precision, blocks),
            BLOCK_N=blocks.long,
            BLOCK_C=blocks.short,
            BLOCK_K=blocks.added,
        )
    return dx_MHWX


def kernel_gradient(  # noqa: PLR0917 (what it is computed from, and how)
    x_MHWX: Tensor,
    dy_MHWX: Tensor,
    rows: int,
    geometry: Geometry,
    precision: str,
    choice_MHWX: Tensor | None = None,
    *,
    bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """dkernel_ROK, and dbias_RO if it is asked for; as `images_gradient`."""
    from objectives.fused import triton_kernels as kernels

    images = len(x_MHWX)
    places = images * math.prod(geometry.shown) * geometry.side**2
    parts = _times(places, PART)
    dtype = x_MHWX.dtype if parts == 1 else torch.float32
    dkernel_PROK = x_MHWX.new_empty((parts, rows, geometry.out, geometry.under), dtype=dtype)
    dbias_PRO = x_MHWX.new_empty((parts, rows, geometry.out), dtype=dtype) if bias else None
    blocks = blocks_of(geometry.out, geometry.under, LEAST * LEAST, x_MHWX.dtype)
    grid = _times(geometry.out, blocks.long) * _times(geometry.under, blocks.short), parts, rows
    with _on(x_MHWX):
        kernels.kernel_gradient[grid](
            x_MHWX,
            dy_MHWX,
            choice_MHWX,
            dkernel_PROK,
            dbias_PRO,
            rows,
            images,
            **geometry.numbers,
            **_how(x_MHWX, precision, blocks),
            BIAS=bias,
            LENGTH=PART,
            BLOCK_O=blocks.long,
            BLOCK_K=blocks.short,
            BLOCK_N=blocks.added,
        )
    return _added(dkernel_PROK, x_MHWX.dtype), None if dbias_PRO is None else _added(dbias_PRO, x_MHWX.dtype)


def _blank(like_MHWX: Tensor, rows: int, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """Room for what is given on."""
    return like_MHWX.new_empty((len(like_MHWX), *geometry.shown, rows * geometry.out), dtype=dtype)


def _added(found_PX: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the parts."""
    from objectives.fused import triton_kernels as kernels

    if len(found_PX) == 1:
        return found_PX[0]
    result_X = found_PX.new_empty(found_PX.shape[1:], dtype=dtype)
    grid = (_times(result_X.numel(), ADDED),)
    with _on(found_PX):
        kernels.add_parts[grid](found_PX, result_X, len(found_PX), result_X.numel(), BLOCK=ADDED)
    return result_X


def _how(tensor: Tensor, precision: str, blocks: Blocks) -> Numbers:
    """How a kernel multiplies numbers of this type, and what of the GPU it takes."""
    from objectives.fused import triton_kernels as kernels

    return {
        "PRECISION": "tf32" if precision == "tf32" and tensor.dtype == torch.float32 else "ieee",
        # The interpreter's `dot` takes bfloat16 for whole numbers. Products of it are the same in float32.
        "WIDEN": kernels.INTERPRETED and tensor.dtype == torch.bfloat16,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """On a GPU that a tensor is on, kernels are started for the time of the block."""
    found: AbstractContextManager[object] = torch.cuda.device_of(tensor)
    return found


def _plain(tensor: Tensor) -> Tensor:
    """The same numbers without gaps, and beginning where Triton takes for granted that tensors do.

    For one that began elsewhere it would compile another kernel, which can't be while steps are recorded.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % LEAST == 0 else tensor.clone()


def _within(size: int, most: int) -> int:
    """The power of two that a block of so many numbers needs."""
    block = LEAST
    while block < min(size, most):
        block *= 2
    return block


def _times(size: int, block: int) -> int:
    return -(-size // block)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
