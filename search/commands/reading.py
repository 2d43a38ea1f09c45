"""Commands that look at experiments: `status`, `watch`, `trials`, `best`.

They import neither torch nor Ray nor Optuna: everything they show is one or two statements away.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.table import Table
from rich.text import Text

from search import output
from search.commands.options import AsJson, DatabaseUrl, Experiment, TrialState, flag, opened
from search.failures import not_found
from search.formats import format_number, format_seconds, format_time, format_value
from search.progress import MethodProgress, ProgressView, by_method, progress_table

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import ExperimentRecord, StudyProgress, TrialRow

ENDED = frozenset({"finished", "stopped", "failed"})
"""States in which an experiment waits for nobody but its owner."""

Method = Annotated[str | None, Parameter(help="Only this method.")]


def status(
    experiment: Annotated[str | None, Parameter(help="Without a name, all experiments are listed.")] = None,
    /,
    *,
    studies: Annotated[bool, flag("A row for each study.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List experiments, or show how far one is."""
    with opened(database) as connection:
        if experiment is None:
            _list(connection, as_json=as_json)
            return
        record, rows, methods = look(connection, experiment)
    if as_json:
        output.document("status/1", _status(record, rows, methods))
        return
    asked = ", asked to stop" if record.stop_requested and record.state == "running" else ""
    output.show(Text.assemble((output.clean(record.name), "bold"), f"  {record.state}{asked}"))
    output.show(progress_table(methods, str(record.spec["metric"])))
    if studies:
        output.show("", _studies(rows))


def _list(connection: Database, *, as_json: bool) -> None:
    from storage.experiments import Experiments

    records = Experiments(connection).list()
    if as_json:
        found = [
            {"experiment": r.name, "state": r.state, "created_at": r.created_at.isoformat(),
             "updated_at": r.updated_at.isoformat(), "methods": list(r.spec["methods"]),
             "replicates": r.spec["replicates"]}
            for r in records
        ]  # fmt: skip
        output.document("experiments/1", {"experiments": found})
    elif records:
        rows = [
            (r.name, r.state, ", ".join(r.spec["methods"]), r.spec["replicates"], format_time(r.created_at))
            for r in records
        ]
        output.show(output.table(("experiment", "state", "methods", "replicates", "created"), rows))
    else:
        output.message("no experiments yet; shoal init writes a file to start from")


def look(
    connection: Database, experiment: str
) -> tuple[ExperimentRecord, list[StudyProgress], list[MethodProgress]]:
    """An experiment, how far its studies are, and the same per method. Raises `ExperimentNotFound`."""
    from storage import queries
    from storage.experiments import Experiments

    record = Experiments(connection).get(experiment)
    rows = queries.progress(connection, record.id)
    maximize = queries.direction(connection, record.id) != "minimize"
    return record, rows, by_method(rows, record.spec, maximize=maximize)


def _status(
    record: ExperimentRecord, rows: Sequence[StudyProgress], methods: Sequence[MethodProgress]
) -> dict[str, object]:
    return {
        "experiment": record.name,
        "state": record.state,
        "stop_requested": record.stop_requested,
        "metric": record.spec["metric"],
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "methods": [asdict(method) | {"finished": method.finished} for method in methods],
        "studies": [
            {"study": row.study.name, "method": row.study.method, "replicate": row.study.replicate}
            | {key: value for key, value in asdict(row).items() if key != "study"}
            for row in rows
        ],
    }


def _studies(rows: Sequence[StudyProgress]) -> Table:
    columns = ("study", "complete", "pruned", "failed", "running", "waiting", "epochs", "device time", "best")
    return output.table(
        columns,
        [
            (r.study.name, r.complete, r.pruned, r.failed, r.running, r.waiting, r.epochs,
             format_seconds(r.seconds), format_number(r.best))
            for r in rows
        ],
        numbers=columns[1:],
    )  # fmt: skip


