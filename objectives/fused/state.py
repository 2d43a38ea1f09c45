"""The numbers of all trials of an architecture, stacked: slots that trials move into and out of.

Shapes: T slots, P parameters of a trial.

There is one slot more than trials can have, the idle one: rows of a step that no trial needs belong to it.
It stays zero. Nothing here changes its shape or its place in memory while it lives (but for `resize`), so a
step that was captured or compiled once stays valid whatever trials come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.devices import sent_to
from objectives.fused.layout import Layout
from objectives.fused.rows import RowTable, sent
from objectives.fused.triton_steps import add_rows_by_triton, adds


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

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(each.nbytes for each in (self.weights, self.first, self.second, *self.buffers.values()))

    def to(self, device: torch.device) -> Row:
        """The same numbers there."""
        buffers = {name: values.to(device) for name, values in self.buffers.items()}
        return Row(self.weights.to(device), self.first.to(device), self.second.to(device), buffers)


class SlotState:
    """Parameters, gradients, optimizer state and buffers of `slots` trials, on one device."""

    def __init__(self, model: nn.Module, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = Layout.of(model)
        self._device, self._dtype = device, dtype
        self._kinds = {name: (buffer.shape, _kind(buffer, dtype)) for name, buffer in model.named_buffers()}
        self._allocate(slots)

    def resize(self, slots: int) -> None:
        """Have so many slots from now on, all of them empty. Raises if there is no memory even for these.

        The tensors are new ones, made after the old are gone: this is for where memory is short.
        """
        empty = torch.empty((0, 0), device=self._device, dtype=self._dtype)
        self.weights_TP = self.gradient_TP = self.first_TP = self.second_TP = empty
        self.buffers.clear()
        self._allocate(slots)

    def _allocate(self, slots: int) -> None:
        self.idle = slots
        """Index of the idle slot."""
        self.weights_TP = torch.zeros((slots + 1, self.layout.size), device=self._device, dtype=self._dtype)
        self.gradient_TP = torch.zeros_like(self.weights_TP)
        """What a logical batch has given so far."""
        self.first_TP = torch.zeros_like(self.weights_TP)
        """Momentum, or Adam's mean of gradients."""
        self.second_TP = torch.zeros_like(self.weights_TP)
        """Sum or mean of squared gradients."""
        self.buffers = {
            name: torch.zeros((slots + 1, *shape), device=self._device, dtype=kind)
            for name, (shape, kind) in self._kinds.items()
        }
        """The model's buffers (running statistics), a row per slot."""

    def admit(self, slot: int, row: Row) -> None:
        """Write a trial's numbers into a slot."""
        sent_to(self.weights_TP[slot], row.weights)
        sent_to(self.first_TP[slot], row.first)
        sent_to(self.second_TP[slot], row.second)
        self.gradient_TP[slot].zero_()
        for name, values in row.buffers.items():
            sent_to(self.buffers[name][slot], values)

    def takes(self, row: Row) -> bool:
        """Whether a row has what `admit` writes, in the same shapes and kinds."""
        own = (self.weights_TP, self.first_TP, self.second_TP, *self.buffers.values())
        given = (row.weights, row.first, row.second, *row.buffers.values())
        return list(row.buffers) == list(self.buffers) and all(
            (mine.shape[1:], mine.dtype) == (theirs.shape, theirs.dtype)
            for mine, theirs in zip(own, given, strict=True)
        )

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

    def add_gradient(
        self,
        rows: RowTable,
        pieces: Sequence[tuple[int, Tensor]],
        fresh: Collection[int],
        *,
        together: bool | None = None,
    ) -> None:
        """Add each row's gradient to that of its slot, row after row; `fresh` slots start from nothing.

        `pieces`: places in a row of numbers at which they start, and R × so many numbers from there on. The
        order of additions does not depend on how a batch is cut into steps. `together`: the first rows of
        all slots at once, then the second ones, …, otherwise slot by slot, which moves less memory; both give
        the same to the bit. None: together unless on the CPU.
        """
        if together or (together is None and self._device.type != "cpu"):
            self._add_together(rows, pieces, fresh)
            return
        for share in rows.shares:  # a row fits into the cache, and `index_add_` is several times slower
            for start, rows_RX in pieces:
                gradient_X = self.gradient_TP[share.slot, start : start + rows_RX.shape[1]]
                mine = rows_RX[share.first : share.first + share.rows]
                if share.slot in fresh:
                    gradient_X.copy_(mine[0])
                    mine = mine[1:]
                for row_X in mine:
                    gradient_X.add_(row_X)

    def _add_together(
        self, rows: RowTable, pieces: Sequence[tuple[int, Tensor]], fresh: Collection[int]
    ) -> None:
        """In each operation a slot occurs once: `index_add_` of several would add in any order on a GPU."""
        turns = [
            [(share.slot, share.first + turn) for share in rows.shares if share.rows > turn]
            for turn in range(max((share.rows for share in rows.shares), default=0))
        ]
        fresh_slots = [share.slot for share in rows.shares if share.slot in fresh]
        flat = [number for turn in turns for pair in turn for number in pair]
        numbers = sent([*fresh_slots, *flat], self._device)
        if fresh_slots:
            self.gradient_TP.index_fill_(0, numbers[: len(fresh_slots)], 0.0)
        pairs_2 = numbers[len(fresh_slots) :].view(-1, 2)
        for pairs in torch.split(pairs_2, [len(turn) for turn in turns]):
            slots_S, rows_S = pairs.unbind(1)
            for start, rows_RX in pieces:
                gradient_TX = self.gradient_TP.narrow(1, start, rows_RX.shape[1])
                mine_SX = rows_RX.index_select(0, rows_S).to(gradient_TX.dtype)
                gradient_TX.index_add_(0, slots_S, mine_SX)

    def add_in_turns(
        self,
        pieces: Sequence[tuple[int, Tensor]],
        turns: Sequence[tuple[Tensor, Tensor]],
        fresh_S: Tensor,
        counts_R: Tensor,
    ) -> None:
        """As `add_gradient`, to the same bits, by tables on the device: a turn has slots and a row of each.

        `fresh_S`: which slots of the first turn start from nothing; `counts_R`: rows of the slot that each
        row belongs to. The idle slot may occur, as often as it likes.
        """
        for start, rows_RX in pieces:
            sums_TX = self.gradient_TP.narrow(1, start, rows_RX.shape[1])
            add_counted_rows(sums_TX, rows_RX, turns, fresh_S, counts_R)

    def gradient_norms(self, slots: Sequence[int]) -> Tensor:
        """The 2-norm of each slot's gradient."""
        if self._device.type == "cpu":  # without a copy of the gradients
            return torch.stack([torch.linalg.vector_norm(self.gradient_TP[slot]) for slot in slots])
        slots_S = sent(slots, self._device)
        norms_S: Tensor = torch.linalg.vector_norm(self.gradient_TP.index_select(0, slots_S), dim=1)
        return norms_S

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


