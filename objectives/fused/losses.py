"""Losses of many trials at once: each loss that occurs is computed once, on the images of its trials.

Shapes: R rows, M images of a row, N = R·M images of a step, n of them of one kind of loss, K classes, T
slots.

The images of a kind are taken out, its function of `objectives.losses` is applied to them, and its gradient
is written back. So no image ever meets a loss that isn't its own: nothing of an unselected branch (an
infinite slope times zero, say) can leak, and images that don't count meet none.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.fused.rows import RowTable, Share
from objectives.losses import Loss


@dataclass(slots=True, eq=False)
class TrialLoss:
    """A trial's loss."""

    function: Loss
    kind: Hashable
    """Trials of the same kind share a call of `function`; a user's own is a kind of its own."""
    class_weights: Tensor | None = None
    """K; None: all 1."""
    random: Tensor | None = None
    """For a user's own: the state of the process's random numbers as the trial sees them. Such a loss
    gets its images in the portions in which it gets them alone, as it may draw once for each."""

    def of(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of each image, without its class's weight."""
        if self.random is None:
            return self.function(logits_BK, labels_B)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(self.random)
            loss_B = self.function(logits_BK, labels_B)
            self.random = torch.default_generator.get_state()
        return loss_B


@dataclass(frozen=True, slots=True)
class Entry:
    """One slot's images of a step, and what to make of their scores."""

    share: Share
    loss: TrialLoss
    labels: Tensor
    """Of the share's images."""
    batch: int
    """Images of the logical batch that they are part of: the loss is its mean."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of every slot's mean loss with respect to the scores."""

    logits: Tensor
    """RMK; 0 for images that don't count."""
    failures: dict[int, Exception]
    """Position of an entry → what its loss raised. Its gradient is 0."""


def gradient(logits_RMK: Tensor, rows: RowTable, entries: Sequence[Entry], losses_T: Tensor) -> Gradient:
    """The gradient of each entry's loss by its own function; adds the losses to those of their slots.

    Losses are added image by image: how a batch is cut into steps does not show.
    """
    logits_NK = logits_RMK.detach().flatten(0, 1)
    result = Gradient(torch.zeros_like(logits_NK).view_as(logits_RMK), {})
    kinds: dict[Hashable, list[int]] = {}
    for position, entry in enumerate(entries):
        kinds.setdefault(entry.loss.kind, []).append(position)
    for positions in kinds.values():
        try:
            _of_kind(logits_NK, rows, [entries[position] for position in positions], result.logits, losses_T)
        except Exception as error:  # noqa: BLE001 (a user's function may raise anything: it is the trial's)
            result.failures.update(dict.fromkeys(positions, error))
    return result


def _of_kind(
    logits_NK: Tensor, rows: RowTable, mine: Sequence[Entry], dlogits_RMK: Tensor, losses_T: Tensor
) -> None:
    """Fill in the entries of one kind of loss. Nothing is changed if it raises."""
    device = logits_NK.device
    spans = [rows.place(entry.share) for entry in mine]
    image_n = torch.cat([torch.arange(span.start, span.stop, device=device) for span in spans])
    slot_n = torch.cat([torch.full_like(entry.labels, entry.share.slot) for entry in mine])
    labels_n = torch.cat([entry.labels for entry in mine])
    weight_n = torch.cat([_weights(entry, logits_NK.dtype) for entry in mine])
    logits_nK = logits_NK.index_select(0, image_n).requires_grad_()
    loss_n = mine[0].loss.of(logits_nK, labels_n)
    (dlogits_nK,) = torch.autograd.grad(loss_n, logits_nK, weight_n)
    dlogits_RMK.view_as(logits_NK).index_copy_(0, image_n, dlogits_nK)
    losses_T.index_add_(0, slot_n, loss_n.detach() * weight_n)


def _weights(entry: Entry, dtype: torch.dtype) -> Tensor:
    """What each image counts in the mean loss of its batch."""
    if entry.loss.class_weights is None:
        return torch.full(entry.labels.shape, 1 / entry.batch, dtype=dtype, device=entry.labels.device)
    return entry.loss.class_weights[entry.labels].to(dtype) / entry.batch
