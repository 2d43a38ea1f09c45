"""Commands for runs elsewhere: `submit` and `logs`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from search import output
from search.commands.options import (
    AsJson,
    DatabaseUrl,
    DeviceOption,
    Experiment,
    PrecisionOption,
    SpecFile,
    Trainer,
    flag,
    opened,
)
from search.commands.signals import ending_at_once
from search.commands.standing import look
from search.control.supervision import GRACE_SECONDS, IDLE_SECONDS
from search.failures import CommandError, ExitCode, Failure, bad_input, not_found, unreachable
from search.launch.narrate import QUIET, event_line, launch_events, launch_line, moment
from search.trials.placing import HANG_SECONDS
from search.work.saving import CHECKPOINT_SECONDS

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from search.launch.jobs import JobServer
    from search.launch.submit import Submission
    from storage.database import Database
    from storage.records import ExperimentRecord, LaunchRecord

ADDRESS_VARIABLE = "SHOAL_RAY_ADDRESS"
DATABASE_VARIABLE = "SHOAL_DATABASE_URL"
LINES = 100
"""Events that `shoal logs` shows unless told."""
LOOK_SECONDS = 1.0

Address = Annotated[
    str | None,
    Parameter(help=f"Job server of the Ray cluster, such as http://head:8265. Default: ${ADDRESS_VARIABLE}."),
]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class DriverOptions:
    """What the driver on the cluster is told."""

    workers: PositiveInt | None = None
    """Workers at once, also more than the cluster has room for now; default: as many as it has."""
    device: DeviceOption = "auto"
    trainer: Trainer = "fused"
    """How workers train; `fused`: many trials at once, where that is faster; `plain`: one at a time."""
    precision: PrecisionOption = "auto"
    idle_seconds: PositiveFloat = IDLE_SECONDS
    """A worker without work for so long ends, so that its machine can; it is hired again for new work."""
    checkpoint_seconds: NonNegativeFloat = CHECKPOINT_SECONDS
    """Save a running trial this often, at an epoch's end: what a crash may cost it. 0: every epoch."""
    hang_seconds: PositiveFloat = HANG_SECONDS
    """Give up a worker whose epoch does not end for so long; its trials are tried again."""
    grace_seconds: PositiveFloat = GRACE_SECONDS
    """For the end of an epoch after SIGTERM."""

    def arguments(self) -> list[str]:
        """The same, for `shoal resume`."""
        workers = [] if self.workers is None else ["--workers", str(self.workers)]
        precision = [] if self.precision == "auto" else ["--precision", self.precision]
        return [
            "--ray-address", "auto", *workers, "--device", self.device, "--trainer", self.trainer,
            "--idle-seconds", f"{self.idle_seconds:g}", "--hang-seconds", f"{self.hang_seconds:g}",
            "--checkpoint-seconds", f"{self.checkpoint_seconds:g}",
            "--grace-seconds", f"{self.grace_seconds:g}", *precision,
        ]  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ThereOptions:
    """Which database the cluster uses."""

    cluster_database: str | None = None
    """The same database as the cluster sees it; default: its machines' SHOAL_DATABASE_URL(_FILE)."""
    send_database_url: Annotated[
        bool,
        flag(
            "Send a URL with its password: everybody who may look at the cluster's jobs can read it. "
            "Without --cluster-database it is the one used here."
        ),
    ] = False


