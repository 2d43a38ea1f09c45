"""What each role of the database may do, and above all what it may not."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from storage.batched_ledger import BatchedLedger
from storage.database import Database, open_database
from storage.errors import DatabaseUnsuitable
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.role_files import passwords
from storage.roles import OWNER, READER, ROLES, WORKER, make_roles, seal, statements, worker_connections
from tests.conftest import database_named
from tests.contracts.database_roles import RoleUrls, administrator_url, roles_in, url_as
from tests.contracts.ledger_writes import end, epoch_of

READING = "SELECT count(*) FROM shoal.experiments"


WRITING = {
    "add a row": "INSERT INTO shoal.workers (name, host, process) VALUES ('x', 'x', 1)",
    "add a trial": "INSERT INTO studies (study_name) VALUES ('x')",
    "change a row": "UPDATE shoal.experiments SET state = 'running'",
    "change a trial": "UPDATE trials SET state = 'RUNNING'",
    "take a number": "SELECT nextval('shoal.lease_tokens')",
}
"""What a worker does all the time, and a reader never."""


FORBIDDEN = {
    "delete an experiment": "DELETE FROM shoal.experiments",
    "delete a curve": "DELETE FROM shoal.epochs",
    "delete a report": "DELETE FROM trial_intermediate_values",
    "delete a trial": "DELETE FROM trials",
    "delete a study": "DELETE FROM studies",
    "empty a table": "TRUNCATE shoal.epochs",
    "empty Optuna's table": "TRUNCATE trials CASCADE",
    "drop a table": "DROP TABLE shoal.epochs",
    "drop Optuna's table": "DROP TABLE trial_heartbeats",
    "drop the schema": "DROP SCHEMA shoal CASCADE",
    "alter a table": "ALTER TABLE shoal.epochs ADD COLUMN more integer",
    "turn off the log's trigger": "ALTER TABLE shoal.events DISABLE TRIGGER ALL",
    "turn off all triggers": "SET session_replication_role = replica",
    "make a table": "CREATE TABLE public.mine (id integer)",
    "make a table of ours": "CREATE TABLE shoal.mine (id integer)",
    "make a temporary table": "CREATE TEMPORARY TABLE mine (id integer)",
    "make a schema": "CREATE SCHEMA mine",
    "make a function": "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "make an index": "CREATE INDEX mine ON shoal.epochs (epoch)",
    "make a role": "CREATE ROLE mine",
    "make a database": "CREATE DATABASE mine",
    "become the owner": f"SET ROLE {OWNER}",
    "give itself rights": f"GRANT {OWNER} TO current_user",
    "give away the schema": "ALTER SCHEMA shoal OWNER TO current_user",
    "reference a table": "CREATE TABLE public.mine (id integer REFERENCES trials)",
    "set a sequence back": "SELECT setval('shoal.lease_tokens', 1)",
    "say that the tables are older": "UPDATE shoal.schema_version SET version_num = '0001'",
    "say that Optuna's tables are older": "UPDATE alembic_version SET version_num = 'v0.9.0.a'",
    "say that another wrote Optuna's tables": "UPDATE version_info SET library_version = '1'",
    "make a large object": "SELECT lo_create(0)",
    "make a large object of bytes": "SELECT lo_from_bytea(0, 'x')",
    "read passwords": "SELECT rolpassword FROM pg_authid",
    "read a file of the server": "SELECT pg_read_file('postgresql.conf')",
    "list a folder of the server": "SELECT pg_ls_dir('.')",
    "run a program on the server": "COPY shoal.epochs FROM PROGRAM 'true'",
    "write a file of the server": "COPY (SELECT 1) TO '/tmp/mine'",
    "read a file into a table": "COPY shoal.epochs FROM '/etc/passwd'",
    "change the server": "ALTER SYSTEM SET fsync = off",
    "end the server's work": "SELECT pg_reload_conf()",
}


OWN_DATABASES = ("postgres", "template1")
"""That a new server has, open to everybody."""


APPEND_ONLY = ("UPDATE shoal.events SET kind = 'claimed'", "UPDATE shoal.test_readings SET seed = 1")


@pytest.fixture
def urls(database_url: str, tmp_path: Path) -> RoleUrls:
    """A database with tables and roles."""
    return roles_in(database_url, tmp_path / "roles")


def attempt(url: str, statement: str) -> str | None:
    """The SQLSTATE with which the server refuses a statement; None if it did it (taken back again)."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain)
    try:
        # Those that want no transaction are refused before that is noticed, or not at all.
        connection.autocommit = statement.startswith(("CREATE DATABASE", "ALTER SYSTEM"))
        with connection.cursor() as cursor:
            # A reader's session could say that it may write: its rights must be enough.
            cursor.execute("SET default_transaction_read_only = off; SET transaction_read_only = off")
            cursor.execute(statement)
    except psycopg2.Error as error:
        return str(error.pgcode)
    else:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("what", FORBIDDEN)