def watch(
    experiment: Experiment,
    /,
    *,
    interval: Annotated[PositiveFloat, Parameter(help="Seconds between two looks.")] = 2.0,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Follow an experiment until it ends; Ctrl-C leaves it alone. With --json, a line per look."""
    with opened(database) as connection:
        record, rows, methods = look(connection, experiment)
        with ProgressView(record.name, str(record.spec["metric"]), output.stderr()) as view:
            while True:
                if as_json:
                    output.line("status/1", _status(record, rows, methods))
                else:
                    view.update(methods)
                if record.state in ENDED:
                    break
                time.sleep(interval)
                record, rows, methods = look(connection, experiment)
    if not as_json:
        output.show(Text.assemble((output.clean(record.name), "bold"), f"  {record.state}"))
        output.show(progress_table(methods, str(record.spec["metric"])))


def trials(
    experiment: Experiment,
    /,
    *,
    method: Method = None,
    state: Annotated[TrialState | None, Parameter(help="Only trials in this state.")] = None,
    limit: Annotated[PositiveInt | None, Parameter(help="At most so many.")] = None,
    offset: Annotated[int, Parameter(help="Leave out the first so many.")] = 0,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List trials with their values, what they cost, and why they failed."""
    from storage import queries
    from storage.experiments import Experiments

    with opened(database) as connection:
        record = Experiments(connection).get(experiment)
        _check_method(record, method)
        rows = queries.trials(
            connection, record.id, method=method, state=state, limit=limit, offset=max(0, offset)
        )
    if as_json:
        output.document("trials/1", {"experiment": record.name, "trials": [trial_json(row) for row in rows]})
        return
    columns = ("method", "rep", "trial", "state", "value", "epochs", "seconds", "config", "reason")
    found = [
        (r.method, r.replicate, r.number, "diverged" if r.diverged else r.state, format_number(r.value),
         r.epochs, f"{r.seconds:.1f}", _config(r.params), r.reason or "")
        for r in rows
    ]  # fmt: skip
    output.show(output.table(columns, found, numbers=("rep", "trial", "value", "epochs", "seconds")))


def _config(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={format_value(value)}" for name, value in params.items())


def trial_json(row: TrialRow) -> dict[str, object]:
    """A trial as `--json` shows it."""
    return {
        "study": row.study_name,
        "method": row.method,
        "replicate": row.replicate,
        "trial": row.number,
        "state": row.state,
        "diverged": row.diverged,
        "value": row.value,
        "params": dict(row.params),
        "epochs": row.epochs,
        "device_seconds": row.seconds,
        "attempts": row.attempts,
        "reason": row.reason,
        "started_at": row.started_at.isoformat() if row.started_at else None,
        "ended_at": row.ended_at.isoformat() if row.ended_at else None,
    }


def best(
    experiment: Experiment,
    /,
    *,
    method: Method = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show each method's best trial and its config; with --json, also each study's."""
    with opened(database) as connection:
        record, rows = best_trials(connection, experiment, method)
    first = {row.method: row for row in reversed(rows)}
    chosen = [first[name] for name in record.spec["methods"] if name in first]
    if not chosen:
        raise not_found(
            f"no trial of {experiment} has been trained to its end",
            why="a pruned, failed or diverged trial is never the best",
            next=f"shoal status {experiment}",
        )
    metric = str(record.spec["metric"])
    if as_json:
        body = {
            "experiment": record.name,
            "metric": metric,
            "methods": [trial_json(row) for row in chosen],
            "studies": [trial_json(row) for row in rows],
        }
        output.document("best/1", body)
        return
    names = dict.fromkeys(name for row in chosen for name in row.params)
    table = [(metric, *(Text(format_number(row.value), style="bold") for row in chosen))]
    table += [(name, *(format_value(row.params.get(name)) for row in chosen)) for name in names]
    table += [("found in", *(f"replicate {row.replicate}, trial {row.number}" for row in chosen))]
    output.show(output.table(("", *(row.method for row in chosen)), table))


def best_trials(
    connection: Database, experiment: str, method: str | None
) -> tuple[ExperimentRecord, list[TrialRow]]:
    """Each study's best trial, the best study first, ties to the earlier replicate.

    Without diverged trials. Raises `ExperimentNotFound`.
    """
    from storage import queries
    from storage.experiments import Experiments

    record = Experiments(connection).get(experiment)
    _check_method(record, method)
    sign = 1.0 if queries.direction(connection, record.id) == "minimize" else -1.0
    # A diverged trial has the worst value there is: where it is the best, there is none.
    rows = [row for row in queries.best(connection, record.id, method=method) if not row.diverged]
    return record, sorted(rows, key=lambda row: (sign * _value(row), row.replicate))


def _value(row: TrialRow) -> float:
    assert row.value is not None, "complete trials have a value"
    return row.value


def _check_method(record: ExperimentRecord, method: str | None) -> None:
    if method is not None and method not in record.spec["methods"]:
        methods = ", ".join(record.spec["methods"])
        raise not_found(f"{record.name} has no method {method!r}", next=f"its methods: {methods}")
