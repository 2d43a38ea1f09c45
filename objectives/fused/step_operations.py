"""Parts of recorded steps operation by operation: what `triton_steps.py` does by kernels where it can.

Shapes: T slots, R rows, M images of a row, N = R·M images of a step, S slots that take a step, K classes, W
weights of a trial, H numbers of an optimizer's step, A images there are, M, H, W, R, C of an image as rows
lie.

Numbers of two slots meet nowhere: a loss is computed image by image, what it gives for images of another is
left out, and a mask is a `where`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from objectives.augment import augment
from objectives.chance import Numbers, Purpose
from objectives.fused.compiled import CompiledUpdates
from objectives.fused.inbox import UpdateTable
from objectives.fused.member import PENALTY_NUMBERS
from objectives.fused.staging import by_row, each_apart, normalised
from objectives.fused.sums import DeviceSums
from objectives.fused.tables import TrialTables
from objectives.fused.update import Rows, Update
from objectives.losses import LOSSES


def places_by_operations(
    order_TA: Tensor, of_rows: tuple[Tensor, Tensor, Tensor], per_row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The slot of each image of a step, N; its place in its trial's epoch; and which of all images it is.

    Of both the first where it doesn't count. `of_rows`: the slot of each row, its images that count, and the
    place of its first.
    """
    slots_R, counts_R, firsts_R = of_rows
    within_M = torch.arange(per_row, device=order_TA.device)
    place_RM = torch.where(within_M < counts_R[:, None], firsts_R[:, None] + within_M, 0)
    slot_N, place_N = slots_R[:, None].expand_as(place_RM).flatten(), place_RM.flatten()
    flat_N = place_N + slot_N * order_TA.shape[1]
    return slot_N, place_N, order_TA.flatten().index_select(0, flat_N).long()


def images_by_operations(  # noqa: PLR0917 (all that they depend on)
    pictures_ACHW: Tensor,
    index_N: Tensor,
    slots_R: Tensor,
    trials: TrialTables,
    numbers: Mapping[Purpose, Numbers],
    dtype: torch.dtype,
) -> Tensor:
    """The images of all rows, normalised and changed, MHWRC."""
    rows = len(slots_R)
    x_MHWRC = normalised(
        pictures_ACHW.index_select(0, index_N),
        trials.mean_TC.index_select(0, slots_R),
        trials.std_TC.index_select(0, slots_R),
        dtype,
    )
    if not trials.amounts:
        return x_MHWRC
    slot_N = slots_R[:, None].expand(-1, len(index_N) // rows).flatten()
    amounts = {name: amount_T.index_select(0, slot_N) for name, amount_T in trials.amounts.items()}
    return by_row(augment(each_apart(x_MHWRC), amounts, numbers.__getitem__), rows)


def losses_by_operations(  # noqa: PLR0917 (all that it depends on, and what it changes)
    logits_RMK: Tensor,
    labels_A: Tensor,
    index_N: Tensor,
    of_rows: tuple[Tensor, Tensor, Tensor],
    class_weights_TK: Tensor,
    loss_T: Tensor,
    losses: Mapping[str, Mapping[str, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The gradient RMK of each slot's mean loss with respect to the scores, and each row's part of that loss.

    `of_rows`: the slot of each row, its images that count, and those of its batch. `losses`: name → option →
    T; the place of a trial's among them is in `loss_T`.
    """
    rows, images, classes = logits_RMK.shape
    slots_R, counts_R, batches_R = of_rows
    logits_NK = logits_RMK.flatten(0, 1)
    valid_N = (torch.arange(images, device=logits_RMK.device) < counts_R[:, None]).flatten()
    slot_N, batch_N = (each[:, None].expand(-1, images).flatten() for each in (slots_R, batches_R))
    labels_N = labels_A.index_select(0, index_N)
    weight_N = class_weights_TK.flatten().index_select(0, slot_N * classes + labels_N)
    weight_N = weight_N.to(logits_NK.dtype) / batch_N
    loss_N, dlogits_NK = torch.zeros_like(weight_N), torch.zeros_like(logits_NK)
    for number, (name, options) in enumerate(losses.items()):
        mine_N = valid_N & (loss_T.index_select(0, slot_N) == number)
        inner_NK = logits_NK.detach().requires_grad_()
        given = {key: column_T.index_select(0, slot_N) for key, column_T in options.items()}
        found_N = LOSSES[name](inner_NK, labels_N, **given)
        (slope_NK,) = torch.autograd.grad(found_N, inner_NK, torch.where(mine_N, weight_N, 0.0))
        dlogits_NK = torch.where(mine_N[:, None], slope_NK, dlogits_NK)
        loss_N = torch.where(mine_N, found_N.detach() * weight_N, loss_N)
    return dlogits_NK.view_as(logits_RMK), loss_N.view(rows, -1).sum(1)


def step_by_operations(  # noqa: PLR0917 (all that it depends on, and what it changes)
    update: Update,
    stack: Rows,
    table: UpdateTable,
    decayed: int,
    loss_T: Tensor,
    sums: DeviceSums,
    compiled: CompiledUpdates | None = None,
) -> None:
    """A step for the slots of a table, of rows TP in `stack`, with penalties and weight decay; what there is
    of their losses is added to `sums`, the penalty too, and so are the norms of the gradients.
    """
    slots_S = table.slots
    numbers_HS1 = table.numbers[..., None]
    first_S1, second_S1, shrink_S1, *numbers = numbers_HS1
    unused = [kind for kind in ("first", "second") if getattr(update, kind) is None]
    taken = Rows(
        **{
            each.name: getattr(stack, each.name).index_select(
                0, slots_S[:0] if each.name in unused else slots_S
            )
            for each in fields(Rows)
        }
    )
    penalty_S = _penalise(taken.weights[:, :decayed], taken.gradient[:, :decayed], first_S1, second_S1)
    norms_S = torch.linalg.vector_norm(taken.gradient, dim=1)
    sums.add(slots_S, loss_T.index_select(0, slots_S) + penalty_S, norms_S, table.images)
    taken.weights[:, :decayed].mul_(shrink_S1)
    if compiled is None:
        update.apply(taken, decayed, *numbers)
    else:
        compiled.step(update, taken, decayed, numbers_HS1[PENALTY_NUMBERS:])
    for name in {"weights", "first", "second"}.difference(unused):
        getattr(stack, name).index_copy_(0, slots_S, getattr(taken, name))
    loss_T.index_fill_(0, slots_S, 0.0)


def _penalise(weights_SW: Tensor, gradient_SW: Tensor, first_S1: Tensor, second_S1: Tensor) -> Tensor:
    """As `add_penalty`, for many at once."""
    has_first, has_second = first_S1 > 0, second_S1 > 0
    gradient_SW.add_(torch.where(has_first, weights_SW.sign() * first_S1, 0.0))
    gradient_SW.add_(torch.where(has_second, weights_SW * second_S1, 0.0))
    first_value = first_S1[:, 0] * weights_SW.abs().sum(1)
    second_value = second_S1[:, 0] / 2 * weights_SW.square().sum(1)
    return torch.where(has_first[:, 0], first_value, 0.0) + torch.where(has_second[:, 0], second_value, 0.0)
