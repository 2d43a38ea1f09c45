"""Schedules: the factor by which a step's learning rate differs from the trial's, over a trial.

Every schedule is a pure function `(progress, *, options) -> factor`, factor ≥ 0 and 1 where the
learning rate is the trial's own. `progress` counts optimizer steps, the unit of time is the epoch,
and time 0 is the first step: a factor belongs to the step that is about to be taken.

Each takes `warmup`, in epochs: over that time the factor is multiplied by a straight line that
reaches 1 at its last step and is above 0 at its first (Goyal et al. 2017, *Accurate, Large
Minibatch SGD*, section 2.2). What comes after is not shifted by it.

`step` may be an array of steps; then so is the factor, unless it is the same for all. Both ways give the same
but for the last bit.

To add one: write the function and add its line to `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from objectives.base import Choice
from objectives.ranges import InnerShare, NonNegative, Positive, PositiveCount, Share

Factor: TypeAlias = float | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a trial is: `step` steps taken (0 before the first), of `epochs` × `steps_per_epoch`."""

    step: int | NDArray[np.int64]
    steps_per_epoch: int
    epochs: int

    @property
    def epoch(self) -> Factor:
        """Epochs trained, with the part of the current one."""
        return self.step / self.steps_per_epoch

    @property
    def share(self) -> Factor:
        """Part of the trial that is done, from 0 at the first step to just under 1 at the last."""
        return self.step / (self.steps_per_epoch * self.epochs)


def constant(progress: Progress, *, warmup: NonNegative = 0.0) -> Factor:
    """The trial's learning rate throughout."""
    return _ramp(progress, warmup)


def step(
    progress: Progress, *, factor: Share = 0.1, every: PositiveCount = 5, warmup: NonNegative = 0.0
) -> Factor:
    """factor^⌊epoch / every⌋: falls by `factor` each `every` epochs. Same as PyTorch's `StepLR`."""
    drops = progress.step // progress.steps_per_epoch // every
    return _ramp(progress, warmup) * np.asarray(factor, dtype=np.float64) ** drops


def exponential(progress: Progress, *, gamma: Share = 0.9, warmup: NonNegative = 0.0) -> Factor:
    """gamma^epoch, falling with every step; at the start of each epoch the same as `ExponentialLR`."""
    return _ramp(progress, warmup) * gamma**progress.epoch


def cosine(progress: Progress, *, final: Share = 0.0, warmup: NonNegative = 0.0) -> Factor:
    """Half a cosine wave from 1 to `final`, reached as the trial ends, without restarts.

    Reference: Loshchilov & Hutter 2017, *SGDR*, eq. 5; same as `CosineAnnealingLR` stepped per batch.
    """
    return _ramp(progress, warmup) * _wave(1.0, final, progress.share)


def one_cycle(
    progress: Progress,
    *,
    peak: InnerShare = 0.3,
    start: Positive = 0.04,
    final: NonNegative = 4e-6,
    warmup: NonNegative = 0.0,
) -> Factor:
    """From `start` up to 1 at the part `peak` of the trial, then down to `final`, in two half cosines.

    All three are factors of the trial's learning rate, which is the highest here. The momentum is
    left alone. Reference: Smith & Topin 2018, *Super-Convergence*; defaults of `OneCycleLR`.
    """
    share = progress.share
    up, down = _wave(start, 1.0, share / peak), _wave(1.0, final, (share - peak) / (1 - peak))
    if isinstance(share, float):
        return _ramp(progress, warmup) * (up if share < peak else down)
    return _ramp(progress, warmup) * np.where(share < peak, up, down)


def factor_at(choice: Choice, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The factor for the step that is taken after ``step`` steps of a trial of ``epochs`` epochs.

    Learning rate = the config's × this factor.
    """
    return float(SCHEDULES[choice.name](Progress(step, steps_per_epoch, epochs), **choice.options))


def factors_of(choice: Choice, epoch: int, steps_per_epoch: int, epochs: int) -> NDArray[np.float64]:
    """`factor_at` of all steps of an epoch, counted from 0."""
    steps = np.arange(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
    with np.errstate(all="ignore"):  # as numbers of Python's are computed
        found = SCHEDULES[choice.name](Progress(steps, steps_per_epoch, epochs), **choice.options)
    return np.broadcast_to(np.asarray(found, dtype=np.float64), steps.shape)


def _ramp(progress: Progress, warmup: float) -> Factor:
    steps = warmup * progress.steps_per_epoch
    if steps <= 0:
        return 1.0
    ramp = (progress.step + 1) / steps
    return min(1.0, ramp) if isinstance(ramp, float) else np.minimum(1.0, ramp)


def _wave(first: float, last: float, share: Factor) -> Factor:
    """From ``first`` to ``last`` along half a cosine, flat at both ends, at ``share`` of the way."""
    cosine = math.cos(math.pi * share) if isinstance(share, float) else np.cos(math.pi * share)
    return last + (first - last) * (1 + cosine) / 2


SCHEDULES: Mapping[str, Callable[..., Factor]] = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
}
