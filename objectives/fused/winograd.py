"""Convolutions of 3×3 onto small maps with fewer multiplications than their definition has: Winograd's.

Shapes: R rows, M images of a row, C, O channels in and out of a row; D places of the map in, S of the map out
(2 to 4 on each side), Q numbers that a map is turned into for each channel, (m + 2) of them for m on a side.

    map in DMC → B·map: QMC, times G·kernel: QOC → QMO → A·that: SMO, map out

A map out of 4×4 takes Q = 36 multiplications for each pair of channels, where the definition has 144; one of
2×2 takes 16 for 36. What is before and after them are products with constant matrices; all of it is linear,
so gradients go back by the transposed matrices. Places of the padding are 0, and left out. The matrices are
those of Toom and Cook (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks") at points that
round little (Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd convolution for
deep neural networks"): in float32 maps and their gradients are off by at most 5 times what they are off by
the definition, 1e-6 of their norm, and gradients of kernels by as much as by the definition.

Rows are computed one after the other through the same few blocks of memory, which stay in a core's cache,
each by products of the same sizes: a row's numbers depend on nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.fused.functions import applied
from objectives.fused.tails import SIDE

if TYPE_CHECKING:
    from objectives.fused.convolutions import Setting, Shape

UNDER = 3
"""Height and width of the kernels."""

TOGETHER = 16
"""Numbers of channels must be multiples of it: so every matrix begins at a cache line, see `products`."""

POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    3: (Fraction(0), Fraction(1, 2), Fraction(-1), Fraction(2)),
    4: (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
}
"""Places m on a side of the map out → where polynomials are evaluated, besides at infinity."""

Lines: TypeAlias = list[list[Fraction]]
"""Of a matrix."""


def takes_winograd(shape: Shape, setting: Setting) -> bool:
    """On a CPU, where the map out is small."""
    return setting.type == "cpu" and can_winograd(shape, setting.dtype)


def can_winograd(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether it is a convolution of those that are computed here, of maps of this type."""
    return (
        dtype in {torch.float32, torch.float64}
        and shape.windows
        and (shape.kernel, shape.stride) == ((UNDER, UNDER), (1, 1))
        and all(side in POINTS for side in _sides_out(shape.height, shape.width, shape.padding))
        and shape.channels % TOGETHER == shape.out % TOGETHER == 0
    )


def by_winograd(x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d) -> Tensor:
    """A `Run`, as `CONVOLUTIONS` has them."""
    return applied(Winograd, x, kernel_ROHWC, bias_RO, module.padding, False)


def block_by_winograd(
    x: Tensor, kernel_ROHWC: Tensor, bias_RO: Tensor | None, module: nn.Conv2d, tail: int
) -> Tensor:
    """A `RunBlock`: the ReLU in place, and in backward while the gradient is copied; a pool by itself."""
    y = applied(Winograd, x, kernel_ROHWC, bias_RO, module.padding, True)
    return functional.max_pool2d(y, SIDE) if tail == SIDE else y


