"""Fixtures for tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.database import URL_VARIABLE, Database
from tests.contracts.stored_experiment import store_experiment


@pytest.fixture
def stored(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """A database with the experiment `stored`, which commands find by the environment."""
    store_experiment(database)
    monkeypatch.setenv(URL_VARIABLE, database.url)
    monkeypatch.chdir(tmp_path)
    return database
