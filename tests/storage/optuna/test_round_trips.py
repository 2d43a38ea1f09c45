"""What each operation costs: messages on the connection, counted by a proxy."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest

from storage.optuna.shoal_storage import ShoalStorage
from tests.contracts.postgres_proxy import PostgresProxy
from tests.storage.optuna.spaces import SIX

FLOAT = optuna.distributions.FloatDistribution(0.0, 1.0)


@pytest.fixture
def proxy(empty_url: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(empty_url) as opened:
        yield opened


@pytest.fixture
def counted(proxy: PostgresProxy) -> Iterator[ShoalStorage]:
    storage = ShoalStorage(proxy.url)
    yield storage
    storage.close()


def new_study(storage: ShoalStorage, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner
    )
    study.add_trials(
        [optuna.trial.create_trial(value=float(i), intermediate_values={1: i}) for i in range(6)]
    )
    study.get_trials(deepcopy=False)
    return study


def test_ask_of_64_with_six_parameters(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    proxy.taken()
    with counted.batch(new={study._study_id: 64}):
        trials = [study.ask(fixed_distributions=SIX) for _ in range(64)]
    assert len(proxy.taken()) == 3  # what waits in the queue, 64 trials, 384 parameters
    assert [trial.number for trial in trials] == list(range(6, 70))
    stock = optuna.load_study(study_name="s", storage=proxy.url)
    assert [trial.params for trial in stock.trials[6:]] == [trial.params for trial in trials]
    stock._storage._backend.engine.dispose()


def test_make_64_with_all_parameters(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    asked = [optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING) for _ in range(64)]
    proxy.taken()
    counted.create_trials(study._study_id, asked)
    assert len(proxy.taken()) == 1


def test_an_epoch_of_256_trials(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted, optuna.pruners.MedianPruner(n_startup_trials=0))
    with counted.batch(new={study._study_id: 256}):
        trials = [study.ask() for _ in range(256)]
    proxy.taken()
    with counted.batch():
        for trial in trials:
            trial.report(9.0, 1)
    assert len(proxy.taken()) == 1
    with counted.batch():
        assert all(trial.should_prune() for trial in trials)
    assert len(proxy.taken()) == 1


def test_tell_of_256_trials(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    with counted.batch(new={study._study_id: 256}):
        trials = [study.ask(fixed_distributions=SIX) for _ in range(256)]
    proxy.taken()
    with counted.batch():
        for trial in trials:
            study.tell(trial, trial.params["x"])
    assert len(proxy.taken()) == 1
    assert [trial.value for trial in study.trials[6:]] == [trial.params["x"] for trial in trials]


def test_one_trial_without_a_batch(
    proxy: PostgresProxy, counted: ShoalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.optuna.outbox.INTERVAL", 3600)  # the background thread does not interfere
    study = new_study(counted)
    proxy.taken()
    trial = study.ask(fixed_distributions=SIX)
    for step in range(20):
        trial.report(0.5, step)
    study.tell(trial, 0.5)
    assert len(proxy.taken()) == 3  # what waits in the queue, the trial, all that was written of it


def test_a_parameter_that_is_stored_already(
    proxy: PostgresProxy, counted: ShoalStorage, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stays, and what comes with the second is stored: by a second message, which looks for it."""
    monkeypatch.setattr("storage.optuna.outbox.INTERVAL", 3600)
    study = new_study(counted)
    trial, other = study.ask(), study.ask()
    counted.set_trial_param(trial._trial_id, "x", 0.25, FLOAT)
    counted.flush()
    proxy.taken()
    counted.set_trial_param(trial._trial_id, "x", 0.75, FLOAT)
    counted.set_trial_param(trial._trial_id, "y", 0.75, FLOAT)
    counted.set_trial_param(other._trial_id, "x", 0.5, FLOAT)
    counted.flush()
    assert len(proxy.taken()) == 2
    with ShoalStorage(empty_url) as beside:
        assert beside.get_trial(trial._trial_id).params == {"x": 0.25, "y": 0.75}
        assert beside.get_trial(other._trial_id).params == {"x": 0.5}


def test_what_is_known_costs_nothing(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    trial = study.ask()
    proxy.taken()
    for _ in range(3):
        assert counted.get_study_name_from_id(study._study_id) == "s"
        assert study.directions == [optuna.study.StudyDirection.MINIMIZE]
        assert counted.get_trial(trial._trial_id).number == 6
        assert counted.get_trial_id_from_study_id_trial_number(study._study_id, 6) == trial._trial_id
    assert proxy.taken() == []


def test_a_reading_is_one_message_whatever_is_new(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    trials = [study.ask() for _ in range(5)]
    for trial in trials:
        trial.report(1.0, 1)
    counted.flush()
    proxy.taken()
    for _ in range(4):
        study.get_trials(deepcopy=False)
    assert len(proxy.taken()) == 4


def test_all_of_a_batch_is_one_transaction(proxy: PostgresProxy, counted: ShoalStorage) -> None:
    study = new_study(counted)
    with counted.batch(new={study._study_id: 3}):
        trials = [study.ask(fixed_distributions=SIX) for _ in range(3)]
    proxy.taken()
    with counted.batch():
        for trial in trials:
            trial.set_user_attr("a", 1)
            trial.report(0.5, 1)
            study.tell(trial, 0.25)
    (message,) = proxy.taken()
    order = [
        message.index(f"INTO {table}") for table in ("trial_user_attributes", "trial_intermediate_values")
    ]
    order += [message.index("INTO trial_values"), message.index("UPDATE trials")]
    assert order == sorted(order)
    assert "COMMIT" not in message
