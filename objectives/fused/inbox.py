"""The numbers of a step on their way to the device: written on the host, sent in one copy, then read there.

Shapes: T slots, R rows, M images of a row, S slots that take a step, H numbers of an optimizer's step.

A recording reads the places that it was recorded with. So there is one tensor on the device that stays where
it is: at its beginning a part for each kind of optimizer, behind them the table of the rows. Whatever is
recorded reads its own part of it, and the next copy waits, on the device, until it has been read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from objectives.devices import sent_to
from objectives.fused.member import NUMBERS, PENALTY_NUMBERS, Member
from objectives.fused.rows import ROW_NUMBERS, RowTable, Whole
from objectives.fused.update import MOST_NUMBERS, UPDATES

HARMLESS = (0.0, 0.0, 1.0, *[1.0] * MOST_NUMBERS)
"""What `Member.numbers` would be of the idle slot."""

OF_ROWS = ROW_NUMBERS + 2
"""Numbers of a row: the place of its first image, and the images of its batch, are the last two."""

FEWEST_UPDATED = 4

OF_SLOTS = 2
"""Whole numbers of a slot that takes a step: itself, and the images of its batch."""


class Inbox:
    """Room for a step of so many slots and rows, no trial with more than `turns` of them."""

    def __init__(self, slots: int, rows: int, turns: int, device: torch.device) -> None:
        self.idle = slots
        self._width = max(slots, 2)
        self._updates = len(set(UPDATES.values())) * (OF_SLOTS + NUMBERS) * self._width
        size = self._updates + sum(_sizes(rows, turns))
        self._here: Whole = np.zeros(size, dtype=np.int64)
        self._there = torch.zeros(size, dtype=torch.long, device=device)

    def holds(self, rows: int, turns: int) -> bool:
        """Whether there is room for a table of so many rows."""
        return self._updates + sum(_sizes(rows, turns)) <= len(self._here)

    def step_table(self, rows: int, per_row: int, turns: int) -> StepTable:
        """Where recordings of such steps read."""
        part = slice(self._updates, self._updates + sum(_sizes(rows, turns)))
        return StepTable(rows, per_row, turns, self.idle, self._here[part], self._there[part])

    def update_table(self, place: int, size: int, hyper: int, dtype: torch.dtype) -> UpdateTable:
        """Where the recording of an update reads, of the kind at this place among all."""
        shape = OF_SLOTS + NUMBERS, self._width
        part = slice(place * shape[0] * shape[1], (place + 1) * shape[0] * shape[1])
        here, there = self._here[part].reshape(shape), self._there[part].view(shape)
        return UpdateTable(size, hyper, self.idle, dtype, here, there)

    def send(self) -> None:
        """Let the device have what was written."""
        sent_to(self._there, torch.from_numpy(self._here))


@dataclass(frozen=True)
class StepTable:
    """The shares of a step of R rows, of which no trial has more than `turns`."""

    rows: int
    per_row: int
    turns: int
    idle: int
    here: Whole
    there: Tensor

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        return torch.split(self.there, list(_sizes(self.rows, self.turns)))

    @property
    def device(self) -> torch.device:
        return self.there.device

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

    def write(self, rows: RowTable, members: Sequence[Member]) -> None:
        """What the next replay is to do: the rows' shares belong to these, in this order."""
        (slots, firsts, counts, _), used = rows.columns, rows.used_rows
        pieces = [member.piece for member in members if member.piece is not None]
        starts = np.array([piece.first + piece.taken for piece in pieces], dtype=np.int64)
        batches = np.array([piece.batch for piece in pieces], dtype=np.int64)
        of_rows = self.here[: OF_ROWS * self.rows].reshape(OF_ROWS, self.rows)
        of_rows[:ROW_NUMBERS], of_rows[ROW_NUMBERS], of_rows[ROW_NUMBERS + 1] = rows.numbers(), 0, 1
        of_rows[ROW_NUMBERS, used.rows] = starts[used.shares] + used.within * self.per_row
        of_rows[ROW_NUMBERS + 1, used.rows] = batches[used.shares]
        by_size = np.argsort(-counts, kind="stable")
        fresh = np.array([member.fresh for member in members], dtype=np.int64)
        slots, firsts, at = slots[by_size], firsts[by_size], OF_ROWS * self.rows
        self._fill(at, self.rows, fresh[by_size], 0)
        at += self.rows
        for turn in range(self.turns):
            count, size = int((counts > turn).sum()), self.rows // (turn + 1)
            self._fill(at, size, slots[:count], self.idle)
            self._fill(at + size, size, firsts[:count] + turn, 0)
            at += 2 * size

    def _fill(self, at: int, size: int, numbers: Whole, rest: int) -> None:
        self.here[at : at + len(numbers)] = numbers
        self.here[at + len(numbers) : at + size] = rest

    def clear(self) -> None:
        """All rows idle: a step of it changes nothing."""
        self.write(RowTable((), self.rows, self.per_row, self.idle, self.device), ())


