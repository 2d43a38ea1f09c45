"""Steps of a pool as recorded work: everything that changes from step to step is in tables on the device.

Shapes: T slots, R rows, M images of a row, N = R·M images of a step, K classes, P parameters of a trial, W of
them weights, S slots that take a step.

A step is a replay of its passes (images, forward, losses, backward, gradients added up), and one of the
update of each kind of optimizer among the trials whose batch is complete. What is recorded depends on sizes,
of which there are few, and on the kinds of loss, augmentation and dropout that trials have brought so far:
trials that come and go are numbers in tables. Random numbers are functions of such numbers, and drawn for all
images of a step at once. Numbers of two slots meet nowhere: a loss is computed image by image, what it gives
for images of another is left out, and a mask is a `where`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from objectives.augment import purpose
from objectives.base import Choice
from objectives.chance import Columns, Purpose, dropout, kept
from objectives.devices import moved
from objectives.fused.compiled import compiled_for
from objectives.fused.cursors import Turn
from objectives.fused.inbox import Inbox, Lines, StepTable, UpdateTable, bucket
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.regularise import FACTORS
from objectives.fused.rows import RowTable, Whole
from objectives.fused.state import add_counted_rows
from objectives.fused.step_operations import (
    images_by_operations,
    losses_by_operations,
    places_by_operations,
    step_by_operations,
)
from objectives.fused.sums import DeviceSums
from objectives.fused.tables import TrialTables
from objectives.fused.triton_chance import words_for
from objectives.fused.triton_images import images_by_triton, places_by_triton, shows
from objectives.fused.triton_steps import loses, losses_by_triton, places_of, update_by_triton, updates
from objectives.fused.update import Rows, Update
from objectives.losses import LOSSES
from objectives.recording import Recorder, Recording

MOST_ROWS = 16
"""Of a trial in a step that is recorded: each is a turn in which gradients are added up."""


@dataclass(frozen=True, slots=True)
class _Passes:
    """Recorded passes, and what they read besides the trials' tables."""

    table: StepTable
    recording: Recording
    read: tuple[object, ...]
    """What else it reads, as long as it can be replayed: a CUDA graph holds no tensors. Not the work, which
    would hold us: who lets go of steps wants their memory back at once."""


