"""Parts of recorded steps by kernels of our own, where a GPU would else run hundreds of operations.

Shapes: T slots, R rows, M images of a row, S slots of a table, K classes, X numbers of a parameter, H numbers
of an optimizer's step, P parameters of a trial.

Adding up the gradients of rows, the optimizers' steps, and losses with their gradients: counted operation by
operation (`tests/benchmarks/step_bytes.py`) these are most of a step's kernels, and half of the bytes that it
moves. A kernel is taken on a device once it was tried there (`triton_tried.py`). Float32 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from objectives.fused.triton_tried import takes
from objectives.fused.update import UPDATES, Rows, Update

if TYPE_CHECKING:
    from objectives.fused.inbox import UpdateTable

AT_ONCE = 1024
"""Numbers of a trial that one program works on."""

MOST_CLASSES = 128
"""K; with more, the scores of a row's images don't fit into a program's registers."""

KINDS: Mapping[Update, int] = {
    UPDATES[name]: kind
    for kind, name in enumerate(("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"))
}
"""Kind of optimizer → what the kernel calls it."""

LOSSES_BY_TRITON = (
    "cross_entropy",
    "binary_cross_entropy",
    "mse",
    "mae",
    "hinge",
    "multiclass_hinge",
    "squared_multiclass_hinge",
    "focal",
)
"""Names of losses, in the order in which the kernel counts them."""

ADDS, UPDATES_SLOTS, LOSES = "sums of gradients", "optimizers' steps", "losses"
"""Names of the kernels, for `triton_tried.takes`."""


def adds(sums_TX: Tensor) -> bool:
    """Whether gradients of this kind are added up by the kernel."""
    return sums_TX.dtype == torch.float32 and sums_TX.stride(1) == 1 and takes(ADDS, sums_TX.device)


def add_rows_by_triton(
    sums_TX: Tensor, rows_RX: Tensor, turn: tuple[Tensor, Tensor], counts_R: Tensor, fresh_S: Tensor
) -> None:
    """As `objectives.fused.state.add_rows`, to the same bits, given the first turn, and the rows of the trial
    that each row belongs to.
    """
    from objectives.fused import triton_step_kernels as kernels

    (slots_S, firsts_S), rows_RX = turn, rows_RX.contiguous()
    numbers = rows_RX.shape[1]
    with torch.cuda.device_of(sums_TX):
        kernels.add_rows[-(-numbers // AT_ONCE), len(slots_S)](
            sums_TX,
            rows_RX,
            slots_S,
            firsts_S,
            counts_R,
            fresh_S,
            len(sums_TX) - 1,
            sums_TX.stride(0),
            numbers,
            BLOCK=AT_ONCE,
        )


def updates(update: Update, weights_TP: Tensor) -> bool:
    """Whether the steps of optimizers of this kind are taken by the kernel."""
    return update in KINDS and weights_TP.dtype == torch.float32 and takes(UPDATES_SLOTS, weights_TP.device)


def update_by_triton(  # noqa: PLR0917 (all that a step depends on, and what it changes)
    update: Update, stack: Rows, table: UpdateTable, decayed: int, loss_T: Tensor, sums_T2: Tensor
) -> None:
    """A step for the slots of a table, of rows TP in `stack`, with penalties and weight decay; what there is
    of their losses is added to `sums_T2`, the penalty too, and so are the norms of the gradients.
    """
    from objectives.fused import triton_step_kernels as kernels

    slots_S, hyper_HS = table.slots, table.doubles
    idle, size = len(stack.weights) - 1, stack.weights.shape[1]
    blocks = -(-size // AT_ONCE)
    partial_SB3 = stack.weights.new_empty((len(slots_S), blocks, 3))
    how = hyper_HS.stride(0), idle
    with torch.cuda.device_of(stack.weights):
        kernels.update[blocks, len(slots_S)](
            stack.weights,
            stack.gradient,
            None if update.first is None else stack.first,
            None if update.second is None else stack.second,
            partial_SB3,
            slots_S,
            hyper_HS,
            *how,
            size,
            decayed,
            KIND=KINDS[update],
            BLOCK=AT_ONCE,
        )
        kernels.end_update[len(slots_S),](
            partial_SB3,
            loss_T,
            sums_T2,
            slots_S,
            table.images,
            hyper_HS,
            *how,
            blocks,
            BLOCKS=_power(blocks),
        )


def loses(logits_RMK: Tensor, names: Sequence[str]) -> bool:
    """Whether losses of these names are computed by the kernel."""
    return (
        logits_RMK.dtype == torch.float32
        and logits_RMK.shape[2] <= MOST_CLASSES
        and set(names) <= set(LOSSES_BY_TRITON)
        and takes(LOSES, logits_RMK.device)
    )


def losses_by_triton(  # noqa: PLR0917 (all that it depends on, and what it changes)
    logits_RMK: Tensor,
    labels_A: Tensor,
    index_N: Tensor,
    of_rows: tuple[Tensor, Tensor, Tensor],
    class_weights_TK: Tensor,
    loss_T: Tensor,
    places: Tensor,
    losses: Mapping[str, Mapping[str, Tensor]],
) -> tuple[Tensor, Tensor]:
    """The gradient RMK of each slot's mean loss with respect to the scores, and each row's part of that loss.

    `of_rows`: the slot of each row, its images that count, and those of its batch. `losses`: name → option →
    T; the place of a trial's among them is in `loss_T`, and `places` are those of `places_of`.
    """
    from objectives.fused import triton_step_kernels as kernels

    logits_RMK = logits_RMK.contiguous()
    rows, images, classes = logits_RMK.shape
    dlogits_RMK, lost_R = torch.empty_like(logits_RMK), logits_RMK.new_empty(rows)
    smoothing_T, gamma_T = (
        losses.get(name, {}).get(option, class_weights_TK)  # not read where there is no such loss
        for name, option in (("cross_entropy", "label_smoothing"), ("focal", "gamma"))
    )
    with torch.cuda.device_of(logits_RMK):
        kernels.losses[rows,](
            logits_RMK,
            labels_A,
            index_N,
            *of_rows,
            class_weights_TK,
            loss_T,
            places,
            smoothing_T,
            gamma_T,
            dlogits_RMK,
            lost_R,
            images,
            K=classes,
            BLOCK_M=_power(images),
            BLOCK_K=_power(classes),
        )
    return dlogits_RMK, lost_R


def places_of(names: Sequence[str]) -> Tensor:
    """What the kernel calls the losses of these names, in their order; on the host."""
    return torch.tensor([LOSSES_BY_TRITON.index(name) if name in LOSSES_BY_TRITON else -1 for name in names])


def _power(number: int) -> int:
    """The power of two that holds so many."""
    return 1 << max(0, number - 1).bit_length()
