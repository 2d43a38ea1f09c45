"""Optuna studies: made once, asked, reported to, told.

This is the only place (with `samplers`, `pruners` and `space`) that touches Optuna's `Study`. A study
is one method × replicate of an experiment, in Optuna's own tables, so that Optuna Dashboard and any
Optuna client open it. What Optuna does not promise by itself (one ask at a time, a budget that is
never overshot) its callers add by holding the study's lock.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from objectives.base import Scalar, derive_seed
from search.pruners import Direction, build_pruner
from search.samplers import SamplingError, build_sampler
from search.settings import GridSettings
from search.spec import ExperimentSpec

GRID_KEY = "shoal:grid"
"""User attribute of a trial: which point of the grid it is."""
SEED_KEY = "shoal:seed"
"""User attribute of a trial: the seed of its weights, order, augmentation and dropout."""


class TrialTaken(Exception):  # noqa: N818 - an event that callers handle, like Optuna's TrialPruned
    """Somebody else ended or deleted the trial; what this worker has to say of it is no longer wanted."""


class StudyDeleted(Exception):  # noqa: N818 - an event as well
    """Optuna's tables don't hold the study (any more)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the study {name} was deleted from Optuna's tables; going on makes it anew")


class TrialUnusable(Exception):  # noqa: N818 - an event as well
    """A trial that another Optuna client put in the queue can't be run; it has been ended as failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """How far a study is, counted under its lock."""

    trials: int
    """All trials, whatever their state."""
    running: int
    interrupted: int
    """Waiting trials that have begun before: they go on first, and don't count as new."""
    fresh: int
    """Waiting trials that nobody has begun: points of a grid."""
    epochs: int
    """Epochs reported so far."""
    committed: int
    """`epochs`, and all that running and interrupted trials may still train."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a study may have."""

    trials: int
    epochs: int | None
    """Epochs after which no new trial begins; None: no limit."""
    in_flight: int | None
    """Trials running at once; None: no limit."""


def may_start(load: Load, limits: Limits) -> bool:
    """Whether a trial may start in a study now.

    An interrupted trial may always go on: it was admitted before. A new one needs a place in the
    budget of trials, and epochs that aren't already promised to the trials under way: so workers
    in parallel spend no more epochs than one worker alone would.
    """
    if limits.in_flight is not None and load.running >= limits.in_flight:
        return False
    if load.interrupted:
        return True
    if limits.epochs is not None and load.committed >= limits.epochs:
        return False
    return load.fresh > 0 or load.trials < limits.trials


def may_ever_start(load: Load, limits: Limits) -> bool:
    """Whether a trial may start now or later, provided that running ones end well."""
    if load.interrupted:
        return True
    if limits.epochs is not None and load.epochs >= limits.epochs:
        return False
    return load.fresh > 0 or load.trials < limits.trials


