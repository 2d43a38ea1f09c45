"""Commands that make something of what was measured: `report`, `export`, `score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from search import output
from search.commands.options import AsJson, DatabaseUrl, DeviceOption, Experiment, NoNotes, flag, opened
from search.commands.reading import best_trials
from search.failures import CommandError, ExitCode, Failure, bad_input, not_found
from search.formats import format_number

if TYPE_CHECKING:
    from search.compare.analysis import Analysis
    from search.compare.base import Comparison
    from search.compare.contents import Contents
    from search.compare.tables import Table as Values
    from search.export import What

REPORTS = Path("reports")
"""Under the current folder; `shoal run` writes a folder per experiment there."""


def report_folder(experiment: str) -> Path:
    """Where an experiment's report goes unless told; names can't climb out, they hold no slash."""
    return REPORTS / experiment


def comparison_parts(comparison: Comparison, analysis: Analysis) -> tuple[RenderableType, ...]:
    """The verdict, and the report's tables of values, pairs and outcomes in the columns that matter most."""
    from search.compare.report_tables import tables_of

    tables = {table.key: table for table in tables_of(comparison, analysis)}
    parts: list[RenderableType] = [Text(output.clean(analysis.conclusion.verdict), style="bold")]
    for key, columns in SHOWN.items():
        if key in tables:
            parts += ["", terminal_table(tables[key], columns)]
    return tuple(parts)


SHOWN = {
    "headline": {
        "method": "method",
        "n": "n",
        "median": "median",
        "quartiles": "middle half",
        "mean": "mean",
        "mean_interval": "95 % interval",
    },
    "pairs": {
        "pair": "pair",
        "difference": "difference",
        "difference_interval": "95 % interval",
        "superiority": "P",
        "holm_p": "p (Holm)",
        "verdict": "verdict",
    },
    "outcomes": {
        "method": "method",
        "trials": "trials",
        "pruned": "pruned",
        "diverged": "diverged",
        "failed": "failed",
        "epochs": "epochs",
        "train_seconds": "training",
        "sampler_seconds": "sampler",
    },
}
"""Table → the columns for a terminal with their short titles: as many as 80 characters hold."""


def terminal_table(table: Values, titles: Mapping[str, str]) -> Table:
    """Some columns of one of the report's tables, by key, under shorter titles."""
    columns = {column.key: (place, column) for place, column in enumerate(table.columns)}
    shown = output.table(
        list(titles.values()),
        [[row[columns[key][0]].text for key in titles] for row in table.rows],
        numbers=[title for key, title in titles.items() if columns[key][1].align == "right"],
    )
    shown.title, shown.title_justify, shown.title_style = output.clean(table.title), "left", "italic"
    return shown


