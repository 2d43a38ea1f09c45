"""Trials and epochs as flat rows, for pandas, spreadsheets and scripts.

A trial's row has a column `params.NAME` for each dimension, an epoch's row a column `metrics.NAME`
for each metric. Values stand as they were measured, unrounded; nothing is an empty cell in CSV, null
in JSON and Parquet, and a missing value in pandas.

In Python:

    from search.export import frame
    from storage.database import open_database

    trials = frame(open_database(), "digits")            # a row per trial
    epochs = frame(open_database(), "digits", "epochs")  # a row per epoch of every trial

Parquet and pandas take the extra `shoal[parquet]`; see `columns_of` for their types.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from search.trial_fields import trial_fields
from storage import queries
from storage.curves import Curves
from storage.experiments import Experiments

if TYPE_CHECKING:
    from pathlib import Path

    import pandas
    import pyarrow

    from storage.database import Database
    from storage.records import EpochRecord, StudyRecord, TrialRow

Row: TypeAlias = dict[str, object]

What: TypeAlias = Literal["trials", "epochs"]

ColumnType: TypeAlias = Literal["integer", "float", "boolean", "text", "time"]

_FIRST: dict[str, ColumnType] = {
    "experiment": "text",
    "study": "text",
    "method": "text",
    "replicate": "integer",
    "trial": "integer",
}
COLUMNS: Mapping[What, Mapping[str, ColumnType]] = {
    "trials": {
        **_FIRST,
        "state": "text",
        "diverged": "boolean",
        "value": "float",
        "epochs": "integer",
        "device_seconds": "float",
        "sampler_seconds": "float",
        "attempts": "integer",
        "shared_with": "text",
        "shared_epochs": "integer",
        "reason": "text",
        "started_at": "time",
        "ended_at": "time",
    },
    "epochs": {
        **_FIRST,
        "attempt": "integer",
        "epoch": "integer",
        "diverged": "boolean",
        "train_loss": "float",
        "validation_loss": "float",
        "gradient_norm": "float",
        "learning_rate": "float",
        "device_seconds": "float",
        "images_per_second": "float",
    },
}
"""What every row has; configs and metrics follow."""


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
    params = {f"params.{name}": value for name, value in row.params.items()}
    return {"experiment": experiment, **trial_fields(row), **params}


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


class MissingLibraryError(ImportError):
    """An optional library isn't installed; the message says how to install it."""


def columns_of(rows: Sequence[Mapping[str, object]], what: What) -> dict[str, ColumnType]:
    """The typed columns of rows, those of `COLUMNS` first.

    A dimension is boolean, integer or float if all its values are; integers among floats are floats,
    and anything else that is mixed is text. Every column may hold nothing: a conditional dimension does
    where it doesn't apply.
    """
    fixed = dict(COLUMNS[what])
    further = dict.fromkeys(column for row in rows for column in row if column not in fixed)
    kinds: dict[str, set[ColumnType]] = {column: set() for column in further}
    for row in rows:
        for column in further:
            if (value := row.get(column)) is not None:
                kinds[column].add(_type_of(value))
    return fixed | {column: _common(found) for column, found in kinds.items()}


def _type_of(value: object) -> ColumnType:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        # Parquet's integers have 64 bits.
        return "integer" if -(2**63) <= value < 2**63 else "text"
    return "float" if isinstance(value, float) else "text"


def _common(found: set[ColumnType]) -> ColumnType:
    if len(found) == 1:
        return next(iter(found))
    # Metrics that nothing was measured of are numbers as well.
    return "float" if found <= {"integer", "float"} else "text"


def arrow_table(rows: Sequence[Mapping[str, object]], what: What) -> pyarrow.Table:
    """The rows as typed, nullable columns. Raises `MissingLibraryError`."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingLibraryError("pyarrow is not installed: pip install 'shoal[parquet]'") from error
    types = {
        "integer": pyarrow.int64(),
        "float": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
        "text": pyarrow.string(),
        "time": pyarrow.timestamp("us", tz="UTC"),
    }
    columns = columns_of(rows, what)
    arrays = {
        name: pyarrow.array([_typed(row.get(name), kind) for row in rows], types[kind])
        for name, kind in columns.items()
    }
    return pyarrow.table(arrays)


def _typed(value: object, kind: ColumnType) -> Any:
    """The value as its column holds it."""
    if value is None:
        return None
    match kind:
        case "time":
            return datetime.fromisoformat(str(value))
        case "text":
            return value if isinstance(value, str) else json.dumps(value)
        case "float":
            assert isinstance(value, int | float)
            return float(value)
        case _:
            return value


def write_parquet(rows: Sequence[Mapping[str, object]], what: What, path: Path) -> None:
    """A Parquet file, with its columns also where there is no row.

    Raises `MissingLibraryError`, and `OSError` where it can't be written.
    """
    table = arrow_table(rows, what)
    from pyarrow import parquet

    parquet.write_table(table, path)


def frame(database: Database, experiment: str, what: What = "trials") -> pandas.DataFrame:
    """The experiment's trials or epochs as a pandas DataFrame.

    Integers and booleans have pandas' nullable types, times are in UTC, and a missing float is NaN.
    Raises `ExperimentNotFound` and `MissingLibraryError`.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingLibraryError("pandas is not installed: pip install 'shoal[parquet]'") from error
    rows = ROWS[what](database, experiment)
    nullable = {"int64": pandas.Int64Dtype(), "bool": pandas.BooleanDtype()}
    table = arrow_table(rows, what)
    return table.to_pandas(types_mapper=lambda kind: nullable.get(str(kind)))


ROWS: Mapping[What, Callable[[Database, str], list[Row]]] = {"trials": trial_rows, "epochs": epoch_rows}
"""What is exported → its rows."""
