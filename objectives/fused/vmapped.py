"""Many models of one architecture by one call of its own code: `torch.func`, vmapped over rows.

Shapes: R rows, M images of a row, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from objectives.fused.functions import applied

CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""The arguments of torch's function, in their order."""


def scores_of(
    model: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images_RMCHW: Tensor
) -> Tensor:
    """logits_RMK of as many models as there are rows; a model that draws random numbers raises."""

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images_MCHW: Tensor) -> Tensor:
        logits_MK: Tensor = functional_call(model, (weights, buffers), (images_MCHW,))
        return logits_MK

    with BiasesApart():
        logits_RMK: Tensor = torch.vmap(one, randomness="error")(dict(weights), dict(buffers), images_RMCHW)
    return logits_RMK


class BiasesApart(TorchFunctionMode):
    """On a CPU, convolutions of images add their biases in an operation of its own.

    Vmapped, the convolutions of all rows are one of many groups, whose biases' gradients torch sums up in an
    order that depends on how many channels there are beside each other: on how many neighbours a trial has.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(zip(CONV2D, args, strict=False)) | (kwargs or {}) if func is functional.conv2d else {}
        bias_C = given.pop("bias", None)
        if bias_C is None or given["input"].ndim != 4 or given["input"].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        return applied(AddBias, func(**given), bias_C)


class AddBias(torch.autograd.Function):
    """Adds C to MCHW; each channel's gradient is summed up by itself, whatever lies beside it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y_MCHW: Tensor, bias_C: Tensor) -> Tensor:
        return y_MCHW + bias_C[:, None, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing is remembered."""

    @staticmethod
    def backward(_: Any, dy_MCHW: Tensor) -> tuple[Tensor, Tensor]:
        return dy_MCHW, dy_MCHW.transpose(0, 1).flatten(1).contiguous().sum(1)
