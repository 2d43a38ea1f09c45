"""The steps of all optimizers, for rows of parameters at once: the formulas of `torch.optim`.

Shapes: S slots that take a step, P parameters of a trial, H numbers that a step depends on, T all slots.

An entry of `UPDATES` says what `objectives.optimizers` says by a `torch.optim.Optimizer`, for trials that
differ in every option. The numbers of a step (learning rate, bias corrections …) are computed in double
precision on the host and handed over in a table SH, so that no step waits for the device. Slots that use
another optimizer, or take no step, are not touched: nothing is multiplied by a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from objectives.base import Choice
from objectives.devices import moved
from objectives.fused.rows import sent
from objectives.optimizers import OPTIMIZERS


@dataclass(frozen=True, slots=True)
class Rows:
    """What belongs to the slots that take a step, SP each; changed in place."""

    weights: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor


Many: TypeAlias = NDArray[np.float64]
"""One number for each of some steps."""

Numbers: TypeAlias = Callable[[Mapping[str, float], Many, Many], Sequence[float | Many]]
"""(options, learning rates, numbers of these steps from 1) → the H numbers of steps."""

Apply: TypeAlias = Callable[..., None]
"""(rows, decayed, *numbers): one step. `decayed` are the parameters at the start of a row that count as
weights; every number is S1."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """An entry of `UPDATES`; the same object is the same kind."""

    numbers: Numbers
    apply: Apply
    first: str | None = None
    """What `torch.optim` calls that which is kept in `Rows.first`; None: nothing is."""
    second: str | None = None
    """Likewise for `Rows.second`."""
    counts: bool = False
    """Whether `torch.optim` keeps the number of steps."""

    @property
    def hyper(self) -> int:
        """H."""
        return HYPER[self]


def _sgd(rows: Rows, _: int, lr: Tensor) -> None:
    rows.weights.addcmul_(rows.gradient, lr, value=-1)


def _momentum(rows: Rows, _: int, lr: Tensor, mu: Tensor) -> None:
    rows.first.mul_(mu).add_(rows.gradient)
    rows.weights.addcmul_(rows.first, lr, value=-1)


def _nesterov(rows: Rows, _: int, lr: Tensor, mu: Tensor) -> None:
    rows.first.mul_(mu).add_(rows.gradient)
    rows.weights.addcmul_(rows.first.mul(mu).add_(rows.gradient), lr, value=-1)


def _adagrad(rows: Rows, _: int, lr: Tensor, epsilon: Tensor) -> None:
    rows.second.addcmul_(rows.gradient, rows.gradient)
    rows.weights.addcdiv_(rows.gradient * lr, rows.second.sqrt().add_(epsilon), value=-1)


def _rmsprop(rows: Rows, _: int, *numbers: Tensor) -> None:
    lr, kept, new, epsilon = numbers
    rows.second.mul_(kept).addcmul_(rows.gradient, rows.gradient * new)
    rows.weights.addcdiv_(rows.gradient * lr, rows.second.sqrt().add_(epsilon), value=-1)


def _adam(rows: Rows, _: int, *numbers: Tensor) -> None:
    size, new1, kept2, new2, root, epsilon = numbers
    rows.first.lerp_(rows.gradient, new1)
    rows.second.mul_(kept2).addcmul_(rows.gradient, rows.gradient * new2)
    rows.weights.addcdiv_(rows.first * size, rows.second.sqrt().div_(root).add_(epsilon), value=-1)


def _adamw(rows: Rows, decayed: int, shrink: Tensor, *numbers: Tensor) -> None:
    rows.weights[:, :decayed].mul_(shrink)
    _adam(rows, decayed, *numbers)


def _adam_numbers(o: Mapping[str, float], lr: Many, step: Many) -> Sequence[float | Many]:
    correction1, correction2 = 1 - o["beta1"] ** step, 1 - o["beta2"] ** step
    return lr / correction1, 1 - o["beta1"], o["beta2"], 1 - o["beta2"], np.sqrt(correction2), o["epsilon"]


def _adamw_numbers(o: Mapping[str, float], lr: Many, step: Many) -> Sequence[float | Many]:
    return 1 - lr * o["weight_decay"], *_adam_numbers(o, lr, step)


def _plain_numbers(_: Mapping[str, float], lr: Many, __: Many) -> Sequence[float | Many]:
    return (lr,)


def _momentum_numbers(o: Mapping[str, float], lr: Many, _: Many) -> Sequence[float | Many]:
    return lr, o["momentum"]


def _adagrad_numbers(o: Mapping[str, float], lr: Many, _: Many) -> Sequence[float | Many]:
    return lr, o["epsilon"]


def _rmsprop_numbers(o: Mapping[str, float], lr: Many, _: Many) -> Sequence[float | Many]:
    return lr, o["decay"], 1 - o["decay"], o["epsilon"]


PLAIN = Update(_plain_numbers, _sgd)

UPDATES: Mapping[str, Update] = {
    "gradient_descent": PLAIN,
    "sgd": PLAIN,
    "momentum": Update(_momentum_numbers, _momentum, first="momentum_buffer"),
    "nesterov": Update(_momentum_numbers, _nesterov, first="momentum_buffer"),
    "adagrad": Update(_adagrad_numbers, _adagrad, second="sum", counts=True),
    "rmsprop": Update(_rmsprop_numbers, _rmsprop, second="square_avg", counts=True),
    "adam": Update(_adam_numbers, _adam, first="exp_avg", second="exp_avg_sq", counts=True),
    "adamw": Update(_adamw_numbers, _adamw, first="exp_avg", second="exp_avg_sq", counts=True),
}
"""Name of an entry of `OPTIMIZERS` → its step."""


def optimizer_options(choice: Choice) -> dict[str, float]:
    """All options of an optimizer, those left out at their defaults."""
    parameters = inspect.signature(OPTIMIZERS[choice.name].build).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {name: float(value) for name, value in {**defaults, **choice.options}.items()}


HYPER: Mapping[Update, int] = {
    update: len(update.numbers(optimizer_options(Choice(name)), np.ones(1), np.ones(1)))
    for name, update in UPDATES.items()
}

MOST_NUMBERS = max(HYPER.values())
"""H of the kind that has most."""


def step_slots(
    update: Update,
    stack: Rows,
    slots: Sequence[int],
    numbers_SH: Sequence[Sequence[float]],
    decayed: int,
    *,
    together: bool | None = None,
) -> None:
    """One step of the same kind of optimizer for `slots`, of rows TP in `stack`.

    `together`: gather them, step, scatter, which is a few operations for any number of slots; otherwise one
    after the other in place, which moves less memory. Both give the same to the bit. None: together unless
    on the CPU, where a row fits into the cache.
    """
    names = [field.name for field in fields(Rows)]
    tensors = [getattr(stack, name) for name in names]
    device, dtype = stack.weights.device, stack.weights.dtype
    numbers_HS1 = moved(torch.tensor(numbers_SH, dtype=torch.float64).to(dtype), device).T[..., None]
    if together or (together is None and device.type != "cpu"):
        slots_S = sent(slots, device)
        taken = Rows(*(tensor.index_select(0, slots_S) for tensor in tensors))
        update.apply(taken, decayed, *numbers_HS1)
        for name, tensor in zip(names, tensors, strict=True):
            tensor.index_copy_(0, slots_S, getattr(taken, name))
        return
    for position, slot in enumerate(slots):
        rows = Rows(*(tensor[slot : slot + 1] for tensor in tensors))
        update.apply(rows, decayed, *numbers_HS1[:, position : position + 1])
