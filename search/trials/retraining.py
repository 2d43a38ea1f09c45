"""Winners trained again: which trial of a study, with which fresh seeds, and the study that holds them.

The best of many noisy values is better by luck as well, so what a search found is trained again with
seeds that no search has had, and scored once on the sealed test set. Each retraining is an ordinary
trial, leased, interrupted and resumed as others, in an Optuna study of its own beside that of the
search: samplers and pruners never see it, budgets don't count it, and it fills slots that the
search leaves free. It is made under the lock of the search's study by the first worker that finds
the search over, and names in its user attributes whose retraining it is: making it a second time
finds it there.

When an experiment grows, another trial may become the winner. It is retrained then; what was read of
the former one stays in the log, and counts no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from objectives.base import derive_seed
from search.trials.placing import Limits, Load, is_decided
from search.trials.study import SEED_KEY, Drawn, Tally, TrialUnusable, batched, has_seed, limits_of
from storage.failpoints import failpoint
from storage.ledger import Draw, Lease

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from objectives.base import Scalar
    from search.experiment.spec import ExperimentSpec
    from search.pruning.pruners import Direction
    from search.trials.placing import Starts

WINNER_KEY = "shoal:retrain_of"
"""User attribute of a retraining: the number of the trial that won the search."""
WINNER_ID_KEY = "shoal:retrain_trial"
"""The same trial by Optuna's id, which is never used again, should the study be deleted and made anew."""
INDEX_KEY = "shoal:retrain_seed"
"""User attribute of a retraining: which of the fresh seeds it has, from 0."""


def retraining_name(study_name: str) -> str:
    """The name of the study in which another study's winner is retrained."""
    return f"{study_name}/retrained"


def retraining_seed(experiment_seed: int, replicate: int, index: int) -> int:
    """The fresh seed of that index: the same for all methods of a replicate, and no searched trial's."""
    return derive_seed(experiment_seed, replicate, "retrain", index)


def winner(trials: Iterable[FrozenTrial], direction: Direction) -> FrozenTrial | None:
    """The best of the trials that were trained to their end and didn't diverge, the earlier of equals.

    The same as `search.compare.headline.incumbent`, on Optuna's trials.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    eligible = [
        (sign * trial.value, trial.number, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and not trial.user_attrs.get("diverged", False)
        and trial.value is not None
        and math.isfinite(trial.value)
    ]
    return min(eligible, key=lambda one: one[:2])[2] if eligible else None


def missing(winner_id: int, retrainings: Iterable[FrozenTrial], seeds: int) -> list[int]:
    """The indices of fresh seeds with which a winner has no retraining yet, in whatever state."""
    there = {
        trial.user_attrs.get(INDEX_KEY)
        for trial in retrainings
        if trial.user_attrs.get(WINNER_ID_KEY) == winner_id
    }
    return [index for index in range(seeds) if index not in there]


def is_due(
    searched: Sequence[FrozenTrial], retrainings: Sequence[FrozenTrial], direction: Direction, seeds: int
) -> bool:
    """Whether retraining is left to do for a search that is over; what runs now is being done."""
    if seeds == 0 or (best := winner(searched, direction)) is None:
        return False
    waits = any(trial.state == TrialState.WAITING for trial in retrainings)
    return waits or bool(missing(best._trial_id, retrainings, seeds))


def is_left(storage: BaseStorage, spec: ExperimentSpec, method: str, replicate: int) -> bool:
    """Whether a study's winner is still to be retrained, its search being over."""
    name = spec.study_name(method, replicate)
    searched, direction = trials_of(storage, name)
    load = Tally(spec.max_epochs()).update(searched)
    if not is_decided(load, limits_of(spec, method, replicate)):
        return False
    there, _ = trials_of(storage, retraining_name(name))
    return is_due(searched, there, direction, spec.comparison.retrain.seeds)


def direction_of(storage: BaseStorage, study_id: int) -> Direction:
    """A study's direction."""
    maximized = storage.get_study_directions(study_id)[0] == StudyDirection.MAXIMIZE
    return "maximize" if maximized else "minimize"


