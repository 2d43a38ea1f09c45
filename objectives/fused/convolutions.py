"""Convolutions of many rows at once, in several ways that give the same but for rounding: `CONVOLUTIONS`.

Shapes: R rows, M images of a row, C, O channels in and out of a row, H, W a kernel's, or a map's, height and
width, N = M·H·W places of a map out, K = H·W·C numbers under a kernel.

A row's numbers are the same to the bit however many rows there are, in all of these ways (on a CPU). Which
one is fastest depends on the device, and on a GPU on much else: there it is measured for each convolution
(`backends.py`), and `usual` is what holds where nothing was measured. Milliseconds of one thread, forward and
backward of 8 rows of 32 images, kernels of 3×3 (torch 2.13, EPYC with AVX-512, medians of 9):

    C → O, map in    grouped   hybrid   im2col
    64 → 64, 4×4         5.6      4.7      3.9
    64 → 64, 5×5         7.9      7.6      7.7
    64 → 64, 6×6        12.1     12.7     14.2
    32 → 64, 6×6         7.7      8.9      9.5
    32 → 64, 15×15        55       71       98
    3 → 32, 32×32         17       48       52

Those by Triton are not in the table: they run on GPUs alone, and none was at hand to time them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.fused.functions import applied
from objectives.fused.products import aligned, begins_lines, into, products, room
from objectives.fused.tails import tails
from objectives.fused.triton_convolutions import block_by_triton, by_triton, takes_block, takes_triton
from objectives.fused.triton_tails import grouped_with_tail
from objectives.fused.winograd import block_by_winograd, by_winograd, can_winograd, takes_winograd
from objectives.models import InputShape

MANY_CHANNELS = 32
"""In and out, from which on the usual way on a CPU is Winograd's, where it is offered. Forward and backward
of 8 rows of 32 images, over those of a grouped convolution (the same CPU, busy otherwise, medians of 7):
64 → 64 channels, maps of 4×4, 5×5 and 6×6: 0.76, 0.70, 0.76; 32 → 64, 6×6: 0.77; 32 → 32, 6×6: 0.75;
16 → 16, 4×4 and 6×6: 1.51, 1.53."""

MOST_PLACES = 9
"""Of a map out, for which the usual way on a CPU is else the hybrid one. Both show in a curve's last bits."""

TENSOR_CORES = 8
"""Numbers in bfloat16 that lie together; `grouped_mm` takes sizes that are so many times a whole number."""

Run: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, nn.Conv2d], Tensor]
"""(map M(R·C)HW, kernel_ROHWC, bias_RO or None, the module) → map M(R·O)HW; all maps are channels last."""

RunBlock: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, nn.Conv2d, int], Tensor]
"""A `Run` that computes the convolution's tail as well, given last, see `objectives.fused.tails`."""

Multiply: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""left_RAB, right_RBC → RAC."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A convolution of a model, with the map that comes to it."""

    channels: int
    out: int
    height: int
    """Of the map."""
    width: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    bias: bool
    inner: bool
    """Whether the gradient with respect to the map is asked for: not of a model's first layer."""
    tail: int = 0
    """What follows it that might be computed with it, see `objectives.fused.tails`."""

    @property
    def windows(self) -> bool:
        """Whether its windows are plain slices of the map, padded alike on both sides."""
        return self.dilation == (1, 1) and not isinstance(self.padding, str)

    @property
    def places(self) -> int:
        """Of the map out, if it has `windows`."""
        assert not isinstance(self.padding, str), "asked of those with windows alone"
        return _places(self.height, self.width, self.kernel, self.stride, self.padding)[2]

    def __str__(self) -> str:
        kernel = "×".join(map(str, self.kernel))
        return f"{self.channels}→{self.out} channels, {kernel}, map of {self.height}×{self.width}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Where convolutions run, and how many at once."""

    device: str
    """The kind: a processor's or GPU's name."""
    type: str
    """`cpu` or `cuda`."""
    capability: tuple[int, int]
    """Of a GPU; (0, 0) for a CPU."""
    rows: int
    images: int
    """Of a row."""
    dtype: torch.dtype
    """Of the maps."""
    precision: str
    """In which products of that type are computed."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to compute convolutions."""

    run: Run
    offered: Callable[[Shape, Setting], bool]
    """Whether it can be taken there."""
    block: RunBlock | None = None
    """None: a tail is computed after it, operation by operation."""


def usual(shape: Shape, device: str, dtype: torch.dtype) -> str:
    """The backend of a convolution on a type of device where none was chosen by measuring; `dtype` is that
    of the maps.
    """
    if device != "cpu":
        return "grouped"
    if min(shape.channels, shape.out) >= MANY_CHANNELS and can_winograd(shape, dtype):
        return "winograd"
    small = shape.bias and shape.windows and shape.places <= MOST_PLACES
    return "hybrid" if small else "grouped"


