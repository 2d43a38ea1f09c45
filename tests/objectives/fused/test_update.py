"""The stacked steps are those of `torch.optim`, for every optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from objectives.base import Choice
from objectives.fused.update import UPDATES, Rows, optimizer_options, step_slots
from objectives.optimizers import OPTIMIZERS, build_optimizer, set_learning_rate

OPTIONS = {
    "momentum": {"momentum": 0.5},
    "nesterov": {"momentum": 0.8},
    "adagrad": {"epsilon": 1e-3},
    "rmsprop": {"decay": 0.7, "epsilon": 1e-3},
    "adam": {"beta1": 0.4, "beta2": 0.9, "epsilon": 1e-3},
    "adamw": {"beta1": 0.4, "beta2": 0.9, "weight_decay": 0.3},
}
DECAYED = 12


def zeros(slots: int, dtype: torch.dtype = torch.float64) -> Rows:
    return Rows(*(torch.zeros((slots, 20), dtype=dtype) for _ in range(4)))


def test_there_is_a_step_for_every_optimizer() -> None:
    assert set(UPDATES) == set(OPTIMIZERS)


@pytest.mark.parametrize("given", [False, True], ids=["defaults", "options"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_those_of_torch(name: str, given: bool) -> None:
    choice = Choice(name, OPTIONS.get(name, {}) if given else {})
    chance = torch.Generator().manual_seed(1)
    start = torch.randn(20, generator=chance, dtype=torch.float64)
    weight, bias = nn.Parameter(start[:DECAYED].view(3, 4).clone()), nn.Parameter(start[DECAYED:].clone())
    optimizer = build_optimizer(choice, [weight, bias], 0.1)
    stack = zeros(3)
    stack.weights[1] = start
    for step in range(1, 11):
        gradient = torch.randn(20, generator=chance, dtype=torch.float64)
        weight.grad, bias.grad = gradient[:DECAYED].view(3, 4), gradient[DECAYED:]
        set_learning_rate(optimizer, 0.1 / step)
        optimizer.step()
        stack.gradient[1] = gradient
        numbers = UPDATES[name].numbers(optimizer_options(choice), 0.1 / step, step)
        step_slots(UPDATES[name], stack, [1], [numbers], DECAYED)
    expected = torch.cat([weight.detach().flatten(), bias.detach()])
    torch.testing.assert_close(stack.weights[1], expected, rtol=1e-13, atol=1e-15)
    assert not stack.weights[[0, 2]].any()
    kept = optimizer.state[weight]
    for field, theirs in (("first", UPDATES[name].first), ("second", UPDATES[name].second)):
        if theirs:
            torch.testing.assert_close(getattr(stack, field)[1, :DECAYED].view(3, 4), kept[theirs])
    assert UPDATES[name].counts == ("step" in kept)


@pytest.mark.parametrize("name", UPDATES)
def test_together_and_one_by_one_are_the_same_to_the_bit(name: str) -> None:
    def after(together: bool) -> list[Tensor]:
        chance = torch.Generator().manual_seed(1)
        stack = zeros(5, torch.float32)
        for tensor in (stack.weights, stack.gradient, stack.first, stack.second):
            tensor.copy_(torch.rand(tensor.shape, generator=chance))
        numbers = [
            UPDATES[name].numbers(optimizer_options(Choice(name)), rate, step)
            for rate, step in ((0.1, 3), (0.01, 7), (1e30, 1))
        ]
        step_slots(UPDATES[name], stack, [4, 0, 3], numbers, DECAYED, together=together)
        return [stack.weights, stack.first, stack.second]

    for one, other in zip(after(together=False), after(together=True), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
