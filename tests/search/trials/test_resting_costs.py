"""Of the trials that rest only those are looked at that have changed, and that makes no difference."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.pruning.promotion import AshaPromotion
from search.trials.pausing import Pausing
from search.trials.placing import Limits, Load
from search.trials.study import RETRY_KEY, SEED_KEY, Tally, has_seed

LIMITS = Limits(trials=1000, epochs=None, in_flight=None)
RULE = AshaPromotion(1, 3, 27, maximize=True)


class Standing:
    """What a study makes of its trials: its load, and its queue."""

    def __init__(self) -> None:
        self._tally = Tally(27)
        self._pausing = Pausing(RULE, LIMITS, has_seed)

    def read(self, trials: list[FrozenTrial]) -> tuple[Load, dict[str, Any]]:
        load = self._pausing.load(self._tally.update(trials), trials)
        queue = self._pausing.queue
        return load, {name: getattr(queue, name) for name in type(queue).__slots__}


def a_trial(number: int, state: TrialState, epochs: int, chance: random.Random) -> FrozenTrial:
    """A new object, as a storage makes one of whatever has changed."""
    begun = epochs or state != TrialState.WAITING
    attributes = {SEED_KEY: 1} if chance.random() < 0.9 else {}
    made = create_trial(
        state=state,
        value=chance.random() if state == TrialState.COMPLETE else None,
        intermediate_values={epoch: chance.random() for epoch in range(1, epochs + 1)},
        user_attrs=attributes | ({RETRY_KEY: 0} if chance.random() < 0.1 else {}),
        system_attrs={},
    )
    made.number = number
    made._params = {"x": 0.5} if begun else {}
    return made


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_one_finds_who_sees_all_for_the_first_time(seed: int) -> None:
    chance, standing = random.Random(seed), Standing()
    trials: list[FrozenTrial] = []
    for _ in range(60):
        trials = list(trials)
        for _ in range(chance.randrange(4)):
            trials.append(a_trial(len(trials), TrialState.WAITING, 0, chance))
        for number in chance.sample(range(len(trials)), min(len(trials), chance.randrange(5))):
            if not trials[number].state.is_finished():
                state = chance.choice(list(TrialState))
                trials[number] = a_trial(number, state, chance.choice([0, 1, 2, 3, 9]), chance)
        if chance.random() < 0.05:
            trials = trials[: len(trials) // 2]  # somebody deleted some
        load, queue = standing.read(trials)
        expected, expected_queue = Standing().read(trials)
        assert asdict(load) == asdict(expected)
        assert queue == expected_queue


class Watched(FrozenTrial):
    """Counts how often its values are asked for."""

    asked: ClassVar[Counter[int]] = Counter()

    @property
    def params(self) -> dict[str, Any]:
        self.asked[self.number] += 1
        return super().params

    @params.setter
    def params(self, values: dict[str, Any]) -> None:
        raise NotImplementedError


def watched(number: int, epochs: int) -> FrozenTrial:
    chance = random.Random(number)
    made = a_trial(number, TrialState.WAITING, epochs, chance)
    made.__class__ = Watched
    return made


def test_only_what_has_changed_is_looked_at() -> None:
    standing = Standing()
    trials = [watched(number, (1, 3, 9)[number % 3]) for number in range(300)]
    standing.read(trials)
    assert set(Watched.asked) == set(range(300))
    Watched.asked.clear()
    standing.read(list(trials))
    assert not Watched.asked
    trials = [*trials, watched(300, 0)]
    for number in (7, 30):
        trials[number] = watched(number, 9)
    load, _ = standing.read(trials)
    assert set(Watched.asked) == {7, 30, 300}
    assert (load.paused, load.fresh) == (300, 1)


def test_epochs_are_committed_to_what_runs_here_and_not_to_what_another_client_runs() -> None:
    chance, loads = random.Random(1), []
    for attributes in ({SEED_KEY: 1}, {}):
        trial = a_trial(0, TrialState.RUNNING, 3, chance)
        trial.user_attrs = attributes
        load, _ = Standing().read([trial])
        loads.append((load.epochs, load.committed))
    assert loads == [(3, 3 + 6), (3, 3)]
