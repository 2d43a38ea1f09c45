"""Losses: the shared contract for every entry, known values for each, and how one is added."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from objectives import losses, registry
from objectives.base import Choice, TrialError
from objectives.losses import LOSSES, balanced_class_weights, resolve_loss
from tests.contracts.loss_contract import CHECKS, Check, batch, variants

Loss = Callable[[Tensor, Tensor], Tensor]

CASES = [
    pytest.param(partial(function, **options), id=f"{name}{options or ''}")
    for name, function in LOSSES.items()
    for options in variants(registry.options("loss", name))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("loss", CASES)
def test_every_loss_keeps_the_contract(loss: Loss, check: Check) -> None:
    check(loss)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_its_reduction_and_its_reference(name: str) -> None:
    text = LOSSES[name].__doc__ or ""
    assert "Reference: " in text
    assert "classes" in text.splitlines()[0] or "a sum" in text.splitlines()[0]


@settings(derandomize=True, max_examples=60)
@given(
    logits=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=12),
    label=st.integers(0, 11),
)
def test_every_loss_is_at_least_zero(logits: list[float], label: int) -> None:
    logits_BK = torch.tensor([logits])
    labels_B = torch.tensor([label % len(logits)])
    for name, loss in LOSSES.items():
        value = loss(logits_BK, labels_B).item()
        assert math.isfinite(value), name
        assert value >= 0, name


@pytest.mark.parametrize(
    ("name", "at_zero_scores"),
    [
        ("cross_entropy", math.log),
        ("binary_cross_entropy", lambda classes: math.log(2)),
        ("mse", lambda classes: 1 / classes),
        ("mae", lambda classes: 1 / classes),
        ("hinge", lambda classes: 1),
        ("multiclass_hinge", lambda classes: classes - 1),
        ("squared_multiclass_hinge", lambda classes: classes - 1),
        ("focal", lambda classes: (1 - 1 / classes) ** 2 * math.log(classes)),
    ],
)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_value_at_zero_scores(name: str, at_zero_scores: Callable[[int], float], classes: int) -> None:
    loss_B = LOSSES[name](torch.zeros(3, classes, dtype=torch.float64), torch.tensor([0, 1, classes - 1]))
    expected = pytest.approx([at_zero_scores(classes)] * 3, rel=1e-14)
    assert loss_B.tolist() == expected


def test_weston_watkins_at_zero_scores_is_exact() -> None:
    for classes in (2, 3, 10, 100):
        assert LOSSES["multiclass_hinge"](torch.zeros(1, classes), torch.tensor([0])).item() == classes - 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", math.log(math.exp(2) + math.exp(0.5) + math.exp(-1)) - 0.5),
        (
            "binary_cross_entropy",
            (math.log1p(math.exp(2)) + math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1))) / 3,
        ),
        ("mse", (4 + 0.25 + 1) / 3),
        ("mae", (2 + 0.5 + 1) / 3),
        ("hinge", (3 + 0.5 + 0) / 3),
        ("multiclass_hinge", 2.5),
        ("squared_multiclass_hinge", 6.25),
    ],
)
def test_value_worked_out_by_hand(name: str, expected: float) -> None:
    """Scores (2, ½, −1) of an image of class 1."""
    logits_BK = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64)
    assert LOSSES[name](logits_BK, torch.tensor([1])).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_is_that_of_torch(label_smoothing: float) -> None:
    logits_BK, labels_B = batch(16, 10)
    expected_B = functional.cross_entropy(
        logits_BK, labels_B, reduction="none", label_smoothing=label_smoothing
    )
    torch.testing.assert_close(
        losses.cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing), expected_B
    )


def test_binary_cross_entropy_is_that_of_torch() -> None:
    logits_BK, labels_B = batch(16, 10)
    targets_BK = functional.one_hot(labels_B, 10).double()
    expected_BK = functional.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="none")
    torch.testing.assert_close(losses.binary_cross_entropy(logits_BK, labels_B), expected_BK.mean(dim=-1))


@pytest.mark.parametrize(("name", "power"), [("multiclass_hinge", 1), ("squared_multiclass_hinge", 2)])
def test_multiclass_hinge_is_classes_times_that_of_torch(name: str, power: int) -> None:
    logits_BK, labels_B = batch(16, 10)
    expected_B = 10 * functional.multi_margin_loss(logits_BK, labels_B, p=power, reduction="none")
    torch.testing.assert_close(LOSSES[name](logits_BK, labels_B), expected_B)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_is_its_formula(gamma: float) -> None:
    logits_BK, labels_B = batch(16, 10)
    p_B = logits_BK.softmax(dim=-1).gather(-1, labels_B[:, None])[:, 0]
    torch.testing.assert_close(
        losses.focal(logits_BK, labels_B, gamma=gamma), -((1 - p_B) ** gamma) * p_B.log()
    )


def test_focal_with_gamma_below_one_has_a_gradient_where_p_rounds_to_one() -> None:
    logits_BK = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    loss_B = losses.focal(logits_BK, torch.tensor([0]), gamma=0.5)
    (gradient_BK,) = torch.autograd.grad(loss_B.sum(), logits_BK)
    assert gradient_BK.abs().max() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_classes_are_alike(name: str) -> None:
    """Renumbering the classes changes nothing."""
    logits_BK, labels_B = batch(16, 10)
    order_K = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    renumbered_BK = torch.empty_like(logits_BK)
    renumbered_BK[:, order_K] = logits_BK
    torch.testing.assert_close(
        LOSSES[name](renumbered_BK, order_K[labels_B]), LOSSES[name](logits_BK, labels_B)
    )


def test_balanced_weights_are_those_of_scikit_learn_with_mean_one() -> None:
    labels_N = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
    weights_K = balanced_class_weights(labels_N, 3)
    expected_K = compute_class_weight("balanced", classes=np.arange(3), y=labels_N.numpy())
    assert weights_K.tolist() == pytest.approx(expected_K.tolist())
    assert weights_K[labels_N].mean().item() == pytest.approx(1)


def test_balanced_weights_leave_out_classes_without_images() -> None:
    labels_N = torch.tensor([0, 0, 0, 2])
    weights_K = balanced_class_weights(labels_N, 4)
    assert weights_K.tolist() == pytest.approx([2 / 3, 0, 2, 0])
    assert weights_K[labels_N].mean().item() == pytest.approx(1)


def test_a_choice_binds_its_options() -> None:
    logits_BK, labels_B = batch(7, 5)
    loss = resolve_loss(Choice("focal", {"gamma": 0.0}))
    torch.testing.assert_close(loss(logits_BK, labels_B), losses.cross_entropy(logits_BK, labels_B))


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(TrialError, match="no loss 'cross_entropie'"):
        resolve_loss(Choice("cross_entropie"))


@pytest.fixture
def own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module on the path; its name."""
    (tmp_path / "own_losses.py").write_text(
        "import torch\n"
        "def brier(logits_BK, labels_B, *, scale: float = 1.0):\n"
        "    targets_BK = torch.nn.functional.one_hot(labels_B, logits_BK.shape[-1])\n"
        "    return scale * (logits_BK.softmax(-1) - targets_BK).square().sum(-1)\n"
        "def averaged(logits_BK, labels_B):\n"
        "    return logits_BK.mean()\n"
        "def number(logits_BK, labels_B):\n"
        "    return 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)
    return "own_losses"


def test_a_users_own_loss_takes_options(own_losses: str) -> None:
    loss = resolve_loss(Choice("own_losses:brier", {"scale": 2.0}), [own_losses])
    assert loss(torch.zeros(1, 2), torch.tensor([0])).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(("function", "got"), [("averaged", r"returned \(\)"), ("number", "returned float")])
def test_a_users_own_loss_must_give_one_loss_per_image(own_losses: str, function: str, got: str) -> None:
    loss = resolve_loss(Choice(f"own_losses:{function}"), [own_losses])
    with pytest.raises(TrialError, match=got):
        loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))


