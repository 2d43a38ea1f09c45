"""What this process knows of a study's trials, shared by everything in it that reads the study.

Pure bookkeeping: no SQL, no locks (`ShoalStorage` holds one around every call). A trial is *open*
until it was read as finished from the database; then it is *settled*, stays the same object for
good and is never read again. An open trial has a `base`, which is stored, and a `view`: the base
with what this process has yet to write laid over it.

Rewritten rows: a value that is written over in place (an intermediate value of a repeated epoch)
keeps its row's key, so a reading of the new rows alone does not notice. It is noticed as soon as the
trial's own row changes, that is with every change of its state, and at the latest when it finishes.

Readings by rows, which are those of batches: what is written of a trial that waits, without a change of its
own row, is not noticed by them. Whoever runs a trial changes that row first, so nothing is missing there of
one that runs or has run; only a client that writes into the queue by itself is noticed later, by the next
reading of another kind or with the trial's next change of state.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage.optuna.queue import TrialWrites
from storage.optuna.reads import Ask, Found, Known, Reading
from storage.optuna.stored import Attributes, attribute_texts, evolved, first_value
from storage.optuna.values import FINISHED, OPEN

Overlay = Callable[[FrozenTrial], FrozenTrial]
"""Lays over a trial what waits to be written of it."""


@dataclass(slots=True)
class Row:
    """A trial in the cache."""

    base: FrozenTrial
    view: FrozenTrial
    """The base with what waits laid over it, but for what `StudyCache.laid_over` was told of since."""
    known: Known
    attributes: Attributes | None = None
    position: int = 0
    settled: bool = False
    owned: bool = False
    """Made or taken from the queue by this process: nobody else writes it, so its writes may wait."""
    touched: int = 0
    """The reading that was under way when this process last changed the row: what it read may be older."""


@dataclass(slots=True)
class StudyCache:
    """What is known of one study. Of a settled trial nothing is kept but the trial."""

    study_id: int
    overlay: Overlay
    directions: list[StudyDirection] | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    """Open trials, by key."""
    settled: dict[int, FrozenTrial] = field(default_factory=dict)
    newest: int = 0
    """All trials up to this key have been read."""
    loaded: bool = False
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    """Of each parameter, one that the study has: later ones must be compatible."""
    best: FrozenTrial | None = None
    started: int = 0
    """Readings begun so far."""
    finished: int = 0
    """The last reading that was taken in."""
    complete: int = 0
    """The last of those that was not by rows alone."""
    revision: int = 0
    """Counts what has changed of its trials, as this process sees them."""
    _views: list[FrozenTrial] = field(default_factory=list)
    _sorted: bool = True
    _ended: dict[tuple[bool, ...], list[FrozenTrial]] = field(default_factory=dict)
    """Trials in finished states, by which of `FINISHED` was asked for; while none of those changes."""
    _waiting: set[int] = field(default_factory=set)
    """Open trials that wait in the queue."""
    _stale: set[int] = field(default_factory=set)
    """Open trials whose views lack writes: many for one trial, laid over once somebody looks at it."""
    _noted: dict[str, BaseDistribution] = field(default_factory=dict)
    """What was last noted of distributions: most trials have the same."""

    def keys(self) -> Iterator[int]:
        """Of all trials that are known."""
        yield from self.rows
        yield from self.settled

    def row(self, trial_id: int) -> Row | None:
        """A trial's place, if it is known; its view may lack what waits (see `fresh`), but for a state."""
        trial = self.settled.get(trial_id)
        if trial is None:
            return self.rows.get(trial_id)
        return Row(trial, trial, Known(trial_id, 0, 0, 0), settled=True)

    def fresh(self, row: Row) -> FrozenTrial:
        """A trial's view, with everything that waits. Call it under the lock."""
        if row.base._trial_id in self._stale:
            self._see(row, self.overlay(row.base))
        return row.view

    def ask(self, *, by_rows: bool) -> Ask:
        """What the next reading asks for; `by_rows`: of trials that wait only those whose rows change."""
        known: list[Known] = []
        quiet: list[Known] = []
        for _, row in sorted(self.rows.items()):
            waits = row.base.state == TrialState.WAITING and row.known.version
            (quiet if by_rows and waits else known).append(row.known)
        return Ask(self.study_id, self.newest, known, quiet)

    def last(self) -> tuple[int, int]:
        """Key and number of the last trial that was read; (0, -1) if there is none."""
        row = self.row(self.newest)
        return (0, -1) if row is None else (self.newest, row.base._number)

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """A new list of the trials in those states, by number. Call it under the lock."""
        if states is None:
            return list(self._in_order())
        asked = tuple(state in states for state in FINISHED)
        if not any(asked):
            keys = self.rows if TrialState.RUNNING in states else self._waiting
            views = [self.fresh(self.rows[trial_id]) for trial_id in keys]
            return sorted((view for view in views if view.state in states), key=_number)
        if any(state in states for state in OPEN):
            return [view for view in self._in_order() if view.state in states]
        if asked not in self._ended:
            self._ended[asked] = [view for view in self._in_order() if view.state in states]
        return list(self._ended[asked])

    def trial_of_number(self, number: int) -> int | None:
        """The key of the trial with that number, if it is known."""
        views = self._in_order()
        if 0 <= number < len(views) and views[number]._number == number:
            return views[number]._trial_id
        return None

    def take_in(self, number: int, reading: Reading, *, by_rows: bool) -> list[int]:
        """Take in the reading of that number; returns the trials that turned out to be deleted."""
        for one in reading.found:
            self.newest = max(self.newest, one.known.trial_id)
            self._take(number, one)
        gone = [i for i in reading.gone if i in self.rows and self.rows[i].touched < number]
        for trial_id in gone:
            self.drop(trial_id)
        self.loaded = True
        self.finished = number
        if not by_rows:
            self.complete = number
        return gone

    def add(self, trial: FrozenTrial, *, owned: bool) -> None:
        """Add a trial that this process made. It is read once more with the next reading."""
        known = Known(trial._trial_id, 0, 0, 0)
        self._insert(Row(trial, trial, known, owned=owned, touched=self.started))

    def drop(self, trial_id: int) -> None:
        """Forget a trial that was deleted."""
        if self.rows.pop(trial_id, None) is None:
            del self.settled[trial_id]
        self._waiting.discard(trial_id)
        self._stale.discard(trial_id)
        self.revision += 1
        self._sorted = False
        self._ended.clear()

    def admit(self, name: str, distribution: BaseDistribution) -> None:
        """Note a parameter that a trial gets. Raises `ValueError` if the study has it of another kind."""
        known = self.distributions.get(name)
        if known is distribution:
            return
        if known is not None:
            check_distribution_compatibility(known, distribution)
        # The one at hand: the other trials of a pool come with the same object.
        self.distributions[name] = distribution

    def laid_over(self, trial_id: int, writes: TrialWrites) -> None:
        """Note what waits to be written of a trial, from now on: the overlay has it."""
        if trial_id not in self.rows:
            return
        if writes.state is None:
            self.revision += 1
            self._stale.add(trial_id)
        else:
            self.show(trial_id)

    def acknowledge(self, trial_id: int, writes: TrialWrites, moment: datetime | None) -> None:
        """What was written is stored; `moment`: of its change of state, by the database's clock."""
        row = self.rows.get(trial_id)
        if row is None:
            return
        if moment is not None:
            writes.moment = moment
        row.base = writes.laid_over(row.base)
        row.touched = self.started
        if writes.state is not None:
            row.owned = writes.state == TrialState.RUNNING
        self._note_distributions(row.base)
        self._show(row, self.overlay(row.base))

    def lost(self, trial_id: int, state: TrialState) -> None:
        """Somebody else finished or took the trial; what it looks like is read with the next reading."""
        row = self.rows.get(trial_id)
        if row is None:
            return
        row.owned = False
        row.base = evolved(row.base, state=state)
        row.touched = self.started
        self._show(row, self.overlay(row.base))

    def disown(self, trial_id: int) -> None:
        """Somebody else may write the trial from now on."""
        row = self.rows.get(trial_id)
        if row is not None:
            row.owned = False

    def show(self, trial_id: int) -> None:
        """Lay the waiting writes over the base anew, for some of them were given up."""
        row = self.rows.get(trial_id)
        if row is not None:
            self._show(row, self.overlay(row.base))

    def _take(self, reading: int, found: Found) -> None:
        trial_id = found.known.trial_id
        row = self.rows.get(trial_id)
        if row is None:
            if trial_id not in self.settled:
                self._begin(found)
            return
        if row.touched >= reading:
            return
        base = found.trial if found.full else _grown(row, found)
        row.known, row.attributes = found.known, attribute_texts(found.trial)
        if base.state in FINISHED:
            self._settle(row, base)
        elif base is not row.base and base != row.base:
            row.base = base
            self._note_distributions(base)
            self._show(row, self.overlay(base))

    def _begin(self, found: Found) -> None:
        """Take in a trial that wasn't known."""
        trial = found.trial
        self._note_distributions(trial)
        if trial.state in FINISHED:
            self._ended.clear()
            self._append(trial)
            self._end(trial)
        else:
            view = self.overlay(trial)
            self._insert(Row(trial, view, found.known, attribute_texts(trial)))

    def _settle(self, row: Row, trial: FrozenTrial) -> None:
        del self.rows[trial._trial_id]
        row.base, row.settled = trial, True
        self._note_distributions(trial)
        self._show(row, trial)
        self._end(trial)

    def _end(self, trial: FrozenTrial) -> None:
        self.settled[trial._trial_id] = trial
        if trial.state == TrialState.COMPLETE and self._is_better(trial):
            self.best = trial

    def _is_better(self, trial: FrozenTrial) -> bool:
        value = first_value(trial)
        if value is None:
            return False
        best = None if self.best is None else first_value(self.best)
        if self.best is None or best is None:
            return True
        sign = -1 if self.directions and self.directions[0] == StudyDirection.MAXIMIZE else 1
        return (sign * value, trial._number) < (sign * best, self.best._number)

    def _insert(self, row: Row) -> None:
        if row.view.state in FINISHED:
            self._ended.clear()
        trial_id = row.base._trial_id
        self.rows[trial_id] = row
        if row.view.state == TrialState.WAITING:
            self._waiting.add(trial_id)
        row.position = self._append(row.view)

    def _append(self, view: FrozenTrial) -> int:
        """Put a new trial at the end of the views, if it belongs there; its position."""
        self.revision += 1
        if self._sorted and (not self._views or self._views[-1]._number < view._number):
            self._views.append(view)
        else:
            self._sorted = False
        return len(self._views) - 1

    def _show(self, row: Row, view: FrozenTrial) -> None:
        self.revision += 1
        self._see(row, view)

    def _see(self, row: Row, view: FrozenTrial) -> None:
        trial_id = view._trial_id
        self._stale.discard(trial_id)
        if view.state in FINISHED or row.view.state in FINISHED:
            self._ended.clear()
        if view.state == TrialState.WAITING:
            self._waiting.add(trial_id)
        else:
            self._waiting.discard(trial_id)
        row.view = view
        if self._sorted:
            self._views[row.position] = view

    def _in_order(self) -> list[FrozenTrial]:
        for trial_id in list(self._stale):
            self.fresh(self.rows[trial_id])
        if not self._sorted:
            views = [*self.settled.values(), *(row.view for row in self.rows.values())]
            self._views = sorted(views, key=lambda view: (view._number, view._trial_id))
            for position, view in enumerate(self._views):
                if view._trial_id in self.rows:
                    self.rows[view._trial_id].position = position
            self._sorted = True
        return self._views

    def _note_distributions(self, trial: FrozenTrial) -> None:
        if trial._distributions is self._noted:
            return
        self._noted = trial._distributions
        for name, distribution in self._noted.items():
            self.distributions.setdefault(name, distribution)


def _grown(row: Row, found: Found) -> FrozenTrial:
    """The base with the rows that were added."""
    changes: dict[str, object] = {}
    base, new = row.base, found.trial
    if new._params:
        changes["_params"] = base._params | new._params
        changes["_distributions"] = base._distributions | new._distributions
    if new.intermediate_values:
        changes["intermediate_values"] = base.intermediate_values | new.intermediate_values
    if new._values != base._values:
        changes["_values"] = new._values
    if attribute_texts(new) != row.attributes:
        changes["_user_attrs"], changes["_system_attrs"] = new._user_attrs, new._system_attrs
    return evolved(base, **changes) if changes else base


def _number(trial: FrozenTrial) -> int:
    return trial._number
