"""What is known of a study's trials, kept up with the study at a cost that does not grow with it.

Samplers and pruners need every trial of a study at every question. Finished trials never change
(Optuna's own contract), so what was worked out from them is kept and only new ones are looked at;
trials that are still open are looked at every time. A storage that returns the same object for a
finished trial makes noticing that nothing changed one comparison of two lists in C.
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial


class History:
    """A study's trials, finished ones in the order in which they were noticed.

    Nothing depends on that order, nor on how often `update` was called: a history is a memory of
    the storage's answers and can be dropped at any time. One thread at a time.
    """

    def __init__(self) -> None:
        self._trials: list[FrozenTrial] = []
        self.generation = 0
        """Changes when finished trials changed or vanished, and all that was derived is void."""
        self.finished: list[tuple[int, FrozenTrial]] = []
        """Position in the storage's list, and the trial; only ever appended to in one generation."""
        self.open: dict[int, FrozenTrial] = {}
        """Trials that have not finished, by number."""
        self.open_at: list[int] = []
        """Where those of `open` are in the storage's list, in the same order."""

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Take note of the study as it is now: all of its trials, in the storage's order."""
        if not self._follows(trials):
            self._trials, self.open_at, self.finished = [], [], []
            self.generation += 1
        positions = [*self.open_at, *range(len(self._trials), len(trials))]
        self._trials.extend(trials[len(self._trials) :])
        self.open_at, self.open = [], {}
        for position in positions:
            trial = trials[position]
            if trial.state.is_finished():
                self.finished.append((position, trial))
            else:
                self.open_at.append(position)
                self.open[trial.number] = trial

    def _follows(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether all finished trials are still there as they were."""
        known = self._trials
        if len(trials) < len(known):
            return False
        for position in self.open_at:
            known[position] = trials[position]
        # Compares by identity first; a storage that makes new objects costs a comparison by value.
        return known == list(trials[: len(known)])
