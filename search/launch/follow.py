"""Following a launch: its driver's log as it grows, and how it ends.

The log is on the cluster; how the run ends, the driver writes into the database. So a cluster that is
away for a while ends nothing here, and a driver that dies is told from one that is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.launch.jobs import ClusterError, JobServer, JobView
from search.launch.rules import Job, log_rest
from search.launch.submit import GONE
from storage.experiments import Experiments
from storage.launches import Launches

if TYPE_CHECKING:
    from storage.database import Database
    from storage.records import LaunchRecord

LOOK_SECONDS = 1.0
"""Between two looks."""
LAST_WORDS_SECONDS = 15.0
"""For the cluster to see the end of a driver that has said how its run ended, and for the reverse."""
AWAY_SECONDS = 120.0
"""For how long a cluster may be away while nobody controls the experiment."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How a launch ended."""

    launch: LaunchRecord
    message: str = ""
    """What the cluster says, of a driver that said nothing."""


class Follower:
    """Follows one launch. `write` gets the log's new text; `tell` what is worth knowing besides."""

    def __init__(
        self,
        database: Database,
        server: JobServer,
        launch: LaunchRecord,
        *,
        write: Callable[[str], object],
        tell: Callable[[str], object],
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._experiments = Experiments(database)
        self._launches = Launches(database)
        self._server = server
        self._launch = launch
        self._write = write
        self._tell = tell
        self._sleep = sleep
        self._clock = clock
        self._shown = ""
        self._away_since: float | None = None

    def run(self) -> Seen:
        """Until it ends. Raises `ClusterError` if the cluster is away for long and nobody runs it."""
        over_since: float | None = None
        while True:
            view = self._look()
            record = self._record()
            ended = view is not None and view.state is not Job.ALIVE
            if record.is_over or ended:
                over_since = self._clock() if over_since is None else over_since
                waited = self._clock() - over_since >= LAST_WORDS_SECONDS
                if (record.is_over and (ended or waited)) or waited:
                    return self._ending(record, view)
            else:
                over_since = None
            self._sleep(LOOK_SECONDS)

    def _ending(self, record: LaunchRecord, view: JobView | None) -> Seen:
        if record.is_over:
            return Seen(record)
        self._launches.lose(record.experiment_id, record.generation, GONE)
        return Seen(self._record(), view.message if view is not None else "")

    def _record(self) -> LaunchRecord:
        found = [
            record
            for record in self._launches.of_experiment(self._launch.experiment_id)
            if record.generation == self._launch.generation
        ]
        return found[0]

    def _look(self) -> JobView | None:
        """What the cluster says, its log shown; None while it is away."""
        try:
            # First the state: what is written before a job ends is in the log that is read after.
            view = self._server.look(self._launch.submission)
            log = self._server.log(self._launch.submission)
        except ClusterError as error:
            self._note_away(error)
            return None
        self._away_since = None
        rest, self._shown = log_rest(self._shown, log), log
        if rest:
            self._write(rest)
        return view

    def _note_away(self, error: ClusterError) -> None:
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
            self._tell(f"{error}; waiting for it")
        controlled = self._experiments.controlled([self._launch.experiment_id])
        if now - self._away_since >= AWAY_SECONDS and not controlled:
            raise error
