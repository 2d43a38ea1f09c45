"""What is known of search methods comes out of ours: their grids, their samplers, no database, no torch.

- Bergstra and Bengio (JMLR 13, 2012): random search beats a grid of as many points where few of the
  dimensions matter, for a grid repeats the same few values of those; where all matter equally and
  the grid is fine, it covers the space more evenly than chance does.
- Bayesian search beats random search of twice the budget on smooth functions. Branin and Hartmann
  are those of SigOpt's evaluation set in kurobako, the program that Optuna's benchmarks run with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache

import optuna
import pytest
from scipy import stats

from objectives.base import Scalar, derive_seed
from search.examples.analytic import (
    BRANIN_MINIMUM,
    HARTMANN6_MINIMUM,
    branin_value,
    hartmann6_value,
)
from search.experiment.dimensions import dimension_from
from search.experiment.settings import METHODS, GridSettings
from search.experiment.space import SearchSpace
from search.sampling.grid import grid_points
from search.sampling.samplers import build_sampler

SEED = 5
Function = Callable[[Mapping[str, Scalar]], float]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def unit_cube(dimensions: int) -> SearchSpace:
    return SearchSpace(
        {f"x{index}": dimension_from({"low": 0.0, "high": 1.0}) for index in range(dimensions)}
    )


def best(
    method: str, space: SearchSpace, function: Function, budget: int, replicate: int, levels: str = "offset"
) -> float:
    """The smallest value that a method finds with so many trials."""
    if method == "grid":
        settings = GridSettings.model_validate({"levels": levels})
        points = grid_points(space, settings, budget, SEED, replicate)
        assert len(points) == budget
        return min(function(point) for point in points)
    sampler = build_sampler(method, METHODS[method](), space.distributions(), seed=SEED, replicate=replicate)
    study = optuna.create_study(sampler=sampler)
    for _ in range(budget):
        trial = study.ask()
        study.tell(trial, function(space.suggest(trial)))
    return study.best_value


def bowl(dimensions: int, mattering: int, replicate: int) -> Function:
    """Squared distance to a random target in the first dimensions; the others change nothing."""
    chance = random.Random(derive_seed(SEED, replicate, "target"))
    target = [chance.random() for _ in range(dimensions)]
    return lambda point: sum((float(point[f"x{i}"]) - target[i]) ** 2 for i in range(mattering))


def regrets(
    dimensions: int, mattering: int, budget: int, replicates: int, levels: str = "offset"
) -> list[tuple[float, float]]:
    """What grid and random search miss of each replicate's own target."""
    space = unit_cube(dimensions)
    grids = [
        best("grid", space, bowl(dimensions, mattering, replicate), budget, replicate, levels)
        for replicate in range(replicates)
    ]
    return list(zip(grids, random_regrets(dimensions, mattering, budget, replicates), strict=True))


@cache
def random_regrets(dimensions: int, mattering: int, budget: int, replicates: int) -> list[float]:
    """What random search misses: the same for every kind of grid."""
    space = unit_cube(dimensions)
    return [
        best("random", space, bowl(dimensions, mattering, replicate), budget, replicate)
        for replicate in range(replicates)
    ]


def surely_more_than_half(successes: int, n: int) -> bool:
    return bool(stats.binomtest(successes, n, 0.5, alternative="greater").pvalue < 0.001)


@pytest.mark.parametrize("levels", ["offset", "centred", "ends"])
def test_random_beats_a_grid_where_few_dimensions_matter(levels: str) -> None:
    won = sum(chance < grid for grid, chance in regrets(6, 1, 64, 40, levels))
    assert surely_more_than_half(won, 40), won


@pytest.mark.parametrize("levels", ["offset", "centred"])
def test_random_does_not_beat_a_fine_grid_where_all_dimensions_matter_alike(levels: str) -> None:
    found = regrets(2, 2, 64, 150, levels)
    assert sum(chance < grid for grid, chance in found) <= 75
    grid, chance = zip(*found, strict=True)
    assert stats.ttest_rel(grid, chance, alternative="less").pvalue < 0.001


def branin(point: Mapping[str, Scalar]) -> float:
    return branin_value(float(point["x1"]), float(point["x2"]))


def hartmann6(point: Mapping[str, Scalar]) -> float:
    return hartmann6_value([float(point[f"x{index}"]) for index in range(6)])


BRANIN = SearchSpace(
    {
        "x1": dimension_from({"low": -5.0, "high": 10.0}),
        "x2": dimension_from({"low": 0.0, "high": 15.0}),
    }
)


def test_the_functions_have_their_known_minima() -> None:
    for x1, x2 in ((-3.14159265, 12.275), (3.14159265, 2.275), (9.42478, 2.475)):
        assert branin_value(x1, x2) == pytest.approx(BRANIN_MINIMUM, abs=1e-5)
    at = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    assert hartmann6_value(at) == pytest.approx(HARTMANN6_MINIMUM, abs=1e-4)
    chance = random.Random(1)
    assert all(
        branin_value(chance.uniform(-5, 10), chance.uniform(0, 15)) >= BRANIN_MINIMUM
        and hartmann6_value([chance.random() for _ in range(6)]) >= HARTMANN6_MINIMUM
        for _ in range(1000)
    )


def advantage(method: str, space: SearchSpace, function: Function, budget: int, replicates: int) -> float:
    """One-sided p of the signed-rank test: the method against random search of twice the budget."""
    differences = [
        best(method, space, function, budget, index) - best("random", space, function, 2 * budget, index)
        for index in range(replicates)
    ]
    return float(stats.wilcoxon(differences, alternative="less").pvalue)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on idle cores; the process's fits wait for busy ones
@pytest.mark.parametrize(
    ("method", "space", "function", "budget", "replicates"),
    [
        ("tpe", BRANIN, branin, 60, 60),
        ("tpe", unit_cube(6), hartmann6, 80, 20),
        ("gp", BRANIN, branin, 25, 10),
        ("gp", unit_cube(6), hartmann6, 35, 12),
    ],
    ids=["tpe-branin", "tpe-hartmann6", "gp-branin", "gp-hartmann6"],
)
def test_bayesian_search_beats_random_search_of_twice_the_budget(
    method: str, space: SearchSpace, function: Function, budget: int, replicates: int
) -> None:
    assert advantage(method, space, function, budget, replicates) < 0.01


def test_random_search_does_not_beat_itself() -> None:
    space = unit_cube(6)
    won = sum(
        best("random", space, hartmann6, 30, index) < best("random", space, hartmann6, 30, index + 100)
        for index in range(60)
    )
    assert not surely_more_than_half(won, 60)
    assert not surely_more_than_half(60 - won, 60)