def test_a_users_own_loss_must_be_allowed(own_losses: str) -> None:
    with pytest.raises(TrialError, match="not in allow_imports"):
        resolve_loss(Choice("own_losses:brier"), [])
    assert own_losses not in sys.modules


NEW_FUNCTION = '''
def brier(logits_BK: Tensor, labels_B: Tensor, *, scale: Annotated[float, Interval(gt=0)] = 1.0) -> Tensor:
    """Squared error of probabilities, summed over classes. Reference: Brier 1950."""
    return scale * (logits_BK.softmax(-1) - _targets(logits_BK, labels_B)).square().sum(-1)


LOSSES: Mapping'''
NEW_LINE = '    "brier": brier,\n}'


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A copy of the losses' module to which one function and one line were added, in its place."""
    source = Path(losses.__file__).read_text()
    source = source.replace("LOSSES: Mapping", NEW_FUNCTION.lstrip(), 1)
    assert source.endswith("}\n")
    path = tmp_path / "scratch_losses.py"
    path.write_text(source.removesuffix("}\n") + NEW_LINE + "\n")
    spec = importlib.util.spec_from_file_location("scratch_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "objectives.losses", module)
    return module


def test_adding_a_loss_takes_one_function_and_one_line(scratch: ModuleType) -> None:
    assert registry.names("loss") == (*LOSSES, "brier")
    options = registry.options("loss", "brier")
    assert options["scale"].allowed == "a finite number, above 0"
    assert registry.problem_of_name("loss", "brier") is None
    for values in variants(options):
        loss = scratch.resolve_loss(Choice("brier", values))
        for check in CHECKS:
            check(loss)


def averages(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return losses.cross_entropy(logits_BK, labels_B).mean()


def mixes_images(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return losses.cross_entropy(logits_BK - logits_BK.mean(dim=0), labels_B)


def draws(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return losses.cross_entropy(functional.dropout(logits_BK), labels_B)


def forgets_its_gradient(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return losses.cross_entropy(logits_BK, labels_B) + losses.mse(logits_BK.detach(), labels_B)


class Backwards(torch.autograd.Function):
    """Knows reverse mode alone."""

    @staticmethod
    def forward(logits_BK: Tensor) -> Tensor:
        return logits_BK.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient_BK: Tensor) -> Tensor:
        logits_BK: Tensor = ctx.saved_tensors[0]
        return 2 * logits_BK * gradient_BK


def knows_reverse_mode_alone(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    squares_BK: Tensor = Backwards.apply(logits_BK)
    return losses.mse(logits_BK, labels_B) + squares_BK.sum(dim=-1)


def branches(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    sign = 1 if logits_BK.sum() > 0 else 2
    return sign * losses.cross_entropy(logits_BK, labels_B)


def overflows(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return logits_BK.exp().sum(dim=-1).log() - logits_BK.gather(-1, labels_B[:, None])[:, 0]


def climbs(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    return -losses.cross_entropy(logits_BK, labels_B)


BROKEN = (
    averages,
    mixes_images,
    draws,
    forgets_its_gradient,
    knows_reverse_mode_alone,
    branches,
    overflows,
    climbs,
)


@pytest.mark.parametrize(("check", "broken"), list(zip(CHECKS, BROKEN, strict=True)))
def test_every_check_of_the_contract_refuses_a_loss_that_breaks_it(check: Check, broken: Loss) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check(broken)
