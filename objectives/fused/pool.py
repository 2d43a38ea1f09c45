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

import torch
from torch import Tensor

from objectives.fused.losses import Entry, gradient
from objectives.fused.member import PENALTY_NUMBERS, Member
from objectives.fused.program import Program
from objectives.fused.recorded import MOST_ROWS, Part, RecordedSteps
from objectives.fused.recorded_scores import RecordedScores
from objectives.fused.regularise import add_penalty
from objectives.fused.rows import RowTable, Share, Want, pack, sent, table
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
        self._line: list[Member] = []
        self._recorder = recorder or recorder_for(program.device)
        self.why_unrecorded: str | None = None
        """Why steps are no longer recorded that might have been."""
        self.why_scores_unrecorded: str | None = None
        """The same of scoring."""
        self._allocate()

    def _allocate(self) -> None:
        program = self.program
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
        return [member for member in self._line if not member.ended]

    def admit(self, member: Member) -> None:
        self.program.state.admit(member.slot, member.saved)
        self._loss_T[member.slot].zero_()
        self.members[member.slot] = member
        if self._recorded:
            self._recorded.admit(member)
        if self._recorded_scores:
            self._recorded_scores.admit(member)
        self._line.append(member)

    def retire(self, member: Member) -> None:
        """Take a trial out; its slot is empty to the last number."""
        del self.members[member.slot]
        self._line.remove(member)
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
            member.piece = None

    def resize(self, slots: int) -> list[Member]:
        """Have so many slots, all free; returns the trials that had one, at the ends of their last epochs.

        What they are is moved to the host's memory first. Raises if there is no memory for the slots.
        """
        self.rewind()
        members, self._line = self._line, []
        self.members = {}
        for member in members:
            member.saved = member.saved.to(torch.device("cpu"))
        self._recorded = self._recorded_scores = None
        self.program.state.resize(slots)
        self._allocate()
        return members

    def step(self) -> list[Member | Failed]:
        """Train every trial that gets rows on them; returns those that are at the end of an epoch now."""
        started = time.perf_counter()
        idle = [member for member in self.active if member.piece is None]
        failed = [failure for member in idle if (failure := _try(member, partial(self._begin, member)))]
        if failed:
            return list(failed)
        rows, parts = self._share_out()
        failed, through = self._train(rows, parts)
        complete = [member for member in through if member.piece is not None and member.piece.ends_batch]
        for member in complete:
            self._count(member)
        if self._sums:
            self._sums.glance(self.members.values())
        for member in through:
            member.move_on()
        seconds = (time.perf_counter() - started) / max(rows.used, 1)
        for member, share in parts:
            member.sums.seconds += seconds * share.rows
        return [*failed, *(member for member in complete if member.piece is None or not member.sums.finite)]

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

    def _share_out(self) -> tuple[RowTable, list[Part]]:
        """Who trains in this step; they go to the end of the line."""
        whole = self.program.whole
        wants = [
            Want(member.slot, member.piece.left, whole or member.loss.random is not None)
            for member in self.active
            if member.piece is not None
        ]
        shares = pack(wants, self.capacity, self._per_row, MOST_ROWS if self._recorded else None)
        rows = table(shares, self.capacity, self._per_row, self.program.state.idle, self.program.device)
        self.shapes.add(rows.rows)
        self.images += sum(share.images for share in shares)
        self.rows_run += rows.rows
        self.rows_used += rows.used
        parts = [(self.members[share.slot], share) for share in shares]
        served = {share.slot for share in shares}
        self._line = [member for member in self._line if member.slot not in served]
        self._line += [member for member, _ in parts]
        return rows, parts

    def _train(self, rows: RowTable, parts: Sequence[Part]) -> tuple[list[Failed], list[Member]]:
        """Do the passes of a step, and the updates of the batches that it completes.

        Returns who failed, and whose piece is through.
        """
        through = [m for m, share in parts if m.piece is not None and m.piece.left == share.images]
        complete = [member for member in through if member.piece is not None and member.piece.ends_batch]
        failed: list[Failed] = []
        if not self._replayed(rows, parts, complete):
            failed = self._backward(rows, parts)
            lost = {failure.member.slot for failure in failed}
            through = [member for member in through if member.slot not in lost]
            self._update([member for member in complete if member.slot not in lost])
        for member, share in parts:
            if member.piece is not None:
                member.piece.taken += share.images
            member.fresh = False
        return failed, through

    def _replayed(self, rows: RowTable, parts: Sequence[Part], complete: Sequence[Member]) -> bool:
        """Do a step as recorded work, if that can be."""
        if self._recorded is None or not self._recorded.takes(rows, parts):
            return False
        try:
            self._recorded.step(rows, parts, complete)
        except RecordingError as error:
            self._record_no_more(error)
            return False
        return True

    def _backward(self, rows: RowTable, parts: Sequence[Part]) -> list[Failed]:
        """Add the gradients and losses of a step to those of the batches they belong to."""
        fresh = {member.slot for member, _ in parts if member.fresh}
        taken = [_take(member, share) for member, share in parts]
        images_MHWRC = stage_images(self._pictures, rows, taken, self.program.dtype)
        masks = stage_masks(rows, taken, self.program.features, self.program.dtype)
        forward = self.program.forward(rows, images_MHWRC, masks, training=True)
        entries = [_entry(member, share) for member, share in parts]
        found = gradient(forward.logits, rows, entries, self._loss_T)
        self.program.add_gradients(rows, forward, found.logits, fresh)
        return [Failed(parts[position][0], error) for position, error in found.failures.items()]

    def _record_no_more(self, error: RecordingError) -> None:
        self.why_unrecorded = str(error)
        self._recorded = self._recorded_scores = None
        logger.warning("steps are not recorded, and take longer: %s", error)

    def _update(self, members: Sequence[Member]) -> None:
        """The optimizer's step of trials whose batch is complete, after passes that were not replayed."""
        apart = list(members)
        if self._recorded is not None:
            together = [member for member in members if not self._recorded.refuses(member)]
            try:
                self._recorded.update(together)
            except RecordingError as error:
                self._record_no_more(error)
            else:
                apart = [member for member in members if self._recorded.refuses(member)]
        kinds: dict[Update, list[Member]] = {}
        for member in apart:
            kinds.setdefault(member.update, []).append(member)
        for update, users in kinds.items():
            self._step_kind(update, users)

    @staticmethod
    def _count(member: Member) -> None:
        """A step of a trial was taken."""
        assert member.piece is not None, "its batch was trained on"
        member.sums.steps += 1
        member.sums.images += member.piece.batch
        member.fresh = True

    def _step_kind(self, update: Update, members: Sequence[Member]) -> None:
        """A step of trials with the same kind of optimizer, operation by operation."""
        state = self.program.state
        for member in members:
            self._regularise(member)
        slots = [member.slot for member in members]
        slots_S = sent(slots, self.program.device)
        self._add_sums(members, slots_S, self._loss_T.index_select(0, slots_S), state.gradient_norms(slots))
        for member in members:
            weights_P = state.weights_TP[member.slot, : state.layout.weights]
            decay(member.config.regulariser, member.config.strength, [weights_P], member.learning_rate)
        stack = Rows(state.weights_TP, state.gradient_TP, state.first_TP, state.second_TP)
        mine = slice(PENALTY_NUMBERS, PENALTY_NUMBERS + update.hyper)
        numbers = [member.numbers()[mine].tolist() for member in members]
        step_slots(update, stack, slots, numbers, state.layout.weights)
        self._loss_T.index_fill_(0, slots_S, 0.0)

    def _add_sums(
        self, members: Sequence[Member], slots_S: Tensor, losses_S: Tensor, norms_S: Tensor
    ) -> None:
        images = [member.piece.batch for member in members if member.piece is not None]
        if self._sums:
            self._sums.add(slots_S, losses_S, norms_S, sent(images, self.program.device))
            return
        for member, size, loss, norm in zip(
            members, images, losses_S.tolist(), norms_S.tolist(), strict=True
        ):
            member.sums.add(loss, norm, size)

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


def _take(member: Member, share: Share) -> Taken:
    """The next images of a trial's piece."""
    piece = member.piece
    assert piece is not None, "a trial between two epochs has no share"
    first = piece.first + piece.taken
    return Taken(
        share,
        member.feed.indices(first, share.images),
        member.data.mean,
        member.data.std,
        member.feed.augmented(first, share.images),
        member.feed.masks(first, share.images),
    )


def _entry(member: Member, share: Share) -> Entry:
    piece = member.piece
    assert piece is not None, "a trial between two epochs has no share"
    labels_B = member.feed.labels(piece.first + piece.taken, share.images)
    return Entry(share, member.loss, labels_B, piece.batch)
