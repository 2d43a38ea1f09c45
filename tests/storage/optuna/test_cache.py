"""What is read, when, and what stays the same object; also of what others write by their own SQL."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from storage.database import Database
from storage.optuna.shoal_storage import ShoalStorage
from tests.contracts.processes import until
from tests.storage.optuna.spaces import SIX


@pytest.fixture
def study(storage: ShoalStorage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=storage)


def execute(database: Database, statement: str, **values: Any) -> None:
    database.script(f"{statement} RETURNING 1", values)


def shared(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False)


def test_finished_trials_stay_the_same_objects(study: optuna.Study, stock: RDBStorage) -> None:
    for value in range(3):
        study.tell(study.ask(fixed_distributions=SIX), value)
    study.add_trial(create_trial(value=3.0))
    first = shared(study)
    stock.create_new_trial(study._study_id)
    running = study.ask()
    running.report(1.0, 1)
    second = shared(study)
    assert len(second) == 6
    assert all(old is new for old, new in zip(first, second, strict=False))
    assert study._storage.get_trial(first[1]._trial_id) is first[1]
    assert study._storage.get_best_trial(study._study_id) is first[0]


def test_the_list_is_the_callers(study: optuna.Study) -> None:
    study.tell(study.ask(), 1.0)
    shared(study).clear()
    assert len(shared(study)) == 1


def test_what_was_returned_never_changes(storage: ShoalStorage, study: optuna.Study) -> None:
    trial = study.ask(fixed_distributions=SIX)
    before = storage.get_trial(trial._trial_id)
    params = dict(before.params)
    trial.report(0.5, 1)
    trial.set_user_attr("a", 1)
    study.tell(trial, 0.25)
    assert (before.state, before.value, before.intermediate_values) == (TrialState.RUNNING, None, {})
    assert (before.user_attrs, before.params) == ({}, params)


def test_a_copy_may_be_changed(study: optuna.Study) -> None:
    study.add_trial(
        create_trial(value=1.0, user_attrs={"list": [1, {"deep": 2}]}, intermediate_values={1: 2.0})
    )
    (copied,) = study.get_trials()
    copied.user_attrs["list"][1]["deep"] = 3
    copied.intermediate_values[1] = 3.0
    copied.params["new"] = 1
    copied.values = [5.0]
    (kept,) = shared(study)
    assert kept.user_attrs == {"list": [1, {"deep": 2}]}
    assert (kept.intermediate_values, kept.params, kept.values) == ({1: 2.0}, {}, [1.0])


def test_by_number_whatever_the_order_of_reading(storage: ShoalStorage, stock: RDBStorage) -> None:
    """Our own trials are known before those of others that were made before them."""
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    storage.get_all_trials(study_id)
    for own in (False, True, False, True, True):
        (storage if own else stock).create_new_trial(study_id)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    assert [trial.number for trial in trials] == list(range(5))
    for trial in trials:
        assert storage.get_trial_id_from_study_id_trial_number(study_id, trial.number) == trial._trial_id
    storage.set_trial_intermediate_value(trials[1]._trial_id, 1, 0.5)
    assert storage.get_all_trials(study_id)[1].intermediate_values == {1: 0.5}


def test_others_trials_are_read_anew(storage: ShoalStorage, study: optuna.Study, stock: RDBStorage) -> None:
    trial_id = stock.create_new_trial(study._study_id)
    assert storage.get_trial(trial_id).state == TrialState.RUNNING
    stock.set_trial_param(trial_id, "x", 0.5, SIX["x"])
    stock.set_trial_intermediate_value(trial_id, 1, 0.5)
    stock.set_trial_user_attr(trial_id, "a", 1)
    assert storage.get_trial(trial_id) == stock.get_trial(trial_id)
    stock.set_trial_param(trial_id, "lr", 0.5, SIX["lr"])
    stock.set_trial_intermediate_value(trial_id, 2, 0.25)
    stock.set_trial_user_attr(trial_id, "a", 2)
    assert shared(study) == stock.get_all_trials(study._study_id)
    stock.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.25])
    assert shared(study) == stock.get_all_trials(study._study_id)


def test_a_trial_that_was_not_changed_stays_the_same_object(study: optuna.Study, stock: RDBStorage) -> None:
    stock.create_new_trial(study._study_id)
    assert shared(study)[0] is shared(study)[0]


def test_rows_written_over_are_seen_with_the_next_change_of_state(
    study: optuna.Study, stock: RDBStorage, beside: Database
) -> None:
    """A later attempt repeats epoch 1: its row keeps its key. The rule is in `storage.optuna.cache`."""
    trial_id = stock.create_new_trial(study._study_id)
    stock.set_trial_intermediate_value(trial_id, 1, 0.5)
    assert shared(study)[0].intermediate_values == {1: 0.5}
    over = "UPDATE trial_intermediate_values SET intermediate_value = %(value)s WHERE trial_id = %(id)s"
    execute(beside, over, value=0.75, id=trial_id)
    execute(beside, "UPDATE trials SET state = 'WAITING' WHERE trial_id = %(id)s", id=trial_id)
    execute(beside, "UPDATE trials SET state = 'RUNNING' WHERE trial_id = %(id)s", id=trial_id)
    assert shared(study)[0].intermediate_values == {1: 0.75}
    execute(beside, over, value=1.0, id=trial_id)
    execute(beside, "UPDATE trials SET state = 'PRUNED' WHERE trial_id = %(id)s", id=trial_id)
    assert shared(study)[0].intermediate_values == {1: 1.0}
    assert shared(study)[0].state == TrialState.PRUNED


def test_a_trial_of_ours_that_others_finish_is_seen(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trial = study.ask()
    trial.report(0.5, 1)
    stock.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert shared(study)[0].state == TrialState.FAIL
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial._trial_id, "a", 1)
    storage.flush()
    assert stock.get_trial(trial._trial_id).intermediate_values == {}


def test_a_trial_that_was_put_back_is_no_longer_ours(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trial = study.ask()
    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    stock.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    stock.set_trial_intermediate_value(trial._trial_id, 1, 0.5)
    assert storage.get_trial(trial._trial_id).intermediate_values == {1: 0.5}
    assert not storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)


def test_what_waits_is_stored_soon(storage: ShoalStorage, study: optuna.Study, stock: RDBStorage) -> None:
    trial = study.ask()
    trial.report(0.5, 1)
    trial.set_user_attr("a", 1)
    until(lambda: stock.get_trial(trial._trial_id).intermediate_values == {1: 0.5})
    assert stock.get_trial(trial._trial_id).user_attrs == {"a": 1}


def test_the_background_thread_ends(storage: ShoalStorage, study: optuna.Study, monkeypatch: Any) -> None:
    monkeypatch.setattr("storage.optuna.outbox.IDLE", 0.05)
    outbox = storage._trials.outbox
    for step in range(2):
        study.ask().report(0.5, step)
        until(lambda: outbox._thread is None)
    with ShoalStorage(storage.wire.url) as again:
        assert [t.intermediate_values for t in again.get_all_trials(study._study_id)] == [{0: 0.5}, {1: 0.5}]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_best_trial_beside_others(storage: ShoalStorage, stock: RDBStorage, direction: str) -> None:
    study = optuna.create_study(storage=storage, direction=direction)
    theirs = optuna.load_study(study_name=study.study_name, storage=stock)
    for value in (3.0, 1.0, float("inf"), 1.0, -2.0, float("-inf"), 4.0):
        theirs.add_trial(create_trial(value=value))
        study.add_trial(create_trial(state=TrialState.PRUNED, value=-value))
        assert study.best_trial.value == theirs.best_trial.value
    values = [trial.value for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert study.best_value == (min(values) if direction == "minimize" else max(values))


def test_studies_share_a_storage(storage: ShoalStorage) -> None:
    studies = [optuna.create_study(study_name=f"s{i}", storage=storage) for i in range(3)]
    for turn in range(2):
        for i, study in enumerate(studies):
            study.tell(study.ask(), float(i))
            assert [trial.value for trial in study.trials] == [float(i)] * (turn + 1)


def test_incompatible_distributions_of_others_are_refused(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    stock.set_trial_param(stock.create_new_trial(study._study_id), "x", 0.5, SIX["x"])
    trial_id = storage.create_new_trial(study._study_id)
    with pytest.raises(ValueError, match="different distribution kind"):
        storage.set_trial_param(trial_id, "x", 1, SIX["flag"])
    assert storage.get_trial(trial_id).params == {}
