"""Optuna studies: counted, asked for values, asked for verdicts; `search.trials.making` makes them.

Here alone samplers and pruners are asked, by an Optuna `Study` that knows them. A study is one
method × replicate of an experiment, in Optuna's own tables, so that Optuna Dashboard and any Optuna
client open it. Nothing of a trial's life is written here: that is the ledger's, which a
worker's lease opens. What Optuna does not promise by itself (one ask at a time, a budget that is
never overshot) its callers add by holding the study's lock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from objectives.base import Scalar, derive_seed
from search.experiment.growth import Widening
from search.experiment.space import SearchSpace
from search.experiment.spec import ExperimentSpec
from search.pruning.pruners import Direction, build_pool_pruner, build_promotion, build_pruner
from search.pruning.rungs import RungTable
from search.sampling.history import History
from search.sampling.resting import Resting
from search.sampling.samplers import SamplingError, build_sampler
from search.trials.pausing import Pausing
from search.trials.placing import Limits, Load, Starts, chain_root
from search.trials.sharing import may_be_common
from storage.ledger import Draw, Lease
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna.stored import has_user_attr

GRID_KEY = "shoal:grid"
"""User attribute of a trial: which point of the grid it is."""
SEED_KEY = "shoal:seed"
"""User attribute of a trial: the seed of its weights, order, augmentation and dropout."""
RETRY_KEY = "shoal:retry_of"
"""User attribute of a trial: the number of the failed one that it repeats."""


class StudyDeleted(Exception):  # noqa: N818 - an event that callers handle, like Optuna's TrialPruned
    """Optuna's tables don't hold the study (any more)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the study {name} was deleted from Optuna's tables; going on makes it anew")
        self.name = name


class TrialUnusable(Exception):  # noqa: N818 - an event as well
    """A trial that another Optuna client put in the queue can't be run; the message says why."""


def study_lock(study_name: str) -> str:
    """Key of the lock under which a study is counted and asked."""
    return f"study:{study_name}"


def limits_of(spec: ExperimentSpec, method: str, replicate: int = 0) -> Limits:
    """What an experiment allows a study; a grid has as many trials as points."""
    trials = len(spec.grid_points(replicate)) if method == "grid" else spec.budget.trials
    return Limits(trials, spec.budget.epochs, spec.methods[method].in_flight)


def promised_epochs(spec: ExperimentSpec) -> int:
    """How many epochs a trial is promised when it begins: until it ends, or pauses for the first time."""
    # For where trials pause it makes no difference which values are good.
    rule = build_promotion(spec.pruner, spec.max_epochs(), "maximize")
    return spec.max_epochs() if rule is None else rule.pause_after(0)


@contextmanager
def batched(storage: BaseStorage, studies: Collection[str] = ()) -> Iterator[None]:
    """Read every study at most once, and write in one transaction, where the storage can.

    `studies`: names of those that will be read; it reads them together.
    """
    if not isinstance(storage, ShoalStorage):
        yield
        return
    with storage.batch():
        if len(studies) > 1:
            storage.look_up(studies)
        yield


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a trial trains with."""

    values: Mapping[str, Scalar]
    seed: int
    draw: Draw | None
    """What has to be stored of it; None if all is."""
    common: int | None = None
    """The number of the trials for which other methods may have drawn the same; None: none may."""


def has_seed(attributes: Mapping[str, Any]) -> bool:
    """Whether a trial's user attributes say that one of our workers runs it, or has ended it."""
    return attributes.get(SEED_KEY) is not None


class Tally:
    """Counts a study's trials at a cost that does not grow with it: what has finished is counted once."""

    def __init__(self, max_epochs: int) -> None:
        """`max_epochs`: the most that one trial can train."""
        self._max_epochs = max_epochs
        self._history = History()
        self._generation = 0
        self._counted = self._paid = self._epochs = 0
        self._open: dict[int, tuple[FrozenTrial, _Open]] = {}
        """What was found of each that has not ended; it holds while the storage shows the same object."""

    def update(self, trials: Sequence[FrozenTrial]) -> Load:
        """The load of a study with these trials, in the storage's order."""
        history = self._history
        history.update(trials)
        if history.generation != self._generation:
            self._generation = history.generation
            self._counted = self._paid = self._epochs = 0
        for _, trial in history.finished[self._counted :]:
            self._paid += not has_user_attr(trial, RETRY_KEY)
            self._epochs += trial.last_step or 0
        self._counted = len(history.finished)
        return replace(self._with_open(history.open), total=len(trials))

    def _with_open(self, trials: Mapping[int, FrozenTrial]) -> Load:
        before, self._open = self._open, {}
        for number, trial in trials.items():
            known = before.get(number)
            same = known is not None and known[0] is trial
            self._open[number] = known if known is not None and same else (trial, _open(trial))
        found = [one for _, one in self._open.values()]
        epochs = self._epochs + sum(one.epochs for one in found)
        under_way = sum(self._max_epochs - one.epochs for one in found if one.running or one.interrupted)
        return Load(
            trials=self._paid + sum(one.paid for one in found),
            running=sum(one.running for one in found),
            interrupted=sum(one.interrupted for one in found),
            fresh=sum(one.fresh for one in found),
            epochs=epochs,
            committed=epochs + under_way,
        )


