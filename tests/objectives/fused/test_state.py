"""Slots: a trial goes in, comes out as it went in, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from objectives.base import Choice
from objectives.fused.layout import Layout, in_row_order
from objectives.fused.rows import RowTable, Share, stacked
from objectives.fused.state import SlotState
from objectives.models import build

CPU = torch.device("cpu")


def network(seed: int, **options: float | str | bool) -> nn.Module:
    return build(Choice("cnn", {"depth": 2, "width": 3, "batch_norm": True, **options}), (2, 8, 8), 5, seed)


def test_a_row_holds_every_parameter_once_weights_first() -> None:
    model = network(1)
    layout = Layout.of(model)
    row = layout.row_of(model, torch.float32)
    assert layout.size == len(row) == sum(p.numel() for p in model.parameters())
    assert layout.weights == sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    for (name, parameter), part, values in zip(
        in_row_order(model), layout.parts, layout.tensors(row), strict=True
    ):
        assert part.name == name
        assert torch.equal(values, parameter)


def test_rows_are_taken_and_joined_without_a_change() -> None:
    layout = Layout.of(network(1))
    stack = torch.randn(4, layout.size)
    slots = torch.tensor([2, 0, 2])
    pieces = layout.pieces(layout.rows_of(stack, slots))
    found = torch.full((3, layout.size), torch.nan)
    for start, rows_RX in pieces:
        found[:, start : start + rows_RX.shape[1]] = rows_RX
    assert torch.equal(found, stack[slots])


@pytest.mark.parametrize("together", [False, True])
def test_gradients_are_added_row_after_row(together: bool) -> None:
    """What is large comes first and what is small after it: the order of additions shows in every bit."""
    state = SlotState(network(0), 4, CPU, torch.float32)
    shares = (Share(2, 0, 3, 40), Share(0, 3, 1, 16), Share(3, 4, 2, 32))
    rows = RowTable(stacked(shares), 7, 16, state.idle, CPU)
    torch.manual_seed(1)
    rows_RP = torch.randn(7, state.layout.size) * torch.tensor([1e8, 1.0, 1e-6, 1e3, 1.0, 1e6, 1.0])[:, None]
    before_TP = torch.randn_like(state.gradient_TP)
    state.gradient_TP.copy_(before_TP)
    named = {part.name: part.of(rows_RP) for part in state.layout.parts}
    state.add_gradient(rows, state.layout.pieces(named), {2, 3}, together=together)
    assert torch.equal(state.gradient_TP[2], rows_RP[0] + rows_RP[1] + rows_RP[2])
    assert torch.equal(state.gradient_TP[0], before_TP[0] + rows_RP[3])
    assert torch.equal(state.gradient_TP[3], rows_RP[4] + rows_RP[5])
    assert torch.equal(state.gradient_TP[[1, 4]], before_TP[[1, 4]])


def test_dropout_does_not_move_parameters() -> None:
    assert Layout.of(network(1, dropout=0.5)).size == Layout.of(network(1)).size
    assert torch.equal(
        Layout.of(network(1)).row_of(network(1, dropout=0.5), torch.float32),
        Layout.of(network(1)).row_of(network(1), torch.float32),
    )


@pytest.mark.parametrize("slot", [0, 2])
def test_a_trial_comes_out_as_it_went_in_and_leaves_nothing(slot: int) -> None:
    state = SlotState(network(0), 3, CPU, torch.float32)
    row = state.new_row(network(7))
    row.first.fill_(2.0)
    state.gradient_TP.fill_(torch.nan)  # of the trial before
    state.admit(slot, row)
    assert not state.gradient_TP[slot].any()
    out = state.take(slot)
    assert torch.equal(out.weights, Layout.of(network(7)).row_of(network(7), torch.float32))
    assert torch.equal(out.first, row.first)
    assert out.buffers["1.running_var"].tolist() == [1.0, 1.0, 1.0]
    state.wipe(slot)
    assert not any(tensor[slot].any() for tensor in state.tensors())
    assert torch.equal(out.first, row.first)  # a copy
