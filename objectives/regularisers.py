"""Regularisers: what keeps weights small, as a term of the loss or as a decay beside it.

Only weights are regularised: biases and the parameters of normalisation layers, which have fewer
than two dimensions, are left out (`regularised`). λ is the trial's `lambda`, `strength` here.

**L2 is λ/2·‖w‖²**, so that its gradient is λ·w: the same number means the same as `weight_decay`
of `torch.optim.SGD`, and half of what Keras' `L2` calls λ. Adaptive optimizers rescale that
gradient; `weight_decay` is decoupled and acts on the weights beside the optimizer.

To add one: write its penalty (options are keyword-only, besides `strength`) and add its line to
`REGULARISERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.base import Choice
from objectives.ranges import NonNegative, Share


def no_penalty(weights: Iterable[Tensor], *, strength: NonNegative) -> Tensor:
    """Zero, whatever λ is."""
    return _total(weights, torch.zeros_like) * strength


def l1(weights: Iterable[Tensor], *, strength: NonNegative) -> Tensor:
    """λ·‖w‖₁, a sum over all weights; gradient λ·sign(w), 0 at w = 0. Reference: Tibshirani 1996 (lasso)."""
    return strength * _total(weights, torch.abs)


def l2(weights: Iterable[Tensor], *, strength: NonNegative) -> Tensor:
    """λ/2·‖w‖², a sum over all weights; gradient λ·w. Reference: Hoerl & Kennard 1970 (ridge)."""
    return strength / 2 * _total(weights, torch.square)


def elastic_net(weights: Iterable[Tensor], *, strength: NonNegative, l1_ratio: Share = 0.5) -> Tensor:
    """λ·(ρ‖w‖₁ + (1 − ρ)/2·‖w‖²) with ρ = `l1_ratio`: 1 is `l1`, 0 is `l2`.

    Reference: Zou & Hastie 2005, in the parametrisation of scikit-learn's `ElasticNet`.
    """
    weights = list(weights)
    return l1(weights, strength=strength * l1_ratio) + l2(weights, strength=strength * (1 - l1_ratio))


@dataclass(frozen=True, slots=True)
class Regulariser:
    """An entry of `REGULARISERS`.

    `penalty(weights, *, strength, options) -> scalar` is added to the mean loss. With `decays`, the
    weights shrink before each step instead: w ← w − η·λ·w at learning rate η (Loshchilov & Hutter
    2019, *Decoupled Weight Decay Regularization*, as `torch.optim.AdamW` does it).
    """

    penalty: Callable[..., Tensor] = no_penalty
    decays: bool = False


def regularised(named_parameters: Iterable[tuple[str, Tensor]]) -> list[Tensor]:
    """The parameters that a regulariser may touch: those of two or more dimensions, in their order."""
    return [parameter for _, parameter in named_parameters if parameter.ndim >= 2]


def penalty(choice: Choice, strength: float, weights: Sequence[Tensor]) -> Tensor:
    """The scalar that regulariser ``choice`` adds to the mean loss; 0 for one that decays instead."""
    return REGULARISERS[choice.name].penalty(weights, strength=strength, **choice.options)


def decay(choice: Choice, strength: float, weights: Iterable[Tensor], learning_rate: float) -> None:
    """Shrink ``weights`` in place, as decoupled weight decay does before a step; others do nothing.

    ``learning_rate`` is the step's own, after its schedule.
    """
    if not REGULARISERS[choice.name].decays:
        return
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1 - learning_rate * strength)


def _total(weights: Iterable[Tensor], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of ``function`` over all elements of all weights, in their order; 0 without any."""
    sums = [function(weight).sum() for weight in weights]
    return torch.stack(sums).sum() if sums else torch.zeros(())


REGULARISERS: Mapping[str, Regulariser] = {
    "none": Regulariser(),
    "l1": Regulariser(l1),
    "l2": Regulariser(l2),
    "elastic_net": Regulariser(elastic_net),
    "weight_decay": Regulariser(decays=True),
}