class _Open(NamedTuple):
    """What a trial counts as that has not ended."""

    running: bool
    interrupted: bool
    fresh: bool
    paid: bool
    epochs: int


def _open(trial: FrozenTrial) -> _Open:
    # Ours have their seed from the moment in which the lock of their claim was given back until they go
    # back to the queue. What another client takes from there has none, however that client ends.
    running = trial.state == TrialState.RUNNING and has_seed(trial.user_attrs)
    waiting = trial.state == TrialState.WAITING
    # A trial has values from the moment a worker took it; a point of the grid only a promise of them.
    begun = bool(trial.params)
    paid = RETRY_KEY not in trial.user_attrs
    return _Open(running, waiting and begun, waiting and not begun, paid, trial.last_step or 0)


class SearchStudy:
    """One study of an experiment. Raises `StudyDeleted` if Optuna's tables don't hold it.

    One thread at a time. `load` and `draw` are called under the study's lock where
    something is decided by them.
    """

    def __init__(self, storage: BaseStorage, spec: ExperimentSpec, method: str, replicate: int) -> None:
        self.name = spec.study_name(method, replicate)
        self._storage = storage
        self._spec = spec
        self._method = method
        self._replicate = replicate
        self._space = spec.search_space()
        self._kinds = self._space.distributions()
        max_epochs = spec.max_epochs()
        self.promised = promised_epochs(spec)
        self.limits = limits_of(spec, method, replicate)
        self.adaptive = spec.methods[method].adaptive
        self._sampler = build_sampler(
            method, spec.methods[method], self._kinds, seed=spec.seed, replicate=replicate
        )
        try:
            self._study = optuna.load_study(
                study_name=self.name,
                storage=cast("BaseStorage", _WithoutNotes(storage)),
                sampler=self._sampler,
                pruner=build_pruner(spec.pruner, max_epochs),
            )
        except KeyError:
            raise StudyDeleted(self.name) from None
        direction: Direction = "maximize" if self._study.direction == StudyDirection.MAXIMIZE else "minimize"
        self._rule = build_pool_pruner(spec.pruner, max_epochs, self.name, direction)
        promotion = build_promotion(spec.pruner, max_epochs, direction)
        self._pausing = None if promotion is None else Pausing(promotion, self.limits, has_seed)
        self._resting = None if self._pausing is None else Resting(self._pausing.rests)
        self._tally = Tally(max_epochs)
        self._table = RungTable()
        self._widening = Widening(self._kinds)

    def load(self) -> Load:
        """How far the study is. Raises `StudyDeleted`."""
        trials = self._trials()
        load = self._tally.update(trials)
        return load if self._pausing is None else self._pausing.load(load, trials)

    def queued(self, starts: Starts) -> list[int] | None:
        """The numbers of the waiting trials that start, as of the last `load`; None: whatever waits."""
        return None if self._pausing is None else self._pausing.queue.taken(starts)

    def resting(self) -> list[int]:
        """The numbers of the trials that rest at a rung, as of the last `load`."""
        return [] if self._pausing is None else list(self._pausing.queue.resting)

    def pause_after(self, last_step: int | None) -> int | None:
        """The epoch after which a trial that has trained so many pauses; None: it trains to its end."""
        return None if self._pausing is None else self._pausing.rule.pause_after(last_step or 0)

    def _trials(self) -> list[FrozenTrial]:
        try:
            return self._study.get_trials(deepcopy=False)
        except KeyError:
            raise StudyDeleted(self.name) from None

    def draw(self, lease: Lease) -> Drawn:
        """The values and the seed of a trial: those that it has, those it was given, else the sampler's.

        Raises `TrialUnusable` for one whose values, given by another Optuna client, don't fit the
        space: it would end every worker that takes it, and with them the experiment.
        """
        given = {**lease.fixed, **lease.params}
        reason = self._space.misfit(given)
        if reason is not None:
            raise TrialUnusable(reason)
        began = time.perf_counter()
        try:
            values = draw(
                # Who learns nothing from earlier trials need not be shown them.
                self._widening.of(self._shown()) if self.adaptive else self._study,
                self._sampler,
                _frozen(lease, self._kinds),
                self._space,
                lease.fixed,
                kinds=self._kinds,
            )
        except (ValueError, SamplingError) as error:
            if not given:
                raise  # a mistake of ours or of the sampler's
            raise TrialUnusable(str(error)) from error
        seconds = time.perf_counter() - began
        root = self._root(lease)
        seed = derive_seed(self._spec.seed, self._replicate, root)
        chosen = bool(lease.fixed) and GRID_KEY not in lease.attributes
        number = None
        if len(self._spec.methods) > 1 and (
            chosen or may_be_common(values, self._kinds, self._spec.seed, self._replicate, root)
        ):
            number = root
        new = {name: value for name, value in values.items() if name not in lease.params}
        if not new and has_seed(lease.attributes):
            return Drawn(values, seed, None, number)
        draws = Draw(
            lease=lease,
            values=new,
            distributions={name: self._kinds[name] for name in new},
            attributes={SEED_KEY: seed},
            sampler_seconds=seconds,
        )
        return Drawn(values, seed, draws, number)

    def _shown(self) -> Study:
        """The study as a sampler sees it that learns from earlier trials."""
        return self._study if self._resting is None else self._resting.of(self._study)

    def _root(self, lease: Lease) -> int:
        """The number whose seed a trial has: its own, or that of the trial that it repeats."""
        if RETRY_KEY not in lease.attributes:
            return lease.number
        repeats = [trial.user_attrs.get(RETRY_KEY) for trial in self._trials()]
        repeats += [None] * (lease.number + 1 - len(repeats))
        repeats[lease.number] = int(lease.attributes[RETRY_KEY])
        return chain_root(lease.number, repeats)

    def stops(self, asked: Sequence[tuple[int, int]]) -> list[bool]:
        """Whether each (trial number, epoch just reported) is pruned: a whole pool in one question.

        Epochs that lie before the last one reported are a repetition: they were let through once,
        and a pruner would judge them by what came later.
        """
        if not (self._spec.pruner.stops and asked):
            return [False] * len(asked)
        self._table.update(self._trials())
        return self._rule.verdicts(self._table, asked)


