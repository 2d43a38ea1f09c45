"""The trials of all studies in this process: read when asked for, shown with what waits to be written.

The one lock here guards the cache and the outbox. It is never held while the database is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from storage.optuna import studies
from storage.optuna.batch import Batch
from storage.optuna.cache import Row, StudyCache
from storage.optuna.creation import Made, make_trials
from storage.optuna.outbox import Outbox
from storage.optuna.queue import TrialWrites, Writes
from storage.optuna.reads import Reading, read_trials, study_of_trial
from storage.optuna.stored import detached, evolved
from storage.optuna.values import FINISHED, LARGEST_INTEGER
from storage.optuna.wire import Wire
from storage.optuna.writes import Outcome

NO_TRIAL = "there is no trial with the key {}"
NO_STUDY = "there is no study with the key {}"


class Trials:
    """All that this process knows of trials, and has yet to write of them. May be shared by threads."""

    def __init__(self, wire: Wire) -> None:
        self.lock = threading.RLock()
        self.outbox = Outbox(wire, self.lock, self._sent)
        self._wire = wire
        self._local = threading.local()
        self._studies: dict[int, StudyCache] = {}
        self._reading: dict[int, threading.Lock] = {}
        self._study_of: dict[int, int] = {}
        self._names: dict[int, str] = {}

    @property
    def batch(self) -> Batch | None:
        """The batch that this thread is in."""
        batch: Batch | None = getattr(self._local, "batch", None)
        return batch

    @batch.setter
    def batch(self, batch: Batch | None) -> None:
        self._local.batch = batch

    def study(self, study_id: int) -> StudyCache:
        """What is known of a study, which may be nothing. Call it under the lock."""
        study = self._studies.get(study_id)
        if study is None:
            study = self._studies[study_id] = StudyCache(study_id, self.outbox.overlay)
        return study

    def name(self, study_id: int) -> str:
        """A study's name. Raises `KeyError`."""
        if study_id not in self._names:
            self._read_study(study_id)
        return self._names[study_id]

    def directions(self, study_id: int) -> list[StudyDirection]:
        """A study's directions, in a list of their own. Raises `KeyError`."""
        with self.lock:
            study = self._studies.get(study_id)
            if study is not None and study.directions is not None:
                return list(study.directions)
        return self._read_study(study_id)

    def remember(self, study_id: int, name: str, directions: Sequence[StudyDirection]) -> None:
        """Note a study that this process made."""
        with self.lock:
            self._names[study_id] = name
            self.study(study_id).directions = list(directions)

    def forget(self, study_id: int) -> None:
        """Note that a study is deleted."""
        with self.lock:
            study = self._studies.pop(study_id, None)
            self._names.pop(study_id, None)
            for trial_id in study.keys() if study is not None else ():
                self._study_of.pop(trial_id, None)
                self.outbox.drop(trial_id)

    def known_as(self, names: Iterable[str]) -> dict[str, int]:
        """The keys of the studies of these names, as far as this process knows them."""
        wanted = set(names)
        with self.lock:
            return {name: study_id for study_id, name in self._names.items() if name in wanted}

    def make(self, study_id: int, templates: Sequence[FrozenTrial | None]) -> list[int]:
        """Make trials in one round trip; their keys. Raises `KeyError`."""
        with self.lock:
            study = self._studies.get(study_id)
            last = study.last() if study is not None else (0, -1)
        made = make_trials(self._wire, study_id, templates, last)
        if len(made) < len(templates):
            raise KeyError(NO_STUDY.format(study_id))
        with self.lock:
            for one, template in zip(made, templates, strict=True):
                trial = _as_made(one, template)
                self.study(study_id).add(trial, owned=trial.state == TrialState.RUNNING)
                self._study_of[one.trial_id] = study_id
        return [one.trial_id for one in made]

    def read(self, study_id: int) -> StudyCache:
        """Read what is new in a study; in a batch by rows (see `cache`) and at most once. Raises `KeyError`.

        Threads that want the same at the same time share one reading, if it began after they asked.
        """
        batch = self.batch
        with self.lock:
            study = self.study(study_id)
            if batch is not None and study_id in batch.read and study.loaded:
                return study
            wanted = study.started + 1
            reading_lock = self._reading.setdefault(study_id, threading.Lock())
        if study.directions is None:
            self._read_study(study_id)
        by_rows = batch is not None
        with reading_lock:
            done = study.finished if by_rows else study.complete
            if done < wanted and self._read_now([study], by_rows=by_rows):
                raise KeyError(NO_STUDY.format(study_id))
        if batch is not None:
            batch.read.add(study_id)
        return study

    def read_all(self, batch: Batch, study_ids: Iterable[int]) -> None:
        """Read what is new in several studies together, for a batch; deleted ones are forgotten.

        Raises nothing for those: whoever asks for one of them will hear of it.
        """
        wanted = sorted({study_id for study_id in study_ids if study_id not in batch.read})
        with self.lock:
            studies_ = [self.study(study_id) for study_id in wanted]
            locks = [self._reading.setdefault(study_id, threading.Lock()) for study_id in wanted]
        with ExitStack() as held:
            for lock in locks:  # in one order, so that no two wait for each other
                held.enter_context(lock)
            gone = self._read_now(studies_, by_rows=True)
        batch.read.update(study_id for study_id in wanted if study_id not in gone)

    def cached(self, trial_id: int) -> tuple[StudyCache, Row] | None:
        """A trial's place in the cache, if it has one."""
        with self.lock:
            study = self._studies.get(self._study_of.get(trial_id, -1))
            row = None if study is None else study.row(trial_id)
            return None if study is None or row is None else (study, row)

    def current(self, trial_id: int) -> tuple[StudyCache, Row]:
        """A trial as it is now: read anew unless nobody else can have changed it. Raises `KeyError`."""
        cached = self.cached(trial_id)
        study_id: int | None
        if cached is not None:
            study, row = cached
            if row.owned or row.view.state in FINISHED:
                return cached
            study_id = study.study_id
        else:
            fits = 0 <= trial_id <= LARGEST_INTEGER
            study_id = study_of_trial(self._wire, trial_id) if fits else None
        if study_id is None:
            raise KeyError(NO_TRIAL.format(trial_id))
        self.read(study_id)
        cached = self.cached(trial_id)
        if cached is None:
            raise KeyError(NO_TRIAL.format(trial_id))
        return cached

    def writable(self, trial_id: int) -> tuple[StudyCache, Row]:
        """A trial's place in the cache. Raises `KeyError` or `UpdateFinishedTrialError`."""
        study, row = self.cached(trial_id) or self.current(trial_id)
        if row.view.state in FINISHED:
            raise UpdateFinishedTrialError(
                f"Trial#{row.view.number} has already finished and can not be updated."
            )
        return study, row

    def write(self, trial_id: int, writes: TrialWrites) -> Outcome | None:
        """Write what is no change of state; None if it waits, in a batch or for the background thread."""
        return self.write_at(*self.writable(trial_id), trial_id, writes)

    def write_at(self, study: StudyCache, row: Row, trial_id: int, writes: TrialWrites) -> Outcome | None:
        """The same for a trial whose place `writable` has given."""
        batch = self.batch
        with self.lock:
            if batch is not None:
                self._hold(batch, study, trial_id, writes)
                return None
            if row.owned:
                self.outbox.put(trial_id, writes)
                study.laid_over(trial_id, writes)
                return None
        return self.write_now(trial_id, writes)

    def hold(self, batch: Batch, trial_id: int, writes: TrialWrites) -> None:
        """Keep writes for the end of a batch. Raises `KeyError` or `UpdateFinishedTrialError`."""
        study, _ = self.writable(trial_id)
        with self.lock:
            self._hold(batch, study, trial_id, writes)

    def write_now(self, trial_id: int, writes: TrialWrites) -> Outcome:
        """Write at once, after all that waits."""
        return self.outbox.flush({trial_id: writes})[trial_id]

    def _hold(self, batch: Batch, study: StudyCache, trial_id: int, writes: TrialWrites) -> None:
        held = batch.writes.get(trial_id)
        if held is None:
            batch.writes[trial_id] = writes
        else:
            held.add(writes)
        study.laid_over(trial_id, writes)

    def _read_now(self, wanted: Sequence[StudyCache], *, by_rows: bool) -> list[int]:
        """Read studies, whose reading locks the caller holds; those that turned out to be deleted."""
        with self.lock:
            for study in wanted:
                study.started += 1
            numbers = [study.started for study in wanted]
            asks = [study.ask(by_rows=by_rows) for study in wanted]
        readings = read_trials(self._wire, asks)
        with self.lock:
            for study, number in zip(wanted, numbers, strict=True):
                if study.study_id in readings:
                    self._take_in(study, number, readings[study.study_id], by_rows=by_rows)
        gone = [study.study_id for study in wanted if study.study_id not in readings]
        for study_id in gone:
            self.forget(study_id)
        return gone

    def _take_in(self, study: StudyCache, number: int, reading: Reading, *, by_rows: bool) -> None:
        gone = study.take_in(number, reading, by_rows=by_rows)
        for one in reading.found:
            self._study_of[one.known.trial_id] = study.study_id
        for trial_id in gone:
            self._study_of.pop(trial_id, None)
            self.outbox.drop(trial_id)

    def _read_study(self, study_id: int) -> list[StudyDirection]:
        fits = 0 <= study_id <= LARGEST_INTEGER
        found = studies.name_and_directions(self._wire, study_id) if fits else None
        if found is None:
            self.forget(study_id)
            raise KeyError(NO_STUDY.format(study_id))
        self.remember(study_id, *found)
        return list(found[1])

    def _sent(self, sent: Writes, outcomes: dict[int, Outcome] | None) -> None:
        """Writes were stored, or could not be. Called under the lock."""
        for trial_id, writes in sent.items():
            cached = self.cached(trial_id)
            if cached is None:
                continue
            study, _ = cached
            if outcomes is None:
                study.show(trial_id)
                continue
            outcome = outcomes[trial_id]
            if outcome.before is None:
                self.outbox.drop(trial_id)
                study.drop(trial_id)
                del self._study_of[trial_id]
            elif not outcome.stored:
                self.outbox.drop(trial_id)
                study.lost(trial_id, outcome.before)
            elif writes.state is not None and not outcome.changed:
                study.disown(trial_id)
                study.acknowledge(trial_id, writes.without_ending(), None)
            else:
                study.acknowledge(trial_id, writes, outcome.moment)


def _as_made(made: Made, template: FrozenTrial | None) -> FrozenTrial:
    if template is not None:
        return evolved(
            detached(template), _number=made.number, _trial_id=made.trial_id, _datetime_start=made.start
        )
    return FrozenTrial(
        number=made.number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=made.start,
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=made.trial_id,
    )