class Winograd(torch.autograd.Function):
    """(map, kernel_ROHWC, bias_RO or None, padding, whether a ReLU follows) → map."""

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any,
        x: Tensor,
        kernel_ROHWC: Tensor,
        bias_RO: Tensor | None,
        padding: tuple[int, int],
        relu: bool,
    ) -> Tensor:
        rows, out, *_, channels = kernel_ROHWC.shape
        images, _, height, width = x.shape
        made = _matrices(height, width, padding, x.dtype)
        kernel_R9OC = kernel_ROHWC.flatten(2, 3).transpose(1, 2).contiguous()
        x_RQMC = x.new_empty((rows, made.numbers, images, channels))
        y_MSRO = x.new_empty((images, made.high * made.wide, rows, out))
        x_DMC = x.new_empty((height * width, images, channels))
        kernel_QOC = x.new_empty((made.numbers, out, channels))
        y_QMO = x.new_empty((made.numbers, images, out))
        y_SMO = x.new_empty((made.high * made.wide, images, out))
        x_DX, kernel_QX, y_QX, y_SX = (t.flatten(1) for t in (x_DMC, kernel_QOC, y_QMO, y_SMO))
        kernel_QCO = kernel_QOC.transpose(1, 2)
        into_QD, kernels_Q9, out_SQ = made.into.T, made.kernels.T, made.out.T
        each = zip(
            _by_rows(x, rows).unbind(),
            x_RQMC.unbind(),
            x_RQMC.flatten(2).unbind(),
            kernel_R9OC.flatten(2).unbind(),
            y_MSRO.permute(2, 1, 0, 3).unbind(),
            [None] * rows if bias_RO is None else bias_RO.unbind(),
            strict=True,
        )
        for map_DMC, x_QMC, x_QX, kernel_9X, map_SMO, bias_O in each:
            x_DMC.copy_(map_DMC)
            torch.mm(into_QD, x_DX, out=x_QX)
            torch.mm(kernels_Q9, kernel_9X, out=kernel_QX)
            torch.bmm(x_QMC, kernel_QCO, out=y_QMO)
            torch.mm(out_SQ, y_QX, out=y_SX)
            if bias_O is None:
                map_SMO.copy_(y_SMO)
            else:
                torch.add(y_SMO, bias_O, out=map_SMO)
        y = y_MSRO.view(images, made.high, made.wide, -1).permute(0, 3, 1, 2)
        ctx.save_for_backward(x_RQMC, kernel_R9OC, y.relu_() if relu else None)
        ctx.matrices, ctx.map = made, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_RQMC, kernel_R9OC, y = ctx.saved_tensors
        rows, _, out, channels = kernel_R9OC.shape
        made: Matrices = ctx.matrices
        images, _, height, width = ctx.map
        dkernel_R9OC = torch.empty_like(kernel_R9OC)
        dbias_RO = dy.new_empty((rows, out)) if ctx.needs_input_grad[2] else None
        inner = ctx.needs_input_grad[0]
        dx_MDRC = dy.new_empty((images, height * width, rows if inner else 0, channels))
        dy_SMO = dy.new_empty((made.high * made.wide, images, out))
        dy_QMO = dy.new_empty((made.numbers, images, out))
        kernel_QOC = dy.new_empty((made.numbers, out, channels))
        dx_QMC = dy.new_empty((made.numbers, images, channels))
        dx_DMC = dy.new_empty((height * width, images, channels))
        dy_SX, dy_QX, kernel_QX, dx_QX, dx_DX = (
            t.flatten(1) for t in (dy_SMO, dy_QMO, kernel_QOC, dx_QMC, dx_DMC)
        )
        dy_QOM, dy_XO = dy_QMO.transpose(1, 2), dy_SMO.flatten(0, 1)
        ones_1X = dy.new_ones((1, len(dy_XO)))
        kernels_Q9 = made.kernels.T
        into = dx_MDRC.permute(2, 1, 0, 3).unbind() if inner else [None] * rows
        each = zip(
            _by_rows(dy, rows).unbind(),
            [None] * rows if y is None else _by_rows(y, rows).unbind(),
            x_RQMC.unbind(),
            kernel_R9OC.flatten(2).unbind(),
            dkernel_R9OC.flatten(2).unbind(),
            [None] * rows if dbias_RO is None else dbias_RO.split(1),
            into,
            strict=True,
        )
        for map_SMO, y_SMO, x_QMC, kernel_9X, dkernel_9X, dbias_1O, map_DMC in each:
            if y_SMO is None:
                dy_SMO.copy_(map_SMO)
            else:
                torch.ops.aten.threshold_backward(map_SMO, y_SMO, 0, grad_input=dy_SMO)
            if dbias_1O is not None:
                torch.mm(ones_1X, dy_XO, out=dbias_1O)
            torch.mm(made.out, dy_SX, out=dy_QX)
            torch.bmm(dy_QOM, x_QMC, out=kernel_QOC)
            torch.mm(made.kernels, kernel_QX, out=dkernel_9X)
            if map_DMC is not None:
                torch.mm(kernels_Q9, kernel_9X, out=kernel_QX)
                torch.bmm(dy_QMO, kernel_QOC, out=dx_QMC)
                torch.mm(made.into, dx_QX, out=dx_DX)
                map_DMC.copy_(dx_DMC)
        dx = dx_MDRC.view(images, height, width, -1).permute(0, 3, 1, 2) if inner else None
        dkernel_RHWOC = dkernel_R9OC.view(rows, UNDER, UNDER, out, channels)
        return dx, dkernel_RHWOC.permute(0, 3, 1, 2, 4), dbias_RO, None, None


