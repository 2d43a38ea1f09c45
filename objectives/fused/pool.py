"""The trials of one architecture, trained together step by step.

Shapes: R rows, M images of a row, S trials that take part, K classes, P parameters, T slots, N images.

In each step the trials that have waited longest get the rows there are. A trial whose batch is complete then
takes its optimizer's step; nobody waits for anybody. Numbers of two trials never meet: a trial that diverges
is NaN in its own slot and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from objectives.fused.cursors import Cursors, Turn
from objectives.fused.losses import Entry, gradient
from objectives.fused.member import PENALTY_NUMBERS, Member
from objectives.fused.program import Program
from objectives.fused.recorded import MOST_ROWS, RecordedSteps
from objectives.fused.recorded_scores import RecordedScores
from objectives.fused.regularise import add_penalty
from objectives.fused.rows import Share, Whole, sent
from objectives.fused.scoring import Failed, Scored, score_rows, scores_of_member
from objectives.fused.staging import Taken, stage_images, stage_masks
from objectives.fused.sums import DeviceSums
from objectives.fused.update import Rows, Update, step_slots
from objectives.recording import Recorder, RecordingError, recorder_for
from objectives.regularisers import decay

logger = logging.getLogger(__name__)


class Pool:
    """A program, its trials, and their turns.

    A step has up to `capacity` rows of `per_row` images; a step that raises may be tried again after
    `rewind`, with a lower capacity if memory was short. With a `recorder` steps are recorded and replayed;
    None: with the one for the device, if there is one.
    """

    def __init__(
        self,
        program: Program,
        images_ACHW: Tensor,
        capacity: int,
        per_row: int,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.program = program
        self.capacity = capacity
        self.members: dict[int, Member] = {}
        """By slot."""
        self.shapes: set[int] = set()
        """The numbers of rows that steps have had."""
        self.images = 0
        """Images that trials have been trained on."""
        self.rows_run = 0
        """Rows of all steps so far."""
        self.rows_used = 0
        """Those of them that belonged to a trial."""
        self._pictures = images_ACHW
        self._per_row = per_row
        self._resting: dict[int, Member] = {}
        """By slot: those that are between two epochs."""
        self._unprepared: dict[int, Member] = {}
        """Likewise: those that are in an epoch, and should prepare for the next."""
        self._recorder = recorder or recorder_for(program.device)
        self.why_unrecorded: str | None = None
        """Why steps are no longer recorded that might have been."""
        self.why_scores_unrecorded: str | None = None
        """The same of scoring."""
        self._allocate()

    def _allocate(self) -> None:
        program = self.program
        self.cursors = Cursors(program.state.idle)
        """Where trials are in their epochs."""
        self._loss_T = torch.zeros(program.state.idle + 1, device=program.device, dtype=program.dtype)
        self._sums: DeviceSums | None = None
        """None: the host looks at every step, which on a CPU costs nothing."""
        if program.device.type != "cpu" or self._recorder:
            self._sums = DeviceSums(program.state.idle, program.device)
        self._recorded = self._new_recordings()
        self._recorded_scores = None
        if self._recorder and not (self.why_unrecorded or self.why_scores_unrecorded):
            given = program, self._recorder, self._pictures, self._per_row
            self._recorded_scores = RecordedScores(*given)

    def _new_recordings(self) -> RecordedSteps | None:
        if self._recorder is None or self._sums is None or self.why_unrecorded:
            return None
        given = self.program, self._recorder, self._pictures, self.capacity, self._per_row
        return RecordedSteps(*given, loss_T=self._loss_T, sums=self._sums)

    @property
    def free(self) -> list[int]:
        """Slots without a trial."""
        return [slot for slot in range(self.program.state.idle) if slot not in self.members]

    @property
    def active(self) -> list[Member]:
        """Trials that have something left to train, those that have waited longest first."""
        line = (self.members[slot] for slot in self.cursors.line.tolist())
        return [member for member in line if not member.ended]

    def admit(self, member: Member) -> None:
        self.program.state.admit(member.slot, member.saved)
        self._loss_T[member.slot].zero_()
        self.members[member.slot] = member
        if self._recorded:
            self._recorded.admit(member)
        if self._recorded_scores:
            self._recorded_scores.admit(member)
        feed, whole = member.feed, self.program.whole or member.loss.random is not None
        sizes = feed.images, feed.batch_size, feed.piece, whole
        self.cursors.admit(member.slot, *sizes)
        self._resting[member.slot] = member

    def retire(self, member: Member) -> None:
        """Take a trial out; its slot is empty to the last number."""
        del self.members[member.slot]
        self._resting.pop(member.slot, None)
        self._unprepared.pop(member.slot, None)
        self.cursors.retire(member.slot)
        self.program.state.wipe(member.slot)

    def rewind(self) -> None:
        """Bring every trial back to the end of its last epoch, whatever state a step was left in."""
        if self._recorded:
            self._recorded.forget()  # the memory that they hold may be what is missing
        if self._recorded_scores:
            self._recorded_scores.forget()
        for member in self.members.values():
            self.program.state.admit(member.slot, member.saved)
            self._loss_T[member.slot].zero_()
            self._rest(member)

    def resize(self, slots: int) -> list[Member]:
        """Have so many slots, all free; returns the trials that had one, at the ends of their last epochs.

        What they are is moved to the host's memory first. Raises if there is no memory for the slots.
        """
        self.rewind()
        members = [self.members[slot] for slot in self.cursors.line.tolist()]
        self.members, self._resting, self._unprepared = {}, {}, {}
        for member in members:
            member.saved = member.saved.to(torch.device("cpu"))
        self._recorded = self._recorded_scores = None
        self.program.state.resize(slots)
        self._allocate()
        return members

    def step(self) -> list[Member | Failed]:
        """Train every trial that gets rows on them; returns those that are at the end of an epoch now."""
        started = time.perf_counter()
        begins = [member for member in self._resting.values() if not member.ended]
        failed = [failure for member in begins if (failure := _try(member, partial(self._begin, member)))]
        if failed:
            return list(failed)
        turn = self._next_turn()
        failed = self._train(turn)
        if self._sums:
            self._look_ahead()  # now that the device has something to do
            self._sums.glance(self.cursors)
        lost = {failure.member.slot for failure in failed}
        through = self.cursors.take(turn, time.perf_counter() - started, lost)
        ended = [self.members[slot] for slot in through.tolist()]
        for member in ended:
            member.sums = self.cursors.sums(member.slot)
            self._rest(member)
        return [*failed, *ended]

    def score(self, members: Sequence[Member]) -> list[Scored | Failed]:
        """Each trial's results on its validation images."""
        if self._sums:
            self._sums.read(members)
        sound = [m for m in members if m.sums.finite and self._parameters_finite(m)]
        logits = self._score_rows(sound)
        return [
            scores_of_member(member, *logits[member.slot])
            if member.slot in logits
            else Scored(member, None, 0.0)
            for member in members
        ]

    def _score_rows(self, members: Sequence[Member]) -> dict[int, tuple[Tensor, float]]:
        given = self.program, self._pictures, members, self.capacity, self._per_row
        try:
            return score_rows(*given, recorded=self._recorded_scores)
        except RecordingError as error:
            # Of the model in evaluation: steps may go on as they are.
            self.why_scores_unrecorded = str(error)
            self._recorded_scores = None
            logger.warning("scoring can't be recorded, and takes longer: %s", error)
            return score_rows(*given)

    def save(self, member: Member) -> None:
        """Remember a trial's numbers as they are, at the end of an epoch."""
        member.saved = self.program.state.take(member.slot)

    def _begin(self, member: Member) -> None:
        """Let a trial start an epoch."""
        member.begin()
        if self._sums:
            self._sums.begin(member.slot)
        if self._recorded:
            self._recorded.begin(member)
        self.cursors.begin(member.slot)
        del self._resting[member.slot]
        if self._sums:
            self._unprepared[member.slot] = member

    def _look_ahead(self) -> None:
        """Let one of the trials that have begun an epoch prepare for the next, so that not all do at once."""
        if self._unprepared:
            self._unprepared.pop(next(iter(self._unprepared))).look_ahead()

    def _rest(self, member: Member) -> None:
        """A trial leaves the epoch that it is in."""
        self.cursors.rest(member.slot)
        self._resting[member.slot] = member
        self._unprepared.pop(member.slot, None)

    def _next_turn(self) -> Turn:
        """Who trains in this step; they go to the end of the line."""
        program, most_rows = self.program, MOST_ROWS if self._recorded else None
        given = self.capacity, self._per_row, most_rows
        turn = self.cursors.turn(*given, idle=program.state.idle, device=program.device)
        self.shapes.add(turn.rows.rows)
        self.images += int(turn.rows.columns[3].sum())
        self.rows_run += turn.rows.rows
        self.rows_used += turn.rows.used
        return turn

    def _train(self, turn: Turn) -> list[Failed]:
        """Do the passes of a step, and the updates of the batches that it completes. Returns who failed."""
        if self._replayed(turn):
            return []
        failed = self._backward(turn)
        sound = turn.complete
        if failed:
            sound = sound & ~np.isin(turn.slots, [failure.member.slot for failure in failed])
        self._update(turn.slots[sound], turn.numbers[sound], turn.batches[sound])
        return failed

    def _replayed(self, turn: Turn) -> bool:
        """Do a step as recorded work, if that can be."""
        if self._recorded is None or not self._recorded.takes(turn):
            return False
        try:
            self._recorded.step(turn)
        except RecordingError as error:
            self._record_no_more(error)
            return False
        return True

    def _backward(self, turn: Turn) -> list[Failed]:
        """Add the gradients and losses of a step to those of the batches they belong to."""
        rows, members = turn.rows, [self.members[slot] for slot in turn.slots.tolist()]
        starts, batches = turn.starts.tolist(), turn.batches.tolist()
        parts = list(zip(members, rows.shares, starts, strict=True))
        taken = [_take(member, share, start) for member, share, start in parts]
        images_MHWRC = stage_images(self._pictures, rows, taken, self.program.dtype)
        masks = stage_masks(rows, taken, self.program.features, self.program.dtype)
        forward = self.program.forward(rows, images_MHWRC, masks, training=True)
        entries = [
            Entry(share, member.loss, member.feed.labels(start, share.images), batch)
            for (member, share, start), batch in zip(parts, batches, strict=True)
        ]
        found = gradient(forward.logits, rows, entries, self._loss_T)
        self.program.add_gradients(rows, forward, found.logits, set(turn.slots[turn.fresh].tolist()))
        return [Failed(members[position], error) for position, error in found.failures.items()]

    def _record_no_more(self, error: RecordingError) -> None:
        self.why_unrecorded = str(error)
        self._recorded = self._recorded_scores = None
        logger.warning("steps are not recorded, and take longer: %s", error)

    def _update(self, slots_S: Whole, numbers_S: Whole, batches_S: Whole) -> None:
        """The optimizer's step of trials whose batch is complete, after passes that were not replayed: of
        which step of its epoch that is for each, and on how many images.
        """
        apart = np.ones(len(slots_S), dtype=np.bool_)
        if self._recorded is not None:
            refused = np.array([self._recorded.refuses(slot) for slot in slots_S.tolist()], dtype=np.bool_)
            try:
                self._recorded.update(slots_S[~refused], numbers_S[~refused])
            except RecordingError as error:
                self._record_no_more(error)
            else:
                apart = refused
        kinds: dict[Update, list[int]] = {}
        for place in apart.nonzero()[0].tolist():
            kinds.setdefault(self.members[int(slots_S[place])].update, []).append(place)
        for update, users in kinds.items():
            self._step_kind(update, slots_S[users], numbers_S[users].tolist(), batches_S[users])

    def _step_kind(self, update: Update, slots_S: Whole, steps: Sequence[int], batches_S: Whole) -> None:
        """A step of trials with the same kind of optimizer, operation by operation."""
        state, slots = self.program.state, slots_S.tolist()
        members = [self.members[slot] for slot in slots]
        for member in members:
            self._regularise(member)
        there_S = sent(slots, self.program.device)
        losses_S, norms_S = self._loss_T.index_select(0, there_S), state.gradient_norms(slots)
        if self._sums:
            self._sums.add(there_S, losses_S, norms_S, sent(batches_S.tolist(), self.program.device))
        else:
            self.cursors.add(slots_S, losses_S.double().numpy(), norms_S.double().numpy(), batches_S)
        for member, step in zip(members, steps, strict=True):
            weights_P = state.weights_TP[member.slot, : state.layout.weights]
            rate = member.learning_rate(step)
            decay(member.config.regulariser, member.config.strength, [weights_P], rate)
        stack = Rows(state.weights_TP, state.gradient_TP, state.first_TP, state.second_TP)
        mine = slice(PENALTY_NUMBERS, PENALTY_NUMBERS + update.hyper)
        numbers = [member.numbers()[step, mine].tolist() for member, step in zip(members, steps, strict=True)]
        step_slots(update, stack, slots, numbers, state.layout.weights)
        self._loss_T.index_fill_(0, there_S, 0.0)

    def _regularise(self, member: Member) -> None:
        """Add the trial's penalty to its loss, and its gradient to the trial's."""
        if not member.penalises:
            return
        state = self.program.state
        weights_P = state.weights_TP[member.slot, : state.layout.weights]
        gradient_P = state.gradient_TP[member.slot, : state.layout.weights]
        config = member.config
        self._loss_T[member.slot] += add_penalty(config.regulariser, config.strength, weights_P, gradient_P)

    def _parameters_finite(self, member: Member) -> bool:
        return bool(self.program.state.weights_TP[member.slot].isfinite().all())


def _try(member: Member, action: Callable[[], None]) -> Failed | None:
    """Do what is one trial's own, so that whatever it raises is that trial's failure."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 (of whatever kind)
        return Failed(member, error)
    return None


def _take(member: Member, share: Share, first: int) -> Taken:
    """The images of a trial's share, the first of which has this place in its epoch."""
    return Taken(
        share,
        member.feed.indices(first, share.images),
        member.data.mean,
        member.data.std,
        member.feed.augmented(first, share.images),
        member.feed.masks(first, share.images),
    )
