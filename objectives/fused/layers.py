"""Layers of many trials at once: each takes the images of all rows, and every row's own parameters.

Shapes: R rows, M images of a row, C channels, H, W height and width of a map, F features, T slots.

Images travel in one of two forms. A *map* is a tensor M(R·C)HW, channels last: one group of channels per row,
so that a convolution of R groups is R convolutions. A *vector* is RMF. Nothing here adds numbers of two
slots, and images that do not count never reach those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.fused.convolutions import Run, RunBlock
from objectives.fused.functions import applied
from objectives.fused.products import products
from objectives.fused.rows import RowTable
from objectives.fused.tails import tail_of
from objectives.models import Dropout, ResidualBlock


class NotStackableError(Exception):
    """A model has a layer that isn't among `STACKED`; the message says which."""


@dataclass(frozen=True, slots=True)
class Pass:
    """All that layers need besides the images, for one pass through the model."""

    rows: RowTable
    weights: Mapping[str, Tensor]
    """Parameter name → R × its stored shape."""
    buffers: Mapping[str, Tensor]
    """Buffer name → R × its shape."""
    training: bool
    masks: Iterator[Tensor | None]
    """What each dropout layer multiplies by, RMF, in the order in which they run; None: by nothing."""
    convolutions: Mapping[str, Run]
    """Module name → how this convolution is computed."""
    blocks: Mapping[str, RunBlock]
    """Module name → how it is computed with what follows it; those that are so."""
    activations: torch.dtype = torch.float32
    """In which convolutions and dense layers compute, and which every layer gives on."""
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Module name → mean RC and unbiased variance RC of the pass: left here by batch normalisations."""

    def factor(self, name: str) -> Tensor:
        """A parameter as products take it; its gradient comes back in its own type."""
        return self.weights[name].to(self.activations)


Layer: TypeAlias = Callable[[Tensor, Pass], Tensor]


def stack(module: nn.Module, name: str = "") -> Layer:
    """The layer that does for all rows what `module` does for one model; `name` is where it hangs in it.

    Raises `NotStackableError`.
    """
    builder = STACKED.get(type(module))
    if builder is None:
        raise NotStackableError(f"{type(module).__name__} has no stacked form")
    return builder(module, name)


def _sequential(module: nn.Sequential, name: str) -> Layer:
    keys, children = zip(*module.named_children(), strict=True) if len(module) else ((), ())
    layers: list[Layer] = []
    at = 0
    while at < len(children):
        own, tail = _join(name, keys[at]), tail_of(children, at)
        apart = [stack(children[at + more], _join(name, keys[at + more])) for more in range(1 + tail)]
        layers.append(_block(children[at], own, tail, apart) if tail else apart[0])
        at += len(apart)

    def forward(x: Tensor, step: Pass) -> Tensor:
        for layer in layers:
            x = layer(x, step)
        return x

    return forward


def _residual(module: ResidualBlock, name: str) -> Layer:
    body, shortcut = (stack(getattr(module, key), _join(name, key)) for key in ("body", "shortcut"))

    def forward(x: Tensor, step: Pass) -> Tensor:
        return torch.relu(body(x, step) + shortcut(x, step))

    return forward


def _conv(module: nn.Conv2d, name: str) -> Layer:
    if module.groups != 1 or module.padding_mode != "zeros":
        raise NotStackableError(f"{name}: a convolution in groups, or padded by other than zeros")

    def forward(x: Tensor, step: Pass) -> Tensor:
        kernel_ROHWC = step.factor(_join(name, "weight"))
        bias_RO = step.factor(_join(name, "bias")) if module.bias is not None else None
        return step.convolutions[name](x, kernel_ROHWC, bias_RO, module)

    return forward


def _block(module: nn.Conv2d, name: str, tail: int, apart: Sequence[Layer]) -> Layer:
    """A convolution and its tail: together where there is a way, else layer by layer."""

    def forward(x: Tensor, step: Pass) -> Tensor:
        together = step.blocks.get(name)
        if together is None:
            for layer in apart:
                x = layer(x, step)
            return x
        kernel_ROHWC = step.factor(_join(name, "weight"))
        bias_RO = step.factor(_join(name, "bias")) if module.bias is not None else None
        return together(x, kernel_ROHWC, bias_RO, module, tail)

    return forward


def _linear(module: nn.Linear, name: str) -> Layer:
    def forward(x_RMF: Tensor, step: Pass) -> Tensor:
        weight_ROF = step.factor(_join(name, "weight"))
        bias_RO = step.factor(_join(name, "bias")) if module.bias is not None else None
        return applied(Linear, x_RMF, weight_ROF, bias_RO)

    return forward


class Linear(torch.autograd.Function):
    """(x_RMF, weight_ROF, bias_RO or None) → y_RMO. The weight's gradient is laid out as the weight is."""

    @staticmethod
    def forward(ctx: Any, x_RMF: Tensor, weight_ROF: Tensor, bias_RO: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RMF, weight_ROF)
        weight_RFO = weight_ROF.transpose(1, 2)
        return products(x_RMF, weight_RFO, None if bias_RO is None else bias_RO[:, None])

    @staticmethod
    def backward(ctx: Any, dy_RMO: Tensor) -> tuple[Tensor | None, ...]:
        x_RMF, weight_ROF = ctx.saved_tensors
        return (
            products(dy_RMO, weight_ROF) if ctx.needs_input_grad[0] else None,
            products(dy_RMO.transpose(1, 2), x_RMF),
            dy_RMO.sum(1) if ctx.needs_input_grad[2] else None,
        )


