"""Connections: how they are set up, given back when idle, waited for, and enough for a crowd of clients."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text

from storage import connections, crowds, embedded, patience
from storage.batched_ledger import BatchedLedger
from storage.checker import check_history
from storage.connections import BriefPool
from storage.database import Database, open_database
from storage.embedded import EmbeddedPostgres
from storage.errors import DatabaseBusy, DatabaseFull, DatabaseUnreachable
from storage.experiments import Experiments
from storage.ledger import LEASE_VARIABLE
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.conftest import on_server
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of
from tests.contracts.wire import wired

OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def until(condition, seconds: float = 240.0) -> None:
    """Wait until something is so; fail if it isn't within seconds."""
    end_ = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_
        time.sleep(0.01)


class TestSession:
    def test_nothing_is_waited_for_without_end(self, database):
        assert database.scalar("SHOW statement_timeout") == "1min"
        assert database.scalar("SHOW lock_timeout") == "20s"
        assert database.scalar("SHOW idle_in_transaction_session_timeout") == "1min"

    def test_a_lock_that_is_waited_for_on_purpose_may_take_long(self, database):
        with database.own_connection() as connection:
            assert connection.scalar(text("SHOW statement_timeout")) == "0"
            assert connection.scalar(text("SHOW lock_timeout")) == "0"

    @pytest.mark.parametrize(
        ("setting", "statement", "for_lock"),
        [
            ("statement_timeout", "SELECT pg_sleep(60)", False),
            ("lock_timeout", "LOCK shoal.workers", True),
        ],
    )
    def test_what_takes_too_long_is_our_error(self, database, setting, statement, for_lock):
        with database.begin() as other:
            other.execute(text("LOCK shoal.workers"))
            with pytest.raises(DatabaseBusy) as caught, database.begin() as connection:  # noqa: PT012 (in one transaction)
                connection.execute(text(f"SET LOCAL {setting} = '20ms'"))
                connection.execute(text(statement))
        assert caught.value.retryable
        assert caught.value.waited_for_lock == for_lock


