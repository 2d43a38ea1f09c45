"""A trial's numbers in the form in which the plain trainer keeps them, and back.

So a checkpoint written by either trainer can be read by the other.

Shapes: P parameters of a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from objectives.base import TrialConfig
from objectives.fused.layout import Layout, in_row_order
from objectives.fused.state import Row, SlotState
from objectives.fused.update import UPDATES
from objectives.optimizers import build_optimizer, set_learning_rate


def to_plain(
    row: Row, layout: Layout, config: TrialConfig, model: nn.Module, *, steps: int, learning_rate: float
) -> dict[str, Any]:
    """As `Training.state` after so many steps. `model` is the trial's own; it takes on the row's numbers."""
    parameters = [parameter for _, parameter in in_row_order(model)]
    with torch.no_grad():
        for parameter, values in zip(parameters, layout.tensors(row.weights), strict=True):
            parameter.copy_(values)
        for buffer, values in zip(model.buffers(), row.buffers.values(), strict=True):
            buffer.copy_(values)
    update = UPDATES[config.optimizer.name]
    optimizer = build_optimizer(config.optimizer, list(model.parameters()), config.learning_rate)
    set_learning_rate(optimizer, learning_rate)
    firsts, seconds = layout.tensors(row.first), layout.tensors(row.second)
    for parameter, first, second in zip(parameters, firsts, seconds, strict=True):
        kept = optimizer.state[parameter]
        if update.counts:
            kept["step"] = torch.tensor(float(steps))
        for name, values in ((update.first, first), (update.second, second)):
            if name:
                kept[name] = values.clone().contiguous()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def from_plain(saved: Mapping[str, Any], state: SlotState, config: TrialConfig, model: nn.Module) -> Row:
    """The inverse of `to_plain`. Raises KeyError, ValueError or RuntimeError if `saved` doesn't fit."""
    model.load_state_dict(saved["model"])
    optimizer = build_optimizer(config.optimizer, list(model.parameters()), config.learning_rate)
    optimizer.load_state_dict(saved["optimizer"])
    row = state.new_row(model)
    update = UPDATES[config.optimizer.name]
    for name, target_P in ((update.first, row.first), (update.second, row.second)):
        if name:
            kept = [optimizer.state[parameter][name] for _, parameter in in_row_order(model)]
            target_P.copy_(state.layout.row(kept, target_P.dtype))
    return row
