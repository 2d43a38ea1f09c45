"""Metrics: what trials are compared by, whatever loss they were trained with.

Every metric is a function ``(logits_NK, labels_N) -> Tensor`` over all N images of a set: one number in
float64 on their device, finite whenever the logits are, and found without waiting for the device. Its `worst`
is what a diverged trial gets; nothing is worse than it.

To add one: write the function and add its line to `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LEAST_PROBABILITY = torch.finfo(torch.float64).eps
"""`log_loss` takes no probability to be smaller, as scikit-learn does for float64."""

WORST_LOG_LOSS = -math.log(LEAST_PROBABILITY)


@dataclass(frozen=True, slots=True)
class Metric:
    """An entry of `METRICS`."""

    function: Callable[[Tensor, Tensor], Tensor]
    direction: Literal["maximize", "minimize"]
    worst: float
    """The worst value there is; finite, so that it can be stored and told to a sampler."""
    best: float
    """The best value there is."""


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Share of images whose highest score is at their class."""
    return (logits_NK.argmax(dim=-1) == labels_N).double().mean()


def error(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Share of images whose highest score is at another class: 1 − accuracy."""
    return (logits_NK.argmax(dim=-1) != labels_N).double().mean()


def macro_f1(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean over classes of F1 = 2·TP / (2·TP + FP + FN), over those that occur as label or prediction.

    Same as scikit-learn's `f1_score(average="macro")`.
    """
    predicted_N = logits_NK.argmax(dim=-1)
    one_N = torch.ones(len(labels_N), dtype=torch.float64, device=labels_N.device)
    none_K = one_N.new_zeros(logits_NK.shape[-1])
    hits_K = none_K.index_add(0, labels_N, (predicted_N == labels_N).double())
    # 2·TP + FP + FN: each image counts once at its label and once at its prediction.
    seen_K = none_K.index_add(0, labels_N, one_N).index_add(0, predicted_N, one_N)
    return (2 * hits_K / seen_K.clamp(min=1)).sum() / (seen_K > 0).sum()


def log_loss(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Mean over images of −log p, with p = softmax(logits) at the image's class.

    p counts as at least `LEAST_PROBABILITY`. Same as scikit-learn's `log_loss` on float64.
    """
    log_p_NK = functional.log_softmax(logits_NK.double(), dim=-1)
    log_p_N = log_p_NK.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    # The second `clamp` is for the mean's rounding, `abs` for −0.0.
    return log_p_N.clamp(min=-WORST_LOG_LOSS).mean().abs().clamp(max=WORST_LOG_LOSS)


def worst_metrics() -> dict[str, float]:
    """Every metric at its worst: what a diverged trial reports."""
    return {name: metric.worst for name, metric in METRICS.items()}


def evaluate(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Every metric of `METRICS`; all at their worst if any logit is not finite."""
    return evaluated(logits_NK, labels_N)[0]


def evaluated(logits_NK: Tensor, labels_N: Tensor) -> tuple[dict[str, float], bool]:
    """As `evaluate`, and whether all logits are finite. A GPU is waited for once."""
    found = [metric.function(logits_NK, labels_N) for metric in METRICS.values()]
    finite, *values = torch.stack([logits_NK.isfinite().all().double(), *found]).tolist()
    if not finite:
        return worst_metrics(), False
    return dict(zip(METRICS, values, strict=True)), True


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(accuracy, "maximize", 0.0, 1.0),
    "error": Metric(error, "minimize", 1.0, 0.0),
    "macro_f1": Metric(macro_f1, "maximize", 0.0, 1.0),
    "log_loss": Metric(log_loss, "minimize", WORST_LOG_LOSS, 0.0),
}
