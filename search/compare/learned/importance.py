"""Which dimensions decide whether a trial is among the best, and which move the value: two estimators.

Both are Optuna's. PED-ANOVA (Watanabe et al. 2023) asks how differently the best tenth of the trials
is distributed over each dimension than all of them: what decides whether a config is good. It is
made per replicate and comes first. fANOVA (Hutter et al. 2014) fits a forest and gives the share of
the values' variance that each dimension explains by itself: what moves the value over the whole
space, the poor regions included. A forest of few trials learns their noise, and its time grows with
the square of them, so it is made of trials of all replicates together, in up to three samples that
share none. Interactions are in neither, and dimensions that some trials lack aren't in fANOVA.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from search.compare.learned.arm import Arm
from search.compare.space import SpaceAxis, as_number
from search.formats import format_value

if TYPE_CHECKING:
    import optuna

TRIALS = 20
"""Fewer trials aren't taken apart: the best of them would be four or fewer."""
TARGET = 0.1
"""The best tenth; more of few trials, so that it holds `BEST` trials at least."""
BEST = 5
MOST = 5_000
"""More trials of a replicate are subsampled with a fixed seed: building Optuna's study takes the time."""
FOREST = 200
"""Most trials of one forest: 16 trees of so many take about half a second."""
FOREST_LEAST = 60
"""Trials that a further sample takes; below that a forest learns little but noise."""
SAMPLES = 3
TREES = 16
"""Of 64 trees, Optuna's default, shares differ by less than a hundredth and take four times as long."""


@dataclass(frozen=True, slots=True)
class Importance:
    """One dimension's importance by both estimators."""

    axis: SpaceAxis
    trials: int
    """How many trials have the dimension."""
    ped_anova: tuple[float, ...]
    """Per group, shares that add up to 1 over the dimensions."""
    fanova: tuple[float, ...]
    """Per sample, the share of the values' variance, from 0 to 1; none for a conditional dimension."""

    @property
    def ped_mean(self) -> float:
        """PED-ANOVA's share, mean over groups."""
        return statistics.fmean(self.ped_anova)

    @property
    def ped_sd(self) -> float | None:
        """Its standard deviation over groups; None for one."""
        return statistics.stdev(self.ped_anova) if len(self.ped_anova) > 1 else None

    @property
    def fanova_mean(self) -> float | None:
        """The share by fANOVA, mean over samples; None for a conditional dimension."""
        return statistics.fmean(self.fanova) if self.fanova else None

    @property
    def fanova_sd(self) -> float | None:
        """Its standard deviation over samples; None for one."""
        return statistics.stdev(self.fanova) if len(self.fanova) > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Importances:
    """All dimensions' importances, the most important first, and what they were made of."""

    found: tuple[Importance, ...]
    replicates: int
    pooled: bool
    """Whether replicates were too small and were put together: then there is no spread."""
    trials: int
    quantile: float
    """The share of trials that counted as the best."""
    constant: tuple[str, ...]
    """Dimensions that the file names and that had one value only."""
    subsampled: bool
    forests: tuple[int, ...]
    """How many trials each of fANOVA's samples has."""