def limits_of(spec: ExperimentSpec, method: str) -> Limits:
    """What an experiment allows each study of a method; a grid has as many trials as points."""
    trials = len(spec.search_space().grid_points()) if method == "grid" else spec.budget.trials
    return Limits(trials, spec.budget.epochs, spec.methods[method].in_flight)


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial to run: its number decides its seed, its values decide its config."""

    trial_id: int
    number: int
    values: Mapping[str, Scalar]


class SearchStudy:
    """One study of an experiment. Raises `StudyDeleted` if Optuna's tables don't hold it.

    One thread at a time. `load`, `enqueue_grid` and `ask` are called under the study's lock.
    """

    def __init__(self, storage: BaseStorage, spec: ExperimentSpec, method: str, replicate: int) -> None:
        self.name = spec.study_name(method, replicate)
        self._storage = storage
        self._spec = spec
        self._method = method
        self._replicate = replicate
        self._space = spec.search_space()
        self._max_epochs = spec.max_epochs()
        self.limits = limits_of(spec, method)
        sampler = build_sampler(
            method, spec.methods[method], self._space.distributions(), seed=spec.seed, replicate=replicate
        )
        pruner = build_pruner(spec.pruner, self._max_epochs)
        try:
            self._study = optuna.load_study(
                study_name=self.name, storage=storage, sampler=sampler, pruner=pruner
            )
        except KeyError:
            raise StudyDeleted(self.name) from None

    def load(self) -> Load:
        """How far the study is. Raises `StudyDeleted`."""
        try:
            trials = self._study.get_trials(deepcopy=False)
        except KeyError:
            raise StudyDeleted(self.name) from None
        return load_of(trials, self._max_epochs)

    def enqueue_grid(self) -> int:
        """Put every point of the grid that isn't there yet in the queue; returns how many.

        Each point is one trial with its key as user attribute, so a second call adds nothing.
        """
        trials = self._study.get_trials(deepcopy=False)
        there = {trial.user_attrs.get(GRID_KEY) for trial in trials}
        settings = self._spec.methods[self._method]
        points = self._space.grid_points()
        if isinstance(settings, GridSettings) and settings.order == "shuffled":
            points = shuffled(points, self._spec.seed, self._replicate)
        missing = [point for point in points if grid_key(point) not in there]
        for point in missing:
            self._study.enqueue_trial(point, user_attrs={GRID_KEY: grid_key(point)})
        return len(missing)

    def ask(self) -> Asked:
        """The next trial: the first that waits, else a new one with values from the sampler.

        Raises `TrialUnusable` for one whose values, given by another Optuna client, don't fit the
        space: it would end every worker that asks, and with them the experiment.
        """
        trial = self._study.ask()
        found = self._storage.get_trial(trial._trial_id)
        given = found.system_attrs.get("fixed_params", {})
        reason = self._space.misfit(given)
        if reason is None:
            try:
                return Asked(trial._trial_id, trial.number, self._space.suggest(trial))
            except (ValueError, SamplingError) as error:
                if not given and not found.params:
                    raise  # a mistake of ours or of the sampler's
                reason = str(error)
        give_up(self._storage, trial._trial_id, reason)
        raise TrialUnusable(f"trial {trial.number} of {self.name}: {reason}")

    def note(self, asked: Asked, key: str, value: Scalar) -> None:
        """Set a user attribute of a trial. Raises `TrialTaken`."""
        with _taken(asked):
            self._storage.set_trial_user_attr(asked.trial_id, key, value)

    def report(self, asked: Asked, epoch: int, value: float) -> None:
        """Store a trial's value after so many epochs. Raises `TrialTaken`.

        An epoch that an earlier attempt reported is written again: it is the same value, unless
        the attempts ran on different devices, and then the one that is used should be seen.
        """
        if not math.isfinite(value):
            raise ValueError(f"trial {asked.number} of {self.name} reported {value} at epoch {epoch}")
        with _taken(asked):
            self._storage.set_trial_intermediate_value(asked.trial_id, epoch, value)

    def should_prune(self, asked: Asked, epoch: int) -> bool:
        """Whether the trial stops after this epoch. Raises `TrialTaken`.

        Epochs that lie before the last one reported are a repetition: they were let through once,
        and a pruner would judge them by what came later.
        """
        if isinstance(self._study.pruner, NopPruner):
            return False
        with _taken(asked):
            trial = self._storage.get_trial(asked.trial_id)
        if trial.last_step is None or trial.last_step > epoch:
            return False
        return self._study.pruner.prune(self._study, trial)

    def complete(self, asked: Asked, value: float) -> None:
        """The trial trained to its end. Raises `TrialTaken`."""
        if not math.isfinite(value):
            raise ValueError(f"trial {asked.number} of {self.name} ended with {value}")
        self._tell(asked, TrialState.COMPLETE, value)

    def prune(self, asked: Asked) -> None:
        """The trial was stopped; Optuna keeps the value at its last epoch. Raises `TrialTaken`."""
        self._tell(asked, TrialState.PRUNED)

    def fail(self, asked: Asked, reason: str) -> None:
        """The trial can't be trained. Raises `TrialTaken`."""
        self.note(asked, "reason", reason)
        self._tell(asked, TrialState.FAIL)

    def requeue(self, asked: Asked) -> None:
        """Put a running trial back in the queue, with its number, values and reports."""
        requeue(self._storage, asked.trial_id)

    def _tell(self, asked: Asked, state: TrialState, value: float | None = None) -> None:
        with _taken(asked):
            try:
                self._study.tell(asked.number, value, state=state)
            except ValueError as error:
                # Values are checked above; what is left is "Cannot tell a COMPLETE trial."
                raise TrialTaken(f"trial {asked.number} of {self.name}: {error}") from error


