"""The numbers behind figures and tables beside the report: CSV files, and Parquet where that is installed.

CSV in UTF-8 with a heading, which every program reads. Parquet knows types, and takes `shoal[parquet]`:
a library of 50 MB that nobody else should need.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from search.compare.base import Comparison
from search.compare.figures.base import Data, Figure
from search.compare.figures.parquet import is_installed, write_parquet
from search.compare.tables import Table, Value
from search.formats import format_value

FOLDER = "report-data"
TRIALS = "trials"
"""The file with a row per trial."""


def write_data(
    folder: Path, comparison: Comparison, figures: Iterable[Figure], tables: Iterable[Table]
) -> tuple[Path, ...]:
    """Write `report-data/` in the report's folder: a file per figure and table, and all trials.

    Files of an earlier report whose figures are no longer made are removed. A table's file is
    named `table-KEY.csv`. Raises `OSError` where the folder can't be written.
    """
    contents = contents_data(figures, tables) | {TRIALS: trials_data(comparison)}
    return write_data_files(folder / FOLDER, contents)


def contents_data(figures: Iterable[Figure], tables: Iterable[Table]) -> dict[str, Data]:
    """File name without its end → the numbers behind a figure or a table (`table-KEY`)."""
    contents = {figure.key: figure.data for figure in figures}
    return contents | {f"table-{table.key}": _of_table(table) for table in tables}


def write_data_files(place: Path, contents: Mapping[str, Data]) -> tuple[Path, ...]:
    """Write the files of each entry into the folder, and remove every other one of their kinds there.

    Raises `OSError` where the folder can't be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Data, Path], None]] = {"csv": _write_csv}
    if is_installed():
        writers["parquet"] = write_parquet
    written = []
    for name, data in contents.items():
        for kind, write in writers.items():
            path = place / f"{name}.{kind}"
            aside = place / f".{name}.{kind}.{os.getpid()}"
            write(data, aside)
            aside.replace(path)
            written.append(path)
    for stale in {*place.glob("*.csv"), *place.glob("*.parquet")} - set(written):
        stale.unlink(missing_ok=True)
    return tuple(written)


def _write_csv(data: Data, path: Path) -> None:
    path.write_text(csv_text(data.columns, data.rows), encoding="utf-8", newline="")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """Rows as CSV with a heading; nothing is an empty cell, numbers are in full.

    Text that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_safe(column) for column in columns])
    writer.writerows([_safe(value) for value in row] for row in rows)
    return out.getvalue()


def _safe(value: Value) -> Value:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def trials_data(comparison: Comparison) -> Data:
    """Every trial, in the order of studies and numbers: the report's appendix."""
    names = dict.fromkeys(
        str(name) for study in comparison.studies for trial in study.trials for name in trial.params
    )
    columns = (
        "study",
        "method",
        "replicate",
        "trial",
        "state",
        "diverged",
        "value",
        "epochs",
        "device_seconds",
        "sampler_seconds",
        "attempts",
        "shared_with",
        "started_at",
        "ended_at",
        *(f"params.{name}" for name in names),
    )
    rows: list[tuple[Value, ...]] = [
        (
            study.name,
            study.method,
            study.replicate,
            trial.number,
            trial.state,
            trial.diverged,
            trial.value,
            trial.epochs,
            trial.seconds,
            trial.sampler_seconds,
            trial.attempts,
            trial.shared_with,
            trial.started_at.isoformat() if trial.started_at else None,
            trial.ended_at.isoformat() if trial.ended_at else None,
            *(_value(trial.params.get(name)) for name in names),
        )
        for study in comparison.studies
        for trial in study.trials
    ]
    return Data(columns, tuple(rows))


def _value(value: object) -> Value:
    return value if value is None or isinstance(value, str | int | float | bool) else format_value(value)


def _of_table(table: Table) -> Data:
    """The table's values; what a cell tells beside its value has columns of its own, `KEY.low` say."""
    columns: list[str] = []
    values: list[list[Value]] = []
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        columns.append(column.key)
        values.append([cell.value for cell in cells])
        for part in dict.fromkeys(name for cell in cells for name, _ in cell.parts):
            columns.append(f"{column.key}.{part}")
            values.append([dict(cell.parts).get(part) for cell in cells])
    return Data(tuple(columns), tuple(zip(*values, strict=True)))
