"""Whether kernels of our own are taken for parts of recorded steps: tried once for each device.

A kernel is taken if it compiles and gives what the operations in its place give. No clock decides: some
round otherwise in the last bit, and two workers must not differ. What is missing (a compiler, say) is said
once in the log; a step can do without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.fused.triton_there import has_triton

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """The same by a kernel and by operations; numbers are made up, and may be changed by neither."""

    by_kernel: Callable[[], Sequence[Tensor]]
    by_operations: Callable[[], Sequence[Tensor]]
    tolerance: float
    """By which the results may differ, relative to the largest number of each; 0: not at all."""


_taken: dict[tuple[str, torch.device], bool] = {}


def takes(name: str, device: torch.device) -> bool:
    """Whether a kernel is taken on a device. The first time it is compiled, and the device waited for."""
    if (name, device) not in _taken:
        possible = device.type == "cuda" and has_triton()
        _taken[name, device] = possible and _try(name, device)
    return _taken[name, device]


def _try(name: str, device: torch.device) -> bool:
    from objectives.fused import triton_trials

    try:
        trials = triton_trials.TRIALS[name](device)
        sound = all(same(trial) for trial in trials)
    except (torch.OutOfMemoryError, MemoryError):
        raise  # the step itself needs as much
    except Exception as error:  # noqa: BLE001 (compilers fail in many ways; a step can do without)
        why = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])
        logger.warning("%s take longer, for Triton can't be used for them: %s", name, why)
        return False
    if not sound:
        logger.warning("%s take longer, for Triton gives others", name)
    return sound


def same(trial: Trial) -> bool:
    """Whether a kernel gives what operations give; a NaN is as good as another."""
    pairs = zip(trial.by_kernel(), trial.by_operations(), strict=True)
    return all(_close(mine, theirs, trial.tolerance) for mine, theirs in pairs)


def _close(mine: Tensor, theirs: Tensor, tolerance: float) -> bool:
    if mine.shape != theirs.shape or not torch.equal(mine.isnan(), theirs.isnan()):
        return False
    found, expected = mine.double().nan_to_num(), theirs.double().nan_to_num()
    largest = expected.abs().max() if expected.numel() else 0.0
    return bool(((found - expected).abs() <= tolerance * largest).all())
