"""Functions with known minima as objectives: what `analytic.yaml` runs, in seconds and without torch.

Epochs play the part of training: a value is the exact one plus noise whose standard deviation
halves with every epoch. So a curve says little at first, as a network's does, and the best of many
values is better than it would be again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from objectives.base import Scalar

NOISE = 4.0
"""Standard deviation before the first epoch."""

BRANIN_MINIMUM = 0.397887
"""At (−π, 12.275), (π, 2.275) and (9.42478, 2.475)."""

HARTMANN6_MINIMUM = -3.32237
"""At (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)."""


def branin(config: Mapping[str, Scalar], *, seed: int, epochs: int) -> Iterator[float]:
    """Branin and Hoo's function of `x1` in [−5, 10] and `x2` in [0, 15], more exact with every epoch."""
    exact = branin_value(float(config["x1"]), float(config["x2"]))
    yield from fading_noise(exact, seed, epochs)


def hartmann6(config: Mapping[str, Scalar], *, seed: int, epochs: int) -> Iterator[float]:
    """Hartmann's function of `x1` … `x6` in [0, 1], with a tenth of the noise."""
    exact = hartmann6_value([float(config[f"x{index}"]) for index in range(1, 7)])
    yield from fading_noise(exact, seed, epochs, NOISE / 10)


def fading_noise(exact: float, seed: int, epochs: int, noise: float = NOISE) -> Iterator[float]:
    """`exact`, with noise of half the standard deviation after every epoch."""
    chance = random.Random(seed)
    for epoch in range(1, epochs + 1):
        yield exact + chance.gauss(0.0, noise / 2**epoch)


def branin_value(x1: float, x2: float) -> float:
    """Branin's function: Dixon and Szegö, 1978."""
    inner = x2 - 5.1 / (4 * math.pi**2) * x1**2 + 5 / math.pi * x1 - 6
    return inner**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10


def hartmann6_value(x: Sequence[float]) -> float:
    """Hartmann's function in six dimensions: Dixon and Szegö, 1978."""
    return -sum(
        height * math.exp(-sum(a * (at - p) ** 2 for a, at, p in zip(row, x, centre, strict=True)))
        for height, row, centre in zip(_HEIGHTS, _SHAPES, _CENTRES, strict=True)
    )


_HEIGHTS = (1.0, 1.2, 3.0, 3.2)
_SHAPES = (
    (10.0, 3.0, 17.0, 3.5, 1.7, 8.0),
    (0.05, 10.0, 17.0, 0.1, 8.0, 14.0),
    (3.0, 3.5, 1.7, 10.0, 17.0, 8.0),
    (17.0, 8.0, 0.05, 10.0, 0.1, 14.0),
)
_CENTRES = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)