class RecordedSteps:
    """The steps of a program's trials, on the images that `images_ACHW` are; a member of it is in a slot.

    Steps have at most so many `rows`, but for a batch that can't be cut. Raises `RecordingError` where
    something can't be recorded, before anything has changed.
    """

    def __init__(
        self,
        program: Program,
        recorder: Recorder,
        images_ACHW: Tensor,
        rows: int,
        per_row: int,
        *,
        loss_T: Tensor,
        sums: DeviceSums,
    ) -> None:
        self._program, self._recorder = program, recorder
        self._per_row, self._pictures = per_row, images_ACHW
        self._loss_T, self._sums = loss_T, sums
        self._compiled = compiled_for(program.device)
        # Made here, where whoever makes a pool sees to it that there is memory for it.
        shape = (program.state.idle + 1, len(images_ACHW))
        self._order_TA = torch.zeros(shape, dtype=torch.int32, device=program.device)
        self._trials: TrialTables | None = None
        self._passes: dict[tuple[int, int], _Passes] = {}
        self._updates: dict[tuple[Update, int], Recording] = {}
        self._inbox = Inbox(program.state.idle, max(rows, MOST_ROWS), MOST_ROWS, program.device)
        self._kinds: list[Update] = []
        """Of optimizers, in the order in which trials brought them, which is that of the inbox."""
        self._kind_T = np.zeros(program.state.idle, dtype=np.int64)
        """Place of each trial's among them."""
        self._lines = Lines(program.state.idle)
        self._refused: set[int] = set()
        """Slots of trials of which nothing is recorded."""
        self.recorded = 0
        """Recordings made so far."""

    def admit(self, member: Member) -> None:
        """A trial comes into its slot."""
        if self._trials is None:
            self._trials = TrialTables(
                self._order_TA,
                member.data.labels,
                channels=self._pictures.shape[1],
                classes=member.data.classes,
                dropouts=len(self._program.features),
                dtype=self._program.dtype,
            )
        self._refused.discard(member.slot)
        if refused(member):
            self._refused.add(member.slot)
            return
        if member.update not in self._kinds:
            self._kinds.append(member.update)
        self._kind_T[member.slot] = self._kinds.index(member.update)
        known = self._trials.kinds
        self._trials.admit(member, *_loss(member))
        if self._trials.kinds != known:
            self._passes.clear()  # they know nothing of it

    def forget(self) -> None:
        """Let go of all recordings, and of their memory; the trials stay."""
        self._passes.clear()
        self._updates.clear()

    def begin(self, member: Member) -> None:
        """A trial starts an epoch."""
        assert self._trials is not None, "a trial has come in"
        self._trials.begin(member)
        self._lines.begin(member)

    def takes(self, turn: Turn) -> bool:
        """Whether the passes of such a step are recorded."""
        return turn.rows.most_rows <= MOST_ROWS and not (
            self._refused and any(map(self.refuses, turn.slots.tolist()))
        )

    def refuses(self, slot: int) -> bool:
        """Whether passes and updates of the trial in a slot are not recorded; see `refused`."""
        return slot in self._refused

    def step(self, turn: Turn) -> None:
        """Add gradients and losses of a step to those of their batches, then take the steps of optimizers of
        trials whose batch is complete.
        """
        slots_S, numbers_S = turn.slots[turn.complete], turn.numbers[turn.complete]
        passes, updates = self._passes_of(turn.rows), self._updates_of(slots_S)
        passes.table.write(turn)
        self._send(slots_S, numbers_S)
        passes.recording.replay()
        for update in updates:
            update.replay()

    def update(self, slots_S: Whole, numbers_S: Whole) -> None:
        """The second half of `step` by itself, for steps with these numbers in their epochs."""
        updates = self._updates_of(slots_S)
        self._send(slots_S, numbers_S)
        for update in updates:
            update.replay()

    def _send(self, slots_S: Whole, numbers_S: Whole) -> None:
        """Tell the device what is to be done, and whose optimizers are to take which steps."""
        self._inbox.write_updates(self._kind_T[slots_S], self._lines.of(slots_S, numbers_S))
        self._inbox.send()

    def _passes_of(self, rows: RowTable) -> _Passes:
        """Those for a step, recorded now if they are not yet."""
        turns = 1
        while turns < rows.most_rows:
            turns *= 2
        key = (rows.rows, min(turns, rows.rows))
        if key not in self._passes:
            self._passes[key] = self._record_passes(*key)
        return self._passes[key]

    def _updates_of(self, slots_S: Whole) -> list[Recording]:
        """Likewise, one for each kind of optimizer of the trials in these slots."""
        found = []
        for place, users in enumerate(np.bincount(self._kind_T[slots_S]).tolist()):
            if users:
                key = self._kinds[place], bucket(users, self._program.state.idle)
                if key not in self._updates:
                    self._updates[key] = self._record_update(*key)
                found.append(self._updates[key])
        return found

    def _record_passes(self, rows: int, turns: int) -> _Passes:
        program, trials = self._program, self._trials
        assert trials is not None, "a trial has come in"
        if not self._inbox.holds(rows, turns):
            self.forget()  # they read the old one
            self._inbox = Inbox(program.state.idle, rows, turns, program.device)
        table = self._inbox.step_table(rows, self._per_row, turns)
        features = {dropout(layer): size for layer, size in enumerate(program.features) if trials.drops}
        given = [purpose(name) for name in trials.amounts], features, program.device
        columns = Columns(*given, by=words_for(program.device))
        places = moved(places_of(list(trials.losses)), program.device)
        table.clear()
        work = partial(self._do_passes, table, columns, places)
        return _Passes(table, self._record(work), (columns, places))

    def _record_update(self, update: Update, size: int) -> Recording:
        place = self._kinds.index(update)
        table = self._inbox.update_table(place, size, update.hyper, self._program.dtype)
        self._inbox.clear_updates()
        return self._record(partial(self._do_update, update, table))

    def _record(self, work: Callable[[], tuple[()]]) -> Recording:
        self._inbox.send()
        self.recorded += 1
        return self._recorder(work)

    def _do_passes(self, table: StepTable, columns: Columns, places: Tensor) -> tuple[()]:
        program, trials, rows = self._program, self._trials, table.row_table()
        assert trials is not None, "a trial has come in"
        of_rows = rows.slots, rows.table[3], table.firsts
        by_kernel = shows(self._pictures, trials.amounts)
        places_of_images = places_by_triton if by_kernel else places_by_operations
        slot_N, place_N, index_N = places_of_images(trials.order_TA, of_rows, table.per_row)
        drawn = columns.draw(place_N, trials.key_T2, slot_N)
        images = images_by_triton if by_kernel else images_by_operations
        given = self._pictures, index_N, rows.slots, trials, drawn.numbers
        x_MHWRC = images(*given, program.images if by_kernel else program.dtype)
        masks = self._masks(rows, drawn.words, slot_N)
        forward = program.forward(rows, x_MHWRC, masks, training=True)
        dlogits_RMK, loss_R = self._losses(table, rows, forward.logits.detach(), index_N, places)
        turns = [table.turn(number) for number in range(table.turns)]
        ends = turns, table.fresh, rows.table[2]
        program.state.add_in_turns(program.gradients(forward, dlogits_RMK), *ends)
        add_counted_rows(self._loss_T[:, None], loss_R[:, None], *ends)
        program.track(*turns[0], forward.statistics)
        return ()

    def _masks(self, rows: RowTable, words: Mapping[Purpose, Tensor], slot_N: Tensor) -> list[Tensor | None]:
        """What each dropout layer multiplies by, RMF; None: nothing, if no trial has dropped anything yet."""
        trials, layers = self._trials, range(len(self._program.features))
        assert trials is not None, "a trial has come in"
        if not trials.drops:
            return [None for _ in layers]
        shares_NL = trials.shares_TL.index_select(0, slot_N)
        masks = (kept(words[dropout(n)], shares_NL[:, n, None], self._program.dtype) for n in layers)
        return [mask_NF.view(rows.rows, rows.per_row, -1) for mask_NF in masks]

    def _losses(
        self, table: StepTable, rows: RowTable, logits_RMK: Tensor, index_N: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient RMK of each slot's mean loss with respect to the scores, and each row's part of it.

        `places`: of the losses in use, see `places_of`.
        """
        trials = self._trials
        assert trials is not None, "a trial has come in"
        of_rows = rows.slots, rows.table[3], table.batches
        given = logits_RMK, trials.labels_A, index_N, of_rows, trials.class_weights_TK, trials.loss_T
        if loses(logits_RMK, list(trials.losses)):
            return losses_by_triton(*given, places, trials.losses)
        return losses_by_operations(*given, trials.losses)

    def _do_update(self, update: Update, table: UpdateTable) -> tuple[()]:
        state, sums = self._program.state, self._sums
        stack = Rows(state.weights_TP, state.gradient_TP, state.first_TP, state.second_TP)
        given = update, stack, table, state.layout.weights, self._loss_T
        if updates(update, stack.weights):
            update_by_triton(*given, sums.sums_T2)
        else:
            step_by_operations(*given, sums, self._compiled)
        return ()


def refused(member: Member) -> str | None:
    """Why a trial's steps are not recorded; None: they are."""
    if member.loss.random is not None:
        return "a loss of the user's own may draw random numbers"
    if member.penalises and member.config.regulariser.name not in FACTORS:
        return f"regulariser {member.config.regulariser.name} has no form by numbers"
    return None


def _loss(member: Member) -> tuple[str, dict[str, float]]:
    """Its name, and all options, those left out at their defaults."""
    choice: Choice = member.config.loss
    parameters = inspect.signature(LOSSES[choice.name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return choice.name, {name: float(value) for name, value in {**defaults, **choice.options}.items()}
