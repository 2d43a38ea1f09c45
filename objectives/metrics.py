"""Metrics: what trials are compared by, whatever loss they were trained with.

Every metric is a function ``(logits_NK, labels_N) -> float`` over all N images of a set, finite
whenever the logits are. Its `worst` is what a diverged trial gets; nothing is worse than it.

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

    function: Callable[[Tensor, Tensor], float]
    direction: Literal["maximize", "minimize"]
    worst: float
    """The worst value there is; finite, so that it can be stored and told to a sampler."""
    best: float
    """The best value there is."""


def accuracy(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of images whose highest score is at their class."""
    return (logits_NK.argmax(dim=-1) == labels_N).double().mean().item()


def error(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Share of images whose highest score is at another class: 1 − accuracy."""
    return (logits_NK.argmax(dim=-1) != labels_N).double().mean().item()


def macro_f1(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Mean over classes of F1 = 2·TP / (2·TP + FP + FN), over those that occur as label or prediction.

    Same as scikit-learn's `f1_score(average="macro")`.
    """
    classes = logits_NK.shape[-1]
    predicted_N = logits_NK.argmax(dim=-1)
    hits_K = torch.bincount(labels_N[predicted_N == labels_N], minlength=classes)
    # 2·TP + FP + FN: each image counts once at its label and once at its prediction.
    seen_K = torch.bincount(labels_N, minlength=classes) + torch.bincount(predicted_N, minlength=classes)
    occurs_K = seen_K > 0
    return (2 * hits_K[occurs_K].double() / seen_K[occurs_K]).mean().item()


def log_loss(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Mean over images of −log p, with p = softmax(logits) at the image's class.

    p counts as at least `LEAST_PROBABILITY`. Same as scikit-learn's `log_loss` on float64.
    """
    log_p_NK = functional.log_softmax(logits_NK.double(), dim=-1)
    log_p_N = log_p_NK.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    # `min` is for the mean's rounding, `abs` for −0.0.
    return min(abs(log_p_N.clamp(min=-WORST_LOG_LOSS).mean().item()), WORST_LOG_LOSS)


def worst_metrics() -> dict[str, float]:
    """Every metric at its worst: what a diverged trial reports."""
    return {name: metric.worst for name, metric in METRICS.items()}


def evaluate(logits_NK: Tensor, labels_N: Tensor) -> dict[str, float]:
    """Every metric of `METRICS`; all at their worst if any logit is not finite."""
    if not bool(logits_NK.isfinite().all()):
        return worst_metrics()
    return {name: metric.function(logits_NK, labels_N) for name, metric in METRICS.items()}


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(accuracy, "maximize", 0.0, 1.0),
    "error": Metric(error, "minimize", 1.0, 0.0),
    "macro_f1": Metric(macro_f1, "maximize", 0.0, 1.0),
    "log_loss": Metric(log_loss, "minimize", WORST_LOG_LOSS, 0.0),
}
