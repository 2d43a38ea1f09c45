"""One trial in plain PyTorch: its model, its optimizer, and what happens in an epoch.

The reference that any faster way to train must agree with. Every epoch's chance is a function of the
trial's seed and the epoch: `derive_seed(seed, "order", epoch)` seeds the permutation, `"module"` whatever a
user's own module or loss draws from the process's random numbers; augmentation and the masks of our dropout
are functions of the image's place in that permutation (`objectives.chance`); `derive_seed(seed, "init")`
seeds the weights. So a trial that goes on from the end of an epoch draws what it would have drawn.

Shapes: B images in a step, N in an epoch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from objectives.augment import augment
from objectives.base import Precision, TrialConfig, TrialError, derive_seed
from objectives.chance import Epoch, Numbers, Purpose
from objectives.datasets import SearchData
from objectives.devices import Arriving, moved, seeded
from objectives.losses import balanced_class_weights, resolve_loss
from objectives.metrics import evaluated
from objectives.models import EpochMasks, build, has_batch_statistics, set_masks
from objectives.optimizers import build_optimizer, effective_batch_size, set_learning_rate
from objectives.precision import computing
from objectives.regularisers import REGULARISERS, decay, no_penalty, penalty, regularised
from objectives.schedules import factor_at

FORWARD_IMAGES = 1024
"""Images that go through a model in training at a time. A larger batch (`full`) goes through in pieces whose
gradients are added up, which is exact, so that its activations need not fit into memory; but whole if the
model has batch statistics, which pieces would change."""

SCORED_AT_ONCE = 512
"""Images that go through a model in one go without gradients; fixed, because it shows in the last bits."""

GATHERED_ELEMENTS = 1 << 20
"""Pixels that are gathered and normalised in one go, of as many steps as that makes: 4 MB of float32."""

AUGMENTED_ELEMENTS = 1 << 17
"""The same where they are augmented as well: the copies of them that this makes fit into a core's cache."""

STEPS_BETWEEN_CHECKS = 32
"""On a GPU, steps between two looks at the losses; each is at what was there the time before, and so waits
for nothing."""


Piece: TypeAlias = tuple[int, Tensor, Tensor]
"""Images that go through the model together: the place of the first in the epoch, images_BCHW, labels_B."""


@dataclass(frozen=True, slots=True)
class TrainedEpoch:
    """What training for an epoch gave, before validation."""

    loss: float
    """Mean over the images of loss plus regulariser; may be non-finite if diverged."""
    gradient_norm: float
    """Mean over the steps; may be non-finite."""
    learning_rate: float
    images: int
    seconds: float
    diverged: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's results on a set of images."""

    loss: float
    """Mean over the images, without regulariser; may be non-finite."""
    metrics: dict[str, float]
    finite_logits: bool
    """Whether all of them were; if not, all metrics are at their worst."""

    @property
    def finite(self) -> bool:
        """Whether loss and logits were; if not, the trial has diverged."""
        return self.finite_logits and math.isfinite(self.loss)