@dataclass(frozen=True)
class UpdateTable:
    """The slots that take a step by the same kind of optimizer: S of them, or fewer."""

    size: int
    """S."""
    hyper: int
    """H."""
    idle: int
    dtype: torch.dtype
    here: Whole
    there: Tensor

    @property
    def slots(self) -> Tensor:
        """S; the idle one where there are no more."""
        return self.there[0, : self.size]

    @property
    def images(self) -> Tensor:
        """Of the batches that their steps are for, S."""
        return self.there[1, : self.size]

    @property
    def numbers(self) -> Tensor:
        """Those of penalties, then those of the optimizer's steps, (`PENALTY_NUMBERS` + H) × S; a copy."""
        end = OF_SLOTS + PENALTY_NUMBERS + self.hyper
        return self.there[OF_SLOTS:end, : self.size].view(torch.float64).to(self.dtype)

    def write(self, columns: Whole) -> None:
        """What the next replay is to do: lines of `columns_of`, of no more than S members."""
        self.here[:, : len(columns)] = columns.T
        self.here[:, len(columns) : self.size] = _idle(self.idle)[:, None]

    def clear(self) -> None:
        """No slot: a step of it changes nothing."""
        self.write(columns_of(()))


def columns_of(members: Sequence[Member]) -> Whole:
    """What tables of updates say of members whose batch is complete, a line for each."""
    found: Whole = np.empty((len(members), OF_SLOTS + NUMBERS), dtype=np.int64)
    found[:, 0] = [member.slot for member in members]
    found[:, 1] = [member.piece.batch for member in members if member.piece is not None]
    if members:
        numbers = np.concatenate([member.numbers() for member in members])
        found[:, OF_SLOTS:].view(np.float64)[...] = numbers.reshape(-1, NUMBERS)
    return found


@lru_cache(maxsize=16)
def _idle(slot: int) -> Whole:
    """The line of the idle slot, whose zeros stay zeros whatever its optimizer is; not to be changed."""
    return np.concatenate([np.array([slot, 0]), np.array(HARMLESS).view(np.int64)])


def bucket(count: int, most: int) -> int:
    """The size of tables of updates that hold so many: 4, 8, 16 … slots, or all of them.

    Few, for each is recorded and compiled by itself, which takes seconds.
    """
    size = FEWEST_UPDATED
    while size < count:
        size *= 2
    return min(size, max(most, count, 2))


def _sizes(rows: int, turns: int) -> tuple[int, ...]:
    """Of the parts of a table of rows: the rows; who begins a batch; for each turn, slots and their rows."""
    per_turn = [rows // (turn + 1) for turn in range(turns)]  # of R rows no more than R/k slots have k
    return OF_ROWS * rows, rows, *(size for size in per_turn for _ in range(2))