def report(
    experiment: Experiment,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Folder; default: reports/EXPERIMENT.")] = None,
    no_notes: NoNotes = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write report.json, report.md and report.html, also while the experiment runs.

    Each study gets a note in Optuna Dashboard, and the first of each method the key figures. With
    --json, print the report's JSON and write files and notes only with --out.
    """
    from search.compare.analysis import analyse
    from search.compare.collect import collect
    from search.compare.contents import contents_of
    from search.compare.render import render_json, write_report

    with opened(database) as connection:
        comparison = collect(connection, experiment)
    analysis = analyse(comparison)
    contents = contents_of(comparison, analysis)
    if out is not None or not as_json:
        files = write_report(comparison, out or report_folder(experiment), analysis, contents)
        output.message(f"wrote {files.json}, {files.markdown.name} and {files.html.name}")
        if not no_notes:
            note_in_dashboard(connection.url, comparison, analysis, contents, files.html)
    if as_json:
        output.text(render_json(comparison, analysis, contents.tables))
        return
    output.show(*comparison_parts(comparison, analysis))
    output.show("", f"report: {files.html.resolve()}")
    for note in analysis.notes:
        output.message(f"note: {note.text}")


def note_in_dashboard(
    database_url: str, comparison: Comparison, analysis: Analysis, contents: Contents, page: Path
) -> None:
    """Write notes and figures for Optuna Dashboard; where that fails, a warning says so."""
    from search.dashboard_notes import publish

    try:
        publish(database_url, comparison, analysis, contents, page)
    except Exception as error:  # noqa: BLE001  whatever is wrong with it, the report is written and counts
        output.warn(f"the notes in Optuna Dashboard can't be written: {type(error).__name__}: {error}")


def export(
    experiment: Experiment,
    /,
    *,
    what: Annotated[
        Literal["trials", "epochs"], Parameter(help="A row per trial, or per epoch of every trial.")
    ] = "trials",
    format: Annotated[
        Literal["csv", "jsonl", "parquet"], Parameter(help="Form of the data; `parquet` needs --out.")
    ] = "csv",
    out: Annotated[Path | None, Parameter(help="File to write; default: stdout.")] = None,
    database: DatabaseUrl = None,
) -> None:
    """Write trials or epochs as CSV, JSON lines or Parquet."""
    from search.export import ROWS, WRITERS

    if format == "parquet" and out is None:
        raise bad_input("Parquet is not text", next=f"shoal export {experiment} --format parquet --out FILE")
    with opened(database) as connection:
        rows = ROWS[what](connection, experiment)
    if not rows:
        output.message(f"no {what} to export; shoal status {experiment} says how far it is")
    if out is None:
        WRITERS[format](rows, output.data_stream())
        return
    if format == "parquet":
        _write_parquet(rows, what, out)
    else:
        with out.open("w", encoding="utf-8", newline="") as target:
            WRITERS[format](rows, target)
    output.message(f"wrote {len(rows)} {what} to {out}")


def _write_parquet(rows: Sequence[Mapping[str, object]], what: What, path: Path) -> None:
    from search.export import MissingLibraryError, write_parquet

    try:
        write_parquet(rows, what, path)
    except MissingLibraryError as error:
        raise CommandError(
            Failure(
                ExitCode.FAILED,
                "library",
                "Parquet needs a library that is not installed",
                why=str(error.__cause__),
                next="pip install 'shoal[parquet]', or --format csv",
            )
        ) from None


def score(
    experiment: Experiment,
    /,
    *,
    method: Annotated[str | None, Parameter(help="Take this method's best, not the best of all.")] = None,
    replicate: Annotated[int | None, Parameter(help="Take this replicate's best.")] = None,
    seed: Annotated[
        int | None, Parameter(help="Of the training; default: one that the search has not used.")
    ] = None,
    epochs: Annotated[PositiveInt | None, Parameter(help="Train so many instead of the config's.")] = None,
    limit: Annotated[PositiveInt | None, Parameter(help="Train on so many images, not the file's.")] = None,
    all_images: Annotated[
        bool,
        flag("Lift the file's limit on images."),
    ] = False,
    device: DeviceOption = "auto",
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Retrain the best config once and score it on the sealed test set.

    This is the only way to read the test set, and every reading is logged and shown in the report.
    """
    from search.scoring import Request, score_once

    with opened(database) as connection:
        record, rows = best_trials(connection, experiment, method)
        rows = [row for row in rows if replicate is None or row.replicate == replicate]
        if not rows:
            raise not_found(
                f"no trial of {experiment} that was asked for has been trained to its end",
                next=f"shoal best {experiment}",
            )
        row = rows[0]
        request = Request(seed=seed, epochs=epochs, limit=limit, all_images=all_images, device=device)
        output.message(
            f"retraining {row.study_name} trial {row.number} and scoring it on the sealed test set …"
        )
        reading = score_once(connection, record, row, request)
    metric = str(record.spec["metric"])
    if as_json:
        body = {
            "experiment": record.name, "study": reading.study_name, "trial": reading.trial_number,
            "seed": reading.seed, "metric": metric, "test": dict(reading.metrics),
            "validation": dict(reading.validation), "searched": row.value, "epochs": reading.epochs,
            "images": reading.images, "seconds": reading.seconds, "config": dict(reading.config),
            "read_at": reading.read_at.isoformat(),
        }  # fmt: skip
        output.document("score/1", body)
        return
    table = [
        (name, format_number(value), format_number(reading.validation.get(name)))
        for name, value in reading.metrics.items()
    ]
    output.show(f"{reading.study_name} trial {reading.trial_number}, retrained with seed {reading.seed}")
    output.show(output.table(("metric", "test", "validation"), table, numbers=("test", "validation")))
    output.show(f"{metric} of the trial in the search: {format_number(row.value)}")
