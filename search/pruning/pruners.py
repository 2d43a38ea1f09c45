"""Which trials stop early: Optuna's pruners by their settings, and our own successive halving.

A pruner is asked at the end of every epoch but a trial's last; the step is the number of epochs
trained. Each comes in two forms that say the same: as Optuna's pruner, for any Optuna client, and
as a rule of `search.pruning.stopping` that judges a whole pool at once, which is what workers use. One that
stops nothing, but lets trials pause, has a rule for that instead (`build_promotion`). Adding one is a
settings class in `search.experiment.settings`, two builders here and a line in each registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from search.experiment.settings import (
    AshaPromotionSettings,
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    PercentileSettings,
    PrunerSettings,
    SuccessiveHalvingSettings,
)
from search.pruning.promotion import AshaPromotion
from search.pruning.stopping import (
    Asha,
    Hyperband,
    NeverStop,
    Percentile,
    PoolPruner,
    SuccessiveHalving,
    rank_key,
    rungs_passed,
)

Direction: TypeAlias = Literal["maximize", "minimize"]


def keep(values: Mapping[int, float], number: int, eta: int, direction: Direction) -> bool:
    """Whether trial `number` is among the best `1/eta` of a rung.

    `values` maps the number of every trial that reached the rung to its value there, `number`
    among them. The verdict depends on this set alone, not on the order in which trials arrived;
    equal values are ranked by trial number. The best is always kept, and nobody is stopped while
    fewer than `eta` trials have reached the rung: one in `eta` cannot be told from fewer.
    """
    if len(values) < eta:
        return True
    maximize = direction == "maximize"
    mine = rank_key(values[number], number, maximize=maximize)
    better = sum(rank_key(value, other, maximize=maximize) < mine for other, value in values.items())
    return better < len(values) // eta


class AshaPruner(BasePruner):
    """Stop-only asynchronous successive halving that no order of arrival within a rung decides.

    Rungs lie at `min_epochs`, ``min_epochs * eta``, … epochs. After every epoch a trial has to be
    among the best ``1/eta`` of all trials at each rung that it has passed: one that was let
    through because it came early is stopped later, when better ones have come. Trials that run
    in step get the verdicts of synchronous halving.

    Li et al., "A system for massively parallel hyperparameter tuning" (MLSys 2020); departs from
    it in that trials aren't paused and promoted, and in that old verdicts are looked at again.
    Safe to share between threads: it holds no state.
    """

    def __init__(self, min_epochs: int = 1, eta: int = 3) -> None:
        self._min_epochs = min_epochs
        self._eta = eta

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Optuna's question: True stops the trial."""
        step = trial.last_step
        rungs = rungs_passed(step, self._min_epochs, self._eta) if step is not None else []
        if not rungs:
            return False
        direction: Direction = "maximize" if study.direction == StudyDirection.MAXIMIZE else "minimize"
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        for rung in rungs:
            values = {
                other.number: other.intermediate_values[rung]
                for other in others
                if rung in other.intermediate_values
            }
            mine = trial.intermediate_values.get(rung)
            if mine is not None and not keep(
                values | {trial.number: mine}, trial.number, self._eta, direction
            ):
                return True
        return False


def _none(_settings: PrunerSettings, _max_epochs: int) -> BasePruner:
    return NopPruner()


def _median(settings: MedianSettings, _max_epochs: int) -> BasePruner:
    return MedianPruner(
        n_startup_trials=settings.n_startup_trials,
        n_warmup_steps=settings.n_warmup_steps,
        interval_steps=settings.interval_steps,
    )


def _percentile(settings: PercentileSettings, _max_epochs: int) -> BasePruner:
    return PercentilePruner(
        settings.percentile,
        n_startup_trials=settings.n_startup_trials,
        n_warmup_steps=settings.n_warmup_steps,
        interval_steps=settings.interval_steps,
    )


def _successive_halving(settings: SuccessiveHalvingSettings, _max_epochs: int) -> BasePruner:
    return SuccessiveHalvingPruner(
        min_resource=settings.min_resource,
        reduction_factor=settings.reduction_factor,
        min_early_stopping_rate=settings.min_early_stopping_rate,
    )


