"""Optuna's storage as we open it: stock, with our connections' settings."""

from __future__ import annotations

import optuna
import pytest
from sqlalchemy import text

from storage.database import OPTUNA_REVISION, Database
from storage.errors import DatabaseUnreachable
from storage.optuna_storage import close_optuna_storage, open_optuna_storage


def test_is_what_optuna_itself_would_use(optuna_storage, database_url):
    theirs = optuna.storages.get_storage(database_url)
    try:
        assert type(optuna_storage) is type(theirs)
        study = optuna.create_study(storage=optuna_storage, study_name="s")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        assert theirs.get_all_trials(study._study_id) == study.get_trials()
    finally:
        close_optuna_storage(theirs)


def test_connections_are_set_up_as_ours(optuna_storage):
    engine = optuna_storage._backend.engine
    with engine.connect() as connection:
        shown = [
            connection.scalar(text(f"SHOW {name}"))
            for name in ("TimeZone", "transaction_isolation", "application_name")
        ]
    assert shown == ["UTC", "read committed", "shoal optuna"]
    assert engine.pool.size() == 2


def test_makes_the_schema_that_our_queries_know(empty_database_url):
    close_optuna_storage(open_optuna_storage(empty_database_url))
    with Database(empty_database_url) as database:
        assert database.scalar("SELECT version_num FROM alembic_version") == OPTUNA_REVISION


def test_leaves_no_connection_behind(database):
    storage = open_optuna_storage(database.url)
    storage.get_all_studies()
    close_optuna_storage(storage)
    pool = storage._backend.engine.pool
    assert pool.checkedout() == 0
    assert pool.checkedin() == 0


def test_survives_a_restart_of_the_server(optuna_storage, database):
    study = optuna.create_study(storage=optuna_storage, study_name="s")
    trial = study.ask()
    with database.own_connection() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    assert study.best_value == 0.5


def test_an_unreachable_database_is_our_error():
    with pytest.raises(DatabaseUnreachable, match="nothing listens"):
        open_optuna_storage("postgresql://me:secret@127.0.0.1:1/things")
