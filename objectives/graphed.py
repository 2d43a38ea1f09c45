"""A trial alone whose steps are recorded: the plain trainer where asking for operations takes the time.

The forward and backward passes of a batch, penalty and gradient norm included, are recorded once per size of
batch and then replayed; images, labels and dropout masks are written into the recording's own tensors before.
The optimizer's step, a few operations over all parameters, is taken as it is, so that learning rates may
change. The numbers are those of `Training`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from objectives.base import Precision, TrialConfig
from objectives.datasets import SearchData
from objectives.imports import is_import
from objectives.models import set_masks
from objectives.optimizers import set_learning_rate
from objectives.recording import Recorder, Recording, RecordingError, recorder_for
from objectives.regularisers import decay, penalty
from objectives.training import Piece, Step, Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Passes:
    """The recorded passes for a size of batch, and what they read."""

    images: Tensor
    """BCHW."""
    labels: Tensor
    masks: Sequence[Tensor | None]
    """What each dropout layer multiplies by, in the order in which they run; None: by nothing."""
    recording: Recording
    """Its results: objective, gradient norm, then a gradient per parameter."""


class RecordedTraining(Training):
    """A trial by recorded passes. Each size of batch is trained on as it is when it comes for the first time.

    What can't be recorded is trained as it is; `why_unrecorded` says why.
    """

    def __init__(
        self,
        config: TrialConfig,
        seed: int,
        data: SearchData,
        allow_imports: Collection[str] = (),
        *,
        precision: Precision = "fp32",
        recorder: Recorder,
    ) -> None:
        super().__init__(config, seed, data, allow_imports, precision=precision)
        self._recorder = recorder
        self._recorded: dict[int, _Passes | None] = {}
        """None: a size that has come once."""
        self._asked: list[tuple[float, Sequence[int], torch.dtype]] = []
        """What dropouts got in a pass, see `EpochMasks.asked`."""
        self.why_unrecorded = _why_not(config)
        if self.why_unrecorded:
            _say_once(self.why_unrecorded)

    def _step(self, number: int, size: int, pieces: Iterable[Piece]) -> Step:
        if self.why_unrecorded or self._batch_size > self._piece:
            return super()._step(number, size, pieces)
        ((first, images_BCHW, labels_B),) = pieces
        passes = self._passes_for(images_BCHW, labels_B)
        if passes is None:
            step = super()._step(number, size, [(first, images_BCHW, labels_B)])
            self._asked = self._masks.asked
            return step
        passes.images.copy_(images_BCHW)
        passes.labels.copy_(labels_B)
        self._masks.asked = self._asked
        for layer, mask in enumerate(passes.masks):
            drawn = self._masks.of(layer, first, size)
            if mask is not None and drawn is not None:
                mask.copy_(drawn)
        passes.recording.replay()
        objective, norm, *gradients = passes.recording.results
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        rate = self._learning_rate_at(number)
        set_learning_rate(self._optimizer, rate)
        decay(self.config.regulariser, self.config.strength, self._weights, rate)
        self._optimizer.step()
        return Step(objective.clone(), norm.clone(), size)

    def _passes_for(self, images_BCHW: Tensor, labels_B: Tensor) -> _Passes | None:
        """None: train on this batch as it is."""
        size = len(labels_B)
        if size not in self._recorded:
            self._recorded[size] = None
            return None
        if self._recorded[size] is None:
            try:
                self._recorded[size] = self._record(images_BCHW, labels_B)
            except RecordingError as error:
                self.why_unrecorded = str(error)
                self._recorded.clear()
                _say_once(self.why_unrecorded)
                return None
        return self._recorded[size]

    def _record(self, images_BCHW: Tensor, labels_B: Tensor) -> _Passes:
        images, labels = images_BCHW.clone(), labels_B.clone()
        masks = [
            torch.ones((len(labels), *shape[1:]), dtype=dtype, device=self.device) if share else None
            for share, shape, dtype in self._asked
        ]
        kept = [buffer.clone() for buffer in self.model.buffers()]
        try:
            recording = self._recorder(partial(self._passes, images, labels, masks))
        finally:
            with torch.no_grad():  # recording it has moved running statistics
                for buffer, before in zip(self.model.buffers(), kept, strict=True):
                    buffer.copy_(before)
        return _Passes(images, labels, masks, recording)

    def _passes(self, images: Tensor, labels: Tensor, masks: Sequence[Tensor | None]) -> Sequence[Tensor]:
        given = iter(masks)
        set_masks(self.model, lambda *_: next(given))
        try:
            objective = self._weighted(self._logits(images), labels).sum() / len(labels)
        finally:
            set_masks(self.model, self._masks.next)
        if self._penalises:
            objective = objective + penalty(self.config.regulariser, self.config.strength, self._weights)
        gradients = torch.autograd.grad(objective, self._parameters)
        return objective.detach(), torch.nn.utils.get_total_norm(gradients), *gradients


def training_for(
    config: TrialConfig,
    seed: int,
    data: SearchData,
    allow_imports: Collection[str] = (),
    *,
    precision: Precision = "fp32",
) -> Training:
    """The trial in the way that is fastest for one alone: recorded on a GPU. Raises as `Training`."""
    recorder = recorder_for(data.images.device)
    if recorder is None:
        return Training(config, seed, data, allow_imports, precision=precision)
    return RecordedTraining(config, seed, data, allow_imports, precision=precision, recorder=recorder)


def why_not(config: TrialConfig, device: torch.device) -> str | None:
    """Why the steps of a trial alone are not recorded on a GPU; None if they are, or there is none."""
    return _why_not(config) if device.type == "cuda" else None


def _why_not(config: TrialConfig) -> str | None:
    for what, choice in (("model", config.model), ("loss", config.loss)):
        if is_import(choice.name):
            return f"a {what} of the user's own may draw random numbers, or decide by what it sees"
    return None


@cache
def _say_once(reason: str) -> None:
    logger.warning("trials that train alone are not recorded, and take longer: %s", reason)
