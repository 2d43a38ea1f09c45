"""Commands for a machine that joins, and one that is taken away: `worker` and `drain`."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from os import kill
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
    from search.control.crew import Assignment
    from search.launch.joining import Joined
    from search.observe.live import serve_metrics
    from search.trials.precisions import check_device, check_precision
    from storage.database import open_database

    notice = Notice()
    notice.listen(grace_seconds)
    with serve_metrics(metrics_port), open_database(database, application_name="shoal worker") as connection:
        for one in experiment:
            check_precision(connection, one, precision)
        check_device(device, precision)
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
            interrupted=notice.given,
            idle_seconds=idle_seconds,
            abandon=notice.abandon,
            tell=output.message,
        ).run()
    if served.reason != "interrupted":
        output.message("nothing left to do" if served.reason == "over" else "no work: leaving")
        return ExitCode.OK
    output.message("told to leave: everything is stored, all trials are given back")
    return notice.exit_code


class Notice:
    """The signals that tell a worker to go, and what its process returns then."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self._by_hand = False

    def listen(self, grace_seconds: float) -> None:
        """Heed SIGTERM, which leaves so much time for the end of an epoch, and Ctrl-C. In the main thread."""
        from search.control.crew import leave_when_told

        signal.signal(signal.SIGINT, self._interrupt)
        leave_when_told(self.given, grace_seconds)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """The first Ctrl-C lets the epoch end, as SIGTERM does; one after either ends the process at once."""
        if self.given.is_set():
            raise KeyboardInterrupt
        self._by_hand = True
        self.given.set()

    @property
    def exit_code(self) -> int:
        """Of a worker that went because it was told to."""
        from search.control.crew import EXIT_TERMINATED

        return ExitCode.INTERRUPTED if self._by_hand else EXIT_TERMINATED

    def abandon(self, reason: str) -> None:
        """End the process although its engine is busy: told to go, or given up because it hangs."""
        from search.control.crew import EXIT_ABANDONED, leave_at_once

        leave_at_once(reason, self.exit_code if self.given.is_set() else EXIT_ABANDONED)


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
        living = living_on_this_host(connection)
    told: dict[int, str] = {}
    refused: dict[int, str] = {}
    for process, began in living.items():
        with suppress(ProcessLookupError):
            try:
                kill(process, signal.SIGTERM)
                told[process] = began
            except PermissionError:
                refused[process] = began
                output.message(f"process {process} is another user's: it can't be told")
    left = told
    until = time.monotonic() + timeout_seconds
    while left and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        left = {process: began for process, began in left.items() if birth(process) == began}
    left = left | refused
    if as_json:
        output.document("drain/1", {"told": sorted(told), "left": sorted(left)})
    workers = f"{len(told)} worker{'' if len(told) == 1 else 's'}"
    output.message(f"{workers} told to go, {len(left)} left" if living else "no worker lives on this machine")
    return ExitCode.FAILED if left else ExitCode.OK
