"""The model of many trials as one tensor program: forward and backward for all rows of a step.

Shapes: T slots, R rows, M images of a row, K classes, C channels, H, W height and width, F features.

A model whose layers all have a stacked form (the built-in ones, and a user's `nn.Sequential` of common
layers) runs in that form; any other by `torch.func`: one call of the user's own code, vmapped over rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from objectives.base import Choice, Precision, Task, TrialConfig
from objectives.fused.convolutions import CONVOLUTIONS, shapes_of, usual
from objectives.fused.layers import Layer, NotStackableError, Pass, stack
from objectives.fused.layout import restored
from objectives.fused.rows import RowTable, sent
from objectives.fused.state import SlotState
from objectives.fused.tails import tails
from objectives.fused.vmapped import scores_of
from objectives.models import MODELS, Dropout, InputShape, build
from objectives.precision import activations, computing

Architecture: TypeAlias = tuple[Any, ...]
"""What trials must have in common to share a program; a key for dictionaries."""

VARIED = "dropout"
"""The option of built-in models that trials of one program may differ in."""


def architecture(config: TrialConfig, input_shape: InputShape, classes: int) -> Architecture:
    """The program that a trial belongs to."""
    options = {key: value for key, value in config.model.options.items() if not _varies(config.model, key)}
    return config.model.name, tuple(sorted(options.items())), input_shape, classes


def template(config: TrialConfig, input_shape: InputShape, classes: int, task: Task) -> nn.Module:
    """A model with the layers of all trials of a program: with dropout, which has no parameters."""
    choice = config.model
    if choice.name in MODELS and VARIED in inspect.signature(MODELS[choice.name]).parameters:
        choice = Choice(choice.name, {**choice.options, VARIED: 0.5})
    return build(choice, input_shape, classes, 0, task.allow_imports)


def dropout_shares(model: nn.Module) -> list[float]:
    """The share that each dropout layer of a trial's model drops, in the order in which they run."""
    return [module.share for module in model.modules() if isinstance(module, Dropout)]


@dataclass(frozen=True, slots=True)
class Forward:
    """What one pass gave."""

    logits: Tensor
    """RMK."""
    weights: Mapping[str, Tensor]
    """The parameters that it was taken at, per row: the leaves of its graph."""
    statistics: Mapping[str, tuple[Tensor, Tensor]]
    """As `Pass.statistics`."""