class Training:
    """A trial between two epochs. Raises `TrialError` at construction if it can't be trained."""

    def __init__(
        self,
        config: TrialConfig,
        seed: int,
        data: SearchData,
        allow_imports: Collection[str] = (),
        *,
        precision: Precision = "fp32",
    ) -> None:
        self.config = config
        self.seed = seed
        self.data = data
        self.epoch = 0
        self.device = data.images.device
        self._precision = precision
        model = build(config.model, data.input_shape, data.classes, derive_seed(seed, "init"), allow_imports)
        self.model = model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack this overload
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._weights = regularised((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        self._penalises = config.strength > 0 and REGULARISERS[config.regulariser.name].penalty != no_penalty
        self._loss = resolve_loss(config.loss, allow_imports)
        self._class_weights: Tensor | None = None
        if config.class_weights == "balanced":
            self._class_weights = balanced_class_weights(data.labels[data.training_indices], data.classes)
        self._optimizer = build_optimizer(config.optimizer, self._parameters, config.learning_rate)
        images = len(data.training_indices)
        self._batch_size = effective_batch_size(config, images)
        self._steps_per_epoch = math.ceil(images / self._batch_size)
        self._piece = self._batch_size if has_batch_statistics(self.model) else FORWARD_IMAGES
        self._check_smallest_batch(images)

    def state(self) -> dict[str, Any]:
        """Everything that later epochs depend on, as tensors and plain values; not copied."""
        model = self.model.state_dict()
        left_out = {name: buffer for name, buffer in self.model.named_buffers() if name not in model}
        state = {"model": model, "optimizer": self._optimizer.state_dict()}
        return {**state, "buffers": left_out} if left_out else state  # a user's own, not persistent

    def restore(self, state: Mapping[str, Any], epoch: int) -> None:
        """Go on from `state()` as it was after `epoch`. Raises almost anything if it is not that of such a
        model, and then leaves the trial unusable.
        """
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        buffers = dict(self.model.named_buffers())
        for name, value in state.get("buffers", {}).items():
            buffers[name].copy_(value)
        self.epoch = epoch

    def train_epoch(self) -> TrainedEpoch:
        """Train on every training image once; a diverged trial stops before the epoch's end."""
        started = time.perf_counter()
        steps = _Steps(every=1 if self.device.type == "cpu" else STEPS_BETWEEN_CHECKS)
        for step in self.steps(self.epoch + 1):
            steps.add(step)
            if not steps.finite:
                break
        steps.look()
        self.epoch += 1
        return TrainedEpoch(
            loss=steps.loss,
            gradient_norm=steps.gradient_norm,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            images=steps.images,
            seconds=time.perf_counter() - started,
            diverged=not (steps.finite and self._parameters_finite()),
        )

    def steps(self, epoch: int) -> Generator[Step, None, None]:
        """Take the steps of an epoch, counted from 1, one per item."""
        order_N = torch.randperm(
            len(self.data.training_indices),
            generator=torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch)),
        )
        chosen_N = self.data.training_indices[moved(order_N, self.device)]
        chance = Epoch(self.seed, epoch, len(order_N), self.device)
        self._masks = EpochMasks(chance)
        set_masks(self.model, self._masks.next)
        self.model.train()
        with seeded(derive_seed(self.seed, "module", epoch), self.device):
            for number, (size, pieces) in enumerate(self._batches(chosen_N, chance)):
                yield self._step((epoch - 1) * self._steps_per_epoch + number, size, pieces)

    def _step(self, number: int, size: int, pieces: Iterable[Piece]) -> Step:
        """Step `number` of the trial, on `size` images that come in pieces."""
        self._optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        for first, images_BCHW, labels_B in pieces:
            self._masks.begin(first, len(labels_B))
            objective = self._weighted(self._logits(images_BCHW), labels_B).sum() / size
            if self._penalises and not losses:  # once per step
                objective = objective + penalty(self.config.regulariser, self.config.strength, self._weights)
            objective.backward()
            losses.append(objective.detach())
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        learning_rate = self._learning_rate_at(number)
        set_learning_rate(self._optimizer, learning_rate)
        decay(self.config.regulariser, self.config.strength, self._weights, learning_rate)
        self._optimizer.step()
        return Step(losses[0] if len(losses) == 1 else torch.stack(losses).sum(), norm, size)

    def _learning_rate_at(self, number: int) -> float:
        """Of step `number` of the trial."""
        factor = factor_at(self.config.schedule, number, self._steps_per_epoch, self.config.epochs)
        return self.config.learning_rate * factor

    def score(self, images_NCHW: Tensor, labels_N: Tensor, indices_M: Tensor | None = None) -> Scores:
        """Loss and metrics of the model as it is, on all images or those of `indices_M`."""
        if indices_M is not None:
            labels_N = labels_N[indices_M]
        parts = torch.split(
            torch.arange(len(images_NCHW), device=self.device) if indices_M is None else indices_M,
            SCORED_AT_ONCE,
        )
        self.model.eval()
        with torch.inference_mode(), seeded(derive_seed(self.seed, "score", self.epoch), self.device):
            logits_NK = torch.cat([self._logits(self.data.normalise(images_NCHW[part])) for part in parts])
            # Before the loss, for a user's own may change the scores that it is given.
            metrics, finite = evaluated(logits_NK, labels_N)
            loss = self._weighted(logits_NK, labels_N).mean().item()
        return Scores(loss, metrics, finite)

    def validate(self) -> Scores:
        """`score` on the validation images."""
        return self.score(self.data.images, self.data.labels, self.data.validation_indices)

    def _check_smallest_batch(self, images: int) -> None:
        """Raise `TrialError` now, not at an epoch's end, where batch normalisation would get one value."""
        smallest = images % self._batch_size or self._batch_size
        if smallest > 1 or not has_batch_statistics(self.model):
            return
        blank_1CHW = torch.zeros(1, *self.data.input_shape, device=self.device)
        try:
            with torch.no_grad(), seeded(derive_seed(self.seed, "module", 0), self.device):
                copy.deepcopy(self.model).train()(blank_1CHW)
        except ValueError as error:  # torch: Expected more than 1 value per channel when training
            raise TrialError(
                f"{images} training images in batches of {self._batch_size} leave one image for an epoch's "
                f"last batch, which the model's batch normalisation can't take; use another batch_size"
            ) from error

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        """The model's scores; a user's own may give others in training than it gave when it was built."""
        with computing(self._precision, self.device):
            logits_BK = self.model(images_BCHW)
        expected = (len(images_BCHW), self.data.classes)
        if not isinstance(logits_BK, Tensor) or logits_BK.shape != expected:
            got = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
            mode = "training" if self.model.training else "scoring"
            raise TrialError(
                f"model {self.config.model.name!r} must give scores of shape {expected} for "
                f"{len(images_BCHW)} images; in {mode} it gave {got}"
            )
        return logits_BK.float() if logits_BK.dtype == torch.bfloat16 else logits_BK

    def _weighted(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """The trial's loss of each image, with its class's weight."""
        loss_B = self._loss(logits_BK, labels_B)
        return loss_B if self._class_weights is None else loss_B * self._class_weights[labels_B]

    def _batches(self, chosen_N: Tensor, chance: Epoch) -> Iterator[tuple[int, Iterable[Piece]]]:
        """(size, pieces) of every step; in almost all cases one piece."""
        if self._batch_size > self._piece:
            for start in range(0, len(chosen_N), self._batch_size):
                batch = chosen_N[start : start + self._batch_size]
                firsts = range(start, start + len(batch), self._piece)
                pieces = zip(firsts, torch.split(batch, self._piece), strict=True)
                yield len(batch), (self._gather(first, piece, chance) for first, piece in pieces)
            return
        # Doing it for many steps' images at once saves the calls; the values are the same either way.
        per_step = self._batch_size * math.prod(self.data.input_shape)
        elements = AUGMENTED_ELEMENTS if self.config.augment else GATHERED_ELEMENTS
        first = 0
        for block in torch.split(chosen_N, self._batch_size * max(1, elements // per_step)):
            _, images_NCHW, labels_N = self._gather(first, block, chance)
            for images_BCHW, labels_B in zip(
                torch.split(images_NCHW, self._batch_size),
                torch.split(labels_N, self._batch_size),
                strict=True,
            ):
                yield len(labels_B), ((first, images_BCHW, labels_B),)
                first += len(labels_B)

    def _gather(self, first: int, indices_B: Tensor, chance: Epoch) -> Piece:
        images_BCHW = self.data.normalise(self.data.images[indices_B])
        return first, self._augmented(first, images_BCHW, chance), self.data.labels[indices_B]

    def _augmented(self, first: int, images_BCHW: Tensor, chance: Epoch) -> Tensor:
        if not self.config.augment:
            return images_BCHW

        def numbers(purpose: Purpose) -> Numbers:
            return chance.numbers(purpose, first, len(images_BCHW))

        changed = augment(images_BCHW, self.config.augment, numbers)
        return changed.contiguous(memory_format=torch.channels_last)

    def _parameters_finite(self) -> bool:
        return bool(torch.stack([p.detach().isfinite().all() for p in self._parameters]).all())


@dataclass(frozen=True, slots=True)
class Step:
    """One step's loss (mean over its images, plus regulariser) and gradient norm, still on the device."""

    loss: Tensor
    gradient_norm: Tensor
    images: int


class _Steps:
    """Sums over an epoch's steps, which look at the device only every so many of them.

    If that is not at every step, at what was there the time before, so that nobody waits.
    """

    def __init__(self, every: int) -> None:
        self.finite = True
        self.images = 0
        self._every = every
        self._unseen: list[Step] = []
        self._asked: tuple[list[Step], Arriving] | None = None
        self._count = 0
        self._loss = 0.0
        self._norm = 0.0

    def add(self, step: Step) -> None:
        self._unseen.append(step)
        if len(self._unseen) >= self._every:
            self._ask()
            if self._every == 1:
                self._read()

    def look(self) -> None:
        """Bring what is still on the device to the host."""
        self._ask()
        self._read()

    def _ask(self) -> None:
        """Let what is still on the device come, and read what has been on its way since the last time."""
        self._read()
        if self._unseen:
            values = [value for step in self._unseen for value in (step.loss, step.gradient_norm)]
            self._asked = self._unseen, Arriving(torch.stack(values))
            self._unseen = []

    def _read(self) -> None:
        if self._asked is None:
            return
        steps, arriving = self._asked
        values = arriving.here().tolist()
        self._asked = None
        for step, loss, norm in zip(steps, values[::2], values[1::2], strict=True):
            self.finite = self.finite and math.isfinite(loss)
            self.images += step.images
            self._count += 1
            self._loss += loss * step.images
            self._norm += norm

    @property
    def loss(self) -> float:
        return self._loss / self.images

    @property
    def gradient_norm(self) -> float:
        return self._norm / self._count
