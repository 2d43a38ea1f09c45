"""Metrics: what every entry keeps, and agreement with scikit-learn."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from objectives.metrics import METRICS, evaluate, worst_metrics
from tests.contracts.far_device import FAR, FarDevice

EVERY = pytest.mark.parametrize("name", METRICS)


def predictions(images: int = 200, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Scores that are right more often than not, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(classes, (images,), generator=generator)
    logits_NK = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    logits_NK[torch.arange(images), labels_N] += 1
    return logits_NK, labels_N


def test_accuracy_and_error_are_shares_of_images() -> None:
    logits_NK = torch.tensor([[2.0, 1], [0, 3], [1, 0], [5, 4]])
    found = evaluate(logits_NK, torch.tensor([0, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    assert found["error"] == 0.25


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_macro_f1_is_that_of_scikit_learn(classes: int) -> None:
    logits_NK, labels_N = predictions(40, classes)  # with 30, some classes have no image, some no prediction
    expected = sklearn_metrics.f1_score(labels_N, logits_NK.argmax(dim=-1), average="macro", zero_division=0)
    assert METRICS["macro_f1"].function(logits_NK, labels_N).item() == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
def test_log_loss_is_that_of_scikit_learn(scale: float) -> None:
    """Also where probabilities round to 0, which both cut off at the same value."""
    logits_NK, labels_N = predictions()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The y_prob values do not sum to one")
        expected = sklearn_metrics.log_loss(labels_N, (scale * logits_NK).softmax(dim=-1))
    assert METRICS["log_loss"].function(scale * logits_NK, labels_N).item() == pytest.approx(
        expected, rel=1e-6
    )


@EVERY
def test_directions_and_worst_values_agree_with_what_is_right_and_wrong(name: str) -> None:
    metric = METRICS[name]
    labels_N = torch.tensor([0, 1, 2, 0])
    right_NK = 50 * torch.nn.functional.one_hot(labels_N, 3).double()
    right, wrong = (metric.function(sign * right_NK, labels_N).item() for sign in (1, -1))
    sign = {"maximize": 1, "minimize": -1}[metric.direction]
    assert sign * right > sign * wrong
    assert wrong == pytest.approx(metric.worst)


@settings(derandomize=True, max_examples=100)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_nothing_is_worse_than_worst_and_finite_scores_give_finite_values(
    rows: list[tuple[list[float], int]],
) -> None:
    logits_NK = torch.tensor([scores for scores, _ in rows])
    for name, value in evaluate(logits_NK, torch.tensor([label for _, label in rows])).items():
        metric = METRICS[name]
        assert math.isfinite(value), name
        assert value <= metric.worst if metric.direction == "minimize" else value >= metric.worst, name


@EVERY
def test_worst_values_are_finite_numbers(name: str) -> None:
    assert isinstance(METRICS[name].worst, float)
    assert math.isfinite(METRICS[name].worst)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_worst_at_everything(bad: float) -> None:
    logits_NK, labels_N = predictions()
    logits_NK[3, 1] = bad
    assert evaluate(logits_NK, labels_N) == worst_metrics() == {n: m.worst for n, m in METRICS.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_numbers_are_counted_in_long_ones(dtype: torch.dtype) -> None:
    logits_NK, labels_N = predictions(5000)
    logits_NK = logits_NK.to(dtype)
    assert evaluate(logits_NK, labels_N) == evaluate(logits_NK.double(), labels_N)


def test_a_gpu_is_waited_for_once() -> None:
    with FarDevice() as device:
        evaluate(*(each.to(FAR, non_blocking=True) for each in predictions()))
    assert [line.partition(",")[0] for line in device.waited] == ["tolist"]
    assert device.mixed == []


def test_every_value_is_a_python_number() -> None:
    assert {type(value) for value in evaluate(*predictions()).values()} == {float}


def test_a_perfect_log_loss_is_not_below_zero() -> None:
    value = METRICS["log_loss"].function(torch.tensor([[1e4, 0.0]]), torch.tensor([0])).item()
    assert str(value) == "0.0"


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_metrics_of_a_constant_prediction_with_classes_absent(classes: int) -> None:
    """All images are of class 1 and 0 in turn, all predictions class 0; macro-F1 counts those two only."""
    logits_NK = torch.zeros(10, classes)
    logits_NK[:, 0] = 5.0
    labels_N = torch.arange(10) % 2
    found = evaluate(logits_NK, labels_N)
    assert found["accuracy"] == found["error"] == 0.5
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    log_sum = math.log(math.exp(5) + classes - 1)
    assert found["log_loss"] == pytest.approx(log_sum - 5 / 2)
