"""Which dimensions decide whether a trial is among the best: two estimators, over replicates.

PED-ANOVA (Watanabe et al. 2023, through `optuna.importance`) asks how differently the best tenth of
the trials is distributed over each dimension than all of them: what decides whether a config is
good. The share of variance is a plain one-way analysis of variance per dimension (ε², which is
corrected for the number of parts and is about 0 where nothing depends on the dimension): what
moves the value over the whole space, the poor regions included. Interactions are in neither.
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
from search.compare.statistics.base import FloatArray, number
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


@dataclass(frozen=True, slots=True)
class Importance:
    """One dimension's importance by both estimators."""

    axis: SpaceAxis
    trials: int
    """How many trials have the dimension."""
    ped_anova: tuple[float, ...]
    """Per group, shares that add up to 1 over the dimensions."""
    variance: tuple[float, ...]
    """Per group, the share of the values' variance, from 0 to 1."""

    @property
    def ped_mean(self) -> float:
        """PED-ANOVA's share, mean over groups."""
        return statistics.fmean(self.ped_anova)

    @property
    def ped_sd(self) -> float | None:
        """Its standard deviation over groups; None for one."""
        return statistics.stdev(self.ped_anova) if len(self.ped_anova) > 1 else None

    @property
    def variance_mean(self) -> float:
        """The share of variance, mean over groups."""
        return statistics.fmean(self.variance)

    @property
    def variance_sd(self) -> float | None:
        """Its standard deviation over groups; None for one."""
        return statistics.stdev(self.variance) if len(self.variance) > 1 else None


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


def importances(arm: Arm, declared: Sequence[str] = ()) -> Importances | str:
    """Both estimators per replicate, or over all trials together; in words why there are none."""
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
    found = []
    for axis in arm.axes:
        parts = arm.parts(axis)
        found.append(
            Importance(
                axis=axis,
                trials=int((parts >= 0).sum()),
                ped_anova=tuple(shares[axis.name] for shares in ped),
                variance=tuple(variance_share(arm.values[group], parts[group]) for group in groups),
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
    )


def variance_share(values_N: FloatArray, parts_N: NDArray[np.intp]) -> float:
    """ε² = (SS between − (k − 1) · MS within) / SS total, at least 0, over trials that have the dimension."""
    has = parts_N >= 0
    values, parts = values_N[has], parts_N[has]
    levels = np.unique(parts)
    if values.size <= levels.size or levels.size < 2 or np.ptp(values) == 0:
        return 0.0
    # A share has no unit: from 0 to 1, squares of very large and very small values stay finite.
    values = (values - values.min()) / np.ptp(values)
    total = ((values - values.mean()) ** 2).sum()
    within = sum(((values[parts == level] - values[parts == level].mean()) ** 2).sum() for level in levels)
    between = total - within
    mean_within = within / (values.size - levels.size)
    return max(0.0, number((between - (levels.size - 1) * mean_within) / total))


def _thinned(group: NDArray[np.intp]) -> NDArray[np.intp]:
    if group.size <= MOST:
        return group
    return np.sort(np.random.default_rng(0).choice(group, size=MOST, replace=False))


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

    distributions = {axis.name: _distribution(axis) for axis in arm.axes}
    by_name = {axis.name: axis for axis in arm.axes}
    trials = []
    for index in group:
        params = {
            name: format_value(value) if by_name[name].categorical else as_number(value)
            for name, value in arm.trials[index].params.items()
            if name in by_name
        }
        trials.append(
            optuna.trial.create_trial(
                value=float(arm.values[index]),
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