class TestIdleConnections:
    def test_are_closed_soon_and_opened_again(self, database, database_url, monkeypatch):
        monkeypatch.setattr(connections, "IDLE_SECONDS", 0.05)
        with Database(database_url) as other:
            assert other.scalar("SELECT 1") == 1
            assert other.script("SELECT 1", {})[0][0] == 1
            until(lambda: other.engine.pool.checkedin() == other._direct.pool.checkedin() == 0)
            until(lambda: database.scalar(OTHERS) == 0)
            assert other.scalar("SELECT 1") == 1

    def test_one_thread_looks_after_all_pools_and_ends(self, database_url, monkeypatch):
        monkeypatch.setattr(connections, "IDLE_SECONDS", 0.05)
        opened = [Database(database_url) for _ in range(5)]
        for database in opened:
            database.scalar("SELECT 1")
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("shoal idle connections") <= 1
        until(lambda: all(thread.name != "shoal idle connections" for thread in threading.enumerate()))
        assert all(database.engine.pool.checkedin() == 0 for database in opened)

    def test_one_in_use_stays(self, database):
        with database.begin() as connection:
            database.engine.pool.close_idle(0.0)
            assert connection.scalar(text("SELECT 1")) == 1
        assert database.engine.pool.checkedin() == 1
        assert not database.engine.pool.close_idle(0.0)

    def test_the_one_used_last_is_lent_first(self, database):
        with database.begin() as first, database.begin() as second:
            pids = [c.scalar(text("SELECT pg_backend_pid()")) for c in (first, second)]
        assert database.scalar("SELECT pg_backend_pid()") == pids[0]

    def test_an_old_one_makes_room_for_others(self, database, monkeypatch):
        first = database.scalar("SELECT pg_backend_pid()")
        assert database.scalar("SELECT pg_backend_pid()") == first
        monkeypatch.setattr(connections, "LIFE_SECONDS", 0.0)
        assert database.scalar("SELECT pg_backend_pid()") == first
        assert database.engine.pool.checkedin() == 0
        assert database.scalar("SELECT pg_backend_pid()") != first

    def test_who_finds_a_pool_full_waits_and_is_told(self, database, monkeypatch):
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        monkeypatch.setattr(connections, "POOL_WAIT", 0.01)
        held = [database.engine.connect() for _ in range(connections.POOL_SIZE)]
        with pytest.raises(PoolTimeout):
            database.engine.connect()
        held.pop().close()
        database.engine.connect().close()
        for connection in held:
            connection.close()

    def test_a_pool_that_could_not_connect_keeps_its_places(self):
        def broken():
            raise ZeroDivisionError

        pool = BriefPool(broken, pool_size=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                pool.connect()


class TestFullServer:
    @pytest.fixture
    def full(self, database, postgres_url) -> Iterator[Database]:
        """A database that has one connection, in use; who wants another finds the server full."""
        name = database.scalar("SELECT current_database()")
        on_server(postgres_url, "ALTER DATABASE {} CONNECTION LIMIT 1", name)
        with (
            Database(database.url, patience=0.0) as other,
            database.begin(),
            pytest.raises(DatabaseFull),
            other.begin(),
        ):
            pass
        return database

    def test_all_pools_of_a_process_share_what_it_has(self, full):
        """Else those who came first would keep places that they don't use, and others get none."""
        pid = full.scalar("SELECT pg_backend_pid()")
        assert full.engine.pool.checkedin() == full._direct.pool.checkedin() == 0
        with Database(full.url, application_name="another") as other:
            assert other.script("SELECT pg_backend_pid()", ())[0][0] == pid
            with other.lock("key", wait=False, idle_seconds=60.0) as held:
                assert held
                assert full.script("SELECT pg_backend_pid()", ())[0][0] == pid
            assert other.scalar("SELECT pg_backend_pid()") == pid
        assert full.scalar("SELECT pg_backend_pid()") != pid  # the other one closed what lay idle

    def test_what_is_shared_is_like_new(self, full):
        """Whoever has a connection next finds it as its own pool makes one."""
        started = "SELECT current_setting('transaction_isolation'), current_setting('lock_timeout')"
        for _ in range(3):
            assert list(full.script(started, ())[0]) == ["read committed", "20s"]
            with full.lock("key", wait=False, idle_seconds=7.0):
                assert full.script("SHOW idle_session_timeout", ())[0][0] == "7s"
            with full.begin() as connection:
                assert list(connection.execute(text(started)).one()) == ["read committed", "20s"]
                assert connection.scalar(text("SHOW idle_session_timeout")) == "0"
                connection.execute(text("CREATE TEMPORARY TABLE passing ON COMMIT DROP AS SELECT 1"))
                assert connection.scalar(text("SELECT count(*) FROM passing")) == 1
            assert full.script("SELECT to_regclass('passing')", ())[0][0] is None

    def test_what_is_not_committed_is_not_handed_on(self, full):
        with suppress(ZeroDivisionError), full.begin() as connection:
            connection.execute(text("CREATE TABLE passing AS SELECT 1"))
            raise ZeroDivisionError
        assert full.script("SELECT to_regclass('passing')", ())[0][0] is None

    def test_one_that_broke_meanwhile_costs_a_transaction_nothing(self, full, postgres_url):
        pid = full.scalar("SELECT pg_backend_pid()")
        on_server(postgres_url, f"SELECT pg_terminate_backend({pid}, 10000)", "")
        assert full.scalar("SELECT pg_backend_pid()") != pid

    def test_a_place_that_nobody_uses_is_given_back(self, full, monkeypatch):
        monkeypatch.setattr(crowds, "SPARE_SECONDS", 0.02)
        line = crowds.line_of(full.url)
        full.scalar("SELECT 1")
        until(lambda: line.checkedin() == 0)

    def test_who_does_not_wait_is_told_at_once(self, full):
        line = crowds.line_of(full.url)
        line.close_idle(0.0)
        line._last, line._pause = time.monotonic(), 3600.0
        with crowds.in_line(None), pytest.raises(DatabaseFull):
            full.scalar("SELECT 1")

    def test_under_a_lock_everything_goes_by_its_connection(self, database, database_url):
        with Database(database_url) as other, database.lock("key", wait=False, idle_seconds=60.0):
            pids = {one.script("SELECT pg_backend_pid()", ())[0][0] for one in (database, other)}
            assert database.script("SELECT pid FROM pg_locks WHERE locktype = 'advisory'", ()) == [
                (pid,) for pid in pids
            ]

    def test_a_fork_has_no_part_in_it(self, full):
        full.scalar("SELECT 1")
        line = crowds.line_of(full.url)
        assert line.checkedin() == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            told = crowds.line_of(full.url)
            os.write(write, b"new" if told is not line and not told.checkedin() else b"old")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 3) == b"new"


