"""Asynchronous successive halving as published: trials pause at rungs, and the best are promoted.

The rule that stops trials (`search.pruning.stopping.Asha`) never lets one go on later. Here a trial rests at
its rung until it is among the best there, which may be long after it came: so no trial is lost by
coming early, and none goes on by it. Only the decision; `search.trials.pausing` says which trials rest.

Li et al., "A system for massively parallel hyperparameter tuning" (MLSys 2020), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from search.pruning.rungs import RungTable
from search.pruning.stopping import Place, Places, last_of_best, rungs_passed


@dataclass(frozen=True, slots=True)
class Promotion:
    """A paused trial that goes on."""

    number: int
    rung: int
    """The epoch at which it rests."""
    until: int
    """The epoch at which it pauses next, or ends."""


@dataclass(frozen=True, slots=True)
class AshaPromotion:
    """Which trial gets the next free slot. Holds no state."""

    min_epochs: int
    eta: int
    max_epochs: int
    maximize: bool

    def pause_after(self, epoch: int) -> int:
        """The epoch at which a trial that has trained so many pauses next, or ends; 0: a new one."""
        rung = self.min_epochs
        while rung <= epoch:
            rung *= self.eta
        return min(rung, self.max_epochs)

    def rests_at(self, epoch: int) -> bool:
        """Whether a trial pauses after that epoch, unless it ends there."""
        return epoch in self._rungs()

    def promotions(self, table: RungTable, paused: Collection[int]) -> list[Promotion]:
        """The trials to promote, in the order in which they are; empty: start a new one.

        `paused` are the numbers of the trials that rest at the rung of their last report. Looks
        from the highest rung down for trials among the best ``1/eta`` of all that ever reached
        the rung, promoted ones among them, that still rest there; the best goes on first.
        """
        ranking = Places(self.min_epochs, self.eta, self.maximize)
        ended = ranking.ended(table)
        found = []
        for rung, places, resting in self._resting(table, paused):
            count = (len(ended[rung]) + len(places)) // self.eta
            if count:
                last = last_of_best(ended[rung], sorted(places.values()), count)
                found += [self._promotion(rung, place) for place in resting if place <= last]
        return found

    def furthest(self, table: RungTable, paused: Collection[int]) -> Promotion | None:
        """The best of the trials that rest at the highest rung where one does.

        Where a study has too few trials for one to be promoted to the end (``eta**k`` for k rungs, which
        the paper takes for granted), or has lost those to failures, it still has to find one.
        """
        for rung, _, resting in self._resting(table, paused):
            return self._promotion(rung, resting[0])
        return None

    def _rungs(self) -> tuple[int, ...]:
        return _rungs_within(self.max_epochs - 1, self.min_epochs, self.eta)

    def _resting(
        self, table: RungTable, paused: Collection[int]
    ) -> Iterator[tuple[int, dict[int, Place], list[Place]]]:
        """From the highest rung down where trials rest: who is there and has not ended, and who rests."""
        at: dict[int, list[int]] = {}
        for number in paused:
            at.setdefault(table.open[number].last_step or 0, []).append(number)
        ranking = Places(self.min_epochs, self.eta, self.maximize)
        for rung in reversed(self._rungs()):
            if rung in at:
                places = ranking.under_way(table, rung)
                yield rung, places, sorted(places[number] for number in at[rung])

    def _promotion(self, rung: int, place: Place) -> Promotion:
        return Promotion(int(place[1]), rung, self.pause_after(rung))


@lru_cache(maxsize=64)
def _rungs_within(step: int, min_epochs: int, eta: int) -> tuple[int, ...]:
    """As `rungs_passed`: it is asked for with every trial."""
    return tuple(rungs_passed(step, min_epochs, eta))
