"""In what precision a model computes: float32, TF32 or bfloat16, always with float32 weights.

Whatever the precision, these stay float32: weights, gradients as they are added up, optimizer state, losses,
regularisers, augmentation, and the statistics of normalisations. What a lower precision touches is the
products of convolutions and dense layers, and in bfloat16 the activations between layers as well; bfloat16
has float32's range, so that no loss need be scaled (Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep
Learning Training"). The plain and the fused trainer follow it alike.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from objectives.base import ObjectiveError, Precision

DEFAULT: Precision = "fp32"
"""What `auto` is on every device: so a trial's curve is the same, but for rounding, on a CPU and on a GPU. A
lower precision changes what is compared, and is therefore asked for."""


def resolve_precision(name: str, device: torch.device) -> Precision:
    """`auto`, `fp32`, `tf32` or `bf16` on a device. Raises `ObjectiveError` for others, and for `tf32` where
    there is no GPU.
    """
    if name == "auto":
        return DEFAULT
    if name == "tf32" and device.type != "cuda":
        raise ObjectiveError("precision tf32 needs a GPU; use fp32 or bf16")
    for known in PRECISIONS:
        if name == known:
            return known
    raise ObjectiveError(f"there is no precision {name!r}; use auto, {', '.join(PRECISIONS)}")


def activations(precision: Precision, weights: torch.dtype = torch.float32) -> torch.dtype:
    """The type of what goes from layer to layer, with weights of type `weights`."""
    return torch.bfloat16 if precision == "bf16" else weights


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Where a model is called: in bfloat16 by torch's own rules of what may be, elsewise as it is."""
    if precision != "bf16":
        return nullcontext()
    # Without its cache of cast weights, which is emptied only at the end of the outermost autocast, and would
    # hold the weights of earlier steps where that is somebody else's.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