class TestPatience:
    @pytest.mark.parametrize(("given", "seconds"), [(None, 5 * 60.0), (7.0, 7.0)])
    def test_a_full_server_is_waited_for_longer_than_one_that_is_away(self, database_url, given, seconds):
        assert Database(database_url, patience=given)._patience_if_full == seconds

    def test_one_that_has_room_again_is_found(self, database, postgres_url, monkeypatch):
        """Tried again, without end of patience, by whoever wanted a connection."""
        monkeypatch.setattr(crowds, "FIRST_WAIT", 0.0)
        name = database.scalar("SELECT current_database()")
        database.close()
        on_server(postgres_url, "ALTER DATABASE {} CONNECTION LIMIT 0", name)
        before, tried = patience.tally.waits, crowds.Line._note

        def note(line: crowds.Line, *, full: bool) -> None:
            tried(line, full=full)
            if patience.tally.waits - before >= 3:
                on_server(postgres_url, "ALTER DATABASE {} CONNECTION LIMIT -1", name)

        monkeypatch.setattr(crowds.Line, "_note", note)
        assert database.scalar("SELECT 1") == 1
        assert patience.tally.waits - before >= 3

    def test_a_server_never_reached_is_not_waited_for(self, database_url):
        before = patience.tally.waits
        with pytest.raises(DatabaseUnreachable), Database("postgresql://u:p@127.0.0.1:1/d") as database:
            database.scalar("SELECT 1")
        assert patience.tally.waits == before

    def test_a_server_that_was_there_is_waited_for(self, database_url, monkeypatch):
        waits: list[float] = []
        with wired(database_url) as wire:
            database = Database(wire.url)
            assert database.scalar("SELECT 1") == 1
            database.close()
            real, server = time.sleep, wire.server
            wire.server = ("127.0.0.1", 1)

            def sleep(seconds: float) -> None:
                waits.append(seconds)
                if len(waits) == 3:
                    wire.server = server
                real(0)

            monkeypatch.setattr(patience, "sleep", sleep)
            assert database.scalar("SELECT 1") == 1
        assert len(waits) >= 3

    def test_patience_ends(self, database_url):
        with wired(database_url) as wire:
            database = Database(wire.url, patience=0.2)
            assert database.scalar("SELECT 1") == 1
            database.close()
            wire.server = ("127.0.0.1", 1)
            with pytest.raises(DatabaseUnreachable):
                database.scalar("SELECT 1")

    def test_work_is_tried_again_and_told_what_may_have_been_done(self, database, monkeypatch):
        monkeypatch.setattr(patience, "sleep", lambda seconds: None)
        seen: list[bool] = []
        errors = [DatabaseBusy("busy"), DatabaseUnreachable("gone", retryable=True), DatabaseBusy("busy")]

        def work(unsure: bool) -> str:
            seen.append(unsure)
            if errors:
                raise errors.pop(0)
            return "done"

        assert database.retrying(work) == "done"
        assert seen == [False, False, True, True]

    def test_what_cannot_get_better_is_not_tried_again(self, database):
        tries = []

        def work(_unsure: bool) -> None:
            tries.append(1)
            raise DatabaseUnreachable("wrong password")

        with pytest.raises(DatabaseUnreachable):
            database.retrying(work)
        assert len(tries) == 1

    @pytest.mark.parametrize(("said", "seconds"), [("3", 3), ("0", 0), ("", 60), ("-1", 60), ("nan", 60)])
    def test_how_long(self, monkeypatch, said, seconds):
        monkeypatch.setenv("SHOAL_DATABASE_PATIENCE", said)
        assert patience.patience() == seconds


@pytest.mark.slow
def test_two_hundred_clients_share_forty_connections(tmp_path: Path, monkeypatch):
    """All come at once and keep their database open; each gets through a trial's whole life."""
    few = embedded.CONFIGURATION.replace("max_connections = 300", "max_connections = 40")
    assert few != embedded.CONFIGURATION
    monkeypatch.setattr(embedded, "CONFIGURATION", few)
    monkeypatch.setenv(LEASE_VARIABLE, "3600")  # the last one's turn comes late on a slow machine
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    url = server.start()
    clients = 200
    try:
        with open_database(url) as database:
            assert database.scalar("SHOW max_connections") == "40"
            experiment = Experiments(database).create("e", {}, "hash", {}, [("tpe", 0, STUDY)])
            storage = open_optuna_storage(url)
            optuna.create_study(storage=storage, study_name=STUDY)
            close_optuna_storage(storage)
        together, wrong = threading.Barrier(clients), []
        opened = [Database(url) for _ in range(clients)]

        def live(database: Database) -> None:
            try:
                together.wait()
                ledger = BatchedLedger(database)
                leases = ledger.claim(STUDY, ledger.register("w"), waiting=0, new=2)
                written = ledger.write(
                    draws=[draw_of(lease) for lease in leases],
                    epochs=[epoch_of(lease, 1) for lease in leases],
                )
                ended = ledger.write(endings=[end(lease) for lease in leases])
                assert not written.refused
                assert not ended.refused
            except BaseException as error:  # noqa: BLE001 (told by the test's own thread)
                wrong.append(error)

        threads = [threading.Thread(target=live, args=[database]) for database in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        for database in opened:
            database.close()
        with Database(url) as database:
            assert database.scalar("SELECT count(*) FROM trials WHERE state = 'COMPLETE'") == 2 * clients
            assert check_history(database, experiment.id, at_rest=True) == []
    finally:
        server.stop()
