"""The numbers of all trials of an architecture, stacked: slots that trials move into and out of.

Shapes: T slots, P parameters of a trial.

There is one slot more than trials can have, the idle one: rows of a step that no trial needs belong to it.
It stays zero. Nothing here changes its shape or its place in memory while it lives, so a step that was
captured or compiled once stays valid whatever trials come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.fused.layout import Layout
from objectives.fused.rows import RowTable


@dataclass(frozen=True, slots=True)
class Row:
    """One trial's numbers, taken out of its slot."""

    weights: Tensor
    """P."""
    first: Tensor
    """P; see `SlotState.first_TP`."""
    second: Tensor
    """P."""
    buffers: Mapping[str, Tensor]


class SlotState:
    """Parameters, gradients, optimizer state and buffers of `slots` trials, on one device."""

    def __init__(self, model: nn.Module, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = Layout.of(model)
        self.idle = slots
        """Index of the idle slot."""
        shape = (slots + 1, self.layout.size)
        self.weights_TP = torch.zeros(shape, device=device, dtype=dtype)
        self.gradient_TP = torch.zeros_like(self.weights_TP)
        """What a logical batch has given so far."""
        self.first_TP = torch.zeros_like(self.weights_TP)
        """Momentum, or Adam's mean of gradients."""
        self.second_TP = torch.zeros_like(self.weights_TP)
        """Sum or mean of squared gradients."""
        self.buffers = {
            name: torch.zeros((slots + 1, *buffer.shape), device=device, dtype=_kind(buffer, dtype))
            for name, buffer in model.named_buffers()
        }
        """The model's buffers (running statistics), a row per slot."""

    def admit(self, slot: int, row: Row) -> None:
        """Write a trial's numbers into a slot."""
        self.weights_TP[slot].copy_(row.weights)
        self.first_TP[slot].copy_(row.first)
        self.second_TP[slot].copy_(row.second)
        self.gradient_TP[slot].zero_()
        for name, values in row.buffers.items():
            self.buffers[name][slot].copy_(values)

    def take(self, slot: int) -> Row:
        """A copy of a trial's numbers, as `admit` takes them."""
        return Row(
            self.weights_TP[slot].clone(),
            self.first_TP[slot].clone(),
            self.second_TP[slot].clone(),
            {name: values[slot].clone() for name, values in self.buffers.items()},
        )

    def wipe(self, slot: int) -> None:
        """Set everything of a slot to zero: nothing of a trial is left for the next."""
        for tensor in self.tensors():
            tensor[slot].zero_()

    def add_gradient(self, rows: RowTable, rows_RP: Tensor, fresh: Collection[int]) -> None:
        """Add each row's gradient to that of its slot, row after row; `fresh` slots start from nothing.

        The order of additions does not depend on how a batch is cut into steps.
        """
        if rows_RP.device.type != "cpu":
            for slot in fresh:
                self.gradient_TP[slot].zero_()
            self.gradient_TP.index_add_(0, rows.slots, rows_RP)
            return
        for share in rows.shares:  # a row fits into the cache, and `index_add_` is several times slower
            gradient_P, mine = self.gradient_TP[share.slot], rows_RP[share.first : share.first + share.rows]
            if share.slot in fresh:
                gradient_P.copy_(mine[0])
                mine = mine[1:]
            for row_P in mine:
                gradient_P.add_(row_P)

    @property
    def bytes_per_slot(self) -> int:
        """Memory that a trial takes, with the copy of what it was at the end of its last epoch."""
        copied = (self.weights_TP, self.first_TP, self.second_TP, *self.buffers.values())
        return sum(tensor[0].numel() * tensor.element_size() for tensor in (*self.tensors(), *copied))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, each with the slots in front."""
        return (self.weights_TP, self.gradient_TP, self.first_TP, self.second_TP, *self.buffers.values())

    def new_row(self, model: nn.Module) -> Row:
        """The row of a trial at its start, from its model; an optimizer's state starts at zero."""
        dtype = self.weights_TP.dtype
        weights_P = self.layout.row_of(model, dtype)
        zeros_P = torch.zeros_like(weights_P)
        values = (buffer.detach().clone() for buffer in model.buffers())
        return Row(weights_P, zeros_P, zeros_P.clone(), dict(zip(self.buffers, values, strict=True)))


def _kind(buffer: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if buffer.is_floating_point() else buffer.dtype