@dataclass(frozen=True, slots=True)
class Matrices:
    """What turns maps and kernels into numbers, and these into maps: of both sides, multiplied."""

    high: int
    """Of the map out, as is the next."""
    wide: int
    into: Tensor
    """B, as DQ."""
    kernels: Tensor
    """G, as 9Q."""
    out: Tensor
    """A, as QS."""

    @property
    def numbers(self) -> int:
        """Q."""
        return len(self.out)


@lru_cache(maxsize=64)
def _matrices(height: int, width: int, padding: tuple[int, int], dtype: torch.dtype) -> Matrices:
    """Those for maps in of such a size, without the places of the padding."""
    high, wide = _sides_out(height, width, padding)
    lines, columns = _lines_of_side(high), _lines_of_side(wide)
    into, kernels, out = (
        torch.kron(_tensor(one), _tensor(other)).to(dtype) for one, other in zip(lines, columns, strict=True)
    )
    places = into.T.view(high + UNDER - 1, wide + UNDER - 1, -1)
    above, left = padding
    inside = places[above : above + height, left : left + width].flatten(0, 1)
    return Matrices(high, wide, inside.contiguous(), kernels.T.contiguous(), out.contiguous())


def _lines_of_side(places: int) -> tuple[Lines, Lines, Lines]:
    """B, G and A of a side, with a line for each of the Q numbers.

    The product of a polynomial of m numbers and one of three is their values at Q points, multiplied one by
    one, and interpolated. So much for the gradient of a map in by that of a map out and the kernel; the
    convolution itself is the transpose.
    """
    points = POINTS[places]
    size = len(points) + 1
    interpolated = _inverse(_values(points, size))
    into = [[line[number] for line in interpolated] for number in range(size)]
    return into, _values(points, UNDER), _values(points, places)


def _values(points: Sequence[Fraction], count: int) -> Lines:
    """What the powers below `count` are at each point, and last at infinity: 1 for the highest, else 0."""
    at_infinity = [Fraction(power == count - 1) for power in range(count)]
    return [*([point**power for power in range(count)] for point in points), at_infinity]


def _inverse(matrix: Lines) -> Lines:
    """By elimination, exactly."""
    size = len(matrix)
    lines = [[*line, *(Fraction(place == row) for place in range(size))] for row, line in enumerate(matrix)]
    for row in range(size):
        pivot = next(line for line in lines[row:] if line[row])
        lines.remove(pivot)
        scaled = [number / pivot[row] for number in pivot]
        lines = [[mine - line[row] * its for mine, its in zip(line, scaled, strict=True)] for line in lines]
        lines.insert(row, scaled)
    return [line[size:] for line in lines]


def _tensor(lines: Lines) -> Tensor:
    return torch.tensor([[float(number) for number in line] for line in lines], dtype=torch.float64)


def _sides_out(height: int, width: int, padding: tuple[int, ...] | str) -> tuple[int, int]:
    """Height and width of the map out."""
    assert not isinstance(padding, str), "asked of windows alone"
    high, wide = (side + 2 * pad - UNDER + 1 for side, pad in zip((height, width), padding, strict=True))
    return high, wide


def _by_rows(map_: Tensor, rows: int) -> Tensor:
    """A map as R × its places, images and channels; a view, or a copy of one that isn't channels last."""
    images, _, height, width = map_.shape
    return map_.permute(0, 2, 3, 1).reshape(images, height * width, rows, -1).permute(2, 1, 0, 3)
