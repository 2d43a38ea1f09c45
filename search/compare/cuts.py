"""Values at shares of one budget that all studies have spent (T5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.compare.budgets import Anytime, Axis
from search.compare.statistics.anytime import cuts

FRACTIONS = (0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartiles:
    """Values over replicates by their middle half."""

    n: int
    median: float
    low_quartile: float
    high_quartile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCut:
    """One method after one share of the budget."""

    method: str
    fraction: float
    position: float
    """The budget spent, in the axis's unit."""
    values: Quartiles | None
    """Best validation values so far over replicates; None if no replicate has one by then."""
    missing: tuple[int, ...]
    """Counted replicates without a trained trial by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCuts:
    """All methods at all shares of one axis's common budget; no cut if nothing has been spent."""

    axis: Axis
    budget: float | None
    cuts: tuple[MethodCut, ...]
    """By share, then by method."""


def budget_cuts(anytime: Anytime, replicates: tuple[int, ...]) -> BudgetCuts:
    """The cuts of one axis."""
    if anytime.budget is None:
        return BudgetCuts(axis=anytime.axis, budget=None, cuts=())
    found = {
        entry.method: cuts({r: entry.curves.get(r) for r in replicates}, anytime.budget, FRACTIONS)
        for entry in anytime.methods
    }
    return BudgetCuts(
        axis=anytime.axis,
        budget=anytime.budget,
        cuts=tuple(
            MethodCut(
                method=method,
                fraction=fraction,
                position=of_method[place].position,
                values=_quartiles(list(of_method[place].values.values())),
                missing=of_method[place].missing,
            )
            for place, fraction in enumerate(FRACTIONS)
            for method, of_method in found.items()
        ),
    )


def _quartiles(values: list[float]) -> Quartiles | None:
    if not values:
        return None
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Quartiles(n=len(values), median=median, low_quartile=low, high_quartile=high)
