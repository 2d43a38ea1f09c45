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
from search.commands.standing import INTERRUPTED, Look, interrupted_among, look
from search.failures import ExitCode, not_found
from search.formats import format_number, format_seconds, format_time, format_value
from search.launch.narrate import launch_line
from search.progress import MethodProgress, ProgressView, pauses, progress_table, trial_state
from search.trial_fields import trial_fields
from storage.errors import ExperimentNotFound, ScheduleNotFound

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import ExperimentRecord, LaunchRecord, StudyProgress, TrialRow

PAGE = 100
"""Trials in a table unless told: laying out ten thousand takes longer than anybody reads."""

Method = Annotated[str | None, Parameter(help="Only this method.")]


def status(
    experiment: Annotated[str | None, Parameter(help="Without a name, all experiments are listed.")] = None,
    /,
    *,
    studies: Annotated[bool, flag("A row for each study.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List experiments, or show how far one is; of a schedule, its generations."""
    with opened(database, looks=True) as connection:
        if experiment is None:
            _list(connection, as_json=as_json)
            return
        try:
            seen = look(connection, experiment)
        except ExperimentNotFound as error:
            _show_generations(connection, experiment, error, as_json=as_json)
            return
    if as_json:
        output.document("status/1", _status(seen))
        return
    output.show(seen.headline(), progress_table(seen.rows, str(seen.record.spec["metric"])))
    if seen.launch is not None:
        output.show(launch_line(seen.launch))
    if studies:
        output.show("", _studies(seen.studies))
    tell_missing(seen)


def _show_generations(connection: Database, name: str, missing: ExperimentNotFound, *, as_json: bool) -> None:
    """Show the schedule of that name. Raises `missing` if there is none either."""
    from search.commands.scheduling import show_family

    try:
        show_family(connection, name, as_json=as_json)
    except ScheduleNotFound:
        raise missing from None


def _list(connection: Database, *, as_json: bool) -> None:
    from storage.experiments import Experiments

    experiments = Experiments(connection)
    interrupted = interrupted_among(connection, experiments.list())
    records = experiments.list()
    controlled = experiments.controlled(record.id for record in records)
    if as_json:
        found = [
            {"experiment": r.name, "state": r.state, "controlled": r.id in controlled,
             "created_at": r.created_at.isoformat(), "updated_at": r.updated_at.isoformat(),
             "methods": list(r.spec["methods"]), "replicates": r.spec["replicates"]}
            for r in records
        ]  # fmt: skip
        output.document("experiments/1", {"experiments": found})
    elif records:
        rows = [
            (r.name, INTERRUPTED if r.id in interrupted else r.state, ", ".join(r.spec["methods"]),
             r.spec["replicates"], format_time(r.created_at))
            for r in records
        ]  # fmt: skip
        output.show(output.table(("experiment", "state", "methods", "replicates", "created"), rows))
    else:
        output.message("no experiments yet; shoal init writes a file to start from")


def tell_missing(seen: Look) -> None:
    """Tell of studies that Optuna doesn't hold, unless they are just being made."""
    missing = sum(not row.present for row in seen.studies)
    if missing and not seen.controlled:
        output.message(
            f"{missing} of {len(seen.studies)} studies are not in Optuna's tables: deleted there, "
            f"or not made yet; shoal resume {seen.record.name} makes them anew",
            style="yellow",
        )


def _status(seen: Look) -> dict[str, object]:
    record = seen.record
    return {
        "experiment": record.name,
        "state": record.state,
        "controlled": seen.controlled,
        "stop_requested": record.stop_requested,
        "metric": record.spec["metric"],
        "created_at": record.created_at.isoformat(),
        "updated_at": record.updated_at.isoformat(),
        "launch": _launch(seen.launch),
        "methods": [asdict(method) | {"finished": method.finished} for method in seen.methods],
        "retraining": _retraining(seen.retraining),
        "studies": [
            {"study": row.study.name, "method": row.study.method, "replicate": row.study.replicate}
            | {key: value for key, value in asdict(row).items() if key != "study"}
            | {"waiting": row.waiting - row.paused}
            for row in seen.studies
        ],
    }


def _launch(launch: LaunchRecord | None) -> dict[str, object] | None:
    if launch is None:
        return None
    moments = {key: getattr(launch, key) for key in ("submitted_at", "started_at", "ended_at")}
    kept = ("generation", "submission", "address", "state", "reason", "exit_code")
    return {key: getattr(launch, key) for key in kept} | {
        key: at.isoformat() if at is not None else None for key, at in moments.items()
    }


def _retraining(found: MethodProgress | None) -> dict[str, object] | None:
    if found is None:
        return None
    kept = ("studies", "planned", "complete", "failed", "running", "waiting", "epochs", "seconds")
    return {key: getattr(found, key) for key in kept}


def _studies(rows: Sequence[StudyProgress]) -> Table:
    paused = ("paused",) if any(row.paused for row in rows) else ()
    columns = ("study", "complete", "pruned", "failed", "open", *paused, "epochs", "device time", "best")
    return output.table(
        columns,
        [
            (r.study.name, r.complete, r.pruned, r.failed, r.running + r.waiting - r.paused,
             *([r.paused] if paused else []), r.epochs, format_seconds(r.seconds), format_number(r.best))
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
) -> int:
    """Follow an experiment until it ends; Ctrl-C leaves it alone. With --json, a line per look.

    One that was interrupted has ended as well, with exit code 1.
    """
    with opened(database) as connection:
        seen = look(connection, experiment)
        with ProgressView(seen.record.name, str(seen.record.spec["metric"]), output.stderr()) as view:
            while True:
                if as_json:
                    output.line("status/1", _status(seen))
                else:
                    view.update(seen.rows)
                if seen.ended:
                    break
                time.sleep(interval)
                seen = look(connection, experiment)
    if not as_json:
        output.show(seen.headline(), progress_table(seen.rows, str(seen.record.spec["metric"])))
    return ExitCode.FAILED if seen.interrupted else ExitCode.OK


def trials(
    experiment: Experiment,
    /,
    *,
    method: Method = None,
    state: Annotated[TrialState | None, Parameter(help="Only trials in this state.")] = None,
    limit: Annotated[
        PositiveInt | None, Parameter(help=f"At most so many. Default: {PAGE} in a table, all with --json.")
    ] = None,
    offset: Annotated[int, Parameter(help="Leave out the first so many.")] = 0,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List trials with their values, what they cost, and why they failed."""
    from storage import queries
    from storage.experiments import Experiments

    with opened(database, looks=True) as connection:
        record = Experiments(connection).get(experiment)
        _check_method(record, method)
        page = limit if as_json or limit is not None else PAGE
        # One more than is shown tells whether there are more.
        wanted = None if page is None else page + 1
        rows = queries.trials(
            connection, record.id, method=method, state=state, limit=wanted, offset=max(0, offset)
        )
    more = page is not None and len(rows) > page
    rows = rows[:page]
    if as_json:
        body = {"experiment": record.name, "more": more}
        output.listing("trials/1", body, "trials", [trial_json(row) for row in rows])
        return
    if not rows:
        output.message(f"no trials to list; shoal status {record.name} says how many there are")
        return
    # Most experiments have no reasons, and the width is better spent on configs.
    reasons = ("reason",) if any(row.reason for row in rows) else ()
    columns = ("method", "rep", "trial", "state", "value", "epochs", "seconds", "config", *reasons)
    pausing = pauses(record.spec)
    found = [
        (r.method, r.replicate, r.number, trial_state(r, pausing=pausing), format_number(r.value),
         r.epochs, f"{r.seconds:.1f}", _config(r.params), *([r.reason or ""] if reasons else []))
        for r in rows
    ]  # fmt: skip
    output.show(output.table(columns, found, numbers=("rep", "trial", "value", "epochs", "seconds")))
    if more:
        output.message(
            f"there are more than these {len(rows)}: --offset {max(0, offset) + len(rows)} shows the next, "
            f"--state and --method choose, --limit takes any number, --json lists all"
        )


def _config(params: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={format_value(value)}" for name, value in params.items())


def trial_json(row: TrialRow) -> dict[str, object]:
    """A trial as `--json` shows it."""
    return {**trial_fields(row), "params": dict(row.params)}


def best(
    experiment: Experiment,
    /,
    *,
    method: Method = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show each method's best trial and its config; with --json, also each study's."""
    with opened(database, looks=True) as connection:
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