@contextmanager
def _taken(asked: Asked) -> Iterator[None]:
    try:
        yield
    except (UpdateFinishedTrialError, KeyError) as error:
        raise TrialTaken(f"trial {asked.number}: {error}") from error


def load_of(trials: Sequence[FrozenTrial], max_epochs: int) -> Load:
    """Count a study's trials. `max_epochs`: the most that one trial can train."""
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING]
    # A trial has values from the moment a worker asked for it; a point of the grid only a promise of them.
    interrupted = [trial for trial in waiting if trial.params]
    epochs = sum(trial.last_step or 0 for trial in trials)
    under_way = sum(max_epochs - (trial.last_step or 0) for trial in (*running, *interrupted))
    return Load(
        trials=len(trials),
        running=len(running),
        interrupted=len(interrupted),
        fresh=len(waiting) - len(interrupted),
        epochs=epochs,
        committed=epochs + under_way,
    )


def grid_key(point: Mapping[str, Scalar]) -> str:
    """What makes a point of the grid itself: its values in canonical JSON."""
    return json.dumps(dict(point), sort_keys=True, separators=(",", ":"))


def shuffled(points: Sequence[dict[str, Scalar]], seed: int, replicate: int) -> list[dict[str, Scalar]]:
    """The points in the replicate's own order."""
    order = list(points)
    random.Random(derive_seed(seed, replicate, "grid")).shuffle(order)
    return order


def create_study(
    storage: BaseStorage, spec: ExperimentSpec, method: str, replicate: int, direction: Direction
) -> None:
    """Make a study in Optuna's tables, or leave the one that is there as it is."""
    study = optuna.create_study(
        study_name=spec.study_name(method, replicate),
        storage=storage,
        direction=direction,
        load_if_exists=True,
    )
    if "shoal:versions" in study.user_attrs:
        return
    # All that it does is to store the name that dashboards show. No `catch_warnings`, which would
    # set back the filters of other threads as well.
    warnings.filterwarnings("ignore", ".*set_metric_names is experimental", ExperimentalWarning)
    study.set_metric_names([spec.metric])
    study.set_user_attr("shoal:experiment", spec.experiment)
    study.set_user_attr("shoal:method", method)
    study.set_user_attr("shoal:replicate", replicate)
    study.set_user_attr("shoal:metric", spec.metric)
    study.set_user_attr("shoal:settings", spec.methods[method].model_dump(mode="json"))
    study.set_user_attr("shoal:pruner", spec.pruner.model_dump(mode="json"))
    # Last: its presence says that the others are there.
    study.set_user_attr("shoal:versions", {name: version(name) for name in ("optuna", "torch", "shoal")})


def study_exists(storage: BaseStorage, name: str) -> bool:
    """Whether a study is there, with all that `create_study` writes."""
    try:
        attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except KeyError:
        return False
    return "shoal:versions" in attributes


def requeue(storage: BaseStorage, trial_id: int) -> bool:
    """Put a trial back in its study's queue; False if it has ended meanwhile (or is deleted)."""
    try:
        return storage.set_trial_state_values(trial_id, TrialState.WAITING)
    except (UpdateFinishedTrialError, KeyError):
        return False


def give_up(storage: BaseStorage, trial_id: int, reason: str) -> bool:
    """End a trial that no worker holds as failed; False if it has ended meanwhile."""
    try:
        storage.set_trial_user_attr(trial_id, "reason", reason)
        return storage.set_trial_state_values(trial_id, TrialState.FAIL)
    except (UpdateFinishedTrialError, KeyError):
        return False


def quiet_optuna() -> None:
    """Only Optuna's warnings reach the log of this process, not a line per trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
