"""What one choice is worth when everything else is tuned: best of n random trials, per level.

The mean over all trials of a level says how it does with values that nobody would keep (Choi et
al. 2019: rankings follow from the tuning). So levels are compared by their *tuned best*: the
expected best of n random trials that have the level,

    E_n = Σ_i y_(i) · (F_iⁿ − F_{i−1}ⁿ)        (Dodge et al. 2019)

with y_(i) the level's values from the worst and F their distribution, the replicates' trials put
together. n is the same for all levels, however many trials each has, since a best grows with the
number of trials. Intervals resample replicates whole; differences use the same draws for both levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.compare.learned.arm import Arm, interval, resampled_weights
from search.compare.space import SpaceAxis
from search.compare.statistics.base import FloatArray, Interval, number

LEAST = 8
"""Levels with fewer trials are named and left out: their best says how few they are."""
SPARE = 4
"""n is at most a level's trials over this: nearer to all of them the best is that of one lucky trial."""
_CHUNK = 2_000_000
"""Numbers held at a time while replicates are resampled."""
MOST = 50
"""The largest n: beyond it every level is at its ceiling."""


@dataclass(frozen=True, slots=True)
class TunedBest:
    """One level, or one cell of two dimensions."""

    parts: tuple[str, ...]
    """The level's name, or both."""
    trials: int
    best: Interval | None
    """The expected best of n trials, in the metric's own unit; None with too few trials."""
    behind: Interval | None
    """How far behind the best level, 0 or more; None for the best level itself and for too few trials."""
    at: tuple[float | str | None, ...]
    """Where the level's single best trial lies on the other dimension asked for, if one was."""


@dataclass(frozen=True, slots=True)
class Effect:
    """The levels of one categorical dimension, or the cells of two, side by side."""

    axes: tuple[SpaceAxis, ...]
    n: int
    """The number of trials of which the best is expected."""
    levels: tuple[TunedBest, ...]

    @property
    def best(self) -> TunedBest | None:
        """The level with the best tuned value; None if every level had too few trials."""
        known = [level for level in self.levels if level.best is not None]
        return next((level for level in known if level.behind is None), None)


def effect_of(arm: Arm, *axes: SpaceAxis, beside: SpaceAxis | None = None) -> Effect:
    """Tuned bests of every level of one axis, or of every cell of two."""
    columns = [arm.parts(axis) for axis in axes]
    cells = [(k,) for k in range(len(axes[0].parts))]
    if len(axes) == 2:
        cells = [(i, k) for i in range(len(axes[0].parts)) for k in range(len(axes[1].parts))]  # type: ignore[misc]  # pairs here, singles above
    members = [
        np.flatnonzero(np.all([column == k for column, k in zip(columns, cell, strict=True)], axis=0))
        for cell in cells
    ]
    enough = [member.size for member in members if member.size >= LEAST]
    n = max(1, min(MOST, min(enough, default=SPARE) // SPARE))
    weights = resampled_weights(arm)
    point = {k: _tuned(arm, m, n, np.ones((1, len(arm.replicates)))) for k, m in _kept(members)}
    drawn = {k: _tuned(arm, m, n, weights) for k, m in _kept(members)}
    top = max(point, key=lambda k: point[k][0], default=None)
    levels = []
    for k, member in enumerate(members):
        names = tuple(axis.parts[part] for axis, part in zip(axes, cells[k], strict=True))
        best = behind = None
        if k in point:
            best = _signed(arm, point[k], drawn[k])
            if top is not None and k != top:
                behind = interval(
                    number(point[top][0] - point[k][0]), drawn[top] - drawn[k], len(arm.replicates)
                )
        levels.append(TunedBest(names, int(member.size), best, behind, (_place(arm, member, beside),)))
    return Effect(tuple(axes), n, tuple(levels))


def _kept(members: Sequence[NDArray[np.intp]]) -> list[tuple[int, NDArray[np.intp]]]:
    return [(k, member) for k, member in enumerate(members) if member.size >= LEAST]


def _tuned(arm: Arm, member: NDArray[np.intp], n: int, weights_BR: FloatArray) -> FloatArray:
    """E_n of the members' gains under each row of replicate weights; NaN where none was drawn."""
    order = member[np.argsort(arm.gain[member], kind="stable")]
    gains, replicates = arm.gain[order], arm.replicate[order]
    rows = max(1, _CHUNK // order.size)
    best = np.empty(len(weights_BR))
    for first in range(0, len(weights_BR), rows):
        shares = np.cumsum(weights_BR[first : first + rows, replicates], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            powers = (shares / shares[:, -1:]) ** n
        best[first : first + rows] = np.diff(powers, axis=1, prepend=0.0) @ gains
    return best


def _signed(arm: Arm, point: FloatArray, drawn: FloatArray) -> Interval:
    """In the metric's own unit again."""
    sign = 1.0 if arm.direction == "maximize" else -1.0
    return interval(sign * number(point[0]), sign * drawn, len(arm.replicates))


def _place(arm: Arm, member: NDArray[np.intp], beside: SpaceAxis | None) -> float | str | None:
    if beside is None or member.size == 0:
        return None
    best = arm.trials[int(member[np.argmax(arm.gain[member])])]
    value = best.params.get(beside.name)
    return value if isinstance(value, int | float | str) else None
