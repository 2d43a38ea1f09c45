"""Regularisers: what every entry keeps, known values, and how λ relates to PyTorch's weight decay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from objectives.base import Choice
from objectives.regularisers import REGULARISERS, decay, elastic_net, l1, l2, penalty, regularised

EVERY = pytest.mark.parametrize("name", REGULARISERS)


def weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A matrix and a convolution's kernel, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5, 2, 3, 3))
    return [torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True) for shape in shapes]


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_penalty_is_a_finite_scalar_of_the_weights_type(name: str, dtype: torch.dtype) -> None:
    value = penalty(Choice(name), 0.1, weights(dtype))
    assert value.shape == ()
    assert value.dtype == dtype
    assert value.isfinite()
    assert value >= 0


@EVERY
def test_a_penalty_is_proportional_to_strength(name: str) -> None:
    once, thrice = (penalty(Choice(name), strength, weights()) for strength in (0.1, 0.3))
    assert thrice.item() == pytest.approx(3 * once.item())
    assert penalty(Choice(name), 0.0, weights()).item() == 0


@EVERY
def test_no_weights_cost_nothing(name: str) -> None:
    assert penalty(Choice(name), 0.1, []).item() == 0
    decay(Choice(name), 0.1, [], 0.1)


@EVERY
def test_every_entry_but_none_does_something_in_one_way(name: str) -> None:
    """Either in the loss or beside it: never both."""
    before = weights()
    after = weights()
    decay(Choice(name), 0.1, after, 0.5)
    decays = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    costs = penalty(Choice(name), 0.1, before).item() > 0
    assert decays == REGULARISERS[name].decays
    assert decays + costs == (name != "none")


@EVERY
def test_every_penalty_says_what_it_is(name: str) -> None:
    assert REGULARISERS[name].penalty.__doc__


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (l1, 0.1 * 6),
        (l2, 0.1 / 2 * 14),
        (elastic_net, 0.1 * (0.5 * 6 + 0.5 / 2 * 14)),
    ],
)
def test_values_worked_out_by_hand(function: Callable[..., Tensor], expected: float) -> None:
    """Of the weights 1, −2, 3 in two tensors."""
    tensors = [torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)]
    assert function(tensors, strength=0.1).item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("function", "gradient"),
    [
        (l1, lambda w: 0.1 * w.sign()),
        (l2, lambda w: 0.1 * w),
        (elastic_net, lambda w: 0.1 * (0.5 * w.sign() + 0.5 * w)),
    ],
)
def test_gradients(function: Callable[..., Tensor], gradient: Callable[[Tensor], Tensor]) -> None:
    tensors = weights()
    found = torch.autograd.grad(function(tensors, strength=0.1), tensors)
    for weight, found_gradient in zip(tensors, found, strict=True):
        torch.testing.assert_close(found_gradient, gradient(weight.detach()))


def test_a_weight_of_zero_stays_there_under_l1() -> None:
    weight = torch.zeros(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(l1([weight], strength=1.0), weight)
    assert torch.equal(gradient, torch.zeros(2, 2))


@pytest.mark.parametrize(("l1_ratio", "same"), [(1.0, l1), (0.0, l2)])
def test_elastic_net_at_its_ends(l1_ratio: float, same: Callable[..., Tensor]) -> None:
    found = elastic_net(weights(), strength=0.3, l1_ratio=l1_ratio)
    assert found.item() == pytest.approx(same(weights(), strength=0.3).item())


def test_elastic_net_reads_an_iterator_once() -> None:
    assert elastic_net(iter(weights()), strength=0.3).item() == elastic_net(weights(), strength=0.3).item()


def test_biases_and_norms_are_left_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(2, 3)
    )
    picked = regularised(model.named_parameters())
    assert [tuple(parameter.shape) for parameter in picked] == [(2, 1, 3, 3), (3, 2)]


def test_l2_is_the_weight_decay_of_sgd() -> None:
    ours, theirs = weights(), weights()
    in_loss = torch.optim.SGD(ours, lr=0.1, momentum=0.9)
    in_optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.3)
    for _ in range(5):
        for optimizer, tensors, strength in ((in_loss, ours, 0.3), (in_optimizer, theirs, 0.0)):
            optimizer.zero_grad()
            cost = torch.stack([weight.sin().sum() for weight in tensors]).sum()
            torch.autograd.backward(cost + penalty(Choice("l2"), strength, tensors))
            optimizer.step()
    for our_weight, their_weight in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_weight, their_weight)


def test_weight_decay_is_that_of_adamw() -> None:
    ours, theirs = weights(), weights()
    beside = torch.optim.Adam(ours, lr=0.1)
    inside = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.3)
    for _ in range(5):
        for optimizer, tensors in ((beside, ours), (inside, theirs)):
            optimizer.zero_grad()
            torch.autograd.backward([weight.sin().sum() for weight in tensors])
        decay(Choice("weight_decay"), 0.3, ours, 0.1)
        beside.step()
        inside.step()
    for our_weight, their_weight in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_weight, their_weight)
