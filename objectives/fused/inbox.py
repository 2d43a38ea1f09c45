"""The numbers of a step on their way to the device: written on the host, sent in one copy, then read there.

Shapes: T slots, R rows, M images of a row, S slots that take a step, H numbers of an optimizer's step.

A recording reads the places that it was recorded with. So there is one tensor on the device that stays where
it is: at its beginning a part for each kind of optimizer, behind them the table of the rows. Whatever is
recorded reads its own part of it, and the next copy waits, on the device, until it has been read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from objectives.devices import sent_to
from objectives.fused.cursors import Turn
from objectives.fused.member import NUMBERS, PENALTY_NUMBERS, Member
from objectives.fused.rows import NO_SHARES, ROW_NUMBERS, RowTable, Whole
from objectives.fused.update import MOST_NUMBERS, UPDATES

HARMLESS = (0.0, 0.0, 1.0, *[1.0] * MOST_NUMBERS)
"""What `Member.numbers` would be of the idle slot."""

OF_ROWS = ROW_NUMBERS + 2
"""Numbers of a row: the place of its first image, and the images of its batch, are the last two."""

FEWEST_UPDATED = 4

OF_SLOTS = 2
"""Whole numbers of a slot that takes a step: itself, and the images of its batch."""

OF_NUMBERS = OF_SLOTS + NUMBERS
"""All numbers of it; those that aren't whole are written as the bits that they have in double precision."""

MADE_AT_ONCE = 64
"""Lines of a trial that are made ahead."""


class Inbox:
    """Room for a step of so many slots and rows, no trial with more than `turns` of them."""

    def __init__(self, slots: int, rows: int, turns: int, device: torch.device) -> None:
        self.idle = slots
        self._width = max(slots, 2)
        kinds = len(set(UPDATES.values()))
        self._updates = kinds * OF_NUMBERS * self._width
        size = self._updates + sum(_sizes(rows, turns))
        self._here: Whole = np.zeros(size, dtype=np.int64)
        self._there = torch.zeros(size, dtype=torch.long, device=device)
        self._of_updates = self._here[: self._updates].reshape(kinds, OF_NUMBERS, self._width)
        self._nobody = np.empty_like(self._of_updates)
        self._nobody[...] = _idle(slots)[:, None]
        self.clear_updates()
        self._sent = torch.from_numpy(self._here)

    def holds(self, rows: int, turns: int) -> bool:
        """Whether there is room for a table of so many rows."""
        return self._updates + sum(_sizes(rows, turns)) <= len(self._here)

    def step_table(self, rows: int, per_row: int, turns: int) -> StepTable:
        """Where recordings of such steps read."""
        part = slice(self._updates, self._updates + sum(_sizes(rows, turns)))
        return StepTable(rows, per_row, turns, self.idle, self._here[part], self._there[part])

    def update_table(self, place: int, size: int, hyper: int, dtype: torch.dtype) -> UpdateTable:
        """Where the recording of an update reads, of the kind at this place among all."""
        shape = OF_NUMBERS, self._width
        part = slice(place * shape[0] * shape[1], (place + 1) * shape[0] * shape[1])
        return UpdateTable(size, hyper, dtype, self._there[part].view(shape))

    def clear_updates(self) -> None:
        """Nobody takes a step: an update changes nothing."""
        self._of_updates[...] = self._nobody

    def write_updates(self, kinds: Whole, lines: Whole) -> None:
        """Which slots take a step next, by the kinds of optimizer at these places: lines of `Lines`."""
        self.clear_updates()
        in_order = kinds.argsort(kind="stable")
        kinds = kinds[in_order]
        self._of_updates[kinds, :, np.arange(len(kinds)) - kinds.searchsorted(kinds)] = lines[in_order]

    def send(self) -> None:
        """Let the device have what was written."""
        sent_to(self._there, self._sent)


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
        return RowTable(NO_SHARES, self.rows, self.per_row, self.idle, self.device, given, self.turns)

    @cached_property
    def _nobody(self) -> Whole:
        """What is written where all rows are idle."""
        of_rows = np.empty((OF_ROWS, self.rows), dtype=np.int64)
        of_rows[:ROW_NUMBERS] = self._no_rows.numbers()
        of_rows[ROW_NUMBERS], of_rows[ROW_NUMBERS + 1] = 0, 1
        turns = [np.full(size, rest) for size in _turns(self.rows, self.turns) for rest in (self.idle, 0)]
        return np.concatenate([of_rows.flatten(), np.zeros(self.rows, dtype=np.int64), *turns])

    @cached_property
    def _of_turns(self) -> tuple[Whole, Whole]:
        """Where the slots of each turn are written, and where their rows are."""
        sizes = np.array(_turns(self.rows, self.turns))
        slots = (OF_ROWS + 1) * self.rows + 2 * (sizes.cumsum() - sizes)
        return slots, slots + sizes

    @property
    def _no_rows(self) -> RowTable:
        return RowTable(NO_SHARES, self.rows, self.per_row, self.idle, self.device)

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

    def write(self, turn: Turn) -> None:
        """What the next replay is to do."""
        used, end = turn.rows.used_rows, turn.rows.used
        self.here[...] = self._nobody
        of_rows = self.here[: OF_ROWS * self.rows].reshape(OF_ROWS, self.rows)
        turn.rows.fill(of_rows[:ROW_NUMBERS])
        of_rows[ROW_NUMBERS, :end] = turn.starts[used.shares] + used.within * self.per_row
        of_rows[ROW_NUMBERS + 1, :end] = turn.batches[used.shares]
        # Those with most rows first, so that whoever has another row is among the first of the next turn.
        by_size = (-turn.rows.columns[2]).argsort(kind="stable")
        place = np.empty_like(by_size)
        place[by_size] = np.arange(len(by_size))
        self.here[OF_ROWS * self.rows :][place] = turn.fresh
        of_share, (slots_at, rows_at) = place[used.shares], self._of_turns
        self.here[slots_at[used.within] + of_share] = of_rows[0, :end]
        self.here[rows_at[used.within] + of_share] = used.rows

    def clear(self) -> None:
        """All rows idle: a step of it changes nothing."""
        self.here[...] = self._nobody


