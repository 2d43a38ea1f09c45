"""Commands that run experiments: `run`, `resume`, `retry`, `stop`."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveFloat, PositiveInt

from search import output
from search.commands.options import (
    AsJson,
    DatabaseUrl,
    DeviceOption,
    Experiment,
    MetricsPort,
    NoNotes,
    PrecisionOption,
    Sinks,
    SpecFile,
    Trainer,
    flag,
    opened,
)
from search.commands.reporting import comparison_parts, note_in_dashboard, report_folder
from search.commands.signals import ending_at_once
from search.control.supervision import GRACE_SECONDS, IDLE_SECONDS
from search.failures import ExitCode, bad_input, unreachable
from search.formats import format_seconds
from search.trials.placing import HANG_SECONDS
from search.work.saving import CHECKPOINT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from search.compare.analysis import Analysis
    from search.compare.base import Comparison
    from search.compare.contents import Contents
    from search.compare.render import ReportFiles
    from search.control.events import Outcome
    from search.experiment.spec import ExperimentSpec
    from storage.database import Database


RAY_PATIENCE = 10.0
"""Seconds to wait for the head of a Ray cluster to accept a connection."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `run` and `resume` share."""

    workers: PositiveInt | None = None
    """Workers at once; default: one per GPU, else one per CPU core."""
    in_process: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Train in this process, without Ray."""
    ray_address: str | None = None
    """Join the Ray cluster there instead of starting one on this machine."""
    device: DeviceOption = "auto"
    trainer: Trainer = "fused"
    """How workers train; `fused`: many trials at once, where that is faster; `plain`: one at a time."""
    precision: PrecisionOption = "auto"
    checkpoint_seconds: NonNegativeFloat = CHECKPOINT_SECONDS
    """Save a running trial this often, at an epoch's end: what a crash may cost it. 0: every epoch."""
    hang_seconds: PositiveFloat = HANG_SECONDS
    """Give up a worker whose epoch does not end for so long; its trials are tried again."""
    grace_seconds: PositiveFloat = GRACE_SECONDS
    """For the end of an epoch after SIGTERM; then it is given up, and its trials given back."""
    idle_seconds: PositiveFloat | None = None
    """A worker without work for so long ends, and is hired again for new work; default: 60 on a cluster."""
    report: Path | None = None
    """Folder for the report; default: reports/EXPERIMENT."""
    no_notes: NoNotes = False
    metrics_port: MetricsPort = None
    sink: Sinks = ()
    database: DatabaseUrl = None
    as_json: AsJson = False


def run(file: SpecFile, /, *, options: RunOptions | None = None) -> int:
    """Run an experiment, or go on with it if it has begun; write its report at the end.

    The first Ctrl-C ends the running epochs and stores everything; the same command goes on later.
    """
    with ending_at_once():
        from search.experiment.spec import load_spec

        spec = load_spec(file)
    return conduct(spec, options or RunOptions(), f"shoal run {file}")


def resume(
    experiment: Experiment,
    /,
    *,
    launch: Annotated[PositiveInt | None, Parameter(show=False)] = None,
    options: RunOptions | None = None,
) -> int:
    """Go on with an experiment as the database knows it, without its file."""
    from search.experiment.spec import ExperimentSpec
    from storage.experiments import Experiments

    options = options or RunOptions()
    if launch is not None:
        from search.commands.driving import drive

        return drive(experiment, launch, options)
    with opened(options.database) as connection:
        stored = Experiments(connection).get(experiment)
    return conduct(ExperimentSpec.from_json(stored.spec), options, f"shoal resume {experiment}")


