"""Losses: pure functions from the scores of a batch to one loss per image.

Shapes: B images, K classes. `logits_BK` are the model's raw scores (no softmax), `labels_B` holds
class numbers 0…K−1, `loss_B` has the logits' dtype. All functions work along the last axis, so
that further leading axes (a stack of trials, say) pass through.

Every loss is finite and has a finite gradient for large scores, draws no random numbers, changes
nothing in place and never branches on the values of tensors: it may be vmapped, compiled and
differentiated in forward mode. Nothing is averaged over images here: the trainer does that, after
class weights.

To add a loss: write the function (options are keyword-only, with their range) and add its line to
`LOSSES`. The suite in `tests/contracts/loss_contract.py` finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor
from torch.nn import functional

from objectives.base import Choice, TrialError
from objectives.imports import is_import, resolve_import
from objectives.ranges import BelowOne

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A loss with its options bound: ``(logits_BK, labels_B) -> loss_B``."""


def one_hot(labels_B: Tensor, classes: int) -> Tensor:
    """``labels_B`` as a boolean mask BK that is True at each image's own class."""
    return labels_B.unsqueeze(-1) == torch.arange(classes, device=labels_B.device)


def cross_entropy(logits_BK: Tensor, labels_B: Tensor, *, label_smoothing: BelowOne = 0.0) -> Tensor:
    """Softmax cross-entropy, −Σₖ qₖ log pₖ with p = softmax(logits): summed over classes.

    q puts 1 − ε on the image's class plus ε/K on every class, ε = `label_smoothing`; 0 is the plain
    negative log-likelihood. log K at equal scores. Reference: Szegedy et al. 2016, *Rethinking the
    Inception Architecture*, section 7; same as `torch.nn.functional.cross_entropy`.
    """
    log_p_BK = functional.log_softmax(logits_BK, dim=-1)
    log_p_own_B = log_p_BK.gather(-1, labels_B.unsqueeze(-1)).squeeze(-1)
    return -(1 - label_smoothing) * log_p_own_B - label_smoothing * log_p_BK.mean(dim=-1)