def importances(arm: Arm, declared: Sequence[str] = ()) -> Importances | str:
    """Both estimators of random search's trials; in words why there are none."""
    if not arm.axes:
        return "no dimension varies"
    groups = [np.flatnonzero(arm.replicate == row) for row in range(len(arm.replicates))]
    pooled = min(group.size for group in groups) < TRIALS
    if pooled:
        groups = [np.arange(arm.n)]
    if arm.n < TRIALS:
        return f"random search has {arm.n} trials with a value, and {TRIALS} are the least"
    if np.ptp(arm.values) == 0:
        return "all of random search's trials have the same value"
    subsampled = any(group.size > MOST for group in groups)
    groups = [_thinned(group) for group in groups]
    quantile = max(TARGET, BEST / min(group.size for group in groups))
    ped = [_ped_anova(arm, group, quantile) for group in groups]
    samples = _samples(arm.n)
    shares = [_fanova(arm, sample) for sample in samples]
    found = []
    for axis in arm.axes:
        parts = arm.parts(axis)
        found.append(
            Importance(
                axis=axis,
                trials=int((parts >= 0).sum()),
                ped_anova=tuple(one[axis.name] for one in ped),
                fanova=tuple(one[axis.name] for one in shares if axis.name in one),
            )
        )
    known = {axis.name for axis in arm.axes}
    return Importances(
        found=tuple(sorted(found, key=lambda one: -one.ped_mean)),
        replicates=len(arm.replicates),
        pooled=pooled and len(arm.replicates) > 1,
        trials=sum(group.size for group in groups),
        quantile=quantile,
        constant=tuple(name for name in declared if name not in known),
        subsampled=subsampled,
        forests=tuple(sample.size for sample in samples),
    )


def _thinned(group: NDArray[np.intp]) -> NDArray[np.intp]:
    if group.size <= MOST:
        return group
    return np.sort(np.random.default_rng(0).choice(group, size=MOST, replace=False))


def _samples(n: int) -> list[NDArray[np.intp]]:
    """Up to three sets of trials that share none, drawn with a fixed seed."""
    order = np.random.default_rng(0).permutation(n)
    samples = np.array_split(order, max(1, min(SAMPLES, n // FOREST_LEAST)))
    return [np.sort(sample[:FOREST]) for sample in samples]


def _fanova(arm: Arm, sample: NDArray[np.intp]) -> dict[str, float]:
    """Shares of variance of the dimensions that all of these trials have; 0 where all values are equal."""
    import optuna

    study = _study(arm, sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
        raw = evaluator.evaluate(study) if np.ptp(arm.values[sample]) > 0 else {}
    everywhere = [axis.name for axis in arm.axes if not axis.conditional]
    return {name: float(raw.get(name, 0.0)) for name in everywhere}


def _ped_anova(arm: Arm, group: NDArray[np.intp], quantile: float) -> dict[str, float]:
    """Shares of PED-ANOVA over these trials, 0 everywhere if the best can't be told from the rest."""
    import optuna

    study = _study(arm, group)
    present = {name for trial in study.get_trials(deepcopy=False) for name in trial.distributions}
    with warnings.catch_warnings():
        # Optuna warns of few trials in a conditional dimension; the table states how many there are.
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(
            target_quantile=quantile, region_quantile=1.0, evaluate_on_local=True
        )
        raw = evaluator.evaluate(study, params=sorted(present))
    total = sum(raw.values())
    return {axis.name: raw.get(axis.name, 0.0) / total if total > 0 else 0.0 for axis in arm.axes}


def _study(arm: Arm, group: NDArray[np.intp]) -> optuna.Study:
    """The trials as a study in memory, as Optuna's evaluators want them."""
    import optuna

    # Shares have no unit: from 0 to 1, squares of very large and very small values stay finite.
    values = arm.values[group]
    values = (values - values.min()) / (np.ptp(values) or 1.0)
    distributions = {axis.name: _distribution(axis) for axis in arm.axes}
    by_name = {axis.name: axis for axis in arm.axes}
    trials = []
    for index, value in zip(group, values, strict=True):
        params = {
            name: format_value(value) if by_name[name].categorical else as_number(value)
            for name, value in arm.trials[index].params.items()
            if name in by_name
        }
        trials.append(
            optuna.trial.create_trial(
                value=float(value),
                params=params,
                distributions={name: distributions[name] for name in params},
            )
        )
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line per study would go to the terminal
    try:
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction=arm.direction)
    finally:
        optuna.logging.set_verbosity(before)
    study.add_trials(trials)
    return study


def _distribution(axis: SpaceAxis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if axis.categorical:
        return CategoricalDistribution(axis.levels)
    return FloatDistribution(axis.low, axis.high, log=axis.scale == "log")
