"""How soon the methods are as good as random search was in the end (T6, F5).

The target is the median over replicates of random search's best validation value at the common
budget of the primary axis. Studies that never reach it are censored where the common budget ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.compare.base import Direction
from search.compare.budgets import Anytime, AnytimeMethod, Axis
from search.compare.statistics.anytime import align
from search.compare.statistics.base import Interval
from search.compare.statistics.targets import (
    SpeedUp,
    Survival,
    TargetTimes,
    default_target,
    expected_running_time,
    kaplan_meier,
    speed_up_over_random,
    success_rate,
    time_to_target,
)

RANDOM = "random"
"""The method that sets the target, and against which speed is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEfficiency:
    """One method's way to the target on one axis."""

    method: str
    times: TargetTimes
    """Per counted replicate, in the axis's unit."""
    success: Interval
    """Share of replicates that reached the target."""
    expected_running_time: float | None
    """Budget spent per success; None if no replicate reached the target."""
    survival: Survival
    """Kaplan and Meier's estimate, with the median time; the median is None if fewer than half did."""
    speed_up: SpeedUp | None
    """Random search's budget for the same median, over the method's, at the final median of whichever of the
    two ended lower; None for random itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisEfficiency:
    """All methods on one axis."""

    axis: Axis
    budget: float
    """Where times are censored."""
    methods: tuple[MethodEfficiency, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Times to the target; without a target no axis, and `text` says why."""

    target: float | None
    text: str
    axes: tuple[AxisEfficiency, ...]


def efficiency(
    anytime: Sequence[Anytime],
    replicates: tuple[int, ...],
    random_values: Mapping[int, float],
    direction: Direction,
    *,
    resamples: int,
) -> Efficiency:
    """Times to the target on every axis; `random_values` are random search's at the common budget."""
    if not random_values:
        return Efficiency(
            target=None,
            text="Without a value of random search there is no target, and no speed to tell.",
            axes=(),
        )
    target = default_target(list(random_values.values()))
    return Efficiency(
        target=target,
        text=(
            "The target is the median over replicates of random search's best value at the common budget. It "
            "was not declared before the run."
        ),
        axes=tuple(
            AxisEfficiency(
                axis=entry.axis,
                budget=entry.budget,
                methods=tuple(
                    MethodEfficiency(
                        method=method.method,
                        times=(
                            times := time_to_target(
                                [method.curves.get(r) for r in replicates], target, entry.budget, direction
                            )
                        ),
                        success=success_rate(times),
                        expected_running_time=expected_running_time(times),
                        survival=kaplan_meier(times),
                        speed_up=_speed_up(method, entry, entry.budget, direction, resamples),
                    )
                    for method in entry.methods
                    if method.curves
                ),
            )
            for entry in anytime
            if entry.budget is not None
        ),
    )


def _speed_up(
    method: AnytimeMethod, entry: Anytime, budget: float, direction: Direction, resamples: int
) -> SpeedUp | None:
    """Against random search in the replicates that both have; None for random, or where curves never meet."""
    random = next((other for other in entry.methods if other.method == RANDOM), None)
    if random is None or method.method == RANDOM:
        return None
    finals = {r: value for r, curve in method.curves.items() if (value := curve.at(budget)) is not None}
    both = sorted(finals.keys() & random.curves.keys())
    traces = align([random.curves[r] for r in both]) if both else None
    if traces is None:
        return None
    return speed_up_over_random(
        [finals[r] for r in both],
        traces,
        budget,
        direction,
        paired=True,
        method=align([method.curves[r].until(budget) for r in both]),
        resamples=resamples,
    )