def test_neither_role_may(urls: RoleUrls, what: str) -> None:
    assert attempt(urls.worker, FORBIDDEN[what]) == "42501"
    assert attempt(urls.reader, FORBIDDEN[what]) == "42501"


def test_the_owner_may_what_a_migration_needs(urls: RoleUrls) -> None:
    for what in ("drop a table", "alter a table", "make a table", "make a function", "make a schema",
                 "set a sequence back", "delete a trial"):  # fmt: skip
        assert attempt(urls.owner, FORBIDDEN[what]) is None, what
    for what in ("read passwords", "read a file of the server", "make a role", "run a program on the server"):
        assert attempt(urls.owner, FORBIDDEN[what]) == "42501", what


@pytest.mark.parametrize("what", WRITING)
def test_the_worker_writes_rows_and_the_reader_does_not(urls: RoleUrls, what: str) -> None:
    assert attempt(urls.worker, WRITING[what]) is None
    assert attempt(urls.reader, WRITING[what]) == "42501"


def test_both_read_every_table(urls: RoleUrls) -> None:
    with Database(urls.owner) as database, database.begin() as connection:
        tables = connection.execute(
            text("SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('shoal', 'public')")
        ).all()
    assert len(tables) > 20
    for schema, table in tables:
        for url in (urls.worker, urls.reader):
            assert attempt(url, f"SELECT count(*) FROM {schema}.{table}") is None, table


def test_the_log_only_grows(urls: RoleUrls) -> None:
    for statement in APPEND_ONLY:
        assert attempt(urls.worker, statement) == "23001", statement


def test_the_function_that_cuts_curves_is_for_workers(urls: RoleUrls) -> None:
    statement = "SELECT shoal.cut_curves(ARRAY[1::bigint], true)"
    assert attempt(urls.worker, statement) is None
    assert attempt(urls.reader, statement) == "42501"


def test_what_the_owner_makes_later_is_theirs_as_well(urls: RoleUrls) -> None:
    with Database(urls.owner) as database, database.begin() as connection:
        for schema in ("shoal", "public"):
            connection.execute(text(f"CREATE TABLE {schema}.later (id serial, said text)"))
        connection.execute(text("CREATE FUNCTION shoal.later() RETURNS integer LANGUAGE sql AS 'SELECT 1'"))
    for schema in ("shoal", "public"):
        assert attempt(urls.worker, f"INSERT INTO {schema}.later (said) VALUES ('x')") is None
        assert attempt(urls.worker, f"DELETE FROM {schema}.later") == "42501"
        assert attempt(urls.reader, f"SELECT * FROM {schema}.later") is None
        assert attempt(urls.reader, f"UPDATE {schema}.later SET said = ''") == "42501"
    assert attempt(urls.worker, "SELECT shoal.later()") is None
    assert attempt(urls.reader, "SELECT shoal.later()") == "42501"


