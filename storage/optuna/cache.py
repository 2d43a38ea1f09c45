"""What this process knows of a study's trials, shared by everything in it that reads the study.

Pure bookkeeping: no SQL, no locks (`ShoalStorage` holds one around every call). A trial is *open*
until it was read as finished from the database; then it is *settled*, stays the same object for
good and is never read again. An open trial has a `base`, which is stored, and a `view`: the base
with what this process has yet to write laid over it.

Rewritten rows: a value that is written over in place (an intermediate value of a repeated epoch)
keeps its row's key, so a reading of the new rows alone does not notice. It is noticed as soon as the
trial's own row changes, that is with every change of its state, and at the latest when it finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage.optuna.queue import TrialWrites
from storage.optuna.reads import Attributes, Found, Known, external
from storage.optuna.values import FINISHED, OPEN, decoded, evolved

Overlay = Callable[[FrozenTrial], FrozenTrial]
"""Lays over a trial what waits to be written of it."""


@dataclass(slots=True)
class Row:
    """A trial in the cache."""

    base: FrozenTrial
    view: FrozenTrial
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
    """What is known of one study."""

    study_id: int
    directions: list[StudyDirection] | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
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
    _views: list[FrozenTrial] = field(default_factory=list)
    _sorted: bool = True
    _ended: dict[tuple[bool, ...], list[FrozenTrial]] = field(default_factory=dict)
    """Trials in finished states, by which of `FINISHED` was asked for; while none of those changes."""

    def known(self) -> list[Known]:
        """The open trials, for the next reading."""
        return [self.rows[trial_id].known for trial_id in sorted(self.open)]

    def last(self) -> tuple[int, int]:
        """Key and number of the last trial that was read; (0, -1) if there is none."""
        row = self.rows.get(self.newest)
        return (0, -1) if row is None else (self.newest, row.base._number)

    def trials(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """A new list of the trials in those states, by number."""
        if states is None:
            return list(self._in_order())
        asked = tuple(state in states for state in FINISHED)
        if not any(asked):
            waiting = [view for i in self.open if (view := self.rows[i].view).state in states]
            return sorted(waiting, key=_number)
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

    def take_in(
        self, reading: int, asked: Iterable[Known], found: Iterable[Found], overlay: Overlay
    ) -> list[int]:
        """Take in a reading of all that is new; returns the trials that turned out to be deleted."""
        seen = set()
        for one in found:
            seen.add(one.trial_id)
            self.newest = max(self.newest, one.trial_id)
            self._take(reading, one, overlay)
        gone = [known.trial_id for known in asked if known.trial_id not in seen]
        gone = [i for i in gone if i in self.rows and self.rows[i].touched < reading]
        for trial_id in gone:
            self.drop(trial_id)
        self.loaded = True
        self.finished = reading
        return gone

    def add(self, trial: FrozenTrial, *, owned: bool) -> None:
        """Add a trial that this process made. It is read once more with the next reading."""
        known = Known(trial._trial_id, 0, 0, 0)
        self._insert(Row(trial, trial, known, owned=owned, touched=self.started))

    def drop(self, trial_id: int) -> None:
        """Forget a trial that was deleted."""
        del self.rows[trial_id]
        self.open.discard(trial_id)
        self._sorted = False
        self._ended.clear()

    def lay_over(self, trial_id: int, writes: TrialWrites) -> None:
        """Show what waits to be written of a trial."""
        row = self.rows[trial_id]
        self._show(row, writes.laid_over(row.view))

    def acknowledge(
        self, trial_id: int, writes: TrialWrites, moment: datetime | None, overlay: Overlay
    ) -> None:
        """What was written is stored; `moment`: of its change of state, by the database's clock."""
        row = self.rows[trial_id]
        if row.settled:
            return
        if moment is not None:
            writes.moment = moment
        row.base = writes.laid_over(row.base)
        row.touched = self.started
        if writes.state is not None:
            row.owned = writes.state == TrialState.RUNNING
        self._note_distributions(row.base)
        self._show(row, overlay(row.base))

    def lost(self, trial_id: int, state: TrialState, overlay: Overlay) -> None:
        """Somebody else finished or took the trial; what it looks like is read with the next reading."""
        row = self.rows[trial_id]
        row.owned = False
        if row.settled:
            return
        row.base = evolved(row.base, state=state)
        row.touched = self.started
        self._show(row, overlay(row.base))

    def show(self, trial_id: int, overlay: Overlay) -> None:
        """Lay the waiting writes over the base anew, for some of them were given up."""
        row = self.rows.get(trial_id)
        if row is not None and not row.settled:
            self._show(row, overlay(row.base))

    def _take(self, reading: int, found: Found, overlay: Overlay) -> None:
        row = self.rows.get(found.trial_id)
        if row is None:
            trial = found.trial()
            row = Row(trial, trial, found.known, found.attributes)
            row.view = overlay(trial)
            self._insert(row)
        elif row.settled or row.touched >= reading:
            return
        else:
            base = found.trial() if found.full else _grown(row, found)
            row.known, row.attributes = found.known, found.attributes
            if base is row.base or base == row.base:
                base = row.base
            else:
                row.base = base
                self._show(row, overlay(base))
        self._note_distributions(row.base)
        if row.base.state in FINISHED:
            self._settle(row)

    def _settle(self, row: Row) -> None:
        row.settled, row.owned, row.attributes = True, False, None
        self.open.discard(row.base._trial_id)
        self._show(row, row.base)
        if row.base.state == TrialState.COMPLETE and row.base._values and self._is_better(row.base):
            self.best = row.base

    def _is_better(self, trial: FrozenTrial) -> bool:
        if self.best is None:
            return True
        sign = -1 if self.directions and self.directions[0] == StudyDirection.MAXIMIZE else 1
        return (sign * _value(trial), trial._number) < (sign * _value(self.best), self.best._number)

    def _insert(self, row: Row) -> None:
        trial = row.base
        if row.view.state in FINISHED:
            self._ended.clear()
        self.rows[trial._trial_id] = row
        self.open.add(trial._trial_id)
        if self._sorted and (not self._views or self._views[-1]._number < trial._number):
            row.position = len(self._views)
            self._views.append(row.view)
        else:
            self._sorted = False

    def _show(self, row: Row, view: FrozenTrial) -> None:
        if view.state in FINISHED or row.view.state in FINISHED:
            self._ended.clear()
        row.view = view
        if self._sorted:
            self._views[row.position] = view

    def _in_order(self) -> list[FrozenTrial]:
        if not self._sorted:
            rows = sorted(self.rows.values(), key=lambda row: (row.base._number, row.base._trial_id))
            for position, row in enumerate(rows):
                row.position = position
            self._views = [row.view for row in rows]
            self._sorted = True
        return self._views

    def _note_distributions(self, trial: FrozenTrial) -> None:
        for name, distribution in trial._distributions.items():
            self.distributions.setdefault(name, distribution)


def _grown(row: Row, found: Found) -> FrozenTrial:
    """The base with the rows that were added."""
    changes: dict[str, object] = {}
    base = row.base
    if found.params:
        changes["_params"] = base._params | external(found.params, found.distributions)
        changes["_distributions"] = base._distributions | found.distributions
    if found.reports:
        changes["intermediate_values"] = base.intermediate_values | found.reports
    if found.values != base._values:
        changes["_values"] = found.values
    if found.attributes != row.attributes:
        user_keys, user_texts, system_keys, system_texts = found.attributes
        changes["_user_attrs"] = decoded(user_keys, user_texts)
        changes["_system_attrs"] = decoded(system_keys, system_texts)
    return evolved(base, **changes) if changes else base


def _number(trial: FrozenTrial) -> int:
    return trial._number


def _value(trial: FrozenTrial) -> float:
    return trial._values[0] if trial._values else float("nan")
