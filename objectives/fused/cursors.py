"""Where the trials of a pool are in their epochs, and whose turn it is: numbers of the host, by slot.

Shapes: T slots, S of them that have a part in a step.

A trial's place in an epoch is one number, the images that it has been through: which batch that is in, and
how much is left of it, follows from the sizes. So all of a step is decided by a few operations on arrays,
however many trials there are; what a trial is besides, `Member` knows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.fused.rows import RowTable, Wants, Whole, pack, table

Flags: TypeAlias = NDArray[np.bool_]

RESTS = -1
"""The place of a trial that is between two epochs."""


class Progress(NamedTuple):
    """Where trials are, each after so many images of its epoch."""

    number: Whole
    """Of the batch, counted from 0."""
    within: Whole
    """Images of the batch that it has been through."""
    batch: Whole
    """Images of the batch; the last of an epoch may be smaller."""
    left: Whole
    """Images of the piece, the part of a large batch that goes through the model in one go."""


def progress(at: Whole, images: Whole, batch_size: Whole, piece: Whole) -> Progress:
    """For trials of so many images, in batches of so many, of which at most so many go through in one go."""
    number = at // batch_size
    begun = number * batch_size
    within = at - begun
    batch = np.minimum(batch_size, images - begun)
    return Progress(number, within, batch, np.minimum(piece - within % piece, batch - within))


class Turn(NamedTuple):
    """A step: whose images are in which rows, S."""

    rows: RowTable
    slots: Whole
    starts: Whole
    """Place of the first of its images in its trial's epoch."""
    batches: Whole
    """Images of the batch that they are of."""
    numbers: Whole
    """Of this batch in the epoch, counted from 0."""
    fresh: Flags
    """Whether they begin their batch."""
    complete: Flags
    """Whether they complete it."""


@dataclass(slots=True)
class Sums:
    """Of the steps of an epoch, so far."""

    steps: int = 0
    """Taken; the host knows of them before it knows what they gave."""
    images: int = 0
    loss: float = 0.0
    """Each step's mean loss times its images."""
    norm: float = 0.0
    finite: bool = True
    """Whether every step's loss was."""
    seconds: float = 0.0
    """The trial's share of the time that its steps took."""


class Cursors:
    """The trials of so many slots, of which some may be empty."""

    def __init__(self, slots: int) -> None:
        self.line: Whole = np.empty(0, dtype=np.int64)
        """Slots with a trial, those that have waited longest for a step first."""
        self.at_T: Whole = np.full(slots, RESTS, dtype=np.int64)
        """Images of its epoch that each trial has been through, or `RESTS`."""
        self.sizes_3T: Whole = np.ones((3, slots), dtype=np.int64)
        """Images of an epoch, of a batch, and of a piece."""
        self.whole_T: Flags = np.zeros(slots, dtype=np.bool_)
        """Whether a piece goes through in one step."""
        self.run_T: Whole = np.zeros(slots, dtype=np.int64)
        """Epochs that have begun in a slot, of whatever trials."""
        self.finite_T: Flags = np.ones(slots, dtype=np.bool_)
        """Whether all losses of the epoch have been, as far as is known."""
        self.loss_T: NDArray[np.float64] = np.zeros(slots)
        """Of the epoch: each step's mean loss times its images, where the host looks at every step."""
        self.norm_T: NDArray[np.float64] = np.zeros(slots)
        """Of each step's gradient, likewise."""
        self.seconds_T: NDArray[np.float64] = np.zeros(slots)
        """Each trial's share of the time that its steps took."""

    def admit(self, slot: int, images: int, batch_size: int, piece: int, whole: bool) -> None:
        """A trial comes into an empty slot, at the end of the line; it rests."""
        self.sizes_3T[:, slot] = images, batch_size, piece
        self.whole_T[slot] = whole
        self.at_T[slot] = RESTS
        self.line = np.append(self.line, slot)

    def retire(self, slot: int) -> None:
        """Its trial goes."""
        self.at_T[slot] = RESTS
        self.line = self.line[self.line != slot]

    def begin(self, slot: int) -> None:
        """Its trial starts an epoch."""
        self.at_T[slot] = 0
        self.run_T[slot] += 1
        self.finite_T[slot] = True
        for sums_T in (self.loss_T, self.norm_T, self.seconds_T):
            sums_T[slot] = 0.0

    def rest(self, slot: int) -> None:
        """Its trial leaves the epoch that it is in."""
        self.at_T[slot] = RESTS

    def turn(
        self, capacity: int, per_row: int, most_rows: int | None, *, idle: int, device: torch.device
    ) -> Turn:
        """Who trains in the next step, as `pack` decides; they go to the end of the line."""
        found = progress(self.at_T, *self.sizes_3T)
        waiting = self.line[self.at_T[self.line] >= 0]
        wants = Wants(waiting, found.left[waiting], self.whole_T[waiting])
        rows = table(pack(wants, capacity, per_row, most_rows), capacity, per_row, idle, device)
        slots, _, _, images = rows.columns
        number, within, batch, _ = (each[slots] for each in found)
        served = np.zeros(len(self.at_T), dtype=np.bool_)
        served[slots] = True
        self.line = np.concatenate([self.line[~served[self.line]], slots])
        ended = within + images == batch
        return Turn(rows, slots, self.at_T[slots], batch, number, within == 0, ended)

    def take(self, turn: Turn, seconds: float, lost: Collection[int] = ()) -> Whole:
        """A step was taken, in so many seconds; returns the slots whose epoch is through, or has diverged.

        `lost`: slots whose own part of it failed.
        """
        slots, _, rows, images = turn.rows.columns
        self.at_T[slots] += images
        self.seconds_T[slots] += rows * (seconds / max(turn.rows.used, 1))
        ended = slots[turn.complete]
        if lost:
            ended = ended[~np.isin(ended, list(lost))]
        through: Whole = ended[(self.at_T[ended] == self.sizes_3T[0, ended]) | ~self.finite_T[ended]]
        return through

    def add(
        self, slots: Whole, losses: NDArray[np.float64], norms: NDArray[np.float64], images: Whole
    ) -> None:
        """Losses and norms of a step of each, on so many images."""
        self.loss_T[slots] += losses * images
        self.norm_T[slots] += norms
        self.finite_T[slots] &= np.isfinite(losses)

    def seen(self, finite_T: Flags, run_T: Whole) -> None:
        """Which losses were finite at a moment, and `run_T` then: of epochs that are still the same."""
        self.finite_T &= finite_T | (run_T != self.run_T)

    def sums(self, slot: int) -> Sums:
        """Of a trial at the end of a batch."""
        images = int(self.at_T[slot])
        loss, norm, seconds = (float(each[slot]) for each in (self.loss_T, self.norm_T, self.seconds_T))
        steps = -(-images // int(self.sizes_3T[1, slot]))
        return Sums(steps, images, loss, norm, bool(self.finite_T[slot]), seconds)
