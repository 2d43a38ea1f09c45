"""Steps of a pool as recorded work: everything that changes from step to step is in tables on the device.

Shapes: T slots, R rows, M images of a row, N = R·M images of a step, K classes, P parameters of a trial, W of
them weights, S slots that take a step, F features.

A step is a replay of its passes (images, forward, losses, backward, gradients added up), and one of the
update of each kind of optimizer among the trials whose batch is complete. What is recorded depends on sizes,
of which there are few, and on the kinds of loss that trials have brought so far: trials that come and go are
numbers in tables. Random numbers are drawn before, from each trial's own generators. Numbers of two slots
meet nowhere: a loss is computed image by image, what it gives for images of another is left out, and a mask
is a `where`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from objectives.base import Choice
from objectives.fused.compiled import compiled_for
from objectives.fused.member import Member
from objectives.fused.program import Program
from objectives.fused.regularise import FACTORS
from objectives.fused.rows import RowTable, Share
from objectives.fused.staging import Taken, normalised, place_images
from objectives.fused.state import add_rows
from objectives.fused.sums import DeviceSums
from objectives.fused.tables import StepTable, TrialTables, UpdateTable, bucket
from objectives.fused.update import Rows, Update
from objectives.losses import LOSSES
from objectives.recording import Recorder, Recording
from objectives.regularisers import REGULARISERS

MOST_ROWS = 16
"""Of a trial in a step that is recorded: each is a turn in which gradients are added up."""

Part = tuple[Member, Share]


@dataclass(frozen=True, slots=True)
class _Passes:
    """Recorded passes, and what they read besides the trials' tables."""

    table: StepTable
    masks: Sequence[Tensor]
    """NF of each dropout layer."""
    augmented: Tensor | None
    """MHWRC; where a row's trial augments its images, these are they."""
    augmenting: Tensor
    """R; which rows these are."""
    recording: Recording


