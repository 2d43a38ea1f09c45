"""How fast a config trains on the device at hand, by trying: for plans, not for comparisons."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from objectives.base import Choice, Task, TrialConfig
from objectives.datasets import load
from objectives.devices import prepare, reproducible
from objectives.graphed import training_for
from objectives.optimizers import OPTIMIZERS, effective_batch_size

WARM_UP_STEPS = 2
"""Steps before the clock runs: the first ones choose kernels and allocate."""

MOST_IMAGES = 256
"""Images in a measured step at most: a larger batch is no faster per image, and takes its time."""


def images_per_second(
    task: Task, config: TrialConfig, seconds: float = 1.0, device: str = "auto", *, threads: int | None = 1
) -> float:
    """Training images per second of one trial, from about so many seconds of steps (one step at least).

    Loading the data and the warm-up come on top. Raises `TrialError` or `DataError` where the trial would.
    """
    chosen = prepare(device)
    with reproducible(threads, task.precision):
        data = load(task.data, 0, chosen)
        if effective_batch_size(config, len(data.training_indices)) > MOST_IMAGES:
            full = OPTIMIZERS[config.optimizer.name].full_batch
            optimizer = Choice("sgd") if full else config.optimizer
            config = replace(config, batch_size=MOST_IMAGES, optimizer=optimizer)
        training = training_for(config, 0, data, task.allow_imports, precision=task.precision)
        taken = epoch = images = 0
        started = time.perf_counter()
        while True:
            epoch += 1
            for step in training.steps(epoch):
                taken += 1
                if taken == WARM_UP_STEPS:
                    images, started = 0, _now(chosen)
                    continue
                images += step.images
                if taken > WARM_UP_STEPS and time.perf_counter() - started > seconds:
                    return images / (_now(chosen) - started)


def _now(device: torch.device) -> float:
    """The time when all steps so far are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
