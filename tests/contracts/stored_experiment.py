"""A small experiment written straight into a database: no training, known numbers."""

from __future__ import annotations

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from objectives.base import EpochReport
from storage.batched_ledger import BatchedLedger
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Draw, Ending, EpochWrite
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.records import ExperimentRecord

SPEC = {
    "experiment": "stored",
    "seed": 1,
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "fixed": {"epochs": 2},
    "space": {
        "learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "loss": {"values": ["mse", "hinge"]},
    },
    "methods": {"random": {}, "tpe": {"in_flight": 1}},
    "replicates": 2,
    "budget": {"trials": 4},
    "metric": "accuracy",
}

WAYS = (("complete", 0.5, 2), ("pruned", 0.9, 1), ("diverged", 0.0, 1), ("failed", None, 1))
"""What becomes of each study's trials: state, value (plus a tenth per replicate), epochs."""


REASON = "the model raised <ValueError>"
"""Why the failed trials failed."""


def store_experiment(
    database: Database, *, name: str = "stored", direction: str = "maximize"
) -> ExperimentRecord:
    """Two methods × two replicates, each study with one trial of each of `WAYS`. Returns the record."""
    experiments = Experiments(database)
    studies = [
        (method, replicate, f"{name}/{method}/{replicate}")
        for replicate in range(2)
        for method in ("random", "tpe")
    ]
    record = experiments.create(name, SPEC | {"experiment": name}, "0" * 64, {"python": "3.11"}, studies)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_optuna_storage(database.url)
    try:
        ledger = BatchedLedger(database)
        worker = ledger.register("by-hand")
        for _, replicate, study_name in studies:
            study = optuna.create_study(storage=storage, study_name=study_name, direction=direction)
            for number, (way, value, epochs) in enumerate(WAYS):
                shifted = None if value is None else value + replicate / 10 * (way == "complete")
                study.enqueue_trial(_values(number))
                _store_trial(ledger, worker, study_name, way, shifted, epochs)
        ledger.retire(worker)
    finally:
        close_optuna_storage(storage)
    experiments.set_state(record.id, "finished")
    return experiments.get(name)


def _values(number: int) -> dict[str, object]:
    return {"learning_rate": 0.1 * (number + 1), "loss": "mse" if number % 2 else "hinge"}


def _store_trial(
    ledger: BatchedLedger, worker: int, study_name: str, way: str, value: float | None, epochs: int
) -> None:
    (lease,) = ledger.claim(study_name, worker, waiting=1, new=0)
    distributions = {
        "learning_rate": FloatDistribution(0.001, 1.0, log=True),
        "loss": CategoricalDistribution(("mse", "hinge")),
    }
    reports = [
        EpochReport(
            epoch=epoch,
            train_loss=1.0 / epoch,
            validation_loss=1.5 / epoch,
            metrics={"accuracy": value or 0.0, "error": 1 - (value or 0.0)},
            gradient_norm=None,
            learning_rate=0.1,
            seconds=0.25,
            images_per_second=1000.0,
            diverged=way == "diverged",
        )
        for epoch in range(1, epochs + 1)
    ]
    ending = Ending(
        lease=lease,
        state="complete" if way == "diverged" else way,  # type: ignore[arg-type]
        value=value if way in ("complete", "diverged") else None,
        attributes={"diverged": True} if way == "diverged" else {},
        reason=REASON if way == "failed" else None,
    )
    ledger.write(
        draws=[Draw(lease=lease, values=lease.fixed, distributions=distributions)],
        epochs=[EpochWrite(lease=lease, report=report, value=value or 0.0) for report in reports],
        endings=[ending],
    )
