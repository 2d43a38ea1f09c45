"""What methods, grids, epochs, pruner and comparison must agree on."""

from __future__ import annotations

from search.experiment.dimensions import Choices, Dimension, Finding
from search.experiment.draft import Draft, written
from search.experiment.problems import nearest, shown
from search.experiment.settings import (
    AshaPromotionSettings,
    AshaSettings,
    GridSettings,
    HyperbandSettings,
    MedianSettings,
    NoPruner,
    PercentileSettings,
    PrunerSettings,
    SuccessiveHalvingSettings,
    TpeSettings,
)
from search.experiment.space import MAX_COUNTED, SearchSpace
from search.sampling.grid import least_size

FEW = 5
"""A grid is proposed all values of a dimension that has no more than these."""


def method_findings(draft: Draft) -> list[Finding]:
    """Settings of TPE that need each other, and ranges for which the grid was given no points."""
    found: list[Finding] = []
    tpe = draft.methods.get("tpe")
    if isinstance(tpe, TpeSettings) and tpe.group and not tpe.multivariate:
        found.append((("methods", "tpe", "group"), "needs `multivariate: true`", "set both or neither"))
    grid = draft.methods.get("grid")
    if isinstance(grid, GridSettings) and grid.levels == "given":
        for name, dimension in draft.space.items():
            if not dimension.points() and not dimension.findings():
                message = "grid levels are `given`, but this range gives none"
                remedy = f"add `grid: {_example_points(dimension)}`, or let `levels` be `offset`"
                found.append((("space", name), message, remedy))
    return found


def _example_points(dimension: Dimension) -> str:
    """All values if they are few, else three at the middles of equal cells, on the dimension's own scale."""
    if isinstance(dimension, Choices):
        return "[…]"
    low, high = float(dimension.low), float(dimension.high)
    step = dimension.step or (1 if dimension.integer and not dimension.log else None)
    cells = (1 / 6, 3 / 6, 5 / 6)
    if step is not None:
        last = round((high - low) / step)
        indices = range(last + 1) if last < FEW else [int(last * cell + 0.5) for cell in cells]
        points = [low + index * step for index in indices]
    elif dimension.log:
        points = [low * (high / low) ** cell for cell in cells]
    else:
        points = [low + (high - low) * cell for cell in cells]
    texts = [str(round(point)) if dimension.integer else f"{point:.3g}" for point in points]
    return f"[{', '.join(dict.fromkeys(texts))}]"


def grid_size_findings(draft: Draft) -> list[Finding]:
    """A grid of more points than the budget has trials would never be finished."""
    grid = draft.methods.get("grid")
    if not isinstance(grid, GridSettings) or draft.budget is None:
        return []
    size = least_size(SearchSpace(draft.space), grid)
    trials = draft.budget.trials
    if size <= trials:
        return []
    exact = size <= MAX_COUNTED
    remedy = f"fewer points, or `budget: {{trials: {size}}}`" if exact else "fewer points"
    count = f"{size:,}" if exact else f"more than {MAX_COUNTED:,}"
    return [
        (("budget", "trials"), f"the grid has {count} points, but the budget is {trials:,} trials", remedy)
    ]


def epoch_findings(draft: Draft) -> list[Finding]:
    """A budget of epochs that is too small for one trial, and pruners that would decide too late to prune."""
    given = written(draft, "epochs")
    if "epochs" in draft.broken or any(type(value) is not int or value < 1 for _, value in given):
        return []  # said already
    most = draft.most_epochs
    found: list[Finding] = []
    if draft.budget is not None and draft.budget.epochs is not None and draft.budget.epochs < most:
        message = f"{draft.budget.epochs} epochs are fewer than the {most} of one trial"
        found.append((("budget", "epochs"), message, "a larger budget, or fewer epochs per trial"))
    return found + _pruner_findings(draft.pruner, most)


def _pruner_findings(pruner: PrunerSettings | None, most: int) -> list[Finding]:
    """A pruner whose first decision comes at a trial's last epoch or later prunes nothing."""
    if pruner is None or isinstance(pruner, NoPruner):
        return []
    key, first = "name", 1
    if isinstance(pruner, MedianSettings | PercentileSettings):
        key, first = "n_warmup_steps", pruner.n_warmup_steps + 1
    elif isinstance(pruner, SuccessiveHalvingSettings):
        # Bounded: the exponent is at most 16, but Python's integers would follow any product.
        key = "min_resource"
        first = pruner.min_resource * pruner.reduction_factor**pruner.min_early_stopping_rate
    elif isinstance(pruner, HyperbandSettings):
        key, first = "min_resource", pruner.min_resource
        if pruner.max_resource is not None and pruner.max_resource > most:
            message = f"{pruner.max_resource} epochs are more than the {most} of a trial"
            return [(("pruner", "max_resource"), message, f"at most {most}, or leave it out")]
    elif isinstance(pruner, AshaSettings | AshaPromotionSettings):
        key, first = "min_epochs", pruner.min_epochs
    if first < most:
        return []
    message = (
        f"the first decision is after epoch {shown(first)}, but a trial has {most}: nothing would be pruned"
    )
    return [(("pruner", key), message, "decide earlier, train longer, or `pruner: none`")]


def comparison_findings(draft: Draft) -> list[Finding]:
    """Pairs that name no methods, or the same ones; a smallest difference that no two values can have."""
    comparison = draft.comparison
    if comparison is None:
        return []
    found: list[Finding] = []
    seen: dict[frozenset[str], int] = {}
    for index, pair in enumerate(comparison.pairs or ()):
        place = ("comparison", "pairs", index)
        unknown = [position for position, name in enumerate(pair) if name not in draft.method_names]
        for at in unknown:
            message = f"there is no {shown(pair[at])} in `methods`"
            found.append(((*place, at), message, nearest(pair[at], draft.method_names)))
        both = frozenset(pair)
        if len(both) == 1:
            found.append((place, f"{shown(pair[0])} is compared with itself", "name two methods"))
        elif both in seen:
            found.append((place, f"is pair {seen[both] + 1} again", "list each pair once"))
        seen.setdefault(both, index)
    return found + _difference_findings(draft, comparison.smallest_difference)


def _difference_findings(draft: Draft, difference: float) -> list[Finding]:
    width = metric_width(draft.metric) if draft.metric is not None and not draft.is_function else None
    if width is None or difference < width:
        return []
    message = f"no two values of {draft.metric} differ by {difference:g}: it spans {width:g}"
    remedy = "in the metric's own unit: 0.005 is half a point of accuracy"
    return [(("comparison", "smallest_difference"), message, remedy)]


def metric_width(name: str) -> float | None:
    """How far apart the best and the worst value of a metric of `METRICS` are; None: there is no such one."""
    from objectives.metrics import METRICS

    metric = METRICS.get(name)
    return None if metric is None else abs(metric.best - metric.worst)
