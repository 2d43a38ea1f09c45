"""Small experiments for tests of running them, on the fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.control.controller import find_or_create
from search.experiment.spec import ExperimentSpec
from search.trials.broker import Broker
from search.trials.making import make_studies
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Ledger
from storage.ledgers import ledger_of
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord


def small_spec(**changes: Any) -> ExperimentSpec:
    """Two methods, six trials of three epochs, no retraining; `changes` replace whole sections."""
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
        "comparison": {"retrain": {"seeds": 0}},
    }
    return ExperimentSpec.model_validate(sections | changes)


def pausing_spec(trials: int = 4, epochs: int = 4, **changes: Any) -> ExperimentSpec:
    """Random search whose trials rest after epochs 1, 2, 4, … while the better half goes on."""
    sections: dict[str, Any] = {
        "methods": {"random": {}},
        "fixed": {"epochs": epochs},
        "budget": {"trials": trials},
        "pruner": {"name": "asha_promotion", "min_epochs": 1, "eta": 2},
    }
    return small_spec(**sections | changes)


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

    @property
    def ledger(self) -> Ledger:
        """The ledger of this database."""
        return ledger_of(self.database, self.storage)

    @contextmanager
    def broker(self, worker: str = "w", *, retires: bool = False, **options: Any) -> Iterator[Broker]:
        """The broker of a worker that is gone after the block: killed, unless it `retires`."""
        ledger = ledger_of(self.database, self.storage)
        worker_id = ledger.register(worker)
        yield Broker(
            self.database,
            self.storage,
            self.experiment,
            self.spec,
            ledger=options.pop("ledger", ledger),
            worker_id=worker_id,
            **options,
        )
        if retires:
            ledger.retire(worker_id)


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
