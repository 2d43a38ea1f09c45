"""Batches: what is read once, what is stored together, and what others did meanwhile."""

from __future__ import annotations

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from storage.database import Database
from storage.optuna.batch import UNUSED, TrialsRefused
from storage.optuna.shoal_storage import ShoalStorage
from tests.storage.optuna.spaces import SIX


@pytest.fixture
def study(storage: ShoalStorage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def delete_trial(url: str, trial_id: int) -> None:
    with Database(url) as database:
        database.script(
            "DELETE FROM trial_intermediate_values WHERE trial_id = %(id)s;"
            "DELETE FROM trial_params WHERE trial_id = %(id)s;"
            "DELETE FROM trial_user_attributes WHERE trial_id = %(id)s;"
            "DELETE FROM trials WHERE trial_id = %(id)s RETURNING trial_id",
            {"id": trial_id},
        )


def test_nothing_is_stored_before_the_end(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trials = [study.ask(), study.ask()]
    with storage.batch():
        for trial in trials:
            trial.report(0.5, 1)
            study.tell(trial, 0.25)
        assert study.trials[0].state == TrialState.COMPLETE
        assert study.trials[0].intermediate_values == {1: 0.5}
        assert [one.state for one in stock.get_all_trials(study._study_id)] == [TrialState.RUNNING] * 2
        assert stock.get_trial(trials[0]._trial_id).intermediate_values == {}
    assert [one.value for one in stock.get_all_trials(study._study_id)] == [0.25, 0.25]
    assert stock.get_trial(trials[1]._trial_id).intermediate_values == {1: 0.5}


def test_what_was_accepted_before_an_exception_is_stored(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trial = study.ask()

    def told_then_broken() -> None:
        with storage.batch():
            study.tell(trial, 0.25)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        told_then_broken()
    assert stock.get_trial(trial._trial_id).value == 0.25
    study.ask().report(0.5, 1)  # the batch is over


def test_trials_that_nobody_asked_for_have_failed(storage: ShoalStorage, study: optuna.Study) -> None:
    with storage.batch(new={study._study_id: 4}):
        used = study.ask()
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL, TrialState.FAIL]
    assert study.trials[1].system_attrs == {UNUSED: True}
    study.tell(used, 1.0)


def test_a_study_is_read_once(storage: ShoalStorage, study: optuna.Study, stock: RDBStorage) -> None:
    with storage.batch():
        assert study.trials == []
        stock.create_new_trial(study._study_id)
        assert study.trials == []
    assert len(study.trials) == 1


def test_an_inner_batch_is_part_of_the_outer(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trial = study.ask()
    with storage.batch():
        with storage.batch():
            study.tell(trial, 0.25)
        assert stock.get_trial(trial._trial_id).state == TrialState.RUNNING
    assert stock.get_trial(trial._trial_id).state == TrialState.COMPLETE


@pytest.mark.parametrize("how", ["finished", "deleted"])
def test_others_end_a_trial_in_the_middle(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage, how: str
) -> None:
    """The rest of the batch is stored; what the others said of theirs stays."""
    trials = [study.ask(fixed_distributions=SIX) for _ in range(3)]
    storage.flush()

    def work() -> None:
        with storage.batch():
            for trial in trials:
                trial.report(0.5, 1)
                study.tell(trial, 0.25)
            if how == "finished":
                stock.set_trial_state_values(trials[1]._trial_id, TrialState.PRUNED, [7.0])
            else:
                delete_trial(storage.wire.url, trials[1]._trial_id)

    with pytest.raises(TrialsRefused) as refused:
        work()
    error = refused.value.errors
    assert set(error) == {trials[1]._trial_id}
    assert isinstance(error[trials[1]._trial_id], UpdateFinishedTrialError if how == "finished" else KeyError)
    for trial in (trials[0], trials[2]):
        assert stock.get_trial(trial._trial_id).value == 0.25
        assert stock.get_trial(trial._trial_id).intermediate_values == {1: 0.5}
    if how == "finished":
        theirs = stock.get_trial(trials[1]._trial_id)
        assert (theirs.state, theirs.value, theirs.intermediate_values) == (TrialState.PRUNED, 7.0, {})
        assert study.trials == stock.get_all_trials(study._study_id)
    else:
        assert len(study.trials) == 2
        with pytest.raises(KeyError):
            storage.get_trial(trials[1]._trial_id)


@pytest.mark.parametrize("how", ["finished", "deleted"])
def test_others_end_a_trial_whose_reports_wait(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage, how: str
) -> None:
    trial, other = study.ask(), study.ask()
    if how == "finished":
        stock.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    else:
        delete_trial(storage.wire.url, trial._trial_id)
    trial.report(0.5, 1)
    other.report(0.5, 1)
    storage.flush()
    wanted = UpdateFinishedTrialError if how == "finished" else KeyError
    with pytest.raises(wanted):
        storage.set_trial_intermediate_value(trial._trial_id, 2, 0.5)
    with pytest.raises(wanted):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])
    assert stock.get_trial(other._trial_id).intermediate_values == {1: 0.5}


def test_others_end_a_trial_before_it_is_told(
    storage: ShoalStorage, study: optuna.Study, stock: RDBStorage
) -> None:
    trial = study.ask()
    stock.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [7.0])
    with pytest.raises(UpdateFinishedTrialError):
        study.tell(trial, 0.25)
    assert study.trials[0].value == 7.0


