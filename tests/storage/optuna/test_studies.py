"""Many studies in few messages, and what a pool asks of them again and again."""

from __future__ import annotations

import copy
import pickle

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.errors import DatabaseUnreachable
from storage.optuna import reads
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna.studies import StudyTemplate
from tests.contracts.wire import wired

COMPLETE = (TrialState.COMPLETE,)


def _template(name: str, **user: object) -> StudyTemplate:
    return StudyTemplate(
        name=name, direction=StudyDirection.MAXIMIZE, user_attrs=user, system_attrs={"s": [name]}
    )


def _waiting(value: float) -> FrozenTrial:
    return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": value}})


def test_studies_are_made_together(storage: ShoalStorage) -> None:
    before = storage.wire.round_trips
    keys = storage.make_studies([_template(f"s{number}", n=number) for number in range(40)])
    assert storage.wire.round_trips == before + 1
    assert list(keys) == [f"s{number}" for number in range(40)], "in the order in which they were asked for"
    assert list(keys.values()) == sorted(keys.values())
    stock = optuna.storages.RDBStorage(storage.wire.url)
    for name, key in keys.items():
        study = optuna.load_study(study_name=name, storage=stock)
        assert (study._study_id, study.direction) == (key, StudyDirection.MAXIMIZE)
        assert study.user_attrs == {"n": int(name[1:])}
        assert stock.get_study_system_attrs(key) == {"s": [name]}


def test_what_is_there_is_not_changed(storage: ShoalStorage) -> None:
    there = storage.create_new_study([StudyDirection.MINIMIZE], "there")
    storage.set_study_user_attr(there, "a", 1)
    keys = storage.make_studies([_template("new", a=2), _template("there", a=2, b=3)])
    assert keys["there"] == there
    assert storage.get_study_directions(there) == [StudyDirection.MINIMIZE]
    assert storage.get_study_user_attrs(there) == {"a": 1, "b": 3}
    assert storage.make_studies([]) == {}


def test_a_name_that_does_not_fit_makes_nothing(storage: ShoalStorage) -> None:
    with pytest.raises(ValueError, match="512 characters"):
        storage.make_studies([_template("fine"), _template("x" * 513)])
    assert storage.get_all_studies() == []


def test_trials_of_many_studies_wait_in_their_queues(storage: ShoalStorage) -> None:
    keys = storage.make_studies([_template(name) for name in "abc"])
    storage.create_trials(keys["b"], [_waiting(0.5)])
    before = storage.wire.round_trips
    storage.enqueue_trials({keys["b"]: [_waiting(1), _waiting(2)], keys["a"]: [_waiting(3)], keys["c"]: []})
    assert storage.wire.round_trips == before + 1
    found = {
        name: [(t.number, t.system_attrs["fixed_params"]["x"]) for t in storage.get_all_trials(key)]
        for name, key in keys.items()
    }
    assert found == {"a": [(0, 3)], "b": [(0, 0.5), (1, 1), (2, 2)], "c": []}


@pytest.mark.parametrize("size", [2, 50])
def test_studies_are_looked_up_together(
    storage: ShoalStorage, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """All that is new in them, whatever the number of studies in one statement."""
    monkeypatch.setattr(reads, "_TOGETHER", size)
    keys = storage.make_studies([_template(name) for name in "abcde"])
    storage.enqueue_trials({key: [_waiting(number)] * number for number, key in enumerate(keys.values())})
    other = ShoalStorage(storage.wire.url)
    for number, key in enumerate(keys.values()):
        if number:
            trial = other.get_all_trials(key)[0]
            assert other.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            other.set_trial_intermediate_value(trial._trial_id, 1, number)
    other.flush()

    def check() -> None:
        with storage.batch():
            storage.look_up([*keys, "unknown"])
            before = storage.wire.round_trips
            found = {name: storage.get_all_trials(storage.get_study_id_from_name(name)) for name in keys}
            assert storage.wire.round_trips == before, "all is known"
            with pytest.raises(KeyError):
                storage.get_study_id_from_name("unknown")
        stock = optuna.storages.RDBStorage(storage.wire.url)
        assert found == {name: stock.get_all_trials(key) for name, key in keys.items()}

    check()
    trial = other.get_all_trials(keys["e"])[0]
    other.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])
    other.create_trials(keys["a"], [_waiting(9)])
    check()
    assert storage.get_all_trials(keys["e"])[0].state == TrialState.COMPLETE
    other.close()


