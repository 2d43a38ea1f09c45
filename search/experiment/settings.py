"""Settings of search methods and pruners as the experiment file spells them, every default explicit.

The defaults are written here, not left to Optuna, so that a report can print what was used and a
new Optuna release can't change an experiment quietly. Adding a method or a pruner is a class here
with one line in `METHODS` or `PRUNER_SETTINGS`, and a builder in `samplers` or `pruners`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 1_000_000
"""Upper bound of every count in the file: far above any use, far below what would hurt."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Settings(BaseModel):
    """Base of everything read from the experiment file: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class MethodSettings(Settings):
    """What every method has: how many trials of one study may run at once."""

    adaptive: ClassVar[bool] = False
    """Whether the next trial depends on the results of earlier ones."""

    in_flight: Count | None = None
    """Most trials of one study that run at once; null: no limit. Adaptive methods lose with many."""


class GridSettings(MethodSettings):
    """Combinations of points, each once: those that `space` names, and levels made where it names none."""

    order: Literal["shuffled", "nested"] = "shuffled"
    """`shuffled`: another order in each replicate, so that curves don't show the loops of `nested`."""
    levels: Literal["offset", "centred", "ends", "given"] = "offset"
    """Where levels sit that are made: `offset`, in equal cells with one random offset per replicate and
    dimension; `centred`, in their middles; `ends`, from end to end; `given`: none is made, every range
    names its own."""


class RandomSettings(MethodSettings):
    """Independent draws from the whole space."""


class QmcSettings(MethodSettings):
    """Quasi-random points: they cover the space more evenly than independent draws."""

    type: Literal["sobol", "halton"] = "sobol"
    """Which low-discrepancy sequence."""
    scramble: bool = True
    """Shift the sequence at random in each replicate; without it all replicates are the same."""


class TpeSettings(MethodSettings):
    """Tree-structured Parzen estimator: Bayesian search by densities of good and other trials."""

    adaptive: ClassVar[bool] = True

    in_flight: Count | None = 1
    """Most trials of one study that run at once; null: no limit. Adaptive methods lose with many."""
    n_startup_trials: CountOrZero = 10
    """Random trials before the first modelled one."""
    n_ei_candidates: Count = 24
    """Candidates drawn from the good density, of which the best is tried."""
    multivariate: bool = True
    """Model the dimensions jointly instead of one by one."""
    group: bool = False
    """Model conditional dimensions jointly with the trials that have them; needs `multivariate`."""
    constant_liar: bool = True
    """Count running trials as poor ones, so that parallel trials spread out."""


class GpSettings(MethodSettings):
    """Gaussian process: Bayesian search by a smooth model of the complete trials; pruned ones it ignores."""

    adaptive: ClassVar[bool] = True

    in_flight: Count | None = 1
    """Most trials of one study that run at once; null: no limit. Adaptive methods lose with many."""
    n_startup_trials: CountOrZero = 10
    """Random trials before the first modelled one."""
    deterministic_objective: bool = False
    """Whether equal configs give equal values; false lets the model see noise."""
    model_trials: Count = 200
    """Complete trials from which on TPE takes over: a fit of the process costs their cube."""


METHODS: dict[str, type[MethodSettings]] = {
    "grid": GridSettings,
    "random": RandomSettings,
    "qmc": QmcSettings,
    "tpe": TpeSettings,
    "gp": GpSettings,
}
"""Name in the file → its settings."""

REFUSED_METHODS = {
    "cmaes": (
        "CMA-ES is left out: Optuna's sampler unpickles strings from the database, so whoever may "
        "write to the database could run code on the workers"
    ),
}
"""Names that people look for, and why they are not here."""


class PrunerSettings(Settings):
    """Base of the pruners' settings; `name` says which one."""

    stops: ClassVar[bool] = True
    """Whether the report of an epoch may end a trial before its time."""

    name: str
    """Which pruner."""


class NoPruner(PrunerSettings):
    """Every trial trains to its end."""

    stops: ClassVar[bool] = False

    name: Literal["none"] = "none"


