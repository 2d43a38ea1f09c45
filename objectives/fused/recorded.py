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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from objectives.augment import augment, purpose
from objectives.base import Choice
from objectives.chance import Columns, Purpose, dropout, kept
from objectives.fused.compiled import compiled_for
from objectives.fused.inbox import Inbox, StepTable, UpdateTable, bucket, columns_of
from objectives.fused.member import PENALTY_NUMBERS, Member
from objectives.fused.program import Program
from objectives.fused.regularise import FACTORS
from objectives.fused.rows import RowTable, Share
from objectives.fused.staging import by_row, each_apart, normalised
from objectives.fused.state import add_rows
from objectives.fused.sums import DeviceSums
from objectives.fused.tables import TrialTables
from objectives.fused.triton_chance import words_for
from objectives.fused.update import Rows, Update
from objectives.losses import LOSSES
from objectives.recording import Recorder, Recording

MOST_ROWS = 16
"""Of a trial in a step that is recorded: each is a turn in which gradients are added up."""

Part = tuple[Member, Share]


@dataclass(frozen=True, slots=True)
class _Passes:
    """Recorded passes, and what they read besides the trials' tables."""

    table: StepTable
    recording: Recording


@dataclass(frozen=True, slots=True)
class _Update:
    """A recorded update, likewise."""

    table: UpdateTable
    recording: Recording


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
        self._updates: dict[tuple[Update, int], _Update] = {}
        self._inbox = Inbox(program.state.idle, max(rows, MOST_ROWS), MOST_ROWS, program.device)
        self._places: dict[Update, int] = {}
        """Of kinds of optimizer in the inbox, in the order in which trials brought them."""
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

    def takes(self, rows: RowTable, parts: Sequence[Part]) -> bool:
        """Whether the passes of such a step are recorded."""
        return rows.most_rows <= MOST_ROWS and not (
            self._refused and any(self.refuses(member) for member, _ in parts)
        )

    def refuses(self, member: Member) -> bool:
        """Whether a trial's passes and updates are not recorded; see `refused`."""
        return member.slot in self._refused

    def step(self, rows: RowTable, parts: Sequence[Part], complete: Sequence[Member]) -> None:
        """Add gradients and losses of a step to those of their batches, then take the steps of optimizers.

        `complete`: members whose batch is, by this step.
        """
        passes, updates = self._passes_of(rows), self._updates_of(complete)
        passes.table.write(rows, [member for member, _ in parts])
        self._write(updates)
        passes.recording.replay()
        for update, _ in updates:
            update.recording.replay()

    def update(self, complete: Sequence[Member]) -> None:
        """The second half of `step` by itself."""
        updates = self._updates_of(complete)
        self._write(updates)
        for update, _ in updates:
            update.recording.replay()

    def _write(self, updates: Sequence[tuple[_Update, Sequence[Member]]]) -> None:
        columns, start = columns_of([member for _, members in updates for member in members]), 0
        for update, members in updates:
            update.table.write(columns[start : start + len(members)])
            start += len(members)
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

    def _updates_of(self, members: Sequence[Member]) -> list[tuple[_Update, list[Member]]]:
        """Likewise, one for each kind of optimizer of these members, and those of that kind."""
        kinds: dict[Update, list[Member]] = {}
        for member in members:
            kinds.setdefault(member.update, []).append(member)
        found = []
        for kind, users in kinds.items():
            key = kind, bucket(len(users), self._program.state.idle)
            if key not in self._updates:
                self._updates[key] = self._record_update(*key)
            found.append((self._updates[key], users))
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
        return _Passes(table, self._record(table, partial(self._do_passes, table, columns)))

    def _record_update(self, update: Update, size: int) -> _Update:
        place = self._places.setdefault(update, len(self._places))
        table = self._inbox.update_table(place, size, update.hyper, self._program.dtype)
        return _Update(table, self._record(table, partial(self._do_update, update, table)))

    def _record(self, table: StepTable | UpdateTable, work: Callable[[], tuple[()]]) -> Recording:
        table.clear()
        self._inbox.send()
        self.recorded += 1
        return self._recorder(work)

    def _do_passes(self, table: StepTable, columns: Columns) -> tuple[()]:
        program, trials, rows = self._program, self._trials, table.row_table()
        assert trials is not None, "a trial has come in"
        slot_N, place_N = _images_of(table, rows)
        flat_N = place_N + slot_N * trials.order_TA.shape[1]
        index_N = trials.order_TA.flatten().index_select(0, flat_N).long()
        x_MHWRC = normalised(
            self._pictures.index_select(0, index_N),
            trials.mean_TC.index_select(0, rows.slots),
            trials.std_TC.index_select(0, rows.slots),
            program.dtype,
        )
        drawn = columns.draw(place_N, trials.key_T2, slot_N)
        if trials.amounts:
            amounts = {name: amount_T.index_select(0, slot_N) for name, amount_T in trials.amounts.items()}
            changed_NCHW = augment(each_apart(x_MHWRC), amounts, drawn.numbers.__getitem__)
            x_MHWRC = by_row(changed_NCHW, table.rows)
        masks = self._masks(rows, drawn.words, slot_N)
        forward = program.forward(rows, x_MHWRC, masks, training=True)
        dlogits_RMK, loss_R = self._losses(table, rows, forward.logits.detach(), index_N)
        turns = [table.turn(number) for number in range(table.turns)]
        program.state.add_in_turns(program.gradients(forward, dlogits_RMK), turns, table.fresh)
        add_rows(self._loss_T[:, None], loss_R[:, None], turns, table.fresh)
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
        numbers_HS1 = table.numbers[..., None]
        first_S1, second_S1, shrink_S1, *numbers = numbers_HS1
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
            self._compiled.step(update, taken, decayed, numbers_HS1[PENALTY_NUMBERS:])
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


def _penalise(weights_SW: Tensor, gradient_SW: Tensor, first_S1: Tensor, second_S1: Tensor) -> Tensor:
    """As `add_penalty`, for many at once."""
    has_first, has_second = first_S1 > 0, second_S1 > 0
    gradient_SW.add_(torch.where(has_first, weights_SW.sign() * first_S1, 0.0))
    gradient_SW.add_(torch.where(has_second, weights_SW * second_S1, 0.0))
    first_value = first_S1[:, 0] * weights_SW.abs().sum(1)
    second_value = second_S1[:, 0] / 2 * weights_SW.square().sum(1)
    return torch.where(has_first[:, 0], first_value, 0.0) + torch.where(has_second[:, 0], second_value, 0.0)


def _images_of(table: StepTable, rows: RowTable) -> tuple[Tensor, Tensor]:
    """The slot of each image of a step, N, and its place in its trial's epoch; 0 where it doesn't count."""
    within_M = torch.arange(table.per_row, device=table.device)
    place_RM = torch.where(rows.valid, table.firsts[:, None] + within_M, 0)
    return rows.slots[:, None].expand_as(place_RM).flatten(), place_RM.flatten()