def add_counted_rows(
    sums_TX: Tensor,
    rows_RX: Tensor,
    turns: Sequence[tuple[Tensor, Tensor]],
    fresh_S: Tensor,
    counts_R: Tensor,
) -> None:
    """As `add_rows`, by a kernel where there is one."""
    if adds(sums_TX):
        add_rows_by_triton(sums_TX, rows_RX, turns[0], counts_R, fresh_S)
    else:
        add_rows(sums_TX, rows_RX, turns, fresh_S)


def add_rows(
    sums_TX: Tensor, rows_RX: Tensor, turns: Sequence[tuple[Tensor, Tensor]], fresh_S: Tensor
) -> None:
    """Add rows to the sums of their slots, turn by turn; see `SlotState.add_in_turns`. The last is idle."""
    idle = len(sums_TX) - 1
    for number, (slots_S, rows_S) in enumerate(turns):
        mine_SX = rows_RX.index_select(0, rows_S)
        mixed_SX = sums_TX.index_select(0, slots_S) + mine_SX
        if number == 0:
            mixed_SX = torch.where(fresh_S[:, None], mine_SX, mixed_SX)
        sums_TX.index_copy_(0, slots_S, torch.where((slots_S != idle)[:, None], mixed_SX, 0.0))


def _kind(buffer: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if buffer.is_floating_point() else buffer.dtype