def retry(
    experiment: Experiment,
    /,
    *,
    failed: Annotated[bool, flag("Those that have failed; to be said.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Put trials of an experiment in the queue again, as new trials with the same values and seeds.

    A failed trial stays as it is, and so does what failed when it was tried again: only the newest
    repetition of a trial is repeated. Repetitions come on top of the budget.
    """
    if not failed:
        raise bad_input("which trials?", next=f"shoal retry {experiment} --failed")
    from storage.experiments import Experiments
    from storage.ledgers import ledger_of
    from storage.optuna_storage import opened_optuna_storage

    with opened(database) as connection:
        experiments = Experiments(connection)
        record = experiments.get(experiment)
        with opened_optuna_storage(connection.url) as storage:
            retried = ledger_of(connection, storage).retry_failed(record.id)
        controlled = record.id in experiments.controlled([record.id])
    if as_json:
        rows = [
            {"study": one.study_name, "trial": one.number, "new_trial": one.new_number} for one in retried
        ]
        output.document("retry/1", {"experiment": record.name, "retried": rows})
    if not retried:
        output.message(f"no trial of {record.name} has failed that was not tried again")
        return
    for one in retried:
        output.message(f"trial {one.number} of {one.study_name} is queued again as trial {one.new_number}")
    if controlled:
        output.message(f"the workers of {record.name} take them")
    else:
        output.message(f"next: shoal resume {record.name}")


def stop(experiment: Experiment, /, *, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Ask the workers of an experiment, wherever they run, to stop after their current epoch.

    It needs the database alone, so it works from anywhere, also for runs that were submitted.
    """
    from storage.experiments import Experiments
    from storage.launches import Launches
    from storage.workers import trials_held

    with opened(database) as connection:
        experiments = Experiments(connection)
        record = experiments.get(experiment)
        launch = Launches(connection).newest(record.id)
        submitted = launch is not None and launch.state == "submitted"
        running = record.state == "running" or submitted
        if running:
            experiments.request_stop(record.id)
        controlled = record.id in experiments.controlled([record.id])
        served = trials_held(connection, record.id) > 0
    if as_json:
        output.document(
            "stop/1", {"experiment": record.name, "state": record.state, "stop_requested": running}
        )
    if running and controlled:
        output.message(f"asked {record.name} to stop; shoal resume {record.name} goes on with it")
    elif submitted:
        output.message(f"{record.name} stops as soon as its driver begins; submitting it again goes on")
    elif running and served:
        output.message(f"asked the workers of {record.name} to stop; shoal resume {record.name} goes on")
    elif running:
        # Workers that outlived their controller are told as well.
        output.message(
            f"{record.name} was interrupted: no process runs it; shoal resume {record.name} goes on"
        )
    else:
        output.message(f"{record.name} is {record.state}: nothing to stop")


def conduct(
    spec: ExperimentSpec,
    options: RunOptions,
    again: str,
    *,
    patience_seconds: float = 0.0,
    ended: Callable[[Outcome], object] = lambda _outcome: None,
    launched: bool = False,
) -> int:
    """Run, show progress on stderr, write the report, print the comparison on stdout.

    `again` is the command that goes on with it; a controller that may be dead is waited for, for
    `patience_seconds`; `ended` is told the outcome before anything is made of it. `launched`: on a
    machine that nobody looks at: no report is written, and what workers log is shown.
    """
    from search.compare.analysis import analyse
    from search.compare.collect import collect
    from search.compare.contents import contents_of
    from search.compare.document import document

    check_ray(options.ray_address)
    with opened(options.database) as connection:
        outcome, received = _run_shown(
            spec, options, connection, patience_seconds=patience_seconds, launched=launched
        )
        ended(outcome)
        if received is signal.SIGTERM:
            # Whoever sends it kills soon; the report can be made at any time.
            return _end(outcome, received, again)
        comparison = collect(connection, spec.experiment)
    analysis = analyse(comparison)
    contents = contents_of(comparison, analysis)
    files, unwritten = None, ""
    if options.report is not None or not launched:
        files, unwritten = _write(options.report, comparison, analysis, contents)
    if options.as_json:
        _print_document(outcome, files, document(comparison, analysis, contents.tables))
    else:
        output.show(*comparison_parts(comparison, analysis))
        if files is not None:
            output.show("", f"report: {files.html.resolve()}")
    for note in analysis.notes:
        output.message(f"note: {note.text}")
    if files is not None and not options.no_notes:
        note_in_dashboard(connection.url, comparison, analysis, contents, files.html)
    code = _end(outcome, received, again)
    if outcome.state == "finished" and all_failed(analysis):
        output.warn("every trial failed")
        output.message(f"next: shoal trials {spec.experiment} shows why")
        code = ExitCode.FAILED
    if unwritten:
        output.warn(f"the report can't be written: {unwritten}")
        output.message(f"next: shoal report {spec.experiment} --out FOLDER")
        return code or ExitCode.FAILED
    return code


def _run_shown(
    spec: ExperimentSpec, options: RunOptions, database: Database, *, patience_seconds: float, launched: bool
) -> tuple[Outcome, signal.Signals | None]:
    """Run, with the progress on stderr: how it ended, and the signal that ended it, if one did."""
    from search.commands.display import RunDisplay
    from search.control.controller import run_experiment
    from search.control.crew import CrewError
    from search.observe.running import observed_run
    from search.trials.precisions import check_device, check_precision

    check_precision(database, spec.experiment, options.precision)
    if options.ray_address is None:  # else its workers are elsewhere
        check_device(options.device, options.precision)
    try:
        with (
            RunDisplay(spec, database) as display,
            observed_run(
                spec.experiment,
                database.url,
                display.on_event,
                metrics_port=options.metrics_port,
                sinks=options.sink,
            ) as on_event,
        ):
            outcome = run_experiment(
                spec,
                database.url,
                workers=options.workers,
                in_process=options.in_process,
                device=options.device,
                trainer=options.trainer,
                precision=options.precision,
                ray_address=options.ray_address,
                checkpoint_seconds=options.checkpoint_seconds,
                hang_seconds=options.hang_seconds,
                grace_seconds=options.grace_seconds,
                idle_seconds=idle_seconds_of(options),
                patience_seconds=patience_seconds,
                worker_logs=launched,
                heeds_stop=launched,
                on_event=on_event,
            )
    except CrewError as error:
        raise unreachable(str(error), next="shoal doctor, or --in-process to do without Ray") from error
    return outcome, display.signal


def _write(
    folder: Path | None, comparison: Comparison, analysis: Analysis, contents: Contents
) -> tuple[ReportFiles | None, str]:
    """The files of the report; none, and why, where the folder can't be written."""
    from search.compare.render import write_report

    try:
        return write_report(
            comparison, folder or report_folder(comparison.experiment), analysis, contents
        ), ""
    except OSError as error:
        # What was found is stored and can be shown; a folder that can't be written must not hide it.
        return None, f"{error.filename or 'the report'}: {error.strerror or error}"


def _print_document(outcome: Outcome, files: ReportFiles | None, report: object) -> None:
    body = {
        "experiment": outcome.experiment,
        "state": outcome.state,
        "reason": outcome.reason,
        "resumed": outcome.resumed,
        "seconds": outcome.seconds,
        "files": files
        and {"json": str(files.json), "markdown": str(files.markdown), "html": str(files.html)},
        "report": report,
    }
    output.document("run/1", body)


def idle_seconds_of(options: RunOptions) -> float | None:
    """Workers on machines of our own may stay; on a cluster they keep machines from being taken down."""
    if options.idle_seconds is None and options.ray_address is not None:
        return IDLE_SECONDS
    return options.idle_seconds


def all_failed(analysis: Analysis) -> bool:
    """Whether not one trial was trained: the experiment has ended, and its user has nothing."""
    counts = [method.counts for method in analysis.outcomes]
    return 0 < sum(count.finished for count in counts) == sum(count.failed for count in counts)


def check_ray(address: str | None) -> None:
    """Refuse an address at which nothing listens: Ray itself tries for many minutes.

    Raises `CommandError`. Addresses that Ray finds by itself (`auto`) pass.
    """
    if address is None or ":" not in address:
        return
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise bad_input(f"{address!r} is no Ray address", next="one looks like 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_PATIENCE).close()
    except OSError as error:
        what = f"can't reach Ray at {place}: {error.strerror or error}"
        raise unreachable(what, next="check that the cluster runs, or leave --ray-address out") from None


def _end(outcome: Outcome, received: signal.Signals | None, again: str) -> int:
    """Say how the run ended, and turn it into an exit code: of a signal, 128 and its number."""
    if outcome.state == "finished":
        output.message(f"finished in {format_seconds(outcome.seconds)}")
        return ExitCode.OK
    why = f": {outcome.reason}" if outcome.reason else ""
    output.message(f"{outcome.state}{why}; everything so far is stored", style="yellow")
    output.message(f"next: {again}")
    return ExitCode.FAILED if received is None else 128 + received
