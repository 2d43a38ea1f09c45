"""One trial in a slot: what the host knows of it. Its numbers are in `SlotState`.

Shapes: S steps of an epoch, H numbers of an optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from objectives.augment import augment
from objectives.base import EpochReport, TrialConfig, TrialStart, derive_seed
from objectives.chance import Epoch
from objectives.datasets import SearchData
from objectives.fused.cursors import Sums
from objectives.fused.feed import Dropping, Feed
from objectives.fused.losses import TrialLoss
from objectives.fused.program import Program, dropout_shares
from objectives.fused.regularise import FACTORS
from objectives.fused.state import Row
from objectives.fused.update import MOST_NUMBERS, UPDATES, Update, optimizer_options
from objectives.imports import is_import
from objectives.losses import balanced_class_weights, resolve_loss
from objectives.metrics import worst_metrics
from objectives.optimizers import check_options
from objectives.regularisers import REGULARISERS, no_penalty, penalty
from objectives.schedules import factor_at, factors_of
from objectives.training import Scores

PENALTY_NUMBERS = 3
"""λ₁, λ₂ and what a decay multiplies weights by."""

NUMBERS = PENALTY_NUMBERS + MOST_NUMBERS
"""Of a step."""


@dataclass(slots=True, eq=False)
class Member:
    """A trial that a pool holds."""

    start: TrialStart
    slot: int
    data: SearchData
    feed: Feed
    loss: TrialLoss
    update: Update
    options: dict[str, float]
    """Of the optimizer."""
    penalises: bool
    saved: Row
    """Its numbers at the end of its last epoch, or at its start."""
    epoch: int = 0
    """Epochs that it is at the end of, or past."""
    report: EpochReport | None = None
    """Of that epoch."""
    sums: Sums = field(default_factory=Sums)
    """Of the epoch, once it is through."""
    ended: bool = False
    _numbers: NDArray[np.float64] | None = None
    """Of the steps of the epoch that it is in, SH."""

    @property
    def config(self) -> TrialConfig:
        return self.start.config

    def learning_rate(self, number: int) -> float:
        """Of a step of the epoch that it is in, counted from 0."""
        step, steps = self.epoch * self.feed.steps_per_epoch + number, self.feed.steps_per_epoch
        return self.config.learning_rate * factor_at(self.config.schedule, step, steps, self.config.epochs)

    def numbers(self) -> NDArray[np.float64]:
        """What the steps of its epoch depend on, a line for each: the numbers of its penalty, then the H of
        its optimizer; the rest are ones.
        """
        if self._numbers is None:
            self._numbers = self._numbers_of_epoch()
        return self._numbers

    def begin(self) -> None:
        """Start its next epoch, or start that epoch again."""
        self._numbers = None
        self.feed.start(self.epoch + 1)
        if self.loss.random is not None:
            chance = torch.Generator().manual_seed(derive_seed(self.start.seed, "module", self.epoch + 1))
            self.loss.random = chance.get_state()

    def look_ahead(self) -> None:
        """Prepare for the epoch after the one that it is in, if there is one."""
        following = self.epoch + 2
        if following <= self.config.epochs:
            self.feed.prepare(following)

    def end(self, scores: Scores | None, seconds: float) -> EpochReport:
        """Report the epoch; `scores` None: it diverged in training. `seconds` were spent on scoring."""
        diverged = scores is None or not scores.finite
        sums = self.sums
        rate = self.learning_rate(sums.steps - 1)
        self.epoch += 1
        self.report = EpochReport(
            epoch=self.epoch,
            train_loss=_finite(sums.loss / sums.images),
            validation_loss=_finite(scores.loss) if scores else None,
            metrics=worst_metrics() if scores is None or diverged else scores.metrics,
            gradient_norm=_finite(sums.norm / sums.steps),
            learning_rate=rate,
            seconds=sums.seconds + seconds,
            images_per_second=sums.images / max(sums.seconds, 1e-9),
            diverged=diverged,
        )
        self.sums = Sums()
        self.ended = diverged or self.epoch >= self.config.epochs
        return self.report

    def _numbers_of_epoch(self) -> NDArray[np.float64]:
        config, steps = self.config, self.feed.steps_per_epoch
        rates_S = config.learning_rate * factors_of(config.schedule, self.epoch, steps, config.epochs)
        steps_S = np.arange(1.0, steps + 1) + self.epoch * steps
        shrinks = REGULARISERS[config.regulariser.name].decays
        penalties = *self._factors(), 1 - rates_S * config.strength if shrinks else 1.0
        found = np.ones((steps, NUMBERS))
        with np.errstate(all="ignore"):  # a trial may diverge
            numbers = *penalties, *self.update.numbers(self.options, rates_S, steps_S)
        for place, number in enumerate(numbers):
            found[:, place] = number
        return found

    def _factors(self) -> tuple[float, float]:
        """λ₁ and λ₂ of its penalty, if it is one of `FACTORS`."""
        regulariser, strength = self.config.regulariser, self.config.strength
        if not self.penalises or regulariser.name not in FACTORS:
            return 0.0, 0.0
        return FACTORS[regulariser.name](strength, **regulariser.options)


def member(
    start: TrialStart,
    slot: int,
    data: SearchData,
    *,
    model: nn.Module,
    program: Program,
    allow_imports: Collection[str],
) -> Member:
    """A trial at its start. `model` is its own, as its seed makes it. Raises `TrialError`."""
    config = start.config
    shares = dropout_shares(model) or [0.0] * len(program.features)
    dropping = Dropping(shares, program.features, program.dtype)
    feed = Feed(config, start.seed, data, dropping, whole=program.whole)
    regulariser = REGULARISERS[config.regulariser.name].penalty
    made = Member(
        start=start,
        slot=slot,
        data=data,
        feed=feed,
        loss=_loss(config, data, allow_imports),
        update=UPDATES[config.optimizer.name],
        options=optimizer_options(config.optimizer),
        penalises=config.strength > 0 and regulariser != no_penalty,
        saved=program.state.new_row(model),
    )
    _try_out(made)
    return made


def _try_out(made: Member) -> None:
    """Raise here, where it is one trial's failure, what its numbers would raise in a step of many."""
    blank = torch.zeros((1, 1), requires_grad=True)
    penalty(made.config.regulariser, made.config.strength, [blank])
    check_options(made.config.optimizer, made.learning_rate(0))
    made.numbers()
    chance = Epoch(made.start.seed, 1, 1, blank.device)
    blank_1CHW = torch.zeros((1, *made.data.input_shape))
    augment(blank_1CHW, made.config.augment, lambda purpose: chance.numbers(purpose, 0, 1))


def _loss(config: TrialConfig, data: SearchData, allow_imports: Collection[str]) -> TrialLoss:
    own = is_import(config.loss.name)
    kind = object() if own else (config.loss.name, tuple(sorted(config.loss.options.items())))
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_class_weights(data.labels[data.training_indices], data.classes)
    random = torch.Generator().get_state() if own else None
    return TrialLoss(resolve_loss(config.loss, allow_imports), kind, weights, random)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
