"""Whether a trial can be trained together with others, and why not."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from objectives.base import TrialConfig
from objectives.fused.program import Program
from objectives.fused.rows import RowTable, Share, stacked
from objectives.fused.update import UPDATES
from objectives.fused.vmapped import scores_of
from objectives.imports import is_import
from objectives.models import InputShape, has_batch_statistics
from objectives.optimizers import effective_batch_size

PROBED = 3
"""Images per row of a probe."""

CLOSE = 1e-4
"""How far scores may differ, relative to the largest: rounding does less, other arithmetic more."""


@dataclass(frozen=True, slots=True)
class Fusing:
    """How trials of an architecture are fused."""

    form: Literal["stacked", "vmapped", "alone"]
    reason: str | None = None
    """Why alone, for a user to read."""


def why_not(config: TrialConfig, device: torch.device) -> str | None:
    """Why a trial can't be fused whatever its architecture; None if it can."""
    if config.optimizer.name not in UPDATES:
        return f"optimizer {config.optimizer.name} has no stacked form"
    if is_import(config.loss.name) and device.type != "cpu":
        return "a loss of the user's own may draw random numbers, which are the device's"
    return None


def one_image_left(config: TrialConfig, model: nn.Module, images: int) -> str | None:
    """Why a trial of so many training images trains alone: torch alone can say whether its norms take one."""
    if has_batch_statistics(model) and images % effective_batch_size(config, images) == 1:
        return "an epoch's last batch is a single image, and the model has batch normalisation"
    return None


def fusing(model: nn.Module, input_shape: InputShape) -> Fusing:
    """How models like this one can be fused.

    `model` is on the CPU; it is left as it was, and so are the process's random numbers.
    """
    reason = _why_no_layout(model)
    if reason:
        return Fusing("alone", reason)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if _stackable(model, input_shape):
            return Fusing("stacked")
        reason = _why_not_vmappable(copy.deepcopy(model), input_shape)
    return Fusing("alone", reason) if reason else Fusing("vmapped")


def _why_no_layout(model: nn.Module) -> str | None:
    parameters = list(model.parameters())
    if not all(parameter.requires_grad for parameter in parameters):
        return "the model has frozen parameters"
    if len(list(model.named_parameters(remove_duplicate=False))) != len(parameters):
        return "the model uses a parameter under two names"
    if {parameter.dtype for parameter in parameters} != {torch.float32}:
        return "the model has parameters other than float32"
    return None


def _stackable(model: nn.Module, input_shape: InputShape) -> bool:
    """Tried out: the stacked form must exist, and give the scores of the model itself."""
    images_RMCHW = torch.randn(2, PROBED, *input_shape)
    try:
        program = Program(copy.deepcopy(model), input_shape, 1, torch.device("cpu"))
        if not program.stacked:
            return False
        program.state.admit(0, program.state.new_row(model))
        rows = RowTable(stacked([Share(0, 0, 2, 2 * PROBED)]), 2, PROBED, 1, torch.device("cpu"))
        images_MHWRC = images_RMCHW.permute(1, 3, 4, 0, 2).contiguous()
        scores_RMK = program.forward(rows, images_MHWRC, (), training=False).logits
    except Exception:  # noqa: BLE001 (layers that don't fit each other in this form: then not in this form)
        return False
    plain = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected_RMK = torch.stack([plain(images_MCHW) for images_MCHW in images_RMCHW])
    return _agree(scores_RMK, expected_RMK)


def _why_not_vmappable(model: nn.Module, input_shape: InputShape) -> str | None:
    """Tried out: the vmapped model must give the scores of the model itself, and no more than that."""
    if has_batch_statistics(model):
        return "batch normalisation in a model of the user's own"
    images_RMCHW = torch.randn(2, PROBED, *input_shape)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        scores_RMK, gradients = _probe(model, images_RMCHW)
        with torch.no_grad():
            expected_RMK = torch.stack([model(images_MCHW) for images_MCHW in images_RMCHW])
            single_K = model(images_RMCHW[0, :1])[0]
    except Exception as error:  # noqa: BLE001 (a user's code may raise anything; then it is left alone)
        return f"torch.func can't run the model: {type(error).__name__}: {str(error).splitlines()[0]}"
    if any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()):
        return "the model changes its buffers in training"
    if any(gradient is None for gradient in gradients):
        return "the model has parameters that its scores don't depend on"
    if not _agree(scores_RMK, expected_RMK):
        return "torch.func gives other scores than the model"
    if not _agree(single_K, expected_RMK[0, 0]):
        return "an image's scores depend on the others of its batch"
    return None


def _probe(model: nn.Module, images_RMCHW: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Scores of two rows with the model's own parameters, and the gradients of their sum."""
    rows = len(images_RMCHW)

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.detach().expand(rows, *tensor.shape).clone()

    weights = {name: repeated(p).requires_grad_() for name, p in model.named_parameters()}
    buffers = {name: repeated(buffer) for name, buffer in model.named_buffers()}
    scores_RMK = scores_of(model, weights, buffers, images_RMCHW)
    gradients = torch.autograd.grad(scores_RMK.sum(), list(weights.values()), allow_unused=True)
    return scores_RMK.detach(), gradients


def _agree(scores: Tensor, expected: Tensor) -> bool:
    tolerance = CLOSE * float(expected.abs().max().clamp(min=1.0))
    return scores.shape == expected.shape and torch.allclose(scores, expected, rtol=0, atol=tolerance)
