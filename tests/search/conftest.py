"""Fixtures for tests of commands, brokers and controllers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from search.control import controller
from storage.database import URL_VARIABLE, Database
from tests.contracts.experiments import Running, prepared, small_spec
from tests.contracts.stored_experiment import store_experiment


@pytest.fixture
def stored(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """A database with the experiment `stored`, which commands find by the environment."""
    store_experiment(database)
    monkeypatch.setenv(URL_VARIABLE, database.url)
    monkeypatch.chdir(tmp_path)
    return database


@pytest.fixture
def running(database: Database) -> Iterator[Running]:
    """An experiment of two methods whose studies are made; nothing of it has run."""
    with prepared(database, small_spec()) as made:
        yield made


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controllers look at their crew ten times a second."""
    monkeypatch.setattr(controller, "LOOK_SECONDS", 0.1)
