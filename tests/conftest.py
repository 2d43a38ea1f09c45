"""Fixtures for all tests: a Postgres for the session, a fresh database for each test, real data."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

# As many processes test as there are cores: threads beside them would only wait for one another, and
# tensors of tests are so small that a second thread makes even a lone process eight times as slow. Engines
# train with one thread whatever is said here; their parts, tested by themselves, promise equal bits for one
# thread only. It is read when the first library that has it is loaded, so it stands before the imports.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psycopg2
import pytest
from hypothesis import HealthCheck, settings
from psycopg2 import sql
from sqlalchemy.engine import make_url

from objectives.imports import ALLOW_VARIABLE
from storage.database import URL_VARIABLE, Database
from storage.embedded import HOME_VARIABLE, EmbeddedPostgres
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.urls import FILE_VARIABLE

# Examples are the same on every machine and in every run, and none fails because a machine is busy.
settings.register_profile(
    "shoal", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shoal")


STARTS_PROCESSES = ("slow", "ray", "browser")
"""Markers of tests whose clusters, servers and browsers the machine may be too busy for, once."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say who may be run again, and in which order files are taken.

    A test that starts processes is run a second time if it failed, two in a whole run at most
    (pyproject.toml); the summary names it and shows how it failed. All others fail at once.

    Several processes take files in turn: those with slow tests first, so that all end together.
    """
    for item in items:
        if any(item.get_closest_marker(name) for name in STARTS_PROCESSES):
            item.add_marker(pytest.mark.flaky(reruns=1))
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


MODULES_OF_TESTS = (
    "users_own",
    "own_absent",
    "own_broken",
    "own_entries",
    "own_losses",
    "own_parts",
    "own_script",
    "scratch_objective",
    "nowhere",
    "mine",
    "m",
)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def shoal_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SHOAL_HOME in a temporary folder: no test touches a developer's own server or database.

    A server that any test starts there, by leaving out a database's URL, is stopped at the end.
    """
    home = tmp_path_factory.mktemp("shoal-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv(URL_VARIABLE, raising=False)
        # Several processes of tests have it set, and a pipe would be a terminal of 80 columns.
        patch.delenv("COLUMNS", raising=False)
        patch.delenv(FILE_VARIABLE, raising=False)
        yield home
        EmbeddedPostgres().stop()


@pytest.fixture(scope="session", autouse=True)
def allowed_imports() -> Iterator[None]:
    """The operator's list: modules that tests write or are, so that files decide. Inherited by processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_VARIABLE, ",".join(("search.examples", "tests", "json", *MODULES_OF_TESTS)))
        yield


@pytest.fixture(scope="session")
def postgres_url(shoal_home: Path) -> str:
    """The URL of the session's embedded Postgres; its database is for nobody's use but `shoal_home`'s."""
    return EmbeddedPostgres(shoal_home / "postgres", durable=False).start()


def on_server(
    url: str, statement: str, *names: str, kind: type[sql.Identifier | sql.Literal] = sql.Identifier
) -> None:
    """Run one statement outside a transaction, with quoted identifiers, or values, filled in."""
    parsed = make_url(url).set(drivername="postgresql")
    connection = psycopg2.connect(parsed.render_as_string(hide_password=False))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(kind, names)))
    finally:
        connection.close()


def drop(url: str, name: str) -> None:
    """Drop a database, whoever is still connected to it."""
    try:
        on_server(url, "DROP DATABASE {} WITH (FORCE)", name)
    except psycopg2.errors.InsufficientPrivilege:
        # Our role may not end the server's own autovacuum; dropping without FORCE makes it give way.
        ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND usename = user"
        on_server(url, ours, name, kind=sql.Literal)
        on_server(url, "DROP DATABASE {}", name)


def database_named(url: str, name: str) -> str:
    """The same URL with another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh database without any table."""
    name = f"test_{uuid.uuid4().hex}"
    on_server(postgres_url, "CREATE DATABASE {}", name)
    yield database_named(postgres_url, name)
    drop(postgres_url, name)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> str:
    """The name of a database with our tables and Optuna's, for cloning."""
    name = f"template_{os.getpid()}"
    on_server(postgres_url, "CREATE DATABASE {}", name)
    url = database_named(postgres_url, name)
    with Database(url) as database:
        database.migrate()
    close_optuna_storage(open_optuna_storage(url))
    return name


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A fresh database with our tables and Optuna's, empty."""
    name = f"test_{uuid.uuid4().hex}"
    on_server(postgres_url, "CREATE DATABASE {} TEMPLATE {}", name, template_database)
    yield database_named(postgres_url, name)
    drop(postgres_url, name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open `Database` on a fresh database."""
    with Database(database_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real datasets beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no datasets in {SHARED_DATA}")
    return SHARED_DATA