def _flatten(module: nn.Flatten, name: str) -> Layer:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise NotStackableError(f"{name}: only a flatten of all but the batch has a stacked form")

    def forward(x: Tensor, step: Pass) -> Tensor:
        if x.ndim == 3:
            return x
        return applied(Flatten, x, step.rows.rows)

    return forward


class Flatten(torch.autograd.Function):
    """(map, R) → RMF, features in the model's order: C, H, W. Its gradient is a map, channels last again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
        ctx.shape = x.shape
        images, _, height, width = x.shape
        return x.view(images, rows, -1, height, width).transpose(0, 1).flatten(2)

    @staticmethod
    def backward(ctx: Any, dy_RMF: Tensor) -> tuple[Tensor, None]:
        images, channels, height, width = ctx.shape
        rows = len(dy_RMF)
        dy_RMCHW = dy_RMF.reshape(rows, images, channels // rows, height, width)
        return dy_RMCHW.permute(1, 3, 4, 0, 2).flatten(3).permute(0, 3, 1, 2), None


def _dropout(_: Dropout, __: str) -> Layer:
    def forward(x_RMF: Tensor, step: Pass) -> Tensor:
        mask_RMF = next(step.masks) if step.training else None
        return x_RMF if mask_RMF is None else (x_RMF * mask_RMF).to(x_RMF.dtype)

    return forward


def _group_norm(module: nn.GroupNorm, name: str) -> Layer:
    def forward(x: Tensor, step: Pass) -> Tensor:
        weight_RC, bias_RC = (step.weights[_join(name, key)] for key in ("weight", "bias"))
        groups = module.num_groups * step.rows.rows
        full = x.to(weight_RC.dtype)
        y = functional.group_norm(full, groups, weight_RC.flatten(), bias_RC.flatten(), module.eps)
        return y.to(x.dtype)

    if not module.affine:
        raise NotStackableError(f"{name}: group normalisation without parameters has no stacked form")
    return forward


def _batch_norm(module: nn.BatchNorm2d, name: str) -> Layer:
    if not module.affine or not module.track_running_stats or module.momentum is None:
        raise NotStackableError(f"{name}: batch normalisation without parameters or running statistics")

    def forward(x: Tensor, step: Pass) -> Tensor:
        weight_RC, bias_RC = (step.weights[_join(name, key)] for key in ("weight", "bias"))
        images, _, height, width = x.shape
        x_MHWRC = x.permute(0, 2, 3, 1).view(images, height, width, step.rows.rows, -1).to(weight_RC.dtype)
        if step.training:
            y, mean_RC, variance_RC = BatchNorm.apply(x_MHWRC, weight_RC, bias_RC, step.rows, module.eps)  # type: ignore[no-untyped-call]  # three tensors, and torch has no type for it
            count_R1 = step.rows.images[:, None] * (height * width)
            step.statistics[name] = mean_RC, variance_RC * (count_R1 / (count_R1 - 1).clamp(min=1))
        else:
            mean_RC, variance_RC = (step.buffers[_join(name, key)] for key in ("running_mean", "running_var"))
            scale_RC = weight_RC * (variance_RC + module.eps).rsqrt()
            y = (x_MHWRC - mean_RC) * scale_RC + bias_RC
        y_MHWRC: Tensor = y
        return y_MHWRC.flatten(3).permute(0, 3, 1, 2).to(x.dtype)

    return forward


class BatchNorm(torch.autograd.Function):
    """Batch normalisation over each slot's images that count, whatever rows they are in.

    (x_MHWRC, weight_RC, bias_RC, rows, epsilon) → y_MHWRC, mean_RC, variance_RC (biased). Gradients in closed
    form, Ioffe & Szegedy 2015, section 3.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (what autograd passes on is positional)
        ctx: Any, x: Tensor, weight_RC: Tensor, bias_RC: Tensor, rows: RowTable, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        counts = rows.valid.T[:, None, None, :, None]
        count_R1 = (rows.images * (x.shape[1] * x.shape[2]))[:, None].to(x.dtype)
        mean_RC = rows.sum_slots(_sum_images(torch.where(counts, x, 0.0))) / count_R1
        centred = torch.where(counts, x - mean_RC, 0.0)
        variance_RC = rows.sum_slots(_sum_images(centred.square())) / count_R1
        inverse_RC = (variance_RC + epsilon).rsqrt()
        normal = centred * inverse_RC
        ctx.save_for_backward(normal, weight_RC * inverse_RC, counts, count_R1)
        ctx.rows = rows
        ctx.mark_non_differentiable(mean_RC, variance_RC)
        return normal * weight_RC + bias_RC, mean_RC, variance_RC

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale_RC, counts, count_R1 = ctx.saved_tensors
        dy = torch.where(counts, dy, 0.0)
        dbias_RC = _sum_images(dy)
        dweight_RC = _sum_images(dy * normal)
        shift_RC = ctx.rows.sum_slots(dbias_RC) / count_R1
        slope_RC = ctx.rows.sum_slots(dweight_RC) / count_R1
        dx = torch.where(counts, scale_RC * (dy - shift_RC - normal * slope_RC), 0.0)
        return dx, dweight_RC, dbias_RC, None, None


