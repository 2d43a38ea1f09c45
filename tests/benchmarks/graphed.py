"""One trial at a time, with a step's forward and backward passes replayed from a CUDA graph.

A baseline for benchmarks: what a plain trainer can be without training trials together. A graph is captured
per trial and size of batch, as whoever trains single trials would have to. The optimizer's step, a few
launches over all parameters, is not in it, so that learning rates may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from objectives.base import Task, TrialStart
from objectives.bench_gpu import NotHereError
from objectives.datasets import SearchData
from objectives.models import Dropout, has_batch_statistics
from objectives.optimizers import set_learning_rate
from objectives.regularisers import decay, penalty
from objectives.schedules import factor_at
from objectives.trainer import PlainEngine
from objectives.training import Step, Training

WARM_UP_STEPS = 3
"""On a side stream, before a capture: they choose kernels."""

Passes: TypeAlias = Callable[[], tuple[Tensor, Tensor, Sequence[Tensor]]]
"""Computes objective, gradient norm and gradients of what lies in tensors of its own."""

Record: TypeAlias = Callable[[Passes], tuple[Callable[[], None], tuple[Tensor, Tensor, Sequence[Tensor]]]]
"""Gives what does the same again, and the tensors that it writes to."""


def on_gpu(passes: Passes) -> tuple[Callable[[], None], tuple[Tensor, Tensor, Sequence[Tensor]]]:
    """A `Record` by a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP_STEPS):
            passes()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = passes()
    return graph.replay, found


@dataclass(frozen=True)
class Recorded:
    """The passes for a size of batch."""

    images: Tensor
    """BCHW; what is written here goes through the model next."""
    labels: Tensor
    replay: Callable[[], None]
    objective: Tensor
    norm: Tensor
    gradients: Sequence[Tensor]


class GraphedTraining(Training):
    """A trial by recorded passes. Raises `NotHereError` for models whose passes leave something behind."""

    record: Record = staticmethod(on_gpu)

    def _step(self, number: int, size: int, pieces: Iterable[tuple[Tensor, Tensor]]) -> Step:
        ((images_BCHW, labels_B),) = pieces
        recorded = self._recorded_for(images_BCHW, labels_B)
        recorded.images.copy_(images_BCHW)
        recorded.labels.copy_(labels_B)
        recorded.replay()
        factor = factor_at(self.config.schedule, number, self._steps_per_epoch, self.config.epochs)
        rate = self.config.learning_rate * factor
        set_learning_rate(self._optimizer, rate)
        for parameter, gradient in zip(self._parameters, recorded.gradients, strict=True):
            parameter.grad = gradient
        decay(self.config.regulariser, self.config.strength, self._weights, rate)
        self._optimizer.step()
        return Step(recorded.objective.clone(), recorded.norm.clone(), size)

    def _recorded_for(self, images_BCHW: Tensor, labels_B: Tensor) -> Recorded:
        made: dict[int, Recorded] = self.__dict__.setdefault("_made", {})
        size = len(labels_B)
        if size not in made:
            if has_batch_statistics(self.model) or any(isinstance(m, Dropout) for m in self.model.modules()):
                raise NotHereError("batch normalisation and dropout are not recorded")
            images, labels = images_BCHW.clone(), labels_B.clone()
            replay, found = self.record(partial(self._passes, images, labels))
            made[size] = Recorded(images, labels, replay, *found)
        return made[size]

    def _passes(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        objective = self._weighted(self._logits(images), labels).sum() / len(labels)
        if self._penalises:
            objective = objective + penalty(self.config.regulariser, self.config.strength, self._weights)
        gradients = torch.autograd.grad(objective, self._parameters)
        return objective.detach(), torch.nn.utils.get_total_norm(gradients), gradients


class GraphedEngine(PlainEngine):
    """As `PlainEngine`, by recorded passes. Raises `NotHereError` without a GPU."""

    training = GraphedTraining

    def __init__(self, task: Task, device: str = "auto") -> None:
        super().__init__(task, device)
        if self._device.type != "cuda" and self.training.record is on_gpu:
            raise NotHereError("a CUDA graph needs a GPU")

    def _new(self, start: TrialStart, data: SearchData) -> Training:
        task = self._task
        return self.training(start.config, start.seed, data, task.allow_imports, precision=task.precision)
