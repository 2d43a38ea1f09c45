"""Everything that is learned of the space, worked out once, and its tables T8 and T9."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.compare import cells
from search.compare.base import Comparison
from search.compare.learned.arm import Arm, random_arm
from search.compare.learned.dependence import Dependence, dependence_on
from search.compare.learned.effects import LEAST, Effect, TunedBest, effect_of
from search.compare.learned.importance import TREES, Importances, importances
from search.compare.statistics.base import Interval
from search.compare.tables import Cell, Column, Table
from search.formats import format_count, format_spread

NO_ARM = (
    "There is no random search with values in this experiment, and the trials of other methods say where "
    "those went, not how the space is."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What random search's trials say of the space."""

    arm: Arm | None
    importances: Importances | str
    """Or why there are none."""
    dependences: tuple[Dependence, ...]
    """One per dimension, in the order of the space."""
    effects: tuple[Effect, ...]
    """One per categorical dimension, in the order of the space."""


def learn(comparison: Comparison) -> Learned:
    """Importances, dependences and effects; empty without a random arm."""
    arm = random_arm(comparison)
    if arm is None:
        return Learned(arm=None, importances=NO_ARM, dependences=(), effects=())
    space = comparison.spec.get("space")
    declared = [str(name) for name in space] if isinstance(space, Mapping) else []
    found = importances(arm, declared)
    return Learned(
        arm=arm,
        importances=found if isinstance(found, Importances) else f"No importances: {found}.",
        dependences=tuple(dependence_on(arm, axis) for axis in arm.axes),
        effects=tuple(effect_of(arm, axis) for axis in arm.axes if axis.categorical),
    )


def source(arm: Arm) -> str:
    """Which trials were used, in words, for captions."""
    replicates = len(arm.replicates)
    text = f"{format_count(arm.n)} trial{'' if arm.n == 1 else 's'} of random search in {replicates} "
    text += "replicate" if replicates == 1 else "replicates"
    if arm.pruned:
        text += f", {format_count(arm.pruned)} of them pruned, with their last report"
    return text


def learned_tables(learned: Learned) -> tuple[Table, ...]:
    """T8 and T9, as far as there is anything to tell."""
    tables = []
    if isinstance(learned.importances, Importances) and learned.arm is not None:
        tables.append(_importance_table(learned.importances, learned.arm))
    told = [effect for effect in learned.effects if effect.best is not None]
    if told and learned.arm is not None:
        tables.append(_levels_table(told, learned.arm))
    return tuple(tables)


def importance_caption(found: Importances, arm: Arm) -> str:
    """How importances were made, with n."""
    over = f"mean ± standard deviation over {found.replicates} replicates"
    if found.pooled:
        over = f"{found.replicates} replicates put together, for each has too few trials, so without a spread"
    elif found.replicates == 1:
        over = "one replicate, so without a spread"
    text = (
        f"From {source(arm)}; {over}. PED-ANOVA: what decides whether a trial is among the best "
        f"{100 * found.quantile:.3g} %, shares that add up to 1. fANOVA: what moves the value over the whole "
        f"space, the share of variance that a dimension explains by itself; {_forests(found)}."
    )
    if found.subsampled:
        text += " Large replicates were subsampled with a fixed seed."
    if found.constant:
        text += f" Constant in all trials, so without importance: {', '.join(found.constant)}."
    return text


def _forests(found: Importances) -> str:
    trees = f"forests of {TREES} trees"
    if len(found.forests) == 1:
        return f"{trees} on {found.forests[0]} trials, so without a spread"
    return (
        f"{trees}, mean ± standard deviation over {len(found.forests)} samples of {found.forests[-1]} trials"
    )


def _importance_table(found: Importances, arm: Arm) -> Table:
    rows = tuple(
        (
            Cell(one.axis.name, one.axis.name),
            Cell(one.ped_mean, f"{one.ped_mean:.2f}"),
            Cell(one.ped_sd, format_spread(one.ped_sd)),
            cells.EMPTY if one.fanova_mean is None else Cell(one.fanova_mean, f"{one.fanova_mean:.2f}"),
            Cell(one.fanova_sd, format_spread(one.fanova_sd)),
            Cell(
                one.trials,
                format_count(one.trials) + (" (conditional)" if one.axis.conditional else ""),
                (("conditional", one.axis.conditional),),
            ),
        )
        for one in found.found
    )
    return Table(
        key="importances",
        title="Importance of each dimension",
        caption=importance_caption(found, arm),
        columns=(
            Column("dimension", "dimension"),
            Column("ped_anova", "PED-ANOVA", "right"),
            Column("ped_anova_sd", "sd", "right"),
            Column("fanova", "fANOVA", "right"),
            Column("fanova_sd", "sd", "right"),
            Column("trials", "trials that have it", "right"),
        ),
        rows=rows,
        exploratory=True,
    )


def _levels_table(effects: list[Effect], arm: Arm) -> Table:
    rows = tuple(
        (
            Cell(effect.axes[0].name, effect.axes[0].name),
            Cell(level.parts[0], level.parts[0]),
            Cell(level.trials, format_count(level.trials)),
            Cell(effect.n, format_count(effect.n)),
            _best_cell(level.best),
            _behind_cell(level),
        )
        for effect in effects
        for level in sorted(effect.levels, key=lambda level: _order(level, arm.direction == "maximize"))
    )
    return Table(
        key="levels",
        title="Best level of each choice",
        caption=(
            f"From {source(arm)}. Tuned best: what the best of n random trials with that level is worth, "
            "whatever else they had; n is the same for all levels of a dimension. Differences from the best "
            f"level are of tuned bests, with 95 % intervals over replicates. A level with fewer than {LEAST} "
            "trials isn't judged."
        ),
        columns=(
            Column("dimension", "dimension"),
            Column("level", "level"),
            Column("trials", "trials", "right"),
            Column("n", "n", "right"),
            Column("tuned_best", "tuned best (interval)", "right"),
            Column("behind", "behind the best level", "right"),
        ),
        rows=rows,
        exploratory=True,
    )


def _order(level: TunedBest, larger: bool) -> float:
    if level.best is None:
        return float("inf")
    return -level.best.estimate if larger else level.best.estimate


def _best_cell(found: Interval | None) -> Cell:
    return Cell(None, "too few trials") if found is None else cells.with_interval(found)


def _behind_cell(level: TunedBest) -> Cell:
    if level.best is None:
        return cells.EMPTY
    if level.behind is None:
        return Cell(0.0, "best")
    apart = level.behind.low is None or level.behind.low > 0
    cell = cells.with_interval(level.behind, digits=2)
    return cell if apart else Cell(cell.value, f"{cell.text}, not told apart", cell.parts)