def trials_of(storage: BaseStorage, name: str) -> tuple[list[FrozenTrial], Direction]:
    """The trials of a study, not to be changed, and its direction; none of one that isn't there."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return [], "minimize"
    return storage.get_all_trials(study_id, deepcopy=False), direction_of(storage, study_id)


@dataclass(frozen=True, slots=True)
class Retrains:
    """Whose retraining a trial is."""

    study_name: str
    """The study of the search."""
    trial_id: int
    trial_number: int


class RetrainingStudy:
    """The retrainings of one search study's winner; to a broker, a study like `SearchStudy`.

    One thread at a time. Nothing is drawn: all values are those of the winner.
    """

    adaptive = False

    def __init__(self, storage: BaseStorage, spec: ExperimentSpec, method: str, replicate: int) -> None:
        self.searched = spec.study_name(method, replicate)
        self.name = retraining_name(self.searched)
        self.promised = spec.max_epochs()
        # Only what was put in the queue is run, after all that the searches want.
        self.limits = Limits(trials=0, epochs=None, in_flight=None, later=True)
        self.winner: FrozenTrial | None = None
        """The trial that is retrained, as `lacking` found it."""
        self._storage = storage
        self._spec = spec
        self.method = method
        self.replicate = replicate
        self._space = spec.search_space()
        self._tally = Tally(self.promised)

    def load(self) -> Load:
        """How far it is; nothing is waiting in a study that isn't there."""
        return self._tally.update(trials_of(self._storage, self.name)[0])

    def lacking(self) -> list[int]:
        """Indices of fresh seeds with which the winner is still to be retrained. Under the search's lock.

        The search has to be over. One that found nothing (all its trials diverged, say) has no winner,
        and nothing is retrained.
        """
        searched, direction = trials_of(self._storage, self.searched)
        self.winner = winner(searched, direction)
        if self.winner is None:
            return []
        there, _ = trials_of(self._storage, self.name)
        return missing(self.winner._trial_id, there, self._spec.comparison.retrain.seeds)

    def enqueue(self, indices: Iterable[int]) -> None:
        """Put what is `lacking` in the queue, all or nothing where the storage can; under the same lock.

        `storage.experiments` has to know the study before: nothing can be claimed of it otherwise.
        """
        assert self.winner is not None
        _, direction = trials_of(self._storage, self.searched)
        study = self._made(direction)
        failpoint("retraining.made")
        with batched(self._storage):
            for index in indices:
                study.enqueue_trial(
                    self.winner.params,
                    user_attrs={
                        WINNER_KEY: self.winner.number,
                        WINNER_ID_KEY: self.winner._trial_id,
                        INDEX_KEY: index,
                    },
                )

    def _made(self, direction: Direction) -> optuna.Study:
        """The study in Optuna's tables, with what tells a reader of them what it is."""
        study = optuna.create_study(
            study_name=self.name, storage=self._storage, direction=direction, load_if_exists=True
        )
        if "shoal:retrains" not in study.user_attrs:
            study.set_user_attr("shoal:experiment", self._spec.experiment)
            study.set_user_attr("shoal:method", self.method)
            study.set_user_attr("shoal:replicate", self.replicate)
            study.set_user_attr("shoal:metric", self._spec.metric)
            study.set_user_attr("shoal:retrains", self.searched)
        return study

    def draw(self, lease: Lease) -> Drawn:
        """The winner's values, and the fresh seed of the lease's trial.

        Raises `TrialUnusable` for a retraining of a former winner, and for a trial that another Optuna
        client put in this study.
        """
        index = lease.attributes.get(INDEX_KEY)
        if not isinstance(index, int) or self.winner is None:
            raise TrialUnusable("is no retraining of a winner")
        if not self._is_of(self.winner, lease):
            # Another trial may have become the winner since somebody looked here.
            searched, direction = trials_of(self._storage, self.searched)
            self.winner = winner(searched, direction) or self.winner
        if not self._is_of(self.winner, lease):
            raise TrialUnusable(f"trial {self.winner.number} has become the winner of {self.searched} since")
        values = self._values({**lease.fixed, **lease.params})
        seed = retraining_seed(self._spec.seed, self.replicate, index)
        new = {name: value for name, value in values.items() if name not in lease.params}
        if not new and has_seed(lease.attributes):
            return Drawn(values, seed, None)
        kinds = self._space.distributions()
        write = Draw(
            lease=lease,
            values=new,
            distributions={name: kinds[name] for name in new},
            attributes={SEED_KEY: seed},
        )
        return Drawn(values, seed, write)

    @staticmethod
    def _is_of(trial: FrozenTrial, lease: Lease) -> bool:
        """Whether a retraining is that of a trial."""
        return lease.attributes.get(WINNER_ID_KEY) == trial._trial_id

    def _values(self, given: Mapping[str, Any]) -> dict[str, Scalar]:
        reason = self._space.misfit(given)
        if reason is not None:
            raise TrialUnusable(reason)
        kinds = self._space.distributions()
        values: dict[str, Scalar] = {}
        for name in self._space.order:
            if not self._space.is_active(name, values):
                continue
            if name not in given:
                raise TrialUnusable(f"the winner has no {name}")
            kind = kinds[name]
            values[name] = cast("Scalar", kind.to_external_repr(kind.to_internal_repr(given[name])))
        return values

    def retrains(self, lease: Lease) -> Retrains:
        """Whose retraining a trial is that `draw` let pass."""
        return Retrains(
            self.searched, int(lease.attributes[WINNER_ID_KEY]), int(lease.attributes[WINNER_KEY])
        )

    def queued(self, starts: Starts) -> None:
        """Nothing pauses: whatever waits may be taken."""

    def resting(self) -> list[int]:
        """No trial."""
        return []

    def pause_after(self, last_step: int | None) -> None:
        """A winner is trained to its end."""

    def stops(self, asked: Sequence[tuple[int, int]]) -> list[bool]:
        """Nothing is pruned: a winner is trained to its end."""
        return [False] * len(asked)