def test_sessions_begin_as_they_must(urls: RoleUrls) -> None:
    def shown(url: str, name: str) -> str:
        with psycopg2.connect(
            make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            cursor.execute(f"SHOW {name}")
            found = str(cursor.fetchone()[0])
        connection.close()
        return found

    for url in (urls.worker, urls.reader):
        assert shown(url, "TimeZone") == "UTC"
        assert shown(url, "idle_in_transaction_session_timeout") == "1min"
        assert shown(url, "statement_timeout") in {"1min", "5min"}
    assert shown(urls.reader, "transaction_read_only") == "on"
    assert shown(urls.worker, "transaction_read_only") == "off"


def test_connections_are_limited(urls: RoleUrls) -> None:
    statement = text("SELECT rolname, rolconnlimit FROM pg_roles WHERE rolname = ANY(:roles)")
    with Database(urls.owner) as database:
        with database.begin() as connection:
            limits = dict(connection.execute(statement, {"roles": list(ROLES)}).all())
        assert limits[WORKER] == worker_connections(database) == 270
        assert limits[READER] == 20


def test_rights_that_somebody_added_are_taken_away(urls: RoleUrls, tmp_path: Path) -> None:
    with Database(urls.owner) as database, database.begin() as connection:
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA shoal, public TO {WORKER}, {READER}"))
        connection.execute(text(f"GRANT CREATE ON SCHEMA shoal TO {WORKER}"))
        connection.execute(text(f"GRANT TEMPORARY ON DATABASE {database.engine.url.database} TO {READER}"))
    assert attempt(urls.reader, FORBIDDEN["delete a trial"]) is None
    again = roles_in(urls.owner, tmp_path / "roles")
    assert again == urls
    assert attempt(urls.worker, FORBIDDEN["delete a trial"]) == "42501"
    assert attempt(urls.worker, FORBIDDEN["make a table of ours"]) == "42501"
    assert attempt(urls.reader, FORBIDDEN["delete a trial"]) == "42501"
    assert attempt(urls.reader, FORBIDDEN["make a temporary table"]) == "42501"
    assert attempt(urls.reader, WRITING["change a row"]) == "42501"


def test_a_role_that_can_do_more_is_told_of(urls: RoleUrls) -> None:
    with Database(administrator_url(urls.owner)) as administrator:
        try:
            with administrator.begin() as connection:
                connection.execute(text(f"ALTER ROLE {WORKER} CREATEDB; GRANT {OWNER} TO {WORKER}"))
            with pytest.raises(DatabaseUnsuitable, match=f"makes databases, a member of {OWNER}"):
                make_roles(administrator, {})
        finally:
            with administrator.begin() as connection:
                connection.execute(text(f"ALTER ROLE {WORKER} NOCREATEDB; REVOKE {OWNER} FROM {WORKER}"))


def test_tables_that_another_role_made_become_the_owners(empty_database_url: str, tmp_path: Path) -> None:
    """As where an administrator ran everything before there were roles."""
    with open_database(administrator_url(empty_database_url)) as database:
        close_optuna_storage(open_optuna_storage(database.url))
    urls = roles_in(empty_database_url, tmp_path)
    assert attempt(urls.owner, FORBIDDEN["alter a table"]) is None
    assert attempt(urls.worker, WRITING["add a trial"]) is None
    with Database(urls.owner) as database:
        assert database.scalar(
            "SELECT count(*) FROM pg_class JOIN pg_namespace AS place ON place.oid = relnamespace "
            f"WHERE nspname IN ('shoal', 'public') AND relowner <> '{OWNER}'::regrole"
        ) == 0  # fmt: skip


class TestOtherDatabases:
    """A role that may connect elsewhere on the server may look around there, and fill its disk."""

    @pytest.fixture(autouse=True)
    def opened_again(self, urls: RoleUrls) -> None:
        """The server's own databases are as on a new server, with our roles on it."""
        with Database(administrator_url(urls.owner)) as database, database.begin() as connection:
            for name in OWN_DATABASES:
                connection.execute(text(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC"))

    @pytest.mark.parametrize("name", OWN_DATABASES)
    def test_the_servers_own_are_closed(self, urls: RoleUrls, tmp_path: Path, name: str) -> None:
        there = [database_named(url, name) for url in (urls.owner, urls.worker, urls.reader)]
        assert [attempt(url, "CREATE TEMPORARY TABLE mine (id integer)") for url in there] == [None] * 3
        roles_in(urls.owner, tmp_path / "roles")
        for url in there:
            with pytest.raises(psycopg2.OperationalError, match="does not have CONNECT privilege"):
                attempt(url, "SELECT 1")
        assert attempt(urls.worker, WRITING["add a row"]) is None
        assert attempt(database_named(administrator_url(urls.owner), name), "SELECT 1") is None

    def test_others_stay_open_and_are_told_of(
        self, urls: RoleUrls, empty_database_url: str, tmp_path: Path
    ) -> None:
        """They may be somebody else's, who has to say who comes in."""
        other = str(make_url(empty_database_url).database)
        with Database(administrator_url(urls.owner)) as administrator:
            reached = make_roles(administrator, {})
            assert other in reached
            assert not {*OWN_DATABASES, str(make_url(urls.owner).database)} & set(reached)
            assert attempt(database_named(urls.reader, other), "SELECT 1") is None
            with administrator.begin() as connection:
                connection.execute(text(f'REVOKE CONNECT ON DATABASE "{other}" FROM PUBLIC'))
            assert other not in make_roles(administrator, {})

    def test_who_does_not_own_them_leaves_them_open_and_says_so(self, urls: RoleUrls) -> None:
        """As on a managed server: a role that may make roles, owns our database, and no other."""
        name = make_url(urls.owner).database
        with Database(administrator_url(urls.owner)) as administrator:
            with administrator.begin() as connection:
                connection.execute(text(
                    "CREATE ROLE manager LOGIN CREATEROLE PASSWORD 'the manager of it';"
                    f"GRANT {OWNER}, {WORKER}, {READER} TO manager WITH ADMIN OPTION;"
                    f'ALTER DATABASE "{name}" OWNER TO manager; ALTER SCHEMA public OWNER TO manager'
                ))  # fmt: skip
            try:
                with Database(url_as(urls.owner, "manager", "the manager of it")) as managed:
                    assert set(OWN_DATABASES) <= set(make_roles(managed, {}))
                assert attempt(database_named(urls.worker, "postgres"), "SELECT 1") is None
            finally:
                with administrator.begin() as connection:
                    connection.execute(text(
                        f'ALTER DATABASE "{name}" OWNER TO {OWNER}; REASSIGN OWNED BY manager TO {OWNER};'
                        "DROP OWNED BY manager; DROP ROLE manager"
                    ))  # fmt: skip


class TestBeforeThereAreTables:
    """Roles first, then the owner's migration: as in a new deployment."""

    @pytest.fixture
    def urls(self, empty_database_url: str, tmp_path: Path) -> RoleUrls:
        return roles_in(empty_database_url, tmp_path)

    def test_only_the_owner_makes_them(self, urls: RoleUrls) -> None:
        for url in (urls.worker, urls.reader):
            with pytest.raises(DatabaseUnsuitable, match="shoal db migrate") as refused:
                open_database(url)
            assert "has none of our tables" in str(refused.value)
            with pytest.raises(DatabaseUnsuitable, match="shoal db migrate"):
                open_optuna_storage(url)
        with open_database(urls.owner) as database:
            close_optuna_storage(open_optuna_storage(urls.owner))
            seal(database)
        for url in (urls.worker, urls.reader):
            with open_database(url) as database:
                assert all(result.ok for result in database.check())
            close_optuna_storage(open_optuna_storage(url))
        assert attempt(urls.worker, WRITING["add a trial"]) is None
        assert attempt(urls.worker, FORBIDDEN["say that the tables are older"]) == "42501"
        assert attempt(urls.reader, READING) is None

    def test_a_schema_that_is_behind_is_named(self, urls: RoleUrls, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_database(urls.owner):
            pass
        monkeypatch.setattr("storage.database.newest_revision", lambda: "9999")
        for url in (urls.worker, urls.reader):
            with pytest.raises(
                DatabaseUnsuitable, match=r"has schema \d{4}, this version needs 9999.*migrate"
            ):
                open_database(url)


def test_a_lost_curve_is_cut_by_a_worker(urls: RoleUrls) -> None:
    """The only thing that the ledger deletes: what an attempt that is gone reported beyond the end."""
    with open_database(urls.worker) as database:
        storage = open_optuna_storage(urls.worker)
        Experiments(database).create("e", {"experiment": "e"}, "hash", {}, [("tpe", 0, "e/tpe/0")])
        study = optuna.create_study(storage=storage, study_name="e/tpe/0")
        ledger = BatchedLedger(database)
        first = ledger.register("first")
        (lease,) = ledger.claim("e/tpe/0", first, waiting=0, new=1)
        ledger.write(epochs=[epoch_of(lease, epoch) for epoch in (1, 2, 3)])
        ledger.retire(first)
        (again,) = ledger.claim("e/tpe/0", ledger.register("second"), waiting=1, new=0)
        ledger.write(epochs=[epoch_of(again, 1)], endings=[])
        ledger.write(epochs=[epoch_of(again, 2)], endings=[end(again, "pruned")])
        assert sorted(study.trials[0].intermediate_values) == [1, 2]
        assert database.scalar("SELECT max(epoch) FROM shoal.epochs") == 2
        close_optuna_storage(storage)


def test_changes_by_a_reader_are_errors_in_words(urls: RoleUrls) -> None:
    with open_database(urls.reader) as database:
        with pytest.raises(DatabaseUnsuitable, match="shoal_worker") as refused:
            Experiments(database).create("e", {"experiment": "e"}, "hash", {}, [])
        assert make_url(urls.reader).password not in str(refused.value)


def test_no_password_is_in_the_statements_or_the_servers_log(urls: RoleUrls, tmp_path: Path) -> None:
    secret = "correct horse battery"
    said: list[str] = []
    with Database(administrator_url(urls.owner)) as administrator:
        from sqlalchemy import event

        event.listen(administrator.engine, "before_cursor_execute", lambda *told: said.append(str(told[2:4])))
        before = passwords(tmp_path / "roles", ROLES)
        make_roles(administrator, {READER: secret})
        try:
            with Database(url_as(urls.owner, READER, secret)) as reader:
                assert reader.scalar("SELECT current_user") == READER
        finally:
            make_roles(administrator, before)
    assert len(said) > 50
    assert any("SCRAM-SHA-256" in one for one in said)
    assert not any(secret in one for one in said)
    assert not any(word in "".join(statements("shoal", 5)) for word in ("PASSWORD", *before.values()))


def test_nothing_that_workers_run_deletes() -> None:
    """Their role may not: what has to go is marked, or cut by a function of the owner's (migration 0007)."""
    sources = Path(__file__).parents[2] / "storage"
    deleting = {
        str(path.relative_to(sources))
        for path in sources.rglob("*.py")
        if re.search(r"\bDELETE FROM \w|\bTRUNCATE (?!ON\b)\w", path.read_text(encoding="utf-8"))
    }
    # Deleting a study is Optuna's own API, for who owns the tables.
    assert deleting == {"migrations/versions/0007_cuts.py", "optuna/studies.py"}
