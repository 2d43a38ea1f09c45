"""Fixtures for the tests of our storage over Optuna's tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg2
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from storage.database import Database
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.conftest import database_named, drop, on_server

TABLES = (
    "trial_heartbeats, trial_intermediate_values, trial_params, trial_system_attributes, "
    "trial_user_attributes, trial_values, trials, study_directions, study_system_attributes, "
    "study_user_attributes, studies"
)


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """A database for the tests of a module, which `empty_url` empties for each."""
    name = f"module_{uuid.uuid4().hex}"
    on_server(postgres_url, "CREATE DATABASE {} TEMPLATE {}", name, template_database)
    yield database_named(postgres_url, name)
    drop(postgres_url, name)


@pytest.fixture
def empty_url(module_database_url: str) -> str:
    """A database with Optuna's tables, all empty; cheaper than a database of its own for each test."""
    parsed = make_url(module_database_url).set(drivername="postgresql")
    connection = psycopg2.connect(parsed.render_as_string(hide_password=False))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {TABLES}")
    finally:
        connection.close()
    return module_database_url


@pytest.fixture
def stock(empty_url: str) -> Iterator[RDBStorage]:
    """Optuna's own storage of the same tables."""
    opened = RDBStorage(empty_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def beside(empty_url: str) -> Iterator[Database]:
    """The same database, for statements of the tests' own."""
    with Database(empty_url) as opened:
        yield opened


@pytest.fixture
def storage(empty_url: str) -> Iterator[ShoalStorage]:
    """Our storage on empty tables."""
    opened = open_optuna_storage(empty_url)
    assert isinstance(opened, ShoalStorage)
    yield opened
    close_optuna_storage(opened)