def binary_cross_entropy(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Log loss of K independent yes/no questions (one-vs-rest), averaged over classes.

    1/K Σₖ log(1 + exp(−tₖ zₖ)), with tₖ = +1 for the image's class and −1 for the others: a sigmoid
    per class, no softmax. log 2 at zero scores. Reference: Bishop 2006, *Pattern Recognition and
    Machine Learning*, eq. 4.90, with one-vs-rest targets; same as
    `torch.nn.functional.binary_cross_entropy_with_logits` averaged over classes.
    """
    return -functional.logsigmoid(_signs(logits_BK, labels_B) * logits_BK).mean(dim=-1)


def mse(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Squared error between the scores themselves (no softmax) and one-hot targets, averaged over classes.

    1/K Σₖ (zₖ − yₖ)². 1/K at zero scores. Reference: Hui & Belkin 2021, *Evaluation of Neural
    Architectures Trained with Square Loss vs Cross-Entropy* (theirs sums over classes and rescales).
    """
    return (logits_BK - _targets(logits_BK, labels_B)).square().mean(dim=-1)


def mae(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Absolute error between the scores themselves (no softmax) and one-hot targets, averaged over classes.

    1/K Σₖ |zₖ − yₖ|; the gradient is 0 where a score equals its target. 1/K at zero scores.
    Reference: Janocha & Czarnecki 2017, *On Loss Functions for Deep Neural Networks in
    Classification*, table 1, L1 (theirs sums over classes).
    """
    return (logits_BK - _targets(logits_BK, labels_B)).abs().mean(dim=-1)


def hinge(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Hinge loss of K independent yes/no questions (one-vs-rest), averaged over classes.

    1/K Σₖ max(0, 1 − tₖ zₖ), with tₖ = +1 for the image's class and −1 for the others. 1 at zero
    scores. Reference: Rifkin & Klautau 2004, *In Defense of One-Vs-All Classification*.
    """
    return functional.relu(1 - _signs(logits_BK, labels_B) * logits_BK).mean(dim=-1)


def multiclass_hinge(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Multi-class SVM loss of Weston and Watkins, summed over the other classes.

    Σ_{k≠y} max(0, 1 + zₖ − z_y): every class should stay behind the image's own by 1. Exactly
    K − 1 at zero scores. K times `torch.nn.functional.multi_margin_loss`, which divides by K;
    Keras' `CategoricalHinge` is another loss (Crammer & Singer's: the largest violation only).
    Reference: Weston & Watkins 1999, *Support Vector Machines for Multi-Class Pattern Recognition*.
    """
    return _violations(logits_BK, labels_B).sum(dim=-1)


def squared_multiclass_hinge(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Multi-class SVM loss with squared violations, summed over the other classes.

    Σ_{k≠y} max(0, 1 + zₖ − z_y)². K − 1 at zero scores; K times `multi_margin_loss` with p=2.
    Reference: the L2-SVM of Tang 2013, *Deep Learning using Linear Support Vector Machines*, on
    the violations of Weston & Watkins.
    """
    return _violations(logits_BK, labels_B).square().sum(dim=-1)


def focal(
    logits_BK: Tensor, labels_B: Tensor, *, gamma: Annotated[float, Interval(ge=0, le=100)] = 2.0
) -> Tensor:
    """Focal loss −(1 − p)^γ log p with p = softmax(logits) at the image's class: a sum with one term.

    Weighs down images that are already classified well; γ = `gamma` = 0 is cross-entropy.
    Reference: Lin et al. 2017, *Focal Loss for Dense Object Detection*, eq. 4, with softmax for
    their sigmoid and without their class weight α.
    """
    log_p_BK = functional.log_softmax(logits_BK, dim=-1)
    log_p_own_B = log_p_BK.gather(-1, labels_B.unsqueeze(-1)).squeeze(-1)
    # log(1 − p) as the log-sum of the other classes: (1 − p)^γ itself has an infinite slope at
    # p = 1 for γ < 1, which turns into NaN as soon as it meets log p = 0.
    own_BK = one_hot(labels_B, logits_BK.shape[-1])
    log_rest_B = torch.where(own_BK, -torch.inf, log_p_BK).logsumexp(dim=-1)
    return -(gamma * log_rest_B).exp() * log_p_own_B


def balanced_class_weights(labels_N: Tensor, classes: int) -> Tensor:
    """Weight per class, inverse to its count among ``labels_N``; the mean over the images is 1.

    Classes without images get weight 0. Equal to scikit-learn's `class_weight="balanced"` when
    every class occurs: N / (K · countₖ). float32, on the labels' device.
    """
    # Not `bincount`, for which a GPU is waited for.
    counts_K = (labels_N[:, None] == torch.arange(classes, device=labels_N.device)).sum(0)
    present = (counts_K > 0).sum()
    return torch.where(counts_K > 0, len(labels_N) / (present * counts_K.clamp(min=1)), 0.0)


def resolve_loss(choice: Choice, allow_imports: Collection[str] = ()) -> Loss:
    """The loss that ``choice`` names, with its options bound.

    ``module:function`` names a user's own, with the same signature as those here. Raises
    `TrialError` if there is none, if its module is not in ``allow_imports``, or, when it is called,
    if it doesn't give one loss per image.
    """
    if is_import(choice.name):
        function = resolve_import(choice.name, allow_imports)
        return partial(_checked, choice.name, partial(function, **choice.options))
    if choice.name not in LOSSES:
        raise TrialError(f"there is no loss {choice.name!r}; known: {', '.join(LOSSES)}")
    return partial(LOSSES[choice.name], **choice.options)


def _checked(name: str, function: Loss, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    loss_B = function(logits_BK, labels_B)
    if not isinstance(loss_B, Tensor) or loss_B.shape != labels_B.shape:
        got = tuple(loss_B.shape) if isinstance(loss_B, Tensor) else type(loss_B).__name__
        raise TrialError(
            f"loss {name!r} must return one loss per image, a tensor of shape "
            f"{tuple(labels_B.shape)}; it returned {got}"
        )
    return loss_B


def _targets(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return one_hot(labels_B, logits_BK.shape[-1]).to(logits_BK.dtype)


def _signs(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return 2 * _targets(logits_BK, labels_B) - 1


def _violations(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """max(0, 1 + zₖ − z_y) for every class but the image's own, which gets 0."""
    own_B1 = logits_BK.gather(-1, labels_B.unsqueeze(-1))
    margin_BK = 1 - _targets(logits_BK, labels_B)  # 0 at the own class, where zₖ − z_y is 0 too
    return functional.relu(margin_BK + logits_BK - own_B1)


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "mae": mae,
    "hinge": hinge,
    "multiclass_hinge": multiclass_hinge,
    "squared_multiclass_hinge": squared_multiclass_hinge,
    "focal": focal,
}
