"""Optimizers: what every entry keeps, and each one's formula written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives import registry
from objectives.base import Choice, TrialConfig
from objectives.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    check_options,
    effective_batch_size,
    set_learning_rate,
)

EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def matrix(dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter, the same one every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def train(optimizer: torch.optim.Optimizer, parameter: Tensor, steps: int) -> None:
    """Steps on ½ Σ cₖ wₖ², with curvatures from ½ to 2."""
    curvature = torch.linspace(0.5, 2, parameter.numel(), dtype=parameter.dtype).view_as(parameter)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward((curvature * parameter.square() / 2).sum())
        optimizer.step()


@EVERY
def test_every_optimizer_finds_the_bottom_of_a_bowl(name: str) -> None:
    parameter = matrix()
    optimizer = build_optimizer(Choice(name), [parameter], 0.05)
    train(optimizer, parameter, 2000)
    assert parameter.abs().max() < 0.05


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_optimizer_keeps_the_type_and_repeats_itself(name: str, dtype: torch.dtype) -> None:
    runs = []
    for _ in range(2):
        parameter = matrix(dtype)
        train(build_optimizer(Choice(name), iter([parameter]), 0.05), parameter, 5)
        assert parameter.dtype == dtype
        assert parameter.isfinite().all()
        runs.append(parameter)
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], matrix(dtype))


@EVERY
def test_every_option_changes_the_training(name: str) -> None:
    for option in registry.options("optimizer", name).values():
        other = 0.5 if option.default != 0.5 else 0.25
        results = []
        for options in ({}, {option.name: other}):
            parameter = matrix()
            train(build_optimizer(Choice(name, options), [parameter], 0.05), parameter, 5)
            results.append(parameter)
        assert not torch.equal(*results), option.name


@EVERY
def test_the_learning_rate_may_change_between_steps(name: str) -> None:
    parameter = matrix()
    vector = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = build_optimizer(Choice(name), [parameter, vector], 0.1)
    before = parameter.detach().clone(), vector.detach().clone()
    set_learning_rate(optimizer, 0.0)
    torch.autograd.backward(parameter.sum() + vector.sum())
    optimizer.step()
    assert torch.equal(parameter, before[0])
    assert torch.equal(vector, before[1])


@EVERY
def test_every_optimizer_names_its_reference(name: str) -> None:
    assert "Reference: " in (OPTIMIZERS[name].build.__doc__ or "")


Gradient = Callable[[float], float]
Path = Iterator[float]
"""A weight after each step, from 1.5."""


def plain_path(gradient: Gradient, rate: float) -> Path:
    w = 1.5
    while True:
        w -= rate * gradient(w)
        yield w


def momentum_path(gradient: Gradient, rate: float, momentum: float = 0.9) -> Path:
    w, v = 1.5, 0.0
    while True:
        v = momentum * v + gradient(w)
        w -= rate * v
        yield w


def nesterov_path(gradient: Gradient, rate: float, momentum: float = 0.9) -> Path:
    w, v = 1.5, 0.0
    while True:
        g = gradient(w)
        v = momentum * v + g
        w -= rate * (g + momentum * v)
        yield w


def adagrad_path(gradient: Gradient, rate: float, epsilon: float = 1e-10) -> Path:
    w, s = 1.5, 0.0
    while True:
        g = gradient(w)
        s += g**2
        w -= rate * g / (math.sqrt(s) + epsilon)
        yield w


def rmsprop_path(gradient: Gradient, rate: float, decay: float = 0.99, epsilon: float = 1e-8) -> Path:
    w, s = 1.5, 0.0
    while True:
        g = gradient(w)
        s = decay * s + (1 - decay) * g**2
        w -= rate * g / (math.sqrt(s) + epsilon)
        yield w


def adam_path(
    gradient: Gradient,
    rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> Path:
    w, m, v, step = 1.5, 0.0, 0.0, 0
    while True:
        g, step = gradient(w), step + 1
        w -= rate * weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w -= rate * (m / (1 - beta1**step)) / (math.sqrt(v / (1 - beta2**step)) + epsilon)
        yield w


def adamw_path(gradient: Gradient, rate: float, weight_decay: float = 0.01, **options: float) -> Path:
    return adam_path(gradient, rate, weight_decay=weight_decay, **options)


PATHS: dict[str, tuple[Callable[..., Path], list[dict[str, float]]]] = {
    "gradient_descent": (plain_path, [{}]),
    "sgd": (plain_path, [{}]),
    "momentum": (momentum_path, [{}, {"momentum": 0.0}, {"momentum": 0.5}]),
    "nesterov": (nesterov_path, [{}, {"momentum": 0.5}]),
    "adagrad": (adagrad_path, [{}, {"epsilon": 0.1}]),
    "rmsprop": (rmsprop_path, [{}, {"decay": 0.5, "epsilon": 0.1}]),
    "adam": (adam_path, [{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}]),
    "adamw": (adamw_path, [{}, {"weight_decay": 0.3, "beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}]),
}


@EVERY
def test_every_optimizer_follows_its_formula(name: str) -> None:
    path, variants = PATHS[name]
    for options in variants:
        weight = torch.tensor([[1.5]], dtype=torch.float64, requires_grad=True)
        optimizer = build_optimizer(Choice(name, options), [weight], 0.1)
        expected = path(lambda w: math.cos(w) + w, 0.1, **options)
        for step in range(10):
            optimizer.zero_grad()
            torch.autograd.backward((weight.sin() + weight.square() / 2).sum())
            optimizer.step()
            assert weight.item() == pytest.approx(next(expected), rel=1e-9), (options, step)


@pytest.mark.parametrize(
    ("name", "options", "learning_rate"),
    [
        *((name, {}, 0.1) for name in OPTIMIZERS),
        *((name, {}, -1.0) for name in OPTIMIZERS),
        *((name, {"unheard": 1}, 0.1) for name in OPTIMIZERS),
        ("sgd", {}, math.nan),
        ("momentum", {"momentum": -1}, 0.1),
        ("nesterov", {"momentum": 0}, 0.1),
        ("rmsprop", {"decay": -1}, 0.1),
        ("adagrad", {"epsilon": -1}, 0.1),
        ("adam", {"beta1": 1.5}, 0.1),
        ("adam", {"beta2": "much"}, 0.1),
        ("adamw", {"epsilon": -1}, 0.1),
        ("adamw", {"weight_decay": -1.0}, 0.1),
    ],
)
def test_options_raise_without_an_optimizer_what_they_raise_with_it(
    name: str, options: dict[str, Any], learning_rate: float
) -> None:
    choice, raised = Choice(name, options), []
    for action in (
        lambda: check_options(choice, learning_rate),
        lambda: build_optimizer(choice, [torch.ones((1, 1), requires_grad=True)], learning_rate),
    ):
        try:
            action()
        except Exception as error:  # noqa: BLE001 (whatever it is)
            raised.append((type(error), str(error)))
        else:
            raised.append((type(None), ""))
    assert raised[0] == raised[1]


def test_adamw_decays_weights_and_not_biases() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    bias = torch.ones(2, requires_grad=True)
    optimizer = build_optimizer(Choice("adamw", {"weight_decay": 0.5}), [weight, bias], 0.1)
    torch.autograd.backward(0 * (weight.sum() + bias.sum()))
    optimizer.step()
    torch.testing.assert_close(weight, torch.full((2, 2), 0.95))
    assert bias.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_adamw_takes_biases_alone_and_weights_alone(shape: tuple[int, ...]) -> None:
    optimizer = build_optimizer(Choice("adamw"), [torch.ones(shape, requires_grad=True)], 0.1)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "expected"),
    [
        ("sgd", 64, 64),
        ("sgd", None, 1000),
        ("sgd", 5000, 1000),
        ("gradient_descent", 64, 1000),
        ("gradient_descent", None, 1000),
    ],
)
def test_effective_batch_size(optimizer: str, batch_size: int | None, expected: int) -> None:
    config = TrialConfig(optimizer=Choice(optimizer), batch_size=batch_size)
    assert effective_batch_size(config, 1000) == expected