def _hyperband(settings: HyperbandSettings, max_epochs: int) -> BasePruner:
    # Optuna would otherwise guess the longest trial from those that have ended, and the brackets with it.
    return HyperbandPruner(
        min_resource=settings.min_resource,
        max_resource=settings.max_resource or max_epochs,
        reduction_factor=settings.reduction_factor,
    )


def _asha(settings: AshaSettings, _max_epochs: int) -> BasePruner:
    return AshaPruner(min_epochs=settings.min_epochs, eta=settings.eta)


PRUNERS: dict[str, Callable[[Any, int], BasePruner]] = {
    "none": _none,
    "median": _median,
    "percentile": _percentile,
    "successive_halving": _successive_halving,
    "hyperband": _hyperband,
    "asha": _asha,
    "asha_promotion": _none,  # whoever runs trials pauses them: `build_promotion`
}
"""Name in the file → builder from its settings and the most epochs that a trial can have."""


def build_pruner(settings: PrunerSettings, max_epochs: int) -> BasePruner:
    """The pruner that an experiment's `pruner` section asks for."""
    return PRUNERS[settings.name](settings, max_epochs)


def _pool_none(_settings: PrunerSettings, _max_epochs: int, _study_name: str, _maximize: bool) -> PoolPruner:
    return NeverStop()


def _pool_median(settings: MedianSettings, _max_epochs: int, _study_name: str, maximize: bool) -> PoolPruner:
    return Percentile(
        50.0, settings.n_startup_trials, settings.n_warmup_steps, settings.interval_steps, maximize
    )


def _pool_percentile(
    settings: PercentileSettings, _max_epochs: int, _study_name: str, maximize: bool
) -> PoolPruner:
    return Percentile(
        settings.percentile,
        settings.n_startup_trials,
        settings.n_warmup_steps,
        settings.interval_steps,
        maximize,
    )


def _pool_successive_halving(
    settings: SuccessiveHalvingSettings, _max_epochs: int, _study_name: str, maximize: bool
) -> PoolPruner:
    return SuccessiveHalving(
        settings.min_resource, settings.reduction_factor, settings.min_early_stopping_rate, maximize
    )


def _pool_hyperband(
    settings: HyperbandSettings, max_epochs: int, study_name: str, maximize: bool
) -> PoolPruner:
    return Hyperband(
        study_name,
        settings.min_resource,
        settings.max_resource or max_epochs,
        settings.reduction_factor,
        maximize,
    )


def _pool_asha(settings: AshaSettings, _max_epochs: int, _study_name: str, maximize: bool) -> PoolPruner:
    return Asha(settings.min_epochs, settings.eta, maximize)


POOL_PRUNERS: dict[str, Callable[[Any, int, str, bool], PoolPruner]] = {
    "none": _pool_none,
    "median": _pool_median,
    "percentile": _pool_percentile,
    "successive_halving": _pool_successive_halving,
    "hyperband": _pool_hyperband,
    "asha": _pool_asha,
    "asha_promotion": _pool_none,
}
"""Name in the file → builder of the rule for a whole pool: settings, most epochs, study, more is better."""


def build_pool_pruner(
    settings: PrunerSettings, max_epochs: int, study_name: str, direction: Direction
) -> PoolPruner:
    """The rule that an experiment's `pruner` section asks for, judging a whole pool of one study at once.

    Says what the pruner of `build_pruner` would say, asked for one trial after the other.
    """
    return POOL_PRUNERS[settings.name](settings, max_epochs, study_name, direction == "maximize")


def build_promotion(settings: PrunerSettings, max_epochs: int, direction: Direction) -> AshaPromotion | None:
    """The rule by which an experiment's trials pause and go on; None where they don't pause."""
    if not isinstance(settings, AshaPromotionSettings):
        return None
    return AshaPromotion(settings.min_epochs, settings.eta, max_epochs, direction == "maximize")
