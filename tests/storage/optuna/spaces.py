"""A search space for tests."""

from __future__ import annotations

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

SIX: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0, 1),
    "lr": FloatDistribution(1e-5, 1, log=True),
    "q": FloatDistribution(0, 1, step=0.25),
    "layers": IntDistribution(1, 8),
    "optimizer": CategoricalDistribution(("sgd", "adam", None)),
    "flag": CategoricalDistribution((True, False)),
}
"""Six parameters of all kinds."""
