"""What a recorded step reads: tensors that stay where they are, written before each replay.

Shapes: T slots, R rows, M images of a row, S slots of a table, A images there are, C channels, K classes, F
features, H numbers of an optimizer's step, N = R·M images of a step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from objectives.devices import moved
from objectives.fused.member import Member
from objectives.fused.rows import ROW_NUMBERS, RowTable, Share, buckets

PENALTY_NUMBERS = 3
"""λ₁, λ₂ and what a decay multiplies weights by."""

HARMLESS = 1.0
"""Every number of a step of the idle slot, whose zeros then stay zeros whatever its optimizer is."""


class TrialTables:
    """What a step needs to know of the trial in each slot; the idle slot's is harmless."""

    def __init__(
        self, order_TA: Tensor, channels: int, labels_A: Tensor, classes: int, dtype: torch.dtype
    ) -> None:
        device, slots = order_TA.device, len(order_TA) - 1
        self.order_TA = order_TA
        """The images of each trial's epoch, in its order; zeros to begin with."""
        self.mean_TC = torch.zeros((slots + 1, channels), device=device)
        self.std_TC = torch.ones((slots + 1, channels), device=device)
        self.class_weights_TK = torch.ones((slots + 1, classes), device=device)
        self.loss_T = torch.full((slots + 1,), -1, device=device)
        """Place of its loss among `losses`."""
        self.losses: dict[str, dict[str, Tensor]] = {}
        """Name → option → T, in the order in which trials brought them."""
        self.labels_A = labels_A
        self._dtype = dtype

    def admit(self, member: Member, name: str, options: Mapping[str, float]) -> None:
        """A trial comes into its slot; `options` are all that its loss `name` has."""
        slot, data = member.slot, member.data
        self.mean_TC[slot].copy_(data.mean)
        self.std_TC[slot].copy_(data.std)
        weights_K = member.loss.class_weights
        if weights_K is None:
            self.class_weights_TK[slot].fill_(1.0)
        else:
            self.class_weights_TK[slot].copy_(weights_K)
        if name not in self.losses:
            blank_T = torch.zeros(len(self.loss_T), dtype=self._dtype, device=self.loss_T.device)
            self.losses[name] = {option: blank_T.clone() for option in options}
        self.loss_T[slot].fill_(list(self.losses).index(name))
        for option, value in options.items():
            self.losses[name][option][slot].fill_(value)

    def begin(self, member: Member) -> None:
        """A trial starts an epoch."""
        order = member.feed.order
        self.order_TA[member.slot, : len(order)].copy_(order)


@dataclass(frozen=True)
class StepTable:
    """The shares of a step of R rows, of which no trial has more than `turns`."""

    rows: int
    per_row: int
    turns: int
    idle: int
    device: torch.device

    @cached_property
    def numbers(self) -> Tensor:
        """All of it, one after the other, so that it goes to the device in one go."""
        return torch.zeros(sum(self._sizes), dtype=torch.long, device=self.device)

    @property
    def _sizes(self) -> tuple[int, ...]:
        # Rows first. Then who begins a batch; then, for each turn, slots and their rows: of R rows no more
        # than R/k slots have k.
        per_turn = [self.rows // (turn + 1) for turn in range(self.turns)]
        return ((ROW_NUMBERS + 2) * self.rows, self.rows, *(size for size in per_turn for _ in range(2)))

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        return torch.split(self.numbers, list(self._sizes))

    def row_table(self) -> RowTable:
        """As layers take it; a new one for every pass, since it keeps what it computes."""
        given = self._of_rows[:ROW_NUMBERS]
        return RowTable((), self.rows, self.per_row, self.idle, self.device, given, self.turns)

    @property
    def _of_rows(self) -> Tensor:
        return self._parts[0].view(-1, self.rows)

    @property
    def firsts(self) -> Tensor:
        """Place of the first image of each row in its trial's epoch, R."""
        return self._of_rows[ROW_NUMBERS]

    @property
    def batches(self) -> Tensor:
        """Images of the batch that each row belongs to, R; 1 for idle rows."""
        return self._of_rows[ROW_NUMBERS + 1]

    @property
    def fresh(self) -> Tensor:
        """Which slots of the first turn begin a batch, S."""
        return self._parts[1] > 0

    def turn(self, number: int) -> tuple[Tensor, Tensor]:
        """Slots that have another row, and that row; the idle slot where there are no more."""
        return self._parts[2 + 2 * number], self._parts[3 + 2 * number]

    def write(self, shares: Sequence[tuple[Member, Share]], fresh: Collection[int]) -> None:
        """What the next replay is to do; `fresh` slots begin a batch."""
        known = RowTable(tuple(share for _, share in shares), self.rows, self.per_row, self.idle, self.device)
        flat = [number for numbers in known.numbers() for number in numbers]
        first, batch = [0] * self.rows, [1] * self.rows
        for member, share in shares:
            piece = member.piece
            assert piece is not None, "a trial between two epochs has no share"
            start = piece.first + piece.taken
            for row in range(share.rows):
                first[share.first + row] = start + row * self.per_row
                batch[share.first + row] = piece.batch
        by_size = sorted((share for _, share in shares), key=lambda share: -share.rows)
        flat += first + batch + _filled([int(share.slot in fresh) for share in by_size], self.rows, 0)
        for turn in range(self.turns):
            mine = [share for share in by_size if share.rows > turn]
            size = self.rows // (turn + 1)
            flat += _filled([share.slot for share in mine], size, self.idle)
            flat += _filled([share.first + turn for share in mine], size, 0)
        self.numbers.copy_(moved(torch.tensor(flat), self.device), non_blocking=True)

    def clear(self) -> None:
        """All rows idle: a step of it changes nothing."""
        self.write((), ())


@dataclass(frozen=True)
class UpdateTable:
    """The slots that take a step by the same kind of optimizer: S of them, or fewer."""

    size: int
    """S."""
    hyper: int
    """H."""
    idle: int
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def whole(self) -> Tensor:
        """Slots, and images of the batches that their steps are for, 2 × S."""
        return torch.zeros((2, self.size), dtype=torch.long, device=self.device)

    @cached_property
    def numbers(self) -> Tensor:
        """Those of the optimizer's steps, then those of penalties, (H + `PENALTY_NUMBERS`) × S."""
        return torch.zeros((self.hyper + PENALTY_NUMBERS, self.size), dtype=self.dtype, device=self.device)

    @property
    def slots(self) -> Tensor:
        return self.whole[0]

    @property
    def images(self) -> Tensor:
        return self.whole[1]

    def write(
        self, slots: Sequence[int], images: Sequence[int], numbers: Sequence[tuple[float, ...]]
    ) -> None:
        """What the next replay is to do; nothing if it is for no slot."""
        left = self.size - len(slots)
        whole = [*slots, *[self.idle] * left, *images, *[0] * left]
        self.whole.copy_(moved(torch.tensor(whole).view(2, -1), self.device), non_blocking=True)
        idle = (HARMLESS,) * self.hyper + (0.0, 0.0, 1.0)
        table_SH = torch.tensor([*numbers, *[idle] * left], dtype=torch.float64)
        self.numbers.copy_(moved(table_SH.T.to(self.dtype).contiguous(), self.device), non_blocking=True)

    def clear(self) -> None:
        """No slot: a step of it changes nothing."""
        self.write((), (), ())


def bucket(count: int, most: int) -> int:
    """The smallest size of tables that holds so many."""
    return next(size for size in buckets(max(most, count, 2)) if size >= count)


def _filled(numbers: list[int], size: int, by: int) -> list[int]:
    return numbers + [by] * (size - len(numbers))