class RecordedSteps:
    """The steps of a program's trials, on the images that `images_ACHW` are; a member of it is in a slot.

    Raises `RecordingError` where something can't be recorded, in `backward` before anything has changed, and
    in `update` of the kinds of optimizer that were not yet done.
    """

    def __init__(
        self,
        program: Program,
        recorder: Recorder,
        images_ACHW: Tensor,
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
        self._passes: dict[tuple[int, int, bool], _Passes] = {}
        self._updates: dict[tuple[Update, int], tuple[UpdateTable, Recording]] = {}
        self.recorded = 0
        """Recordings made so far."""

    def admit(self, member: Member) -> None:
        """A trial comes into its slot."""
        if self._trials is None:
            data, channels = member.data, self._pictures.shape[1]
            given = self._order_TA, channels, data.labels, data.classes
            self._trials = TrialTables(*given, self._program.dtype)
        if refused(member):
            return
        name, options = _loss(member)
        if name not in self._trials.losses:
            self._passes.clear()  # they know nothing of it
        self._trials.admit(member, name, options)

    def forget(self) -> None:
        """Let go of all recordings, and of their memory; the trials stay."""
        self._passes.clear()
        self._updates.clear()

    def begin(self, member: Member) -> None:
        """A trial starts an epoch."""
        assert self._trials is not None, "a trial has come in"
        self._trials.begin(member)

    def takes(self, rows: RowTable, parts: Sequence[Part]) -> bool:
        """Whether the passes of such a step are recorded."""
        return rows.most_rows <= MOST_ROWS and not any(refused(member) for member, _ in parts)

    def backward(
        self, rows: RowTable, parts: Sequence[Part], taken: Sequence[Taken], fresh: Collection[int]
    ) -> None:
        """Add gradients and losses of a step to those of their batches; `fresh` slots begin one."""
        turns = 1
        while turns < rows.most_rows:
            turns *= 2
        augments = any(part.augmented is not None for part in taken)
        key = (rows.rows, min(turns, rows.rows), augments)
        if key not in self._passes:
            self._passes[key] = self._record_passes(*key)
        passes = self._passes[key]
        passes.table.write(parts, fresh)
        self._place_masks(passes, rows, taken)
        if passes.augmented is not None:
            passes.augmenting.zero_()
            for part in taken:
                if part.augmented is not None:
                    place_images(passes.augmented, rows, part.share, part.augmented)
                    passes.augmenting[part.share.first : part.share.first + part.share.rows].fill_(1)
        passes.recording.replay()

    def update(self, update: Update, members: Sequence[Member]) -> None:
        """One step by a kind of optimizer, with penalties and decays, of members whose batch is complete."""
        numbers = [(*member.numbers(), *_penalty_numbers(member)) for member in members]
        size = bucket(len(members), self._program.state.idle)
        key = (update, size)
        if key not in self._updates:
            self._updates[key] = self._record_update(update, size, len(members[0].numbers()))
        table, recording = self._updates[key]
        images = [member.piece.batch for member in members if member.piece is not None]
        table.write([member.slot for member in members], images, numbers)
        recording.replay()

    def _record_passes(self, rows: int, turns: int, augments: bool) -> _Passes:
        program = self._program
        state, device = program.state, program.device
        table = StepTable(rows, self._per_row, turns, state.idle, device)
        table.clear()
        images = rows * self._per_row
        masks = [torch.ones((images, size), dtype=program.dtype, device=device) for size in program.features]
        augmented = None
        if augments:
            channels, height, width = self._pictures.shape[1:]
            shape = (self._per_row, height, width, rows, channels)
            augmented = torch.zeros(shape, dtype=program.dtype, device=device)
        augments_R = torch.zeros(rows, dtype=torch.long, device=device)
        work = partial(self._do_passes, table, masks, augmented, augments_R)
        return _Passes(table, masks, augmented, augments_R, self._record(work))

    def _record_update(self, update: Update, size: int, hyper: int) -> tuple[UpdateTable, Recording]:
        program = self._program
        table = UpdateTable(size, hyper, program.state.idle, program.device, program.dtype)
        table.clear()
        return table, self._record(partial(self._do_update, update, table))

    def _record(self, work: Callable[[], tuple[()]]) -> Recording:
        self.recorded += 1
        return self._recorder(work)

    def _place_masks(self, passes: _Passes, rows: RowTable, taken: Sequence[Taken]) -> None:
        for layer, mask_NF in enumerate(passes.masks):
            mask_NF.fill_(1.0)
            for part in taken:
                kept = part.kept[layer]
                if kept is not None:
                    mask_NF[rows.place(part.share)].copy_(kept)

    def _do_passes(
        self, table: StepTable, masks: Sequence[Tensor], augmented: Tensor | None, augments_R: Tensor
    ) -> tuple[()]:
        program, trials, rows = self._program, self._trials, table.row_table()
        assert trials is not None, "a trial has come in"
        index_N = _images_of(trials, table, rows)
        x_MHWRC = normalised(
            self._pictures.index_select(0, index_N),
            trials.mean_TC.index_select(0, rows.slots),
            trials.std_TC.index_select(0, rows.slots),
            program.dtype,
        )
        if augmented is not None:
            x_MHWRC = torch.where((augments_R > 0)[:, None], augmented, x_MHWRC)
        shaped = [mask_NF.view(table.rows, table.per_row, -1) for mask_NF in masks]
        forward = program.forward(rows, x_MHWRC, shaped, training=True)
        dlogits_RMK, loss_R = self._losses(table, rows, forward.logits.detach(), index_N)
        turns = [table.turn(number) for number in range(table.turns)]
        program.state.add_in_turns(program.gradients(forward, dlogits_RMK), turns, table.fresh)
        add_rows(self._loss_T[:, None], loss_R[:, None], turns, table.fresh)
        program.track(*turns[0], forward.statistics)
        return ()

    def _losses(
        self, table: StepTable, rows: RowTable, logits_RMK: Tensor, index_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient RMK of each slot's mean loss with respect to the scores, and each row's part of it."""
        trials = self._trials
        assert trials is not None, "a trial has come in"
        logits_NK, valid_N = logits_RMK.flatten(0, 1), rows.valid.flatten()
        slot_N, batch_N = (
            each[:, None].expand(-1, table.per_row).flatten() for each in (rows.slots, table.batches)
        )
        labels_N = trials.labels_A.index_select(0, index_N)
        classes = trials.class_weights_TK.shape[1]
        weight_N = trials.class_weights_TK.flatten().index_select(0, slot_N * classes + labels_N)
        weight_N = weight_N.to(logits_NK.dtype) / batch_N
        loss_N, dlogits_NK = torch.zeros_like(weight_N), torch.zeros_like(logits_NK)
        for number, (name, options) in enumerate(trials.losses.items()):
            mine_N = valid_N & (trials.loss_T.index_select(0, slot_N) == number)
            inner_NK = logits_NK.detach().requires_grad_()
            given = {key: column_T.index_select(0, slot_N) for key, column_T in options.items()}
            found_N = LOSSES[name](inner_NK, labels_N, **given)
            (slope_NK,) = torch.autograd.grad(found_N, inner_NK, torch.where(mine_N, weight_N, 0.0))
            dlogits_NK = torch.where(mine_N[:, None], slope_NK, dlogits_NK)
            loss_N = torch.where(mine_N, found_N.detach() * weight_N, loss_N)
        return dlogits_NK.view_as(logits_RMK), loss_N.view(table.rows, -1).sum(1)

    def _do_update(self, update: Update, table: UpdateTable) -> tuple[()]:
        state, slots_S = self._program.state, table.slots
        *numbers, first_S1, second_S1, shrink_S1 = table.numbers[..., None]
        stack = Rows(state.weights_TP, state.gradient_TP, state.first_TP, state.second_TP)
        unused = [kind for kind in ("first", "second") if getattr(update, kind) is None]
        taken = Rows(
            **{
                each.name: getattr(stack, each.name).index_select(
                    0, slots_S[:0] if each.name in unused else slots_S
                )
                for each in fields(Rows)
            }
        )
        decayed = state.layout.weights
        penalty_S = _penalise(taken.weights[:, :decayed], taken.gradient[:, :decayed], first_S1, second_S1)
        norms_S = torch.linalg.vector_norm(taken.gradient, dim=1)
        self._sums.add(slots_S, self._loss_T.index_select(0, slots_S) + penalty_S, norms_S, table.images)
        taken.weights[:, :decayed].mul_(shrink_S1)
        if self._compiled is None:
            update.apply(taken, decayed, *numbers)
        else:
            self._compiled.step(update, taken, decayed, table.numbers[: table.hyper, :, None])
        for name in {"weights", "first", "second"}.difference(unused):
            getattr(stack, name).index_copy_(0, slots_S, getattr(taken, name))
        self._loss_T.index_fill_(0, slots_S, 0.0)
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


def _penalty_numbers(member: Member) -> tuple[float, float, float]:
    """λ₁, λ₂ and what its weights are multiplied by before the step."""
    regulariser, strength = member.config.regulariser, member.config.strength
    first, second = (0.0, 0.0)
    if member.penalises:
        first, second = FACTORS[regulariser.name](strength, **regulariser.options)
    decays = REGULARISERS[regulariser.name].decays
    return first, second, 1 - member.learning_rate * strength if decays else 1.0


def _penalise(weights_SW: Tensor, gradient_SW: Tensor, first_S1: Tensor, second_S1: Tensor) -> Tensor:
    """As `add_penalty`, for many at once."""
    has_first, has_second = first_S1 > 0, second_S1 > 0
    gradient_SW.add_(torch.where(has_first, weights_SW.sign() * first_S1, 0.0))
    gradient_SW.add_(torch.where(has_second, weights_SW * second_S1, 0.0))
    first_value = first_S1[:, 0] * weights_SW.abs().sum(1)
    second_value = second_S1[:, 0] / 2 * weights_SW.square().sum(1)
    return torch.where(has_first[:, 0], first_value, 0.0) + torch.where(has_second[:, 0], second_value, 0.0)


def _images_of(trials: TrialTables, table: StepTable, rows: RowTable) -> Tensor:
    """The places of a step's images among all, N; those that don't count are some image or other."""
    within_M = torch.arange(table.per_row, device=table.device)
    place_RM = torch.where(rows.valid, table.firsts[:, None] + within_M, 0)
    images = trials.order_TA.shape[1]
    place_RM = place_RM + rows.slots[:, None] * images
    return trials.order_TA.flatten().index_select(0, place_RM.flatten()).long()
