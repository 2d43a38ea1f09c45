"""Commands for a machine that joins, and one that is taken away: `worker` and `drain`."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveFloat

from search import output
from search.commands.options import (
    AsJson,
    DatabaseUrl,
    DeviceOption,
    MetricsPort,
    PrecisionOption,
    Trainer,
    opened,
)
from search.control.supervision import GRACE_SECONDS
from search.failures import ExitCode
from search.trials.placing import HANG_SECONDS
from search.work.saving import CHECKPOINT_SECONDS

LOOK_SECONDS = 0.2
"""Until it is seen that a process has ended."""

if TYPE_CHECKING:
    from types import FrameType


def worker(
    *experiment: Annotated[str, Parameter(help="Experiments to serve; default: any that runs or is to.")],
    device: DeviceOption = "auto",
    trainer: Trainer = "fused",
    precision: PrecisionOption = "auto",
    idle_seconds: Annotated[
        PositiveFloat | None,
        Parameter(help="Leave after so long without work; default: stay, with names until those have ended."),
    ] = None,
    grace_seconds: Annotated[
        PositiveFloat, Parameter(help="For the end of an epoch after SIGTERM; then it is given up.")
    ] = GRACE_SECONDS,
    checkpoint_seconds: Annotated[
        NonNegativeFloat,
        Parameter(help="Save a running trial this often, at an epoch's end. 0: every epoch."),
    ] = CHECKPOINT_SECONDS,
    hang_seconds: Annotated[
        PositiveFloat,
        Parameter(help="Give up an epoch that does not end for so long, and this process with it."),
    ] = HANG_SECONDS,
    name: Annotated[str | None, Parameter(help="Of this worker; default: its host and process.")] = None,
    metrics_port: MetricsPort = None,
    database: DatabaseUrl = None,
) -> int:
    """Train for experiments from this machine, without Ray: all it needs is the database.

    SIGTERM or Ctrl-C: the epoch ends, within the grace time, everything is stored, and all trials are given
    back at once; the exit code is 143, or 130.
    """
    from search.control.crew import (
        EXIT_ABANDONED,
        EXIT_TERMINATED,
        Assignment,
        leave_at_once,
        leave_when_told,
    )
    from search.launch.joining import Joined
    from search.observe.live import serve_metrics
    from search.trials.precisions import check_precision
    from storage.database import open_database

    interrupted = threading.Event()
    received: list[int] = []

    def tell_off(number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        received.append(number)
        interrupted.set()

    signal.signal(signal.SIGINT, tell_off)
    leave_when_told(interrupted, grace_seconds)

    def code() -> int:
        return ExitCode.INTERRUPTED if received else EXIT_TERMINATED

    def abandon(reason: str) -> None:
        leave_at_once(reason, code() if interrupted.is_set() else EXIT_ABANDONED)

    with serve_metrics(metrics_port), open_database(database, application_name="shoal worker") as connection:
        for one in experiment:
            check_precision(connection, one, precision)
        assignment = Assignment(
            connection.url,
            "",
            trainer,
            device,
            checkpoint_seconds,
            hang_seconds,
            grace_seconds,
            precision=precision,
        )
        served = Joined(
            connection,
            experiment,
            assignment,
            worker=name or f"{os.uname().nodename}-{os.getpid()}",
            interrupted=interrupted,
            idle_seconds=idle_seconds,
            abandon=abandon,
            tell=output.message,
        ).run()
    if served.reason != "interrupted":
        output.message("nothing left to do" if served.reason == "over" else "no work: leaving")
        return ExitCode.OK
    output.message("told to leave: everything is stored, all trials are given back")
    return code()


def drain(
    *,
    timeout_seconds: Annotated[
        PositiveFloat, Parameter(help="Wait for so long; the workers' own --grace-seconds should be less.")
    ] = 2 * GRACE_SECONDS,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> int:
    """Tell all workers of this machine, Ray's actors among them, to go, and wait until they have.

    For what happens before a machine is taken away: a Kubernetes preStop hook, a spot notice. Each worker
    gets SIGTERM. The exit code is 1 if any is left.
    """
    from storage.processes import birth
    from storage.workers import living_on_this_host

    with opened(database) as connection:
        told = living_on_this_host(connection)
    for process in told:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    until = time.monotonic() + timeout_seconds
    left = told
    while left and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        left = {process: began for process, began in left.items() if birth(process) == began}
    if as_json:
        output.document("drain/1", {"told": sorted(told), "left": sorted(left)})
    workers = f"{len(told)} worker{'' if len(told) == 1 else 's'}"
    output.message(f"{workers} told to go, {len(left)} left" if told else "no worker lives on this machine")
    return ExitCode.FAILED if left else ExitCode.OK