def test_others_delete_the_study(storage: ShoalStorage, study: optuna.Study, stock: RDBStorage) -> None:
    trial = study.ask()
    stock.delete_study(study._study_id)
    with pytest.raises(KeyError):
        storage.get_all_trials(study._study_id)
    with pytest.raises(KeyError):
        study.tell(trial, 1.0)
    again = optuna.create_study(study_name="s", storage=storage)
    assert again._study_id != study._study_id
    assert again.trials == []


def test_a_trial_is_popped_once(storage: ShoalStorage, study: optuna.Study, stock: RDBStorage) -> None:
    study.enqueue_trial({"x": 0.5})
    waiting = study.trials[0]._trial_id
    assert stock.set_trial_state_values(waiting, TrialState.RUNNING)
    assert not storage.set_trial_state_values(waiting, TrialState.RUNNING)
    study.enqueue_trial({"x": 0.5})
    waiting = study.trials[1]._trial_id
    with storage.batch():
        assert storage.set_trial_state_values(waiting, TrialState.RUNNING)
        assert not stock.set_trial_state_values(waiting, TrialState.RUNNING)


def test_what_cannot_be_stored_is_refused_at_once(storage: ShoalStorage, study: optuna.Study) -> None:
    """One value that the tables can't hold would spoil what waits of all other trials."""
    trial = study.ask()
    with pytest.raises(ValueError, match="512"):
        trial.set_user_attr("k" * 513, 1)
    with pytest.raises(ValueError, match="NUL"):
        trial.set_user_attr("a\0b", 1)
    with pytest.raises(ValueError, match="step"):
        storage.set_trial_intermediate_value(trial._trial_id, 2**31, 0.5)
    with pytest.raises(TypeError):
        trial.set_user_attr("object", object())
    trial.set_user_attr("text", "a\0b")
    study.tell(trial, 0.5)
    assert study.trials[0].user_attrs == {"text": "a\0b"}


def test_a_value_set_twice_before_it_is_sent(storage: ShoalStorage, study: optuna.Study) -> None:
    with storage.batch():
        trial = study.ask(fixed_distributions=SIX)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", 2)
        storage.set_trial_intermediate_value(trial._trial_id, 1, 0.5)
        storage.set_trial_intermediate_value(trial._trial_id, 1, 0.75)
    with ShoalStorage(storage.wire.url) as again:
        stored = again.get_trial(trial._trial_id)
    assert stored.user_attrs == {"a": 2}
    assert stored.intermediate_values == {1: 0.75}
    assert stored.params == trial.params