def shapes_of(model: nn.Module, input_shape: InputShape) -> dict[str, Shape]:
    """Name → each convolution of a model, in the order in which they run, found by a pass."""
    found: dict[str, Shape] = {}
    tail_of = tails(model)

    def look(name: str, module: nn.Conv2d, x: Tensor) -> None:
        found[name] = Shape(
            channels=module.in_channels,
            out=module.out_channels,
            height=x.shape[2],
            width=x.shape[3],
            kernel=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            bias=module.bias is not None,
            inner=x.requires_grad,
            tail=tail_of.get(name, 0),
        )

    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: look(name, module, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    parameter = next(model.parameters())
    model.eval()
    with torch.enable_grad():
        model(torch.zeros((2, *input_shape), device=parameter.device, dtype=parameter.dtype))
    model.train()
    for hook in hooks:
        hook.remove()
    return found


def _grouped(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    """A convolution in R groups."""
    return functional.conv2d(
        x,
        kernel_ROHWC.flatten(0, 1).permute(0, 3, 1, 2),
        None if bias_RO is None else bias_RO.flatten(),
        module.stride,
        module.padding,
        module.dilation,
        groups=len(kernel_ROHWC),
    )


def _hybrid(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    return applied(Hybrid, x, kernel_ROHWC, bias_RO, module.stride, module.padding)


def _im2col(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    return applied(Im2col, x, kernel_ROHWC, bias_RO, module.stride, module.padding, None)


def _grouped_mm(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    multiply = functional.grouped_mm
    return applied(Im2col, x, kernel_ROHWC, bias_RO, module.stride, module.padding, multiply)


def _in_windows(shape: Shape, _: Setting) -> bool:
    return shape.windows


def _takes_grouped_mm(shape: Shape, setting: Setting) -> bool:
    """Where torch documents it: matrices in bfloat16 on a GPU that has it, in whole units."""
    under = shape.channels * shape.kernel[0] * shape.kernel[1]
    return (
        shape.windows
        and setting.type == "cuda"
        and setting.capability >= (8, 0)
        and setting.dtype == torch.bfloat16
        and hasattr(functional, "grouped_mm")
        and shape.out % TENSOR_CORES == under % TENSOR_CORES == 0
    )


class Hybrid(torch.autograd.Function):
    """As a grouped convolution, but for the weights' gradients: those are products.

    A grouped convolution's gradient with respect to its weights is slow in oneDNN where the map out has few
    places.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any,
        x: Tensor,
        kernel_ROHWC: Tensor,
        bias_RO: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, kernel_ROHWC)
        ctx.stride, ctx.padding = stride, padding
        kernel = kernel_ROHWC.flatten(0, 1).permute(0, 3, 1, 2)
        bias = None if bias_RO is None else bias_RO.flatten()
        return functional.conv2d(x, kernel, bias, stride, padding, groups=len(kernel_ROHWC))

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
        dy_RNO = _by_rows(dy, rows)
        under_RNK = _under_kernels(x, kernel_ROHWC, ctx.stride, ctx.padding)
        dkernel_ROK = products(dy_RNO.transpose(1, 2), under_RNK)
        dbias_RO = _over_places(dy_RNO) if ctx.needs_input_grad[2] else None
        return dx, dkernel_ROK.view_as(kernel_ROHWC), dbias_RO, None, None


class Im2col(torch.autograd.Function):
    """Products alone: of what lies under the kernel at each place with the weights.

    The last argument multiplies instead of `products`; None: it doesn't.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any,
        x: Tensor,
        kernel_ROHWC: Tensor,
        bias_RO: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        multiply: Multiply | None,
    ) -> Tensor:
        rows, out, *kernel, _ = kernel_ROHWC.shape
        height, width, _ = _places(x.shape[2], x.shape[3], kernel, stride, padding)
        under_RNK = _under_kernels(x, kernel_ROHWC, stride, padding)
        ctx.save_for_backward(under_RNK, kernel_ROHWC)
        ctx.map, ctx.places, ctx.stride, ctx.padding = x.shape, (height, width), stride, padding
        ctx.multiply = multiply
        y_MHWRO = x.new_empty((len(x), height, width, rows, out))
        y_RNO = y_MHWRO.view(-1, rows, out).transpose(0, 1)
        weight_RKO = aligned(kernel_ROHWC.flatten(2)).transpose(1, 2)
        added_R1O = None if bias_RO is None else bias_RO[:, None]
        if multiply:
            found_RNO = multiply(under_RNK, weight_RKO)
            y_RNO.copy_(found_RNO if added_R1O is None else found_RNO + added_R1O)
        elif begins_lines(y_RNO):
            into(y_RNO, under_RNK, weight_RKO, added_R1O)
        else:
            y_RNO.copy_(products(under_RNK, weight_RKO, added_R1O))
        return y_MHWRO.flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        under_RNK, kernel_ROHWC = ctx.saved_tensors
        multiply = ctx.multiply or products
        dy_RNO = _by_rows(dy.contiguous(memory_format=torch.channels_last), len(kernel_ROHWC))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _spread(multiply(dy_RNO, kernel_ROHWC.flatten(2)), kernel_ROHWC, ctx)
        dkernel_ROK = multiply(dy_RNO.transpose(1, 2), under_RNK)
        dbias_RO = _over_places(dy_RNO) if ctx.needs_input_grad[2] else None
        return dx, dkernel_ROK.view_as(kernel_ROHWC), dbias_RO, None, None, None


def _places(
    height: int,
    width: int,
    kernel: tuple[int, ...] | list[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> tuple[int, int, int]:
    """Height and width of a map out, and its places."""
    sides = zip((height, width), kernel, stride, padding, strict=True)
    high, wide = ((side + 2 * pad - under) // step + 1 for side, under, step, pad in sides)
    return high, wide, high * wide


def _by_rows(map_: Tensor, rows: int) -> Tensor:
    """A map as a matrix RNO of its places and channels for each row; a view if it is channels last."""
    return map_.permute(0, 2, 3, 1).reshape(-1, rows, map_.shape[1] // rows).transpose(0, 1)


def _over_places(dy_RNO: Tensor) -> Tensor:
    """The sum RO over all places."""
    dy_RNO = aligned(dy_RNO)
    ones_R1N = dy_RNO.new_ones((1, 1, dy_RNO.shape[1])).expand(len(dy_RNO), -1, -1)
    return products(ones_R1N, dy_RNO)[:, 0]


def _under_kernels(
    x: Tensor, kernel_ROHWC: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """For each place of the map out the numbers that it is computed from, RNK, `aligned`; copies."""
    rows, _, height, width, channels = kernel_ROHWC.shape
    x_MHWRC = x.permute(0, 2, 3, 1).reshape(len(x), *x.shape[2:], rows, channels)
    if any(padding):
        above, left = padding
        x_MHWRC = functional.pad(x_MHWRC, (0, 0, 0, 0, left, left, above, above))
    windows: Tensor = x_MHWRC.unfold(1, height, stride[0]).unfold(2, width, stride[1])
    windows = windows.permute(3, 0, 1, 2, 5, 6, 4)
    under = room(kernel_ROHWC, windows.shape[1:]).copy_(windows)
    return under.flatten(1, 3).flatten(2)


def _spread(dunder_RNK: Tensor, kernel_ROHWC: Tensor, ctx: Any) -> Tensor:
    """The inverse of `_under_kernels` for gradients: what every number of the map in was used for, added up.

    In float32 at least: as many are added as a kernel has places.
    """
    rows, _, high, wide, channels = kernel_ROHWC.shape
    images, _, height, width = ctx.map
    (above, left), (down, across) = ctx.padding, ctx.stride
    dunder = dunder_RNK.reshape(rows, images, *ctx.places, high, wide, channels)
    dx_MHWRC = dunder.new_zeros(
        (images, height + 2 * above, width + 2 * left, rows, channels),
        dtype=torch.promote_types(dunder.dtype, torch.float32),
    )
    dx_RMHWC = dx_MHWRC.permute(3, 0, 1, 2, 4)
    for row in range(high):
        for column in range(wide):
            lines = slice(row, row + down * ctx.places[0], down)
            columns = slice(column, column + across * ctx.places[1], across)
            dx_RMHWC[:, :, lines, columns] += dunder[:, :, :, :, row, column]
    inside_MHWRC = dx_MHWRC[:, above : above + height, left : left + width]
    return inside_MHWRC.to(dunder.dtype).flatten(3).permute(0, 3, 1, 2)


CONVOLUTIONS: Mapping[str, Backend] = {
    "grouped": Backend(_grouped, lambda _, __: True),
    "hybrid": Backend(_hybrid, _in_windows),
    "im2col": Backend(_im2col, _in_windows),
    "grouped_mm": Backend(_grouped_mm, _takes_grouped_mm),
    "grouped_tail": Backend(_grouped, takes_block, grouped_with_tail),
    "triton": Backend(by_triton, takes_triton),
    "triton_block": Backend(by_triton, takes_block, block_by_triton),
    "winograd": Backend(by_winograd, takes_winograd, block_by_winograd),
}
"""Name → backend. The first takes every convolution that there is."""