def test_enqueuing_is_not_tried_again_by_itself(storage: ShoalStorage) -> None:
    """Nobody can tell whether it was done: whoever wants to know looks."""
    keys = storage.make_studies([_template("a")])
    with wired(storage.wire.url) as wire:
        far = ShoalStorage(wire.url)
        wire.cut_after = lambda query: "INSERT INTO trials" in query
        with pytest.raises(DatabaseUnreachable) as caught:
            far.enqueue_trials({keys["a"]: [_waiting(1)]})
        assert caught.value.retryable
        assert len(far.get_all_trials(keys["a"])) == 1
        far.close()


class TestFinishedTrials:
    """Lists of finished trials are kept while none of them changes; pruners ask for them at every report."""

    @pytest.fixture
    def study_id(self, storage: ShoalStorage) -> int:
        return storage.create_new_study([StudyDirection.MINIMIZE], "s")

    def _numbers(self, storage: ShoalStorage, study_id: int, *states: TrialState) -> list[int]:
        return [trial.number for trial in storage.get_all_trials(study_id, deepcopy=False, states=states)]

    def test_a_trial_that_ends_is_among_them(self, storage: ShoalStorage, study_id: int) -> None:
        first, second, third = storage.create_trials(study_id, [None] * 3)
        for trial_id, state in ((second, TrialState.COMPLETE), (first, TrialState.PRUNED)):
            before = self._numbers(storage, study_id, state)
            assert storage.set_trial_state_values(trial_id, state, [1.0])
            assert len(self._numbers(storage, study_id, state)) == len(before) + 1
        assert self._numbers(storage, study_id, TrialState.COMPLETE) == [1]
        assert self._numbers(storage, study_id, TrialState.COMPLETE, TrialState.PRUNED) == [0, 1]
        assert self._numbers(storage, study_id, TrialState.COMPLETE, TrialState.RUNNING) == [1, 2]
        with storage.batch():
            assert self._numbers(storage, study_id, TrialState.COMPLETE) == [1]
            storage.set_trial_state_values(third, TrialState.COMPLETE, [1.0])
            assert self._numbers(storage, study_id, TrialState.COMPLETE) == [1, 2], (
                "shown before it is stored"
            )

    def test_one_that_another_client_ended_or_made_is_among_them(
        self, storage: ShoalStorage, study_id: int
    ) -> None:
        other = ShoalStorage(storage.wire.url)
        (trial_id,) = other.create_trials(study_id, [None])
        assert self._numbers(storage, study_id, *COMPLETE) == []
        other.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
        assert self._numbers(storage, study_id, *COMPLETE) == [0]
        done = create_trial(state=TrialState.COMPLETE, value=2.0)
        other.create_trials(study_id, [done])
        assert self._numbers(storage, study_id, *COMPLETE) == [0, 1]
        other.close()

    def test_the_list_is_the_askers_own(self, storage: ShoalStorage, study_id: int) -> None:
        storage.create_trials(study_id, [create_trial(state=TrialState.COMPLETE, value=2.0)])
        storage.get_all_trials(study_id, deepcopy=False, states=COMPLETE).clear()
        assert self._numbers(storage, study_id, *COMPLETE) == [0]


def test_copies_of_a_trial(storage: ShoalStorage) -> None:
    """Deep ones share what never changes and nothing else; pickled ones need nothing of ours."""
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    template = create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={"deep": {"er": [1]}},
        intermediate_values={1: 0.5},
    )
    (trial_id,) = storage.create_trials(study_id, [template])
    trial = storage.get_trial(trial_id)
    copied = copy.deepcopy(trial)
    assert copied == trial
    copied.params["x"] = 0.1
    copied.user_attrs["deep"]["er"].append(2)
    copied.intermediate_values[2] = 0.1
    copied.distributions["y"] = FloatDistribution(0, 1)
    assert copied != trial
    assert storage.get_trial(trial_id) == trial
    assert copied.distributions["x"] is trial.distributions["x"]
    for plain in (pickle.loads(pickle.dumps(trial)), copy.copy(trial)):
        assert type(plain) is FrozenTrial
        assert plain == trial
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial_id, "a", 1)
