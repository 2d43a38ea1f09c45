"""The one door to the sealed test set: retrain a config once, score it, log the reading."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from objectives.base import derive_seed
from search.experiment.spec import ExperimentSpec
from search.trials.precisions import held_precision
from search.work.programs import StoredChoices
from storage.test_readings import TestReadings

if TYPE_CHECKING:
    from objectives.base import Task, TrialConfig
    from storage.database import Database
    from storage.records import ExperimentRecord, TestReading, TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What may differ from the trial as it was searched; None: nothing."""

    seed: int | None = None
    epochs: int | None = None
    limit: int | None = None
    all_images: bool = False
    """Lift the file's limit on images; not together with `limit`."""
    device: str = "auto"


def score_once(database: Database, record: ExperimentRecord, row: TrialRow, request: Request) -> TestReading:
    """Retrain a trial's config, score it on the test images, and store the reading.

    Without a seed in the request, one that no trial of the search had: the searched one was chosen
    for its luck as well. Raises `ObjectiveError`.
    """
    from objectives.trainer import score_on_test

    spec = ExperimentSpec.from_json(record.spec)
    seed = request.seed
    if seed is None:
        seed = derive_seed(spec.seed, row.replicate, row.number, "score")
    config = retrained(spec.config(row.params), request)
    split_seed = derive_seed(spec.seed, row.replicate, "split")
    precision = held_precision(StoredChoices(database, record.id), request.device)
    task = dataclasses.replace(task_of(spec, request), precision=precision)
    scored = score_on_test(task, config, seed, split_seed, request.device)
    return TestReadings(database).append(
        experiment_id=record.id,
        study_name=row.study_name,
        trial_id=row.trial_id,
        trial_number=row.number,
        config={**spec.constants(), **row.params, "epochs": config.epochs},
        seed=seed,
        metrics=scored.metrics,
        validation=scored.validation,
        epochs=scored.epochs,
        images=scored.images,
        seconds=scored.seconds,
    )


def retrained(config: TrialConfig, request: Request) -> TrialConfig:
    """The config to train."""
    return config if request.epochs is None else dataclasses.replace(config, epochs=request.epochs)


def task_of(spec: ExperimentSpec, request: Request) -> Task:
    """The search's task, on as many images as asked for."""
    task = spec.task()
    if request.limit is None and not request.all_images:
        return task
    return dataclasses.replace(task, data=dataclasses.replace(task.data, limit=request.limit))
