"""Opening Optuna's storage: ours where we know its tables, stock Optuna's where we don't."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from storage.database import OPTUNA_REVISION, Database
from storage.errors import DatabaseUnreachable
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.postgres_proxy import PostgresProxy

ROOT = Path(__file__).parents[2]

ELSEWHERE = """
import sys
import optuna
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
storage = open_optuna_storage(sys.argv[1])
study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
study.tell(study.ask(), 1.0)
study.enqueue_trial({})
stock = optuna.storages.get_storage(sys.argv[1])
assert stock.get_all_trials(study._study_id) == study.trials
close_optuna_storage(stock)
close_optuna_storage(storage)
"""


def test_ours_is_used(optuna_storage, database_url):
    assert isinstance(optuna_storage, ShoalStorage)
    assert optuna.storages.get_storage(optuna_storage) is optuna_storage
    theirs = optuna.storages.get_storage(database_url)
    try:
        study = optuna.create_study(storage=optuna_storage, study_name="s")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
        assert theirs.get_all_trials(study._study_id) == study.get_trials()
    finally:
        close_optuna_storage(theirs)


def test_opening_costs_one_message(database_url):
    """Beside the few with which SQLAlchemy gets to know a server, once for each pool."""
    with PostgresProxy(database_url) as proxy:
        close_optuna_storage(open_optuna_storage(proxy.url))
        taken = proxy.taken()
    ours = [query for query in taken if "pg_catalog." not in query and not query.startswith("show ")]
    assert ours == ["select current_schema()", "SELECT version_num FROM alembic_version"]


def test_stock_is_used_for_tables_that_we_do_not_know(database_url, monkeypatch, caplog):
    monkeypatch.setattr("storage.optuna_storage.OPTUNA_REVISION", "v9.9.9.z")
    with caplog.at_level(logging.WARNING):
        storage = open_optuna_storage(database_url)
    try:
        assert isinstance(storage, optuna.storages._CachedStorage)
        assert f"revision {OPTUNA_REVISION}" in caplog.text
        study = optuna.create_study(storage=storage)
        study.tell(study.ask(), 1.0)
        assert study.best_value == 1.0
        with storage._backend.engine.connect() as connection:
            assert connection.scalar(text("SHOW TimeZone")) == "UTC"
    finally:
        close_optuna_storage(storage)
    assert storage._backend.engine.pool.checkedin() == 0


def test_connections_are_set_up_as_ours(optuna_storage):
    statement = """
    SELECT current_setting('TimeZone'), current_setting('transaction_isolation'),
           current_setting('application_name')
    """
    assert [tuple(row) for row in optuna_storage.wire.run(statement).rows] == [
        ("UTC", "read committed", "shoal optuna")
    ]


def test_a_default_of_the_database_changes_nothing(database):
    """Under REPEATABLE READ a count after a lock would not see what its holder stored."""
    name = database.scalar("SELECT current_database()")
    with database.own_connection() as connection:
        connection.execute(
            text(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'repeatable read'")
        )
        connection.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'"))
    storage = open_optuna_storage(database.url)
    try:
        shown = storage.wire.run(
            "SELECT current_setting('transaction_isolation'), current_setting('TimeZone')"
        )
        assert [tuple(row) for row in shown.rows] == [("read committed", "UTC")]
    finally:
        close_optuna_storage(storage)


def test_makes_the_schema_that_our_queries_know(empty_database_url):
    close_optuna_storage(open_optuna_storage(empty_database_url))
    with Database(empty_database_url) as database:
        assert database.optuna_revision() == OPTUNA_REVISION


def test_an_empty_database_is_opened_by_many_at_once(empty_database_url):
    opened, gate = [], threading.Barrier(4)

    def open_it():
        gate.wait()
        opened.append(open_optuna_storage(empty_database_url))

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for storage in opened:
        assert storage.get_all_studies() == []
        close_optuna_storage(storage)


def test_leaves_no_connection_behind(database):
    storage = open_optuna_storage(database.url)
    storage.get_all_studies()
    close_optuna_storage(storage)
    others = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'shoal optuna'"
    )
    for _ in range(500):  # the server takes a moment to notice
        if not (left := database.scalar(others)):
            break
    assert left == 0


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_zones_of_clients_play_no_part(database, zone):
    """A process in another zone writes the same moments, and stock Optuna there reads what we read there."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, database.url],
        cwd=ROOT,
        env=os.environ | {"TZ": zone},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    apart = "SELECT max(abs(extract(epoch FROM timezone('UTC', now()) - {column}))) FROM trials"
    assert database.scalar(apart.format(column="datetime_start")) < 120
    assert database.scalar(apart.format(column="datetime_complete")) < 120


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