def submit(
    file: SpecFile,
    /,
    *,
    address: Address = None,
    follow: Annotated[bool, flag("Show the driver's log; the exit code is the run's.")] = False,
    retry: Annotated[
        NonNegativeInt, Parameter(help="With --follow: start a driver that died so many times again.")
    ] = 0,
    driver: DriverOptions | None = None,
    there: ThereOptions | None = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> int:
    """Run an experiment on a Ray cluster, or go on with it there. Submitting twice starts it once.

    The experiment goes into the database, so nothing is uploaded; the cluster's machines need the same
    shoal, and the database's URL in SHOAL_DATABASE_URL(_FILE). Ray's token is taken from RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token.
    """
    with ending_at_once():
        from search.experiment.spec import load_spec

        spec = load_spec(file)
    driver, there = driver or DriverOptions(), there or ThereOptions()
    if retry and not follow:
        raise bad_input("--retry wants --follow: who doesn't look can't see a driver die")
    server = job_server(address)
    environment = environment_there(there, database)
    with opened(database) as connection:
        done = _submit(connection, spec, server, driver, environment)
        _tell(done, as_json=as_json and not follow)
        if not follow:
            return ExitCode.OK
        for left in range(retry, -1, -1):
            code = _follow(connection, server, done.launch)
            if code is not None:
                return code
            if left:
                output.message(f"starting it again; {left - 1} more tries after this")
                done = _submit(connection, spec, server, driver, environment)
    raise CommandError(
        Failure(
            ExitCode.FAILED, "lost", f"the driver of {spec.experiment} died, or its cluster did",
            why="nothing that was stored is lost", next="submit it again: it goes on where it was",
        )
    )  # fmt: skip


def _submit(
    connection: Database,
    spec: ExperimentSpec,
    server: JobServer,
    driver: DriverOptions,
    environment: dict[str, str],
) -> Submission:
    from search.launch.jobs import ClusterError
    from search.launch.submit import submit as submitted
    from search.trials.precisions import check_precision

    check_precision(connection, spec.experiment, driver.precision)
    try:
        return submitted(connection, spec, server, options=driver.arguments(), environment=environment)
    except ClusterError as error:
        raise unreachable(str(error), next=error.next) from error


def _tell(done: Submission, *, as_json: bool) -> None:
    launch = done.launch
    if as_json:
        body = {
            "experiment": done.experiment.name,
            "generation": launch.generation,
            "submission": launch.submission,
            "address": launch.address,
            "started": done.started,
            "outdated": done.outdated,
        }
        output.document("submit/1", body)
    if done.started:
        output.message(f"submitted {done.experiment.name} as {launch.submission} to {launch.address}")
    else:
        output.message(f"{done.experiment.name} runs already, as {launch.submission} on {launch.address}")
    if done.outdated:
        output.warn(
            "what runs is the file as it was; submit it again when that has ended, to go on with this"
        )
    output.message(
        f"next: shoal status {done.experiment.name}, or shoal logs {done.experiment.name} --follow"
    )


def _follow(connection: Database, server: JobServer, launch: LaunchRecord) -> int | None:
    """The run's exit code; None if its driver died without a word."""
    from search.launch.follow import Follower
    from search.launch.jobs import ClusterError

    follower = Follower(connection, server, launch, write=_write_log, tell=output.message)
    try:
        seen = follower.run()
    except ClusterError as error:
        raise unreachable(str(error), next=error.next) from error
    except KeyboardInterrupt:
        output.message("it goes on without us; shoal stop ends it")
        raise
    if seen.launch.exit_code is None:
        output.warn(f"{launch.submission} ended without a word{f': {seen.message}' if seen.message else ''}")
        return None
    return seen.launch.exit_code


def _write_log(text: str) -> None:
    """A log of another machine's, fit for this terminal."""
    sys.stdout.write("".join(output.clean(line) + "\n" for line in text.splitlines()))
    sys.stdout.flush()


def job_server(address: str | None) -> JobServer:
    """The job server at that address, or at `SHOAL_RAY_ADDRESS`. Raises `CommandError`."""
    from search.launch.jobs import AddressError, ClusterError, JobServer, canonical_address, token_of

    given = address or os.environ.get(ADDRESS_VARIABLE)
    if not given:
        raise bad_input("where to?", next=f"--address http://HEAD:8265, or {ADDRESS_VARIABLE}")
    try:
        return JobServer(canonical_address(given), token=token_of())
    except AddressError as error:
        raise bad_input(str(error)) from error
    except ClusterError as error:
        raise unreachable(str(error), next=error.next) from error


def environment_there(there: ThereOptions, database: str | None) -> dict[str, str]:
    """What the driver gets to know of the database. Raises `CommandError` rather than show a password.

    Ray keeps a job's environment with the job: its dashboard and its API show it to whoever may look.
    """
    from storage.database import resolve_url
    from storage.urls import mask

    url = there.cluster_database
    if url is None:
        if not there.send_database_url:
            return {}
        url = resolve_url(database)
    if mask(url) != url and not there.send_database_url:
        raise CommandError(
            Failure(
                ExitCode.BAD_INPUT, "secret", f"{mask(url)} holds a password, and would be seen by others",
                why="Ray shows a job's environment to everybody who may look at the cluster's jobs",
                next=f"set {DATABASE_VARIABLE}_FILE on the cluster's machines and leave the URL out, or say "
                "--send-database-url",
            )
        )  # fmt: skip
    return {DATABASE_VARIABLE: url}


def logs(
    experiment: Experiment,
    /,
    *,
    follow: Annotated[bool, flag("Go on until the run ends.")] = False,
    worker: Annotated[str | None, Parameter(help="Only what this worker did.")] = None,
    lines: Annotated[NonNegativeInt, Parameter(help="Begin with the last so many. 0: all.")] = LINES,
    driver: Annotated[bool, flag("The log of the newest launch's driver, from its cluster.")] = False,
    address: Annotated[
        str | None,
        Parameter(help=f"With --driver: its cluster, which gets Ray's token. Default: ${ADDRESS_VARIABLE}."),
    ] = None,
    database: DatabaseUrl = None,
) -> int:
    """What happened to an experiment's trials, wherever they ran, from the database alone."""
    from storage.experiments import Experiments

    with opened(database) as connection:
        record = Experiments(connection).get(experiment)
        if driver:
            return _driver_log(connection, record, address, follow=follow)
        _History(connection, record, worker).show(lines, follow=follow)
    return ExitCode.OK


class _History:
    """Events of an experiment and its launches, printed in order as they come."""

    def __init__(self, connection: Database, record: ExperimentRecord, worker: str | None) -> None:
        self._connection = connection
        self._record = record
        self._worker = worker
        self._after = 0
        self._told: set[tuple[datetime, str]] = set()

    def show(self, lines: int, *, follow: bool) -> None:
        from storage.event_log import before_the_last

        if lines:
            self._after = before_the_last(self._connection, self._record.id, lines, worker=self._worker)
        while True:
            ended = not follow or look(self._connection, self._record.name).ended
            self._print()
            if ended:
                return
            time.sleep(LOOK_SECONDS)

    def _print(self) -> None:
        from storage.event_log import MOST, events_after
        from storage.launches import Launches

        while True:
            events = events_after(self._connection, self._record.id, self._after, worker=self._worker)
            told = [(event.at, event_line(event)) for event in events if event.kind not in QUIET]
            if self._worker is None:
                launches = launch_events(Launches(self._connection).of_experiment(self._record.id))
                told += [
                    (at, f"{moment(at)}  {said}") for at, said in launches if (at, said) not in self._told
                ]
                self._told |= set(launches)
            for _, line in sorted(told, key=lambda one: one[0]):
                output.show(line)
            if events:
                self._after = events[-1].id
            if len(events) < MOST:
                return


def _driver_log(connection: Database, record: ExperimentRecord, address: str | None, *, follow: bool) -> int:
    from search.launch.jobs import ClusterError, JobServer
    from storage.launches import Launches

    launch = Launches(connection).newest(record.id)
    if launch is None:
        raise not_found(f"{record.name} was never submitted to a cluster", next=f"shoal logs {record.name}")
    named = address or os.environ.get(ADDRESS_VARIABLE)
    # The database's word for an address gets no token: whoever may write there could collect it.
    server = job_server(named) if named else JobServer(launch.address)
    output.message(launch_line(launch))
    try:
        if not follow:
            _write_log(server.log(launch.submission))
            return ExitCode.OK
        code = _follow(connection, server, launch)
    except ClusterError as error:
        remedy = (
            error.next
            if named
            else f"--address {launch.address}, if that is your cluster: it gets your token"
        )
        raise unreachable(str(error), next=remedy) from error
    return ExitCode.FAILED if code is None else code
