"""Optimizers: builders of `torch.optim.Optimizer` from parameters, a learning rate and options.

θ are the parameters, g the gradient of the mean loss (regulariser included), η the learning rate of
the step. Every builder is `(parameters, learning_rate, *, options)`; options left out take the
defaults of PyTorch. The trainer sets η before each step, from the schedule.

To add one: write its builder and add its line to `OPTIMIZERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objectives.base import Choice, TrialConfig
from objectives.ranges import BelowOne, InnerShare, NonNegative, Positive


def gradient_descent(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Plain gradient descent, θ ← θ − η·g, with g over *all* training images: one step per epoch.

    The trial's batch size is ignored: see `effective_batch_size`. Reference: Cauchy 1847.
    """
    return torch.optim.SGD(parameters, lr=learning_rate)


def sgd(parameters: Iterable[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent on batches, θ ← θ − η·g. Reference: Robbins & Monro 1951."""
    return torch.optim.SGD(parameters, lr=learning_rate)


def momentum(
    parameters: Iterable[Tensor], learning_rate: float, *, momentum: BelowOne = 0.9
) -> torch.optim.Optimizer:
    """SGD with heavy-ball momentum, v ← μ·v + g, θ ← θ − η·v; v starts as the first gradient.

    No dampening; η stands outside v, so that a change of it acts at once. Reference: Polyak 1964,
    in the form of Sutskever et al. 2013 that PyTorch changed.
    """
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)


def nesterov(
    parameters: Iterable[Tensor], learning_rate: float, *, momentum: InnerShare = 0.9
) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, v ← μ·v + g, θ ← θ − η·(g + μ·v).

    Reference: Nesterov 1983, in the form of Sutskever et al. 2013.
    """
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum, nesterov=True)


def adagrad(
    parameters: Iterable[Tensor], learning_rate: float, *, epsilon: Positive = 1e-10
) -> torch.optim.Optimizer:
    """Adagrad, s ← s + g², θ ← θ − η·g / (√s + ε), without decay of η. Reference: Duchi et al. 2011."""
    return torch.optim.Adagrad(parameters, lr=learning_rate, eps=epsilon)


def rmsprop(
    parameters: Iterable[Tensor], learning_rate: float, *, decay: BelowOne = 0.99, epsilon: Positive = 1e-8
) -> torch.optim.Optimizer:
    """RMSprop, s ← ρ·s + (1 − ρ)·g², θ ← θ − η·g / (√s + ε), with ρ = `decay`; not centred, no momentum.

    Reference: Tieleman & Hinton 2012, lecture 6.5.
    """
    return torch.optim.RMSprop(parameters, lr=learning_rate, alpha=decay, eps=epsilon)


def adam(
    parameters: Iterable[Tensor],
    learning_rate: float,
    *,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
) -> torch.optim.Optimizer:
    """Adam, θ ← θ − η·m̂ / (√v̂ + ε), m̂ and v̂ the bias-corrected means of g and g².

    Reference: Kingma & Ba 2015, algorithm 1.
    """
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, beta2), eps=epsilon)


def adamw(
    parameters: Iterable[Tensor],
    learning_rate: float,
    *,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay of its own: θ ← θ − η·λ'·θ, then Adam's step, λ' = `weight_decay`.

    Departs from `torch.optim.AdamW` in what decays: only parameters of two or more dimensions, as
    for every regulariser here. λ' comes on top of the trial's regulariser and its `lambda`.
    Reference: Loshchilov & Hutter 2019, *Decoupled Weight Decay Regularization*.
    """
    groups = _by_dimensions(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2), eps=epsilon)


def _by_dimensions(parameters: Iterable[Tensor], weight_decay: float) -> Iterator[dict[str, Any]]:
    """The groups of those that decay and of those that don't, but for one that would be empty."""
    parameters = list(parameters)
    for decays in (True, False):
        if mine := [p for p in parameters if (p.ndim >= 2) is decays]:
            yield {"params": mine, "weight_decay": weight_decay if decays else 0.0}


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An entry of `OPTIMIZERS`."""

    build: Callable[..., torch.optim.Optimizer]
    """`(parameters, learning_rate, *, options)`."""
    full_batch: bool = False
    """Every step takes all training images, whatever the trial's batch size says."""


def build_optimizer(
    choice: Choice, parameters: Iterable[Tensor], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that ``choice`` names, over ``parameters``."""
    return OPTIMIZERS[choice.name].build(parameters, learning_rate, **choice.options)


def check_options(choice: Choice, learning_rate: float) -> None:
    """Raise what `build_optimizer` would raise for these options, without an optimizer being built.

    torch imports its compiler when it takes in the first parameter, which takes a second or two; it looks at
    the options before.
    """
    with suppress(_OptionsArePassed):
        build_optimizer(choice, _AskedFor(), learning_rate)


class _OptionsArePassed(Exception):  # noqa: N818 (good news)
    """An optimizer asks for its parameters."""


class _AskedFor(Iterable[Tensor]):
    """Parameters that are not there."""

    def __iter__(self) -> Iterator[Tensor]:
        raise _OptionsArePassed


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Make ``learning_rate`` that of the optimizer's next steps, in all its groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def effective_batch_size(config: TrialConfig, train_images: int) -> int:
    """Images per step: all of them for `gradient_descent` or batch size `full`, else the config's.

    Never more than there are.
    """
    if OPTIMIZERS[config.optimizer.name].full_batch or config.batch_size is None:
        return train_images
    return min(config.batch_size, train_images)


OPTIMIZERS: Mapping[str, Optimizer] = {
    "gradient_descent": Optimizer(gradient_descent, full_batch=True),
    "sgd": Optimizer(sgd),
    "momentum": Optimizer(momentum),
    "nesterov": Optimizer(nesterov),
    "adagrad": Optimizer(adagrad),
    "rmsprop": Optimizer(rmsprop),
    "adam": Optimizer(adam),
    "adamw": Optimizer(adamw),
}
