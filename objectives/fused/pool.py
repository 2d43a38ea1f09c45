"""The trials of one architecture, trained together step by step.

Shapes: R rows, M images of a row, S trials that take part, K classes, P parameters, T slots, N images.

In each step the trials that have waited longest get the rows there are. A trial whose batch is complete then
takes its optimizer's step; nobody waits for anybody. Numbers of two trials never meet: a trial that diverges
is NaN in its own slot and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.fused.losses import Entry, gradient
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.regularise import add_penalty
from objectives.fused.rows import RowTable, Share, Want, pack, sent, table
from objectives.fused.scoring import Failed, Scored, score_rows, scores_of_member
from objectives.fused.staging import Taken, stage_images, stage_masks
from objectives.fused.update import Rows, Update, step_slots
from objectives.regularisers import decay
from objectives.training import STEPS_BETWEEN_CHECKS


@dataclass(frozen=True, slots=True)
class _Unseen:
    """What a step gave, still on the device."""

    members: Sequence[Member]
    losses: Tensor
    norms: Tensor
    images: Sequence[int]


class Pool:
    """A program, its trials, and their turns.

    A step has up to `capacity` rows of `per_row` images; a step that raises may be tried again after
    `rewind`, with a lower capacity if memory was short.
    """

    def __init__(self, program: Program, images_ACHW: Tensor, capacity: int, per_row: int) -> None:
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
        self._loss_T = torch.zeros(program.state.idle, device=program.device, dtype=program.dtype)
        self._unseen: list[_Unseen] = []
        self._every = 1 if program.device.type == "cpu" else STEPS_BETWEEN_CHECKS

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
        self._loss_T[member.slot] = 0.0
        self.members[member.slot] = member
        self._line.append(member)

    def retire(self, member: Member) -> None:
        """Take a trial out; its slot is empty to the last number."""
        self._look()
        del self.members[member.slot]
        self._line.remove(member)
        self.program.state.wipe(member.slot)

    def rewind(self) -> None:
        """Bring every trial back to the end of its last epoch, whatever state a step was left in."""
        self._unseen.clear()
        for member in self.members.values():
            self.program.state.admit(member.slot, member.saved)
            self._loss_T[member.slot] = 0.0
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
        self.program.state.resize(slots)
        self._loss_T = self._loss_T.new_zeros(slots)
        return members

    def step(self) -> list[Member | Failed]:
        """Train every trial that gets rows on them; returns those that are at the end of an epoch now."""
        started = time.perf_counter()
        idle = [member for member in self.active if member.piece is None]
        failed = [failure for member in idle if (failure := _try(member, member.begin))]
        if failed:
            return list(failed)
        rows, parts = self._share_out()
        failed = self._backward(rows, parts)
        lost = [failure.member for failure in failed]
        through = [m for m, _ in parts if m not in lost and m.piece is not None and m.piece.left == 0]
        complete = [m for m in through if m.piece is not None and m.piece.ends_batch]
        self._update(complete)
        if len(self._unseen) >= self._every:
            self._look()
        failed += [failure for member in through if (failure := _try(member, member.move_on))]
        seconds = (time.perf_counter() - started) / max(rows.used, 1)
        for member, share in parts:
            member.sums.seconds += seconds * share.rows
        lost = [failure.member for failure in failed]
        at_end = [m for m in complete if m not in lost and (m.piece is None or not m.sums.finite)]
        return [*failed, *at_end]

    def score(self, members: Sequence[Member]) -> list[Scored | Failed]:
        """Each trial's results on its validation images."""
        self._look()
        sound = [m for m in members if m.sums.finite and self._parameters_finite(m)]
        logits = score_rows(self.program, self._pictures, sound, self.capacity, self._per_row)
        return [
            scores_of_member(member, *logits[member.slot])
            if member.slot in logits
            else Scored(member, None, 0.0)
            for member in members
        ]

    def save(self, member: Member) -> None:
        """Remember a trial's numbers as they are, at the end of an epoch."""
        member.saved = self.program.state.take(member.slot)

    def _share_out(self) -> tuple[RowTable, list[tuple[Member, Share]]]:
        """Who trains in this step; they go to the end of the line."""
        wants = [
            Want(member.slot, member.piece.left, self.program.whole or member.loss.random is not None)
            for member in self.active
            if member.piece is not None
        ]
        shares = pack(wants, self.capacity, self._per_row)
        rows = table(shares, self.capacity, self._per_row, self.program.state.idle, self.program.device)
        self.shapes.add(rows.rows)
        self.images += sum(share.images for share in shares)
        self.rows_run += rows.rows
        self.rows_used += rows.used
        parts = [(self.members[share.slot], share) for share in shares]
        served = [member for member, _ in parts]
        self._line = [member for member in self._line if member not in served] + served
        return rows, parts

    def _backward(self, rows: RowTable, parts: Sequence[tuple[Member, Share]]) -> list[Failed]:
        """Add the gradients and losses of a step to those of the batches they belong to."""
        taken = [_take(member, share) for member, share in parts]
        images_MHWRC = stage_images(self._pictures, rows, taken, self.program.dtype)
        masks = stage_masks(rows, taken, self.program.features, self.program.dtype)
        forward = self.program.forward(rows, images_MHWRC, masks, training=True)
        entries = [_entry(member, share) for member, share in parts]
        found = gradient(forward.logits, rows, entries, self._loss_T)
        fresh = {member.slot for member, _ in parts if member.fresh}
        self.program.add_gradients(rows, forward, found.logits, fresh)
        for member, share in parts:
            if member.piece is not None:
                member.piece.taken += share.images
            member.fresh = False
        return [Failed(parts[position][0], error) for position, error in found.failures.items()]

    def _update(self, members: Sequence[Member]) -> None:
        """The optimizer's step of trials whose batch is complete."""
        if not members:
            return
        state = self.program.state
        for member in members:
            self._regularise(member)
        slots_S = sent([member.slot for member in members], self.program.device)
        norms_S = state.gradient_norms([member.slot for member in members])
        losses_S = self._loss_T.index_select(0, slots_S)
        kinds: dict[Update, list[Member]] = {}
        for member in members:
            weights_P = state.weights_TP[member.slot, : state.layout.weights]
            decay(member.config.regulariser, member.config.strength, [weights_P], member.learning_rate)
            kinds.setdefault(member.update, []).append(member)
        stack = Rows(state.weights_TP, state.gradient_TP, state.first_TP, state.second_TP)
        for update, users in kinds.items():
            numbers = [member.numbers() for member in users]
            step_slots(update, stack, [member.slot for member in users], numbers, state.layout.weights)
        self._loss_T.index_fill_(0, slots_S, 0.0)
        images = [member.piece.batch for member in members if member.piece is not None]
        self._unseen.append(_Unseen(list(members), losses_S, norms_S, images))
        for member in members:
            member.sums.steps += 1
            member.fresh = True

    def _regularise(self, member: Member) -> None:
        """Add the trial's penalty to its loss, and its gradient to the trial's."""
        if not member.penalises:
            return
        state = self.program.state
        weights_P = state.weights_TP[member.slot, : state.layout.weights]
        gradient_P = state.gradient_TP[member.slot, : state.layout.weights]
        config = member.config
        self._loss_T[member.slot] += add_penalty(config.regulariser, config.strength, weights_P, gradient_P)

    def _look(self) -> None:
        """Bring losses and norms to the host: the one place in a step that waits for the device."""
        if not self._unseen:
            return
        losses = torch.cat([unseen.losses for unseen in self._unseen]).tolist()
        norms = torch.cat([unseen.norms for unseen in self._unseen]).tolist()
        seen = [pair for unseen in self._unseen for pair in zip(unseen.members, unseen.images, strict=True)]
        for (member, images), loss, norm in zip(seen, losses, norms, strict=True):
            member.sums.add(loss, norm, images)
        self._unseen.clear()

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
    part = slice(piece.taken, piece.taken + share.images)
    return Taken(
        share,
        piece.indices[part],
        member.data.mean,
        member.data.std,
        None if piece.augmented is None else piece.augmented[part],
        [None if kept is None else kept[part] for kept in piece.kept],
    )


def _entry(member: Member, share: Share) -> Entry:
    piece = member.piece
    assert piece is not None, "a trial between two epochs has no share"
    return Entry(share, member.loss, piece.labels[piece.taken : piece.taken + share.images], piece.batch)
