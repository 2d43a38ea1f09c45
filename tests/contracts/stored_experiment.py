"""A small experiment written straight into a database: no training, known numbers."""

from __future__ import annotations

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from objectives.base import EpochReport
from storage.attempts import Attempts, LiveWorker
from storage.curves import Curves
from storage.database import Database
from storage.experiments import Experiments
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
        with Attempts(database).worker("by-hand") as worker:
            for _, replicate, study_name in studies:
                study = optuna.create_study(storage=storage, study_name=study_name, direction=direction)
                for number, (way, value, epochs) in enumerate(WAYS):
                    shifted = None if value is None else value + replicate / 10 * (way == "complete")
                    _store_trial(database, study, worker, number, way, shifted, epochs)
    finally:
        close_optuna_storage(storage)
    experiments.set_state(record.id, "finished")
    return experiments.get(name)


def _store_trial(
    database: Database,
    study: optuna.Study,
    worker: LiveWorker,
    number: int,
    way: str,
    value: float | None,
    epochs: int,
) -> None:
    distributions = {
        "learning_rate": FloatDistribution(0.001, 1.0, log=True),
        "loss": CategoricalDistribution(("mse", "hinge")),
    }
    study.enqueue_trial({"learning_rate": 0.1 * (number + 1), "loss": "mse" if number % 2 else "hinge"})
    trial = study.ask(distributions)
    attempts = Attempts(database)
    attempt = attempts.begin(study.study_name, trial._trial_id, number, worker)
    for epoch in range(1, epochs + 1):
        report = EpochReport(
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
        Curves(database).write(trial._trial_id, attempt, report)
        if value is not None:
            trial.report(value, epoch)
    if way == "diverged":
        trial.set_user_attr("diverged", True)
    if way == "failed":
        trial.set_user_attr("reason", REASON)
    told = {"complete": TrialState.COMPLETE, "diverged": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    state = told.get(way, TrialState.FAIL)
    study.tell(trial, value if state is TrialState.COMPLETE else None, state=state)
    ended = "complete" if way == "diverged" else way
    attempts.end(trial._trial_id, attempt, ended, REASON if way == "failed" else None)  # type: ignore[arg-type]