class MedianSettings(PrunerSettings):
    """Stop a trial whose best value so far is worse than the median of the others at the same epoch."""

    name: Literal["median"] = "median"
    n_startup_trials: CountOrZero = 5
    """Trials of the study that must have ended before any is pruned."""
    n_warmup_steps: CountOrZero = 0
    """Epochs that every trial trains before it may be pruned."""
    interval_steps: Count = 1
    """Epochs between two decisions."""


class PercentileSettings(PrunerSettings):
    """As `median`, with another share of trials kept."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0
    """Keep trials that are among the best so many per cent."""
    n_startup_trials: CountOrZero = 5
    """Trials of the study that must have ended before any is pruned."""
    n_warmup_steps: CountOrZero = 0
    """Epochs that every trial trains before it may be pruned."""
    interval_steps: Count = 1
    """Epochs between two decisions."""


class SuccessiveHalvingSettings(PrunerSettings):
    """Optuna's asynchronous successive halving."""

    name: Literal["successive_halving"] = "successive_halving"
    min_resource: Count = 1
    """Epochs at the first rung."""
    reduction_factor: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3
    """One in so many trials goes on to the next rung, which has so many times the epochs."""
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=16)] = 0
    """Rungs to leave out at the start."""


class HyperbandSettings(PrunerSettings):
    """Optuna's Hyperband: several successive halvings with different first rungs."""

    name: Literal["hyperband"] = "hyperband"
    min_resource: Count = 1
    """Epochs at the first rung of the most eager bracket."""
    max_resource: Count | None = None
    """Epochs of a full trial; null: the most that `epochs` can be."""
    reduction_factor: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3
    """One in so many trials goes on to the next rung, which has so many times the epochs."""


class AshaSettings(PrunerSettings):
    """Our own successive halving: a verdict does not depend on the order within a rung."""

    name: Literal["asha"] = "asha"
    min_epochs: Count = 1
    """Epochs at the first rung."""
    eta: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3
    """One in so many trials goes on to the next rung, which has so many times the epochs."""


class AshaPromotionSettings(PrunerSettings):
    """Asynchronous successive halving as published: trials rest at rungs, and the best of each go on."""

    stops: ClassVar[bool] = False

    name: Literal["asha_promotion"] = "asha_promotion"
    min_epochs: Count = 1
    """Epochs at the first rung."""
    eta: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 3
    """One in so many trials goes on to the next rung, which has so many times the epochs."""


PRUNER_SETTINGS: dict[str, type[PrunerSettings]] = {
    "none": NoPruner,
    "median": MedianSettings,
    "percentile": PercentileSettings,
    "successive_halving": SuccessiveHalvingSettings,
    "hyperband": HyperbandSettings,
    "asha": AshaSettings,
    "asha_promotion": AshaPromotionSettings,
}
"""Name in the file → its settings."""


class RetrainSettings(Settings):
    """How winners are trained again: the best of many noisy values is better by luck as well."""

    seeds: Annotated[int, Field(ge=0, le=1000)] = 10
    """Fresh seeds with which each study's incumbent is trained and scored on the sealed test set; 0: none."""
    at_least: Annotated[int, Field(ge=1, le=1000)] = 5
    """Winners count with the seeds that finished if there are so many (or all): a retraining may fail."""


Pair = Annotated[tuple[str, str], Field(strict=False)]
"""Two methods. Lax, because a list is what a file and a database have for it."""


class ComparisonSettings(Settings):
    """What is claimed, declared before the run; everything else in a report is exploratory."""

    axis: Literal["trials", "epochs", "seconds"] = "epochs"
    """What budgets are compared on first: trials, epochs, or device and sampler seconds."""
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=64, strict=False)] | None = None
    """Pairs of methods that are tested, each written [better?, than]; null: all pairs."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over all tested pairs together, of claiming a difference where there is none."""
    smallest_difference: Annotated[float, Field(gt=0, lt=1e6)] = 0.005
    """The smallest difference that matters, in the metric's unit: 0.005 is half a point of accuracy."""
    meaningful: Annotated[float, Field(gt=0.5, lt=1)] = 0.75
    """P(A better than B) that a meaningful difference can exceed (Bouthillier et al. 2021)."""
    power: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Chance of finding a true difference, for what `plan` says can be found."""
    retrain: RetrainSettings = RetrainSettings()
    """How winners are trained again."""