class Program:
    """The stacked model of one architecture, and the numbers of its trials.

    `model` is a `template`. With `generic`, the path by `torch.func` is taken even where there is a
    stacked form. `convolutions`: the backend of each, in the order in which they run; None: the usual ones.
    """

    def __init__(
        self,
        model: nn.Module,
        input_shape: InputShape,
        slots: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        generic: bool = False,
        precision: Precision = "fp32",
        convolutions: Sequence[str] | None = None,
    ) -> None:
        self.state = SlotState(model, slots, device, dtype)
        self.device, self.dtype = device, dtype
        self._precision = precision
        self._activations = activations(precision, dtype)
        self._model = model.to(device=device, dtype=dtype)
        self._layers = None if generic else _stacked(model)
        self.features = _dropout_features(self._model, input_shape) if self._layers else ()
        """F of each dropout layer, in the order in which they run."""
        self.convolutions: dict[str, str] = {}
        """Module name → the backend of this convolution, in the order in which they run."""
        if self._layers:
            self.convolutions = _backends(self._model, input_shape, self._activations, convolutions)
        self._run = {name: CONVOLUTIONS[backend].run for name, backend in self.convolutions.items()}
        ways = {name: CONVOLUTIONS[self.convolutions[name]] for name in tails(self._model) if self._layers}
        self._blocks = {name: way.block for name, way in ways.items() if way.block}
        self._factors = {
            f"{name}.{key}"
            for name, module in self._model.named_modules()
            if self._layers and isinstance(module, nn.Conv2d | nn.Linear)
            for key, _ in module.named_parameters(recurse=False)
        }
        """Names of the parameters that products take in the type of activations."""
        self._momentum = {
            name: module.momentum
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d) and module.momentum is not None
        }
        self.whole = bool(self._momentum)
        """Whether a logical batch must go through in one pass."""

    @property
    def images(self) -> torch.dtype:
        """The type in which the first layer takes images."""
        return self._activations if self.stacked else self.dtype

    @property
    def stacked(self) -> bool:
        """Whether it runs in stacked form; else by `torch.func`."""
        return self._layers is not None

    def forward(
        self, rows: RowTable, images_MHWRC: Tensor, masks: Sequence[Tensor | None], *, training: bool
    ) -> Forward:
        """The scores of all rows. `masks` are those of `Pass`, one per entry of `features`, for training."""
        weights = self.state.layout.rows_of(self.state.weights_TP, rows.slots)
        buffers = {}
        if not (training and self.stacked):
            buffers = {name: b.index_select(0, rows.slots) for name, b in self.state.buffers.items()}
        # Here, so that their gradients come as products give them: a cast more or less changes no bit.
        weights |= {name: weights[name].to(self._activations) for name in self._factors}
        if training:
            weights = {name: weight.requires_grad_() for name, weight in weights.items()}
        how = self._run, self._blocks, self._activations
        step = Pass(rows, weights, buffers, training, iter(masks), *how)
        with torch.set_grad_enabled(training):
            if self._layers:
                images = images_MHWRC.to(self._activations)
                logits_RMK = self._layers(images.flatten(3).permute(0, 3, 1, 2), step)
            else:
                logits_RMK = self._vmapped(images_MHWRC.permute(3, 0, 4, 1, 2).contiguous(), step)
            logits_RMK = logits_RMK.to(self.dtype)
        return Forward(logits_RMK, weights, step.statistics)

    def add_gradients(
        self, rows: RowTable, forward: Forward, dlogits_RMK: Tensor, fresh: Collection[int]
    ) -> None:
        """Add each row's gradient to that of its slot, and its statistics to the running ones.

        `fresh` slots begin a batch: what was in their gradient is forgotten.
        """
        self.state.add_gradient(rows, self.gradients(forward, dlogits_RMK), fresh)
        if forward.statistics:
            numbers = [share.slot for share in rows.shares] + [share.first for share in rows.shares]
            slots_S, first_S = sent(numbers, self.device).view(2, -1)
            self.track(slots_S, first_S, forward.statistics)

    def gradients(self, forward: Forward, dlogits_RMK: Tensor) -> list[tuple[int, Tensor]]:
        """Each row's gradient, in the pieces of `Layout.pieces`."""
        names = list(forward.weights)
        found = torch.autograd.grad(forward.logits, [forward.weights[name] for name in names], dlogits_RMK)
        return self.state.layout.pieces(dict(zip(names, found, strict=True)))

    def track(
        self, slots_S: Tensor, first_S: Tensor, statistics: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        """Mix a pass's statistics into the running ones of slots, given the first row of each.

        The idle slot may occur, as often as it likes.
        """
        live_S1 = (slots_S != self.state.idle)[:, None]
        for name, moments in statistics.items():
            for key, new_RC in zip(("running_mean", "running_var"), moments, strict=True):
                buffer_TC = self.state.buffers[f"{name}.{key}"]
                old_SC = buffer_TC.index_select(0, slots_S)
                momentum = self._momentum[name]
                mixed_SC = (1 - momentum) * old_SC + momentum * new_RC.index_select(0, first_S)
                buffer_TC.index_copy_(0, slots_S, torch.where(live_S1, mixed_SC, 0.0))
            counts_T = self.state.buffers[f"{name}.num_batches_tracked"]
            counts_T.index_add_(0, slots_S, live_S1[:, 0].long())

    def _vmapped(self, images_RMCHW: Tensor, step: Pass) -> Tensor:
        self._model.train(step.training)
        weights = {name: restored(weight, leading=1) for name, weight in step.weights.items()}
        with computing(self._precision, self.device):
            return scores_of(self._model, weights, step.buffers, images_RMCHW)


def _varies(choice: Choice, option: str) -> bool:
    return option == VARIED and choice.name in MODELS


def _stacked(model: nn.Module) -> Layer | None:
    try:
        return stack(model)
    except NotStackableError:
        return None


def _backends(
    model: nn.Module, input_shape: InputShape, dtype: torch.dtype, chosen: Sequence[str] | None
) -> dict[str, str]:
    """Module name → the backend of each convolution: as chosen, else the usual one."""
    shapes = shapes_of(model, input_shape)
    if chosen is None:
        device = next(model.parameters()).device.type
        return {name: usual(shape, device, dtype) for name, shape in shapes.items()}
    return dict(zip(shapes, chosen, strict=True))


def _dropout_features(model: nn.Module, input_shape: InputShape) -> tuple[int, ...]:
    """F of the vector that each dropout layer gets, in the order in which they run, found by a pass.

    Raises `NotStackableError` for what masks of one vector per image, in the order of modules, are not for.
    """
    seen: list[tuple[nn.Module, torch.Size]] = []
    dropouts = [module for module in model.modules() if isinstance(module, Dropout)]
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].shape)))
        for module in dropouts
    ]
    parameter = next(model.parameters())
    model.eval()
    with torch.no_grad():
        model(torch.zeros((2, *input_shape), device=parameter.device, dtype=parameter.dtype))
    model.train()
    for hook in hooks:
        hook.remove()
    if any(len(shape) != 2 for _, shape in seen):
        raise NotStackableError("dropout of a map has no stacked form")
    if [module for module, _ in seen] != dropouts:
        raise NotStackableError("dropouts that run twice, or in another order than they have in the model")
    return tuple(shape[-1] for _, shape in seen)