@dataclass(frozen=True)
class UpdateTable:
    """The slots that take a step by the same kind of optimizer: S of them, or fewer."""

    size: int
    """S."""
    hyper: int
    """H."""
    dtype: torch.dtype
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
        return self.doubles[:, : self.size].to(self.dtype)

    @property
    def doubles(self) -> Tensor:
        """The same as they came, of all slots that there is room for."""
        return self.there[OF_SLOTS : OF_SLOTS + PENALTY_NUMBERS + self.hyper].view(torch.float64)


class Lines:
    """What tables of updates say of a trial's steps, a line for each: some of them made ahead, at once.

    Shapes: T slots, B lines made at once, S steps.
    """

    def __init__(self, slots: int) -> None:
        self._lines_TBN = np.zeros((slots, MADE_AT_ONCE, OF_NUMBERS), dtype=np.int64)
        self._made_T = np.full(slots, -1)
        """Number of the step in its epoch that the first line of each slot is for; −1: of none."""
        self._members: dict[int, Member] = {}

    def begin(self, member: Member) -> None:
        """A trial starts an epoch."""
        self._members[member.slot] = member
        self._made_T[member.slot] = -1

    def of(self, slots_S: Whole, numbers_S: Whole) -> Whole:
        """Those of steps with these numbers in their epochs, of trials in these slots."""
        within_S = numbers_S % MADE_AT_ONCE
        firsts_S = numbers_S - within_S
        for place in (self._made_T[slots_S] != firsts_S).nonzero()[0].tolist():
            self._make(self._members[int(slots_S[place])], int(firsts_S[place]))
        found: Whole = self._lines_TBN[slots_S, within_S]
        return found

    def _make(self, member: Member, first: int) -> None:
        numbers = member.numbers()[first : first + MADE_AT_ONCE]
        lines, size = self._lines_TBN[member.slot, : len(numbers)], member.feed.batch_size
        starts = size * np.arange(first, first + len(numbers))
        lines[:, 0], lines[:, 1] = member.slot, np.minimum(member.feed.images - starts, size)
        lines[:, OF_SLOTS:].view(np.float64)[...] = numbers
        self._made_T[member.slot] = first


@lru_cache(maxsize=16)
def _idle(slot: int) -> Whole:
    """The line of the idle slot, whose zeros stay zeros whatever its optimizer is; not to be changed."""
    return np.concatenate([np.array([slot, 0]), np.array(HARMLESS).view(np.int64)])


@lru_cache(maxsize=4096)
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
    return OF_ROWS * rows, rows, *(size for size in _turns(rows, turns) for _ in range(2))


def _turns(rows: int, turns: int) -> list[int]:
    """Slots of each turn, at most: of R rows no more than R/k have k."""
    return [rows // (turn + 1) for turn in range(turns)]
