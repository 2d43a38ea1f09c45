"""A study's intermediate values in the form that rules of early stopping ask for: ranked, by step.

A rule wants to know how many trials were better at a step. Values of finished trials are kept in
sorted lists, into which new ones are put; those of running trials are few and looked up.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

from optuna.trial import FrozenTrial, TrialState

from search.sampling.history import History

Entries: TypeAlias = Callable[[FrozenTrial], Iterable[tuple[Hashable, Any]]]
"""What a finished trial adds to which list: (list, value) pairs."""

_FEW = 16
"""Up to so many new values are put in place one by one; more are appended and sorted."""


class RungTable:
    """The values of all trials of a study. Kept up by `update`; rules only read it.

    It holds nothing that the storage doesn't: a new table that is updated once says the same as
    one that was updated after every report. One thread at a time.
    """

    def __init__(self) -> None:
        self._history = History()
        self._complete = 0
        self._counted = 0
        self._generation = 0
        self._ranked: dict[Hashable, Ranked] = {}

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Take note of the study as it is now: all of its trials, in the storage's order.

        Costs what has changed since the last call, and one comparison of two lists.
        """
        history = self._history
        history.update(trials)
        if history.generation != self._generation:
            self._complete = self._counted = 0
            self._ranked = {}
            self._generation = history.generation
        for _, trial in history.finished[self._counted :]:
            self._complete += trial.state == TrialState.COMPLETE
        self._counted = len(history.finished)

    @property
    def complete(self) -> int:
        """Trials that trained to their end."""
        return self._complete

    @property
    def open(self) -> dict[int, FrozenTrial]:
        """Trials that have not finished, by number."""
        return self._history.open

    def ranked(self, name: Hashable, entries: Entries) -> Ranked:
        """Sorted lists of what `entries` says of the finished trials, kept under `name` in this table.

        `entries` must depend on the trial alone, and be the same for the same name.
        """
        ranked = self._ranked.get(name)
        if ranked is None:
            ranked = self._ranked[name] = Ranked(entries)
        ranked.catch_up([trial for _, trial in self._history.finished[ranked.seen :]])
        return ranked


class Ranked:
    """Sorted lists of values of finished trials."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._lists: dict[Hashable, list[Any]] = {}
        self.seen = 0
        """Finished trials that are in the lists."""

    def __getitem__(self, key: Hashable) -> list[Any]:
        """The sorted values of one list; not to be changed."""
        return self._lists.get(key, [])

    def catch_up(self, trials: Sequence[FrozenTrial]) -> None:
        """Put the values of trials that have finished since into the lists."""
        self.seen += len(trials)
        new: dict[Hashable, list[Any]] = {}
        for trial in trials:
            for key, value in self._entries(trial):
                new.setdefault(key, []).append(value)
        for key, values in new.items():
            there = self._lists.setdefault(key, [])
            if len(values) <= _FEW:
                for value in values:
                    insort(there, value)
            else:
                there.extend(values)
                there.sort()
