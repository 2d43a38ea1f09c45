"""The gradient of a trial's penalty, added to that of its loss.

Shapes: P' weights of a trial, those at the start of its row that a regulariser may touch.

The penalties of `objectives.regularisers` are λ₁·‖w‖₁ + λ₂/2·‖w‖², whose gradient λ₁·sign(w) + λ₂·w takes a
third of the time that differentiating takes. An entry that isn't in `FACTORS` is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from objectives.base import Choice
from objectives.regularisers import penalty

FACTORS: Mapping[str, Callable[..., tuple[float, float]]] = {
    "l1": lambda strength: (strength, 0.0),
    "l2": lambda strength: (0.0, strength),
    "elastic_net": lambda strength, l1_ratio=0.5: (strength * l1_ratio, strength * (1 - l1_ratio)),
}
"""Name of an entry of `REGULARISERS` → (λ₁, λ₂) from its strength and options."""


def add_penalty(choice: Choice, strength: float, weights_P: Tensor, gradient_P: Tensor) -> Tensor:
    """Add the penalty's gradient to `gradient_P`, in place; returns the penalty."""
    if choice.name not in FACTORS:
        return _differentiated(choice, strength, weights_P, gradient_P)
    first, second = FACTORS[choice.name](strength, **choice.options)
    value = weights_P.new_zeros(())
    if first:
        gradient_P.add_(weights_P.sign(), alpha=first)
        value = value + first * weights_P.abs().sum()
    if second:
        gradient_P.add_(weights_P, alpha=second)
        value = value + second / 2 * weights_P.square().sum()  # `dot` rounds as memory is aligned
    return value


def _differentiated(choice: Choice, strength: float, weights_P: Tensor, gradient_P: Tensor) -> Tensor:
    weights_P = weights_P.detach().requires_grad_()
    value = penalty(choice, strength, [weights_P])
    (slope_P,) = torch.autograd.grad(value, weights_P)
    gradient_P.add_(slope_P)
    return value.detach()
