"""Small experiments for tests of running them, on the fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.broker import Broker
from search.controller import find_or_create, make_studies
from search.spec import ExperimentSpec
from storage.attempts import Attempts
from storage.database import Database
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord


def small_spec(**changes: Any) -> ExperimentSpec:
    """Two methods, six trials of three epochs; `changes` replace whole sections."""
    sections: dict[str, Any] = {
        "experiment": "small",
        "seed": 3,
        "data": "digits",
        "fixed": {"epochs": 3},
        "space": {
            "learning_rate": {"low": 1e-3, "high": 1.0, "log": True, "grid": [0.01, 0.1, 1.0]},
            "lambda": {"low": 0.0, "high": 1.0, "grid": [0.0, 1.0]},
        },
        "methods": {"grid": {}, "random": {}},
        "replicates": 1,
        "budget": {"trials": 6},
    }
    return ExperimentSpec.model_validate(sections | changes)


@dataclass(frozen=True)
class Running:
    """An experiment whose studies are made."""

    database: Database
    storage: BaseStorage
    experiment: ExperimentRecord
    spec: ExperimentSpec

    def trials(self, method: str, replicate: int = 0) -> list[FrozenTrial]:
        """A study's trials, read anew."""
        name = self.spec.study_name(method, replicate)
        return self.storage.get_all_trials(self.storage.get_study_id_from_name(name))

    @contextmanager
    def broker(self, worker: str = "w") -> Iterator[Broker]:
        """The broker of a worker that lives as long as the block."""
        with Attempts(self.database).worker(worker) as live:
            yield Broker(self.database, self.storage, self.experiment, self.spec, live)


@contextmanager
def prepared(database: Database, spec: ExperimentSpec) -> Iterator[Running]:
    """Make an experiment, or open one that is there."""
    storage = open_optuna_storage(database.url)
    try:
        experiment, _ = find_or_create(Experiments(database), spec)
        make_studies(database, storage, spec)
        yield Running(database, storage, experiment, spec)
    finally:
        close_optuna_storage(storage)
