"""A server of its own for tests that stop and kill it, and the environment of the workers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.ledger import LEASE_VARIABLE
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.conftest import database_named, drop, on_server
from tests.faults.objectives import FOLDER_VARIABLE, PACE_VARIABLE

LEASE_SECONDS, SHORT_SECONDS = "120", "4"


@pytest.fixture(scope="session")
def server(shoal_home: Path) -> Iterator[EmbeddedPostgres]:
    """One that brings what it commits to disk, as a real one does."""
    server = EmbeddedPostgres(shoal_home / "faults" / "postgres")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def empty_lab(server: EmbeddedPostgres) -> str:
    """The name of a database with all tables, for cloning."""
    name = f"lab_{os.getpid()}"
    on_server(server.start(), "CREATE DATABASE {}", name)
    url = database_named(server.start(), name)
    with Database(url) as database:
        database.migrate()
    close_optuna_storage(open_optuna_storage(url))
    return name


@pytest.fixture
def database_url(server: EmbeddedPostgres, empty_lab: str) -> Iterator[str]:
    """A fresh database on the server that may be broken."""
    name = f"lab_{uuid.uuid4().hex}"
    on_server(server.start(), "CREATE DATABASE {} TEMPLATE {}", name, empty_lab)
    yield database_named(server.start(), name)
    drop(server.start(), name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trials leave traces, said to all processes of the test."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(PACE_VARIABLE, "0.02")
    monkeypatch.setenv(LEASE_VARIABLE, LEASE_SECONDS)
    return tmp_path


@pytest.fixture
def short_leases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the test whose workers wait until their own have run out; with others none may be lost."""
    monkeypatch.setenv(LEASE_VARIABLE, SHORT_SECONDS)
