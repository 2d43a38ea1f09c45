"""Scoring of a pool's trials on their validation images as recorded work, beside `recorded.py`'s steps.

Shapes: T slots, R rows, M images of a row, N = R·M images of a pass, A images there are, C channels, K
classes.

A pass is the forward of all rows in evaluation, one recording for each number of rows. Which slot a row
belongs to, and where among its trial's validation images it begins, are numbers in a table; which images
those are, and how they are normalised, are in tables of the trials. Nobody waits for the device between two
passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from objectives.devices import moved, sent_to
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.rows import NO_SHARES, ROW_NUMBERS, RowTable
from objectives.fused.staging import normalised
from objectives.recording import Recorder, Recording


@dataclass(frozen=True, slots=True)
class _Pass:
    """A recorded pass, and the table that it reads: `ROW_NUMBERS` and the place of the first image, × R."""

    numbers: Tensor
    recording: Recording


class RecordedScores:
    """The scores of a program's trials on images out of `images_ACHW`; a member of it is in a slot.

    Raises `RecordingError` where a pass can't be recorded, and what the recorder raises, before anything has
    changed.
    """

    def __init__(self, program: Program, recorder: Recorder, images_ACHW: Tensor, per_row: int) -> None:
        self._program, self._recorder = program, recorder
        self._pictures, self._per_row = images_ACHW, per_row
        device, slots = program.device, program.state.idle + 1
        # Made here, where whoever makes a pool sees to it that there is memory for it.
        self._held_out_TA = torch.zeros((slots, len(images_ACHW)), dtype=torch.int32, device=device)
        """The validation images of each trial, in their order; zeros beyond."""
        self._mean_TC = torch.zeros((slots, images_ACHW.shape[1]), device=device)
        self._std_TC = torch.ones_like(self._mean_TC)
        self._passes: dict[int, _Pass] = {}
        """By rows."""

    def admit(self, member: Member) -> None:
        """A trial comes into its slot."""
        data, slot = member.data, member.slot
        self._mean_TC[slot].copy_(data.mean)
        self._std_TC[slot].copy_(data.std)
        self._held_out_TA[slot, : len(data.validation_indices)].copy_(data.validation_indices)

    def forget(self) -> None:
        """Let go of all recordings, and of their memory; the trials stay."""
        self._passes.clear()

    def logits(self, rows: RowTable, done: Mapping[int, int]) -> Tensor:
        """The scores NK of a pass, to keep; `done`: slot → validation images before its share."""
        if rows.rows not in self._passes:
            self._passes[rows.rows] = self._record(rows.rows)
        found = self._passes[rows.rows]
        used, first = rows.used_rows, np.zeros(rows.rows, dtype=np.int64)
        starts = np.array([done[share.slot] for share in rows.shares], dtype=np.int64)
        first[used.rows] = starts[used.shares] + used.within * self._per_row
        sent_to(found.numbers, torch.from_numpy(np.vstack([rows.numbers(), first])))
        found.recording.replay()
        (logits_NK,) = found.recording.results
        return logits_NK.clone()

    def _record(self, rows: int) -> _Pass:
        program = self._program
        idle = RowTable(NO_SHARES, rows, self._per_row, program.state.idle, program.device)
        blank = np.vstack([idle.numbers(), np.zeros(rows, dtype=np.int64)])
        numbers = moved(torch.from_numpy(blank), program.device)
        return _Pass(numbers, self._recorder(lambda: (self._pass(numbers),)))

    def _pass(self, numbers: Tensor) -> Tensor:
        program = self._program
        given, first_R = numbers[:ROW_NUMBERS], numbers[ROW_NUMBERS]
        # One turn: nothing is added up over rows in evaluation.
        rows = RowTable(NO_SHARES, len(first_R), self._per_row, program.state.idle, program.device, given, 1)
        within_M = torch.arange(self._per_row, device=program.device)
        place_RM = torch.where(rows.valid, first_R[:, None] + within_M, 0)
        place_RM = place_RM + rows.slots[:, None] * self._held_out_TA.shape[1]
        index_N = self._held_out_TA.flatten().index_select(0, place_RM.flatten()).long()
        x_MHWRC = normalised(
            self._pictures.index_select(0, index_N),
            self._mean_TC.index_select(0, rows.slots),
            self._std_TC.index_select(0, rows.slots),
            program.dtype,
        )
        return program.forward(rows, x_MHWRC, (), training=False).logits.flatten(0, 1)