def _sum_images(x_MHWRC: Tensor) -> Tensor:
    """The sum RC over images and places, by halves.

    `Tensor.sum` adds in an order that depends on how many rows lie beside each other; this doesn't.
    """
    x_NRC = x_MHWRC.flatten(0, 2)
    while len(x_NRC) > 1:
        half = len(x_NRC) // 2
        halved_NRC = x_NRC[:half] + x_NRC[half : 2 * half]
        if len(x_NRC) % 2:
            halved_NRC[0] += x_NRC[-1]
        x_NRC = halved_NRC
    return x_NRC[0]


def _same(module: nn.Module, _: str) -> Layer:
    """For modules that treat every channel, or every number, alike, and have no parameters."""

    def forward(x: Tensor, _: Pass) -> Tensor:
        result: Tensor = module(x)
        return result

    return forward


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


ALIKE = (
    nn.ReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.GELU,
    nn.ELU,
    nn.SiLU,
    nn.Identity,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)

STACKED: Mapping[type[nn.Module], Callable[[Any, str], Layer]] = {
    nn.Sequential: _sequential,
    ResidualBlock: _residual,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.Flatten: _flatten,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    Dropout: _dropout,
    **dict.fromkeys(ALIKE, _same),
}
"""Kind of module → what makes its layer. Exact types: a subclass may do anything."""
