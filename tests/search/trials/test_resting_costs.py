"""Of trials that rest only those are read and looked at that have changed, and that makes no difference."""

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
from storage.database import Database
from tests.contracts.experiments import Running, pausing_spec, prepared
from tests.contracts.wire import wired

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


def put_to_rest(running: Running, count: int) -> list[int]:
    """So many trials of a study that rest after their first epoch; their keys, the worst first."""
    storage, spec = running.storage, running.spec
    kinds = spec.search_space().distributions()
    study_id = storage.get_study_id_from_name(spec.study_name(next(iter(spec.methods)), 0))
    made = [
        create_trial(
            state=TrialState.WAITING,
            params={"learning_rate": 0.5, "lambda": 0.5},
            distributions=kinds,
            user_attrs={SEED_KEY: None},
            intermediate_values={1: place / count},
        )
        for place in range(count)
    ]
    return storage.create_trials(study_id, made)


@pytest.mark.parametrize(
    ("methods", "eta"),
    [({"random": {}}, 3), ({"tpe": {"n_startup_trials": 5, "in_flight": 50}}, 5000)],
    ids=["promoted ones", "new ones"],
)
def test_a_claim_reads_no_more_where_more_rest(database: Database, methods: dict[str, Any], eta: int) -> None:
    """Messages and rows, counted on the wire."""
    costs = []
    for resting in (100, 2000):
        spec = pausing_spec(
            5000,
            epochs=9,
            experiment=f"e{resting}",
            methods=methods,
            pruner={"name": "asha_promotion", "min_epochs": 1, "eta": eta},
        )
        with wired(database.url) as wire, Database(wire.url) as through, prepared(through, spec) as running:
            with prepared(database, spec) as beside:
                put_to_rest(beside, resting)
            with running.broker() as broker:
                broker.claim(1)
                wire.taken()
                numbers = [broker.claim(1)[0].lease.number for _ in range(4)]
                costs.append(wire.taken())
        promoted = range(resting - 2, resting - 6, -1)
        assert numbers == list(promoted if eta == 3 else range(resting + 1, resting + 5))
    assert costs[0] == costs[1]
    messages, rows = costs[0]
    assert messages == 4 * 5, "lock, read, claim, note the values, unlock"
    assert rows < 60


def test_what_another_process_did_with_those_that_rest_is_known_at_the_next_claim(database: Database) -> None:
    """Promoted, ended, deleted, given back: each time the best that rests, which this one would take."""
    spec = pausing_spec(200, epochs=9, pruner={"name": "asha_promotion", "min_epochs": 1, "eta": 3})
    with prepared(database, spec) as running, prepared(database, spec) as others:
        keys = put_to_rest(others, 60)
        with running.broker() as broker, others.broker() as other:
            assert broker.claim(1)[0].lease.number == 59
            assert other.claim(1)[0].lease.number == 58
            others.storage.set_trial_state_values(keys[57], TrialState.FAIL)
            assert broker.claim(1)[0].lease.number == 56
            for table in ("trial_params", "trial_intermediate_values", "trial_user_attributes", "trials"):
                gone = f"DELETE FROM {table} WHERE trial_id = %(id)s RETURNING trial_id"
                database.script(gone, {"id": keys[55]})
            assert broker.claim(1)[0].lease.number == 54
            (taken,) = other.claim(1)
            assert taken.lease.number == 53
            other.release(taken)
            other.flush()
            assert broker.claim(1)[0].lease.number == 53, "it rests again, and is the best that does"
