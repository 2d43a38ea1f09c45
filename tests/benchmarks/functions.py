"""Test functions with mixed dimensions, by which samplers are compared; the least value of each is 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


@dataclass(frozen=True)
class Function:
    """A test function with its dimensions; the least value is 0."""

    space: Mapping[str, BaseDistribution]
    value: Callable[[Mapping[str, Any]], float]


def _floats(count: int, low: float, high: float) -> dict[str, BaseDistribution]:
    return {f"x{number}": FloatDistribution(low, high) for number in range(count)}


def _row(values: Mapping[str, Any], count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(values[f"x{number}"]) for number in range(count)])


def branin(values: Mapping[str, Any]) -> float:
    x, y = values["x0"], values["x1"]
    bowl = (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.39788735772973816


_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)


_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(values: Mapping[str, Any]) -> float:
    inner = (_A * (_row(values, 6) - _P) ** 2).sum(axis=1)
    return float(3.322368011415515 - np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-inner))


def ackley(values: Mapping[str, Any]) -> float:
    """In 5 dimensions, of which a choice stretches two."""
    x = _row(values, 5) * np.array(
        [1, 1, 1, *[{"narrow": 0.5, "plain": 1.0, "wide": 2.0}[values["shape"]]] * 2]
    )
    x[4] += {"a": 0.0, "b": 3.0}[values["side"]]
    first = -20 * math.exp(-0.2 * math.sqrt((x**2).mean()))
    return float(first - math.exp(np.cos(2 * math.pi * x).mean()) + 20 + math.e)


def rosenbrock(values: Mapping[str, Any]) -> float:
    """In 4 dimensions, two of them whole numbers; scaled by a logarithm."""
    x = _row(values, 4)
    return float(np.log1p((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()))


def styblinski_tang(values: Mapping[str, Any]) -> float:
    """In 4 dimensions, one in steps, one logarithmic, and one that is there for one choice only."""
    x = np.array([values["x0"], values["x1"], math.log10(values["x2"]), values.get("x3", 0.0)])
    return float((x**4 - 16 * x**2 + 5 * x).sum() / 2 + 4 * 39.16616570377142)


FUNCTIONS: dict[str, Function] = {
    "branin": Function({"x0": FloatDistribution(-5, 10), "x1": FloatDistribution(0, 15)}, branin),
    "hartmann6": Function(_floats(6, 0, 1), hartmann6),
    "ackley, mixed": Function(
        {
            **_floats(5, -10, 10),
            "shape": CategoricalDistribution(["narrow", "plain", "wide"]),
            "side": CategoricalDistribution(["a", "b"]),
        },
        ackley,
    ),
    "rosenbrock, mixed": Function(
        {**_floats(2, -5, 10), "x2": IntDistribution(-5, 10), "x3": IntDistribution(-5, 10)}, rosenbrock
    ),
    "styblinski-tang, conditional": Function(
        {
            "x0": FloatDistribution(-5, 5),
            "x1": FloatDistribution(-5, 5, step=0.25),
            "x2": FloatDistribution(1e-5, 1e5, log=True),
            "kind": CategoricalDistribution(["short", "long"]),
            "x3": FloatDistribution(-5, 5),
        },
        styblinski_tang,
    ),
}
