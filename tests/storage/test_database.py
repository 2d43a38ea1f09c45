"""Connections, locks, and the check."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url

from storage import database_checks
from storage.database import Database, lock_number, open_database
from storage.errors import DatabaseUnreachable, DatabaseUnsuitable, ValueRefused

REPOSITORY = Path(__file__).parents[2]


def kill_connections(database: Database, *, but: int) -> None:
    """End every other connection to the database, as a restart of the server does."""
    with database.own_connection() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), :but)"
            ),
            {"but": but},
        )


def test_session_settings(database):
    shown = [
        database.scalar(f"SHOW {name}") for name in ("TimeZone", "transaction_isolation", "application_name")
    ]
    assert shown == ["UTC", "read committed", "shoal"]


def test_settings_hold_against_the_users_environment(database_url, monkeypatch):
    monkeypatch.setenv("PGTZ", "America/Los_Angeles")
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_isolation=serializable")
    with Database(database_url) as database:
        assert database.scalar("SHOW TimeZone") == "UTC"
        assert database.scalar("SHOW transaction_isolation") == "read committed"


def test_a_transaction_is_committed_or_rolled_back_as_a_whole(database):
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE things (id int PRIMARY KEY)"))
    with pytest.raises(KeyError), database.begin() as connection:  # noqa: PT012 (in one transaction)
        connection.execute(text("INSERT INTO things VALUES (1)"))
        raise KeyError
    assert database.scalar("SELECT count(*) FROM things") == 0


def test_a_restart_of_the_server_costs_the_next_call_nothing(database):
    assert database.scalar("SELECT 1") == 1
    kill_connections(database, but=0)
    assert database.scalar("SELECT 1") == 1


def test_a_connection_that_breaks_in_a_transaction_is_our_error(database):
    with pytest.raises(DatabaseUnreachable) as caught, database.begin() as connection:  # noqa: PT012 (in one transaction)
        connection.execute(text("SELECT 1"))
        kill_connections(database, but=0)
        connection.execute(text("SELECT 1"))
    assert caught.value.retryable


def test_many_threads_share_an_engine(database):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda number: database.scalar(f"SELECT {number}"), range(64)))
    assert answers == list(range(64))
    assert database.engine.pool.checkedin() <= 4


class TestLock:
    def test_excludes_and_frees(self, database, database_url):
        with Database(database_url) as other:
            with database.lock("a") as held:
                assert held
                with other.lock("a", wait=False) as second:
                    assert not second
                with other.lock("b", wait=False) as different:
                    assert different
            with other.lock("a", wait=False) as again:
                assert again

    def test_waits(self, database):
        order = []
        entered = threading.Event()

        def second():
            entered.set()
            with database.lock("a"):
                order.append("second")

        with database.lock("a"):
            thread = threading.Thread(target=second)
            thread.start()
            entered.wait()
            order.append("first")
        thread.join()
        assert order == ["first", "second"]

    def test_is_freed_by_an_exception(self, database):
        with pytest.raises(KeyError), database.lock("a"):
            raise KeyError
        with database.lock("a", wait=False) as held:
            assert held

    def test_is_freed_when_its_holder_is_killed(self, database, database_url):
        code = "import sys; from storage.database import Database\n"
        code += "with Database(sys.argv[1]).lock('a'): print('held', flush=True); sys.stdin.read()"
        holder = subprocess.Popen(
            [sys.executable, "-c", code, database_url],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout.readline() == "held\n"
        with database.lock("a", wait=False) as held:
            assert not held
        holder.kill()
        holder.communicate()
        with database.lock("a") as held:  # waits until the server has noticed
            assert held

    def test_does_not_use_up_the_pool(self, database):
        with ExitStack() as stack:
            for key in "abcdefgh":
                stack.enter_context(database.lock(key))
            assert database.scalar("SELECT 1") == 1

    def test_held_for_moments_again_and_again_costs_one_connection(self, database):
        opened = []
        event.listen(database._direct, "connect", lambda *_: opened.append(1))
        for _ in range(5):
            with database.lock("a", wait=False, idle_seconds=60) as held:
                assert held
                with database.lock("a", wait=False, idle_seconds=60) as again:
                    assert not again  # that is another connection
        assert len(opened) == 2

    def test_held_for_moments_is_freed_whatever_happens(self, database):
        with pytest.raises(KeyError), database.lock("a", wait=False, idle_seconds=60):
            raise KeyError
        with pytest.raises(KeyError), database.lock("a", wait=False, idle_seconds=60):  # noqa: PT012 (under the lock)
            kill_connections(database, but=0)
            raise KeyError
        with database.lock("a", wait=False, idle_seconds=60) as held:
            assert held
        with database.lock("a", wait=False) as free:
            assert free

    def test_held_for_moments_does_not_mind_that_the_server_closed_its_connection(self, database):
        with database.lock("a", wait=False, idle_seconds=0.01) as held:
            assert held
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> {}"
        while database.scalar(others.format("pg_backend_pid()")):
            pass
        with database.lock("a", wait=False, idle_seconds=60) as held:
            assert held

    def test_held_for_long_has_no_connection_that_the_server_closes_when_idle(self, database):
        lent = []
        event.listen(database._direct, "checkout", lambda *_: lent.append(1))
        with database.lock("a", wait=False, idle_seconds=0.05) as held:
            assert held
        with database.lock("b", wait=False), database.lock("c"):
            assert len(lent) == 1

    def test_a_connection_that_broke_meanwhile_hides_no_error(self, database):
        with pytest.raises(KeyError), database.lock("a"):  # noqa: PT012 (under the lock)
            kill_connections(database, but=0)
            raise KeyError

    def test_numbers_are_the_same_for_ever(self):
        assert lock_number("migrations") == 730865778038962611


class TestCheck:
    def test_all_is_well(self, database):
        results = database.check()
        assert [result.name for result in results if not result.ok] == []
        assert [result.name for result in results] == [
            "connection",
            "server version",
            "isolation level",
            "time zone",
            "schema",
            "Optuna's schema",
            "clock",
        ]
        assert make_url(database.url).password not in str(results)

    def test_an_empty_database_lacks_our_schema(self, empty_database_url):
        with Database(empty_database_url) as database:
            failed = [result.name for result in database.check() if not result.ok]
        assert failed == ["schema"]

    def test_no_connection_is_one_line(self):
        with Database("postgresql://me@127.0.0.1:1/things") as database:
            (result,) = database.check()
        assert not result.ok
        assert "nothing listens" in result.detail

    def test_another_isolation_level_on_the_server_is_named(self, database):
        name = make_url(database.url).database
        with database.own_connection() as connection:
            connection.execute(
                text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
            )
        assert [result.name for result in database.check() if not result.ok] == ["isolation level"]

    def test_an_unknown_revision_of_optuna_is_named(self, database):
        with database.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'v9.0.0.a'"))
        (failed,) = [result for result in database.check() if not result.ok]
        assert "v9.0.0.a" in failed.detail

    def test_a_clock_that_is_wrong_is_named(self, database, monkeypatch):
        monkeypatch.setattr(database_checks, "time", lambda: time.time() + 3600)
        (failed,) = [result for result in database.check() if not result.ok]
        assert failed.name == "clock"
        assert float(failed.detail.split()[0]) == pytest.approx(3600, abs=5)


def test_a_role_without_rights_is_told_what_is_missing(empty_database_url, postgres_url):
    role = f"poor_{os.getpid()}"
    plain = make_url(postgres_url).set(drivername="postgresql")
    superuser = plain.set(username="postgres", password=_superuser_password(), database="postgres")
    administration = psycopg2.connect(superuser.render_as_string(hide_password=False))
    administration.autocommit = True
    with administration.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'poor'")
    try:
        url = make_url(empty_database_url).set(username=role, password="poor")
        with pytest.raises(DatabaseUnsuitable, match="GRANT CREATE ON DATABASE"):
            open_database(url.render_as_string(hide_password=False))
    finally:
        with administration.cursor() as cursor:
            cursor.execute(f"DROP ROLE {role}")
        administration.close()


def test_a_role_called_as_our_schema_finds_optunas_tables(empty_database_url):
    """Postgres searches a schema with the role's name before `public`."""
    from storage.optuna_storage import close_optuna_storage, open_optuna_storage

    plain = make_url(empty_database_url).set(drivername="postgresql")
    superuser = plain.set(username="postgres", password=_superuser_password())
    administration = psycopg2.connect(superuser.render_as_string(hide_password=False))
    administration.autocommit = True
    with administration.cursor() as cursor:
        cursor.execute("CREATE ROLE shoal LOGIN PASSWORD 'same'")
        cursor.execute(f"GRANT CREATE ON DATABASE {plain.database} TO shoal")
        cursor.execute("GRANT CREATE ON SCHEMA public TO shoal")
    try:
        url = make_url(empty_database_url).set(username="shoal", password="same")
        with open_database(url.render_as_string(hide_password=False)) as database:
            close_optuna_storage(open_optuna_storage(database.url))
            assert database.scalar("SELECT count(*) FROM pg_tables WHERE tablename = 'trials'") == 1
            where = "SELECT schemaname FROM pg_tables WHERE tablename = 'trials'"
            assert database.scalar(where) == "public"
            assert all(result.ok for result in database.check())
    finally:
        with administration.cursor() as cursor:
            cursor.execute("DROP OWNED BY shoal CASCADE")
            cursor.execute("DROP ROLE shoal")
        administration.close()


def _superuser_password() -> str:
    from storage.embedded import EmbeddedPostgres

    return EmbeddedPostgres()._access.password("postgres")


def test_a_violated_check_is_our_error(database):
    with pytest.raises(ValueRefused), database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO shoal.experiments (name, spec, space_hash, environment) "
                "VALUES ('', '{}', '', '{}')"
            )
        )
