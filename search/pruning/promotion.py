"""Asynchronous successive halving as published: trials pause at rungs, and the best are promoted.

The rule that stops trials (`search.pruning.stopping.Asha`) never lets one go on later. Here a trial rests at
its rung until it is among the best there, which may be long after it came: so no trial is lost by
coming early, and none goes on by it. Only the decision; pausing and resuming is for others.

Li et al., "A system for massively parallel hyperparameter tuning" (MLSys 2020), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from search.pruning.rungs import RungTable
from search.pruning.stopping import Places, last_of_best, rungs_passed


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial that goes on."""

    number: int
    until: int
    """The epoch at which it pauses next, or ends."""


@dataclass(frozen=True, slots=True)
class AshaPromotion:
    """Which trial gets the next free slot. Holds no state."""

    min_epochs: int
    eta: int
    max_epochs: int
    maximize: bool

    def first_pause(self) -> int:
        """The epoch at which a new trial pauses, or ends."""
        return min(self.min_epochs, self.max_epochs)

    def next(self, table: RungTable, paused: Collection[int]) -> Promotion | None:
        """The trial to promote, or None: start a new one.

        `paused` are the numbers of the trials that rest at the rung of their last report. Looks
        from the highest rung down for a trial among the best ``1/eta`` of all that ever reached
        the rung, promoted ones among them, that still rests there; of several the best goes on.
        """
        ranking = Places(self.min_epochs, self.eta, self.maximize)
        ended = ranking.ended(table)
        last = {number: max(table.open[number].intermediate_values, default=0) for number in paused}
        for rung in reversed(rungs_passed(self.max_epochs - 1, self.min_epochs, self.eta)):
            places = ranking.under_way(table, rung)
            count = (len(ended[rung]) + len(places)) // self.eta
            resting = [places[number] for number in paused if last[number] == rung]
            if count and resting:
                best = min(resting)
                if best <= last_of_best(ended[rung], sorted(places.values()), count):
                    return Promotion(int(best[1]), min(rung * self.eta, self.max_epochs))
        return None
