"""The storage that Optuna's studies see: Optuna's contract, and the batches that it lacks."""

from __future__ import annotations

import atexit
import contextlib
import json
import uuid
import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from optuna._experimental import warn_experimental_argument
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from storage.errors import StorageError
from storage.optuna import heartbeats, studies
from storage.optuna.batch import Batch, TrialsRefused, raise_refusal, refusal
from storage.optuna.creation import enqueue_trials
from storage.optuna.queue import TrialWrites
from storage.optuna.reads import trial_of_number
from storage.optuna.stored import detached, unshared
from storage.optuna.trials import NO_STUDY, Trials
from storage.optuna.values import checked_key, checked_step
from storage.optuna.wire import Wire

if TYPE_CHECKING:
    import optuna

    StaleTrialCallback: TypeAlias = Callable[[optuna.Study, FrozenTrial], None]


class ShoalStorage(BaseStorage, BaseHeartbeat):
    """Optuna's tables in Postgres, at a cost that hundreds of running trials can bear.

    Any number of threads, and other clients beside it. Trials that this process made or took from the
    queue are its own: what is written of them may wait for half a second, and what is known of them is
    not read again for each question. Everything else is written at once and read anew, one statement
    for all that is new in a study. A pickled copy has connections of its own.

    Errors are those of Optuna's contract, and `StorageError` for what the contract doesn't name.
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "shoal optuna",
        heartbeat_interval: int | None = None,
        grace_period: int | None = None,
        heartbeat_stale_trial_callback: StaleTrialCallback | None = None,
    ) -> None:
        """`url` of a database with Optuna's tables. Connects when first used.

        The last three are Optuna's (`RDBStorage`), for `study.optimize` with heartbeats; in seconds.
        """
        if heartbeat_interval is not None:
            warn_experimental_argument("heartbeat_interval")
        for name, seconds in (("heartbeat_interval", heartbeat_interval), ("grace_period", grace_period)):
            if seconds is not None and seconds <= 0:
                raise ValueError(f"The value of `{name}` should be a positive integer, not {seconds}.")
        self.heartbeat_interval = heartbeat_interval
        self.grace_period = grace_period
        self.heartbeat_stale_trial_callback = heartbeat_stale_trial_callback
        self._application_name = application_name
        self.wire = Wire(url, application_name)
        self._trials = Trials(self.wire)
        _OPEN.add(self)

    def __repr__(self) -> str:
        return f"ShoalStorage({self.wire!r})"

    def __enter__(self) -> ShoalStorage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {
            "url": self.wire.url,
            "application_name": self._application_name,
            "heartbeat_interval": self.heartbeat_interval,
            "grace_period": self.grace_period,
            "heartbeat_stale_trial_callback": self.heartbeat_stale_trial_callback,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy begins as a new one does

    @contextmanager
    def batch(self, new: Mapping[int, int] | None = None) -> Iterator[None]:
        """Everything that this thread does inside: reads once, and writes as one transaction at the end.

        A study is read with its first use, by rows (see `storage.optuna.cache`), and not again.
        Writes are shown at once and stored together, in one round trip; taking a trial from the
        queue and making one can't wait. `new` says how many trials of which study (by key) will be
        asked for, so that they are made together; those that nobody asked for have failed at the
        end. Inside another batch, this is part of that one.

        Raises `TrialsRefused` at the end for trials that others finished or deleted; everything of
        the other trials is stored. `StorageError`: no change of state is stored.
        """
        if self._trials.batch is not None:
            yield
            return
        with self._trials.lock:
            batch = Batch(self._trials.outbox.hold(), dict(new or {}))
        self._trials.batch = batch
        try:
            yield
        except BaseException:
            # What was accepted is stored; what went wrong is the news.
            with contextlib.suppress(TrialsRefused):
                self._end(batch)
            raise
        self._end(batch)

    def flush(self) -> None:
        """Store everything that waits now. Raises `StorageError`."""
        self._trials.outbox.flush()

    def remove_session(self) -> None:
        """Store everything that waits."""
        self.flush()

    def close(self) -> None:
        """Store everything that waits and close the connections; using it again opens new ones."""
        try:
            self.flush()
        finally:
            self.wire.close()

    # Studies.

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        name = study_name if study_name is not None else f"{DEFAULT_STUDY_NAME_PREFIX}{uuid.uuid4()}"
        study_id = studies.create_study(self.wire, checked_key(name), directions)
        if study_id is None:
            raise DuplicatedStudyError(f"there is a study called {name!r}")
        self._trials.remember(study_id, name, directions)
        return study_id

    def make_studies(self, templates: Sequence[studies.StudyTemplate]) -> dict[str, int]:
        """Make all of these studies that aren't there, in one round trip; the keys of all, by name.

        Of a study that is there nothing is changed, but attributes that it lacks are added.
        """
        found = studies.make_studies(self.wire, templates) if templates else {}
        return self._remember(found)

    def look_up(self, names: Collection[str]) -> None:
        """Inside a batch: find studies by name and read all that is new of them, in two round trips.

        One where this process knows the studies. Those that aren't there are left out: using them tells.
        """
        batch = self._trials.batch
        assert batch is not None, "look_up is for batches"
        known = self._trials.known_as(names)
        unknown = [name for name in names if name not in known]
        if unknown:
            known |= self._remember(studies.studies_of_names(self.wire, unknown))
        self._trials.read_all(batch, known.values())
        batch.keys |= {name: study_id for name, study_id in known.items() if study_id in batch.read}

    def _remember(self, found: Mapping[str, studies.Key]) -> dict[str, int]:
        for name, (study_id, directions) in found.items():
            self._trials.remember(study_id, name, directions)
        return {name: study_id for name, (study_id, _) in found.items()}

    def delete_study(self, study_id: int) -> None:
        self._trials.forget(study_id)
        if not studies.delete_study(self.wire, study_id):
            raise KeyError(NO_STUDY.format(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attribute(study_id, "user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._set_study_attribute(study_id, "system", key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        batch = self._trials.batch
        if batch is not None and study_name in batch.keys:
            return batch.keys[study_name]
        study_id = studies.study_of_name(self.wire, study_name)
        if study_id is None:
            raise KeyError(f"there is no study called {study_name!r}")
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._trials.name(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._trials.directions(study_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attributes(study_id, "user")

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._study_attributes(study_id, "system")

    def get_all_studies(self) -> list[FrozenStudy]:
        return studies.all_studies(self.wire)

    # Writing trials.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        batch = self._trials.batch
        if template_trial is None and batch is not None:
            if not batch.made[study_id] and batch.new.get(study_id, 0) > 0:
                batch.made[study_id] = self.create_trials(study_id, [None] * batch.new.pop(study_id))
            if batch.made[study_id]:
                return batch.made[study_id].pop(0)
        return self.create_trials(study_id, [template_trial])[0]

    def create_trials(self, study_id: int, templates: Sequence[FrozenTrial | None]) -> list[int]:
        """Make trials with all that their templates hold, in one round trip; without one, running trials.

        Returns their keys, in order; their numbers are consecutive. Raises `KeyError` for an unknown study.
        """
        return self._trials.make(study_id, templates) if templates else []

    def enqueue_trials(self, templates: Mapping[int, Sequence[FrozenTrial]]) -> None:
        """Make trials in several studies (by key), all or none, in one round trip.

        Nothing of studies that aren't there. Unlike everything else this is not tried again by itself:
        raises `StorageError` where the connection broke, and nobody can tell whether they were made.
        """
        enqueue_trials(self.wire, templates)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        study, row = self._trials.writable(trial_id)
        name = checked_key(param_name)
        if not study.loaded and name not in study.distributions:
            self._trials.read(study.study_id)
        drawn = float(param_value_internal), distribution
        with self._trials.lock:
            study.admit(name, distribution)
            if (batch := self._trials.batch) is not None:
                study.laid_over(trial_id, batch.hold_param(trial_id, name, drawn))
                return
        writes = TrialWrites(params={name: drawn})
        raise_refusal(trial_id, self._trials.write_at(study, row, trial_id, writes))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        _, row = self._trials.writable(trial_id)
        final = None if values is None else tuple(float(value) for value in values)
        writes = TrialWrites(values=final, state=state, moment=datetime.now())  # noqa: DTZ005 (as Optuna's)
        if state == TrialState.RUNNING:
            if row.owned:
                return False
        elif self._trials.batch is not None:
            self._trials.hold(self._trials.batch, trial_id, writes)
            return True
        outcome = self._trials.write_now(trial_id, writes)
        raise_refusal(trial_id, outcome)
        return outcome.changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._write(trial_id, TrialWrites(reports={checked_step(step): float(intermediate_value)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, TrialWrites(user_attrs={checked_key(key): json.dumps(value)}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(trial_id, TrialWrites(system_attrs={checked_key(key): json.dumps(value)}))

    # Reading trials.

    def get_trial(self, trial_id: int) -> FrozenTrial:
        study, row = self._trials.current(trial_id)
        with self._trials.lock:
            trial = study.fresh(row)
        return trial if row.settled else unshared(trial)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        study = self._trials.read(study_id)
        with self._trials.lock:
            trials = study.trials(states)
        return [detached(trial) for trial in trials] if deepcopy else trials

    def changed_trials(self, study_id: int, revision: int | None) -> tuple[int, list[FrozenTrial] | None]:
        """The revision of now, and all trials, not copied, if it isn't the one given, else None.

        A revision, of this storage alone, counts what has changed of a study's trials. Reads what is
        new, as every question does. Raises `KeyError`.
        """
        study = self._trials.read(study_id)
        with self._trials.lock:
            if study.revision == revision:
                return study.revision, None
            return study.revision, study.trials()

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        if len(self.get_study_directions(study_id)) > 1:
            raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
        best = self._trials.read(study_id).best
        if best is None:
            raise ValueError("No trials are completed yet.")
        return best

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        with self._trials.lock:
            study = self._trials.study(study_id)
            trial_id = study.trial_of_number(trial_number) if study.loaded else None
        if trial_id is None:
            trial_id = trial_of_number(self.wire, study_id, trial_number)
        if trial_id is None:
            raise KeyError(f"there is no trial {trial_number} in the study with the key {study_id}")
        return trial_id

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        trial = self.get_trial(trial_id)
        return float(trial.distributions[param_name].to_internal_repr(trial.params[param_name]))

    # Optuna's heartbeats.

    def record_heartbeat(self, trial_id: int) -> None:
        self.record_heartbeats([trial_id])

    def record_heartbeats(self, trial_ids: Collection[int]) -> None:
        """Note that trials are alive: one round trip for any number of them."""
        heartbeats.record(self.wire, trial_ids)

    def get_heartbeat_interval(self) -> int | None:
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        return self.heartbeat_stale_trial_callback

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        interval = self.heartbeat_interval
        if interval is None:
            return []
        return heartbeats.stale(self.wire, study_id, self.grace_period or 2 * interval)

    # Inside.

    def _end(self, batch: Batch) -> None:
        self._trials.batch = None
        for trial_id in [trial_id for unused in batch.made.values() for trial_id in unused]:
            with contextlib.suppress(KeyError, UpdateFinishedTrialError):
                self._trials.hold(batch, trial_id, batch.failed())
        outcomes = self._trials.outbox.flush(batch.writes)
        refused = {i: error for i, outcome in outcomes.items() if (error := refusal(i, outcome)) is not None}
        if refused:
            raise TrialsRefused(refused)

    def _write(self, trial_id: int, writes: TrialWrites) -> None:
        raise_refusal(trial_id, self._trials.write(trial_id, writes))

    def _set_study_attribute(self, study_id: int, kind: studies.Kind, key: str, value: Any) -> None:
        text = json.dumps(value)
        if not studies.set_attribute(self.wire, study_id, kind, checked_key(key), text):
            raise KeyError(NO_STUDY.format(study_id))
        batch = self._trials.batch
        if batch is not None and (study_id, kind) in batch.attributes:
            batch.attributes[study_id, kind][key] = json.loads(text)

    def _study_attributes(self, study_id: int, kind: studies.Kind) -> dict[str, Any]:
        batch = self._trials.batch
        if batch is not None and (study_id, kind) in batch.attributes:
            return dict(batch.attributes[study_id, kind])
        found = studies.attributes(self.wire, study_id, kind)
        if found is None:
            raise KeyError(NO_STUDY.format(study_id))
        if batch is not None:
            batch.attributes[study_id, kind] = dict(found)
        return found


def _flush_all() -> None:
    """At the end of the process: what waits is stored, as far as the database lets it."""
    for storage in list(_OPEN):
        with contextlib.suppress(StorageError):
            storage.flush()


_OPEN: weakref.WeakSet[ShoalStorage] = weakref.WeakSet()
atexit.register(_flush_all)
