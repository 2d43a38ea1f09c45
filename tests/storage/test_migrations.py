"""Our schema: the sum of its migrations equals the models, and making it is safe."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from storage.database import SCHEMA, VERSION_TABLE, Database, newest_revision, open_database
from storage.errors import DatabaseUnsuitable
from storage.launch_models import Notice
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.upgrading import MIGRATIONS

REPOSITORY = Path(__file__).parents[2]
METADATA = Notice.metadata
"""Of all tables: the last of their modules imports the others."""


def checks_of(connection) -> set[tuple[str, str]]:
    rows = connection.execute(
        text(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE connamespace = 'shoal'::regnamespace"
        )
    )
    return {(name, definition) for name, definition in rows}


def test_migrations_make_what_the_models_say(database):
    options = {
        "target_metadata": METADATA,
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        "version_table": VERSION_TABLE,
        "version_table_schema": SCHEMA,
        "compare_type": True,
        "compare_server_default": True,
    }
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), METADATA) == []


def test_migrations_make_the_models_constraints(database, empty_database_url):
    """`compare_metadata` looks at neither CHECKs nor names of keys, so both schemas are compared."""
    with Database(empty_database_url) as other:
        with other.begin() as connection:
            connection.execute(text("CREATE SCHEMA shoal"))
            METADATA.create_all(connection)
        with other.begin() as connection:
            from_models = checks_of(connection)
    with database.begin() as connection:
        from_migrations = {pair for pair in checks_of(connection) if VERSION_TABLE not in pair[0]}
    assert from_migrations == from_models
    assert len(from_models) > 30


def test_there_is_one_line_of_migrations_and_none_goes_back():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_current_head() == newest_revision()
    for script in scripts.walk_revisions():
        assert not hasattr(script.module, "downgrade")
        assert script.path.rpartition("/")[2].startswith(script.revision)


def test_processes_open_an_empty_database_at_once(empty_database_url):
    code = "import sys, optuna, alembic.command; from storage.database import open_database\n"
    code += "from storage.optuna_storage import open_optuna_storage\n"
    code += "print('ready', flush=True); sys.stdin.readline()\n"
    code += "open_database(sys.argv[1]); open_optuna_storage(sys.argv[1]).get_all_studies()"
    openers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, empty_database_url],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for opener in openers:
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        opener.stdin.write("go\n")
        opener.stdin.flush()
    for opener in openers:
        _, errors = opener.communicate(timeout=240)
        assert opener.returncode == 0, errors
    with Database(empty_database_url) as database:
        assert all(result.ok for result in database.check())


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("migrations", lambda url: open_database(url).close()),
        ("optuna's tables", lambda url: close_optuna_storage(open_optuna_storage(url))),
    ],
)
def test_tables_are_made_under_a_lock(empty_database_url, key, make):
    """The test above may be lucky with its timing; here one holds the lock while another makes tables."""
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    made = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('shoal', 'public')"
    with Database(empty_database_url) as database:
        with database.lock(key):
            maker = threading.Thread(target=make, args=[empty_database_url])
            maker.start()
            while database.scalar(waiting) == 0 and maker.is_alive():
                pass
            assert maker.is_alive()
            assert database.scalar(made) == 0
        maker.join()
        assert database.scalar(made) > 0


def test_migrating_again_is_one_statement(database):
    from sqlalchemy import event

    statements = []
    event.listen(database.engine, "before_cursor_execute", lambda *details: statements.append(details[2]))
    database.migrate()
    assert len(statements) == 1


def test_a_failed_migration_leaves_nothing(empty_database_url, monkeypatch):
    import alembic.command

    def broken(config, _revision):
        connection = config.attributes["connection"]
        connection.execute(text("CREATE SCHEMA shoal"))
        raise KeyError

    with Database(empty_database_url) as database:
        with monkeypatch.context() as patch:
            patch.setattr(alembic.command, "upgrade", broken)
            with pytest.raises(KeyError):
                database.migrate()
        assert database.revision() is None
        database.migrate()
        assert database.revision() == newest_revision()


def test_a_schema_from_the_future_is_refused(database):
    with database.begin() as connection:
        connection.execute(text(f"UPDATE {SCHEMA}.{VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DatabaseUnsuitable, match="newer"):
        open_database(database.url)


def test_alembic_is_not_imported_where_nothing_is_to_be_done(database_url):
    code = (
        "import sys; from storage.database import open_database; import storage.queries, storage.attempts\n"
    )
    code += "open_database(sys.argv[1]).close()\n"
    code += "heavy = {'alembic', 'optuna', 'torch', 'ray', 'sqlalchemy.orm', 'psutil'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code, database_url], check=True, cwd=REPOSITORY)