class _WithoutNotes:
    """A storage for samplers: what they note on the trial at hand is dropped.

    Optuna's TPE stores there what it has drawn together, for others to see before the values are
    stored one by one. Here all values of a trial are stored at once, by its lease.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Nothing."""


def draw(
    study: Study,
    sampler: BaseSampler,
    trial: FrozenTrial,
    space: SearchSpace,
    fixed: Mapping[str, Any],
    *,
    kinds: Mapping[str, BaseDistribution],
) -> dict[str, Scalar]:
    """A trial's values as Optuna's `Trial.suggest_*` would give them, without writing any of them.

    `kinds` are the distributions of the space.
    Those that `trial` has stay; `fixed` ones are taken as given; the others come from the sampler,
    together where it knows how, else one by one. `trial` is changed: it gets the values as they are
    drawn, since an independent draw may look at them. Raises `ValueError` for a value that isn't one
    of its dimension, and what the sampler raises.
    """
    # What `Study.ask` does: a sampler that asks for trials sees those of now, not those of the last draw.
    study._thread_local.cached_all_trials = None
    seen = optuna.pruners._filter_study(study, trial)
    sampler.before_trial(seen, trial)
    joint: tuple[Mapping[str, BaseDistribution], Mapping[str, Any]] | None = None
    values: dict[str, Scalar] = {}
    for name in space.order:
        if not space.is_active(name, values):
            continue
        kind = kinds[name]
        if name in trial.params:
            value = trial.params[name]
        elif name in fixed:
            value = fixed[name]
        elif kind.single():
            value = kind.choices[0] if isinstance(kind, CategoricalDistribution) else cast("Any", kind).low
        else:
            if joint is None:
                relative = sampler.infer_relative_search_space(seen, trial)
                joint = relative, sampler.sample_relative(seen, trial, relative)
            value = joint[1].get(name)
            if name not in joint[1] or not kind._contains(kind.to_internal_repr(value)):
                value = sampler.sample_independent(seen, trial, name, kind)
        # As whoever reads it from the database will see it: 1 of a float is 1.0.
        value = kind.to_external_repr(kind.to_internal_repr(value))
        values[name] = trial.params[name] = value
        trial.distributions[name] = kind
    return values


def _frozen(lease: Lease, kinds: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """The trial as a sampler sees it."""
    known = {name: value for name, value in lease.params.items() if name in kinds}
    return FrozenTrial(
        number=lease.number,
        trial_id=lease.trial_id,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=None,
        datetime_complete=None,
        params=known,
        distributions={name: kinds[name] for name in known},
        user_attrs=dict(lease.attributes),
        system_attrs={"fixed_params": dict(lease.fixed)} if lease.fixed else {},
        intermediate_values={},
    )


def quiet_optuna() -> None:
    """Only Optuna's warnings reach the log of this process, not a line per trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
