"""Connections that break: between calls, before a message arrives, after it was carried out."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.optuna.shoal_storage import ShoalStorage
from storage.patience import PATIENCE_VARIABLE
from tests.contracts.postgres_proxy import Break, PostgresProxy
from tests.storage.optuna.spaces import SIX


@pytest.fixture
def proxy(empty_url: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(empty_url) as opened:
        yield opened


@pytest.fixture
def through(proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShoalStorage]:
    """A storage whose background thread doesn't interfere."""
    monkeypatch.setattr("storage.optuna.outbox.INTERVAL", 3600)
    with ShoalStorage(proxy.url) as storage:
        yield storage


@pytest.fixture
def study(through: ShoalStorage) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=through, sampler=optuna.samplers.RandomSampler(seed=0))


@pytest.fixture
def beside(empty_url: str) -> Iterator[ShoalStorage]:
    """What the tables hold, seen by somebody else."""
    with ShoalStorage(empty_url) as storage:
        yield storage


def end_all_connections(url: str) -> None:
    with Database(url) as database, database.own_connection() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_the_server_ends_all_connections_in_a_batch(
    through: ShoalStorage, study: optuna.Study, beside: ShoalStorage
) -> None:
    with through.batch(new={study._study_id: 5}):
        trials = [study.ask(fixed_distributions=SIX) for _ in range(5)]
        end_all_connections(through.wire.url)
        for trial in trials:
            trial.report(0.5, 1)
        study.tell(trials[0], 0.25)
    assert beside.get_trial(trials[0]._trial_id).value == 0.25
    assert [trial.params for trial in beside.get_all_trials(study._study_id)] == [t.params for t in trials]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_tell_is_stored_once(
    proxy: PostgresProxy, through: ShoalStorage, study: optuna.Study, beside: ShoalStorage, when: Break
) -> None:
    """Also when it was stored and only the answer was lost: nobody is told that somebody else did it."""
    trials = [study.ask(fixed_distributions=SIX) for _ in range(3)]
    with through.batch():
        for trial in trials:
            trial.report(0.5, 1)
            study.tell(trial, 0.25)
        proxy.break_at("UPDATE trials", when)
    assert proxy.broken == 1
    assert [trial.value for trial in beside.get_all_trials(study._study_id)] == [0.25] * 3
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.5}] * 3
    study.tell(study.ask(), 0.5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_reports_are_stored(
    proxy: PostgresProxy, through: ShoalStorage, study: optuna.Study, beside: ShoalStorage, when: Break
) -> None:
    trial = study.ask()
    trial.report(0.5, 1)
    proxy.break_at("trial_intermediate_values", when)
    through.flush()
    assert proxy.broken == 1
    assert beside.get_trial(trial._trial_id).intermediate_values == {1: 0.5}


def test_a_trial_that_was_made_before_the_answer_was_lost_is_made_again(
    proxy: PostgresProxy, through: ShoalStorage, study: optuna.Study, beside: ShoalStorage
) -> None:
    """As documented: nobody can tell whose it is, so it stays, running, and its number is not used twice."""
    proxy.break_at("INSERT INTO trials", "after")
    trial = study.ask()
    assert proxy.broken == 1
    assert trial.number == 1
    assert [one.number for one in beside.get_all_trials(study._study_id)] == [0, 1]


def test_a_pop_whose_answer_was_lost_is_not_run_twice(
    proxy: PostgresProxy, through: ShoalStorage, study: optuna.Study
) -> None:
    study.enqueue_trial({"x": 0.5})
    waiting = study.trials[0]._trial_id
    proxy.break_at("UPDATE trials", "after")
    assert not through.set_trial_state_values(waiting, optuna.trial.TrialState.RUNNING)


def test_a_database_that_stays_away(
    proxy: PostgresProxy,
    study: optuna.Study,
    through: ShoalStorage,
    beside: ShoalStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state is not changed, here or there; what may wait is stored once the database is back."""
    monkeypatch.setattr(through.wire.database, "patience", 0.0)
    trial = study.ask()
    trial.report(0.5, 1)
    proxy.break_at("UPDATE trials", "before")
    with pytest.raises(DatabaseUnreachable):
        study.tell(trial, 0.25)
    assert through.get_trial(trial._trial_id).state == optuna.trial.TrialState.RUNNING
    assert through.get_trial(trial._trial_id).intermediate_values == {1: 0.5}
    through.flush()
    stored = beside.get_trial(trial._trial_id)
    assert stored.state == optuna.trial.TrialState.RUNNING
    assert stored.intermediate_values == {1: 0.5}
    study.tell(trial, 0.75)
    assert beside.get_all_trials(study._study_id)[0].value == 0.75


def test_patience_is_the_projects(monkeypatch: pytest.MonkeyPatch, empty_url: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "7")
    with ShoalStorage(empty_url) as storage:
        assert storage.wire.database.patience == 7.0


def test_an_interrupt_while_sending(
    study: optuna.Study, through: ShoalStorage, beside: ShoalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = study.ask()
    trial.report(0.5, 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("storage.optuna.outbox.store", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study.tell(trial, 0.25)
    assert through.get_trial(trial._trial_id).state == optuna.trial.TrialState.RUNNING
    study.tell(trial, 0.75)
    stored = beside.get_trial(trial._trial_id)
    assert (stored.value, stored.intermediate_values) == (0.75, {1: 0.5})
