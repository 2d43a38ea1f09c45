"""Trials and epochs as flat rows, for pandas, spreadsheets and scripts.

A trial's row has a column `params.NAME` for each dimension, an epoch's row a column `metrics.NAME`
for each metric. Values stand as they were measured, unrounded; nothing is an empty cell in CSV and
null in JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, TypeAlias

from storage import queries
from storage.curves import Curves
from storage.experiments import Experiments

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import EpochRecord, StudyRecord, TrialRow

Row: TypeAlias = dict[str, object]


def trial_rows(database: Database, experiment: str) -> list[Row]:
    """A row per trial, by study and number. Raises `ExperimentNotFound`."""
    record = Experiments(database).get(experiment)
    return [_trial_row(record.name, row) for row in queries.trials(database, record.id)]


def epoch_rows(database: Database, experiment: str) -> list[Row]:
    """A row per epoch of every trial, by study, number and epoch. Raises `ExperimentNotFound`."""
    experiments = Experiments(database)
    record = experiments.get(experiment)
    studies = {study.name: study for study in experiments.studies(record.id)}
    return [
        _epoch_row(record.name, studies[epoch.study_name], epoch)
        for epoch in Curves(database).of_experiment(record.id)
    ]


def _trial_row(experiment: str, row: TrialRow) -> Row:
    return {
        "experiment": experiment,
        "study": row.study_name,
        "method": row.method,
        "replicate": row.replicate,
        "trial": row.number,
        "state": row.state,
        "diverged": row.diverged,
        "value": row.value,
        "epochs": row.epochs,
        "device_seconds": row.seconds,
        "sampler_seconds": row.sampler_seconds,
        "attempts": row.attempts,
        "reason": row.reason,
        "started_at": row.started_at.isoformat() if row.started_at else None,
        "ended_at": row.ended_at.isoformat() if row.ended_at else None,
        **{f"params.{name}": value for name, value in row.params.items()},
    }


def _epoch_row(experiment: str, study: StudyRecord, epoch: EpochRecord) -> Row:
    return {
        "experiment": experiment,
        "study": study.name,
        "method": study.method,
        "replicate": study.replicate,
        "trial": epoch.trial_number,
        "attempt": epoch.attempt,
        "epoch": epoch.epoch,
        "diverged": epoch.diverged,
        "train_loss": epoch.train_loss,
        "validation_loss": epoch.validation_loss,
        "gradient_norm": epoch.gradient_norm,
        "learning_rate": epoch.learning_rate,
        "device_seconds": epoch.seconds,
        "images_per_second": epoch.images_per_second,
        **{f"metrics.{name}": value for name, value in epoch.metrics.items()},
    }


def write_csv(rows: Sequence[Mapping[str, object]], target: IO[str]) -> None:
    """CSV with a header; rows that lack a column (a conditional dimension) leave it empty.

    No rows, no header: the columns come from the rows.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return
    writer = csv.DictWriter(target, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def write_json_lines(rows: Sequence[Mapping[str, object]], target: IO[str]) -> None:
    """One JSON object per line."""
    for row in rows:
        target.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")


WRITERS: Mapping[str, Callable[[Sequence[Mapping[str, object]], IO[str]], None]] = {
    "csv": write_csv,
    "jsonl": write_json_lines,
}
"""Format → what writes it."""
