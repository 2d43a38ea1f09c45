"""Runs one firing: starts its process, watches it by the database, ends it, stores how it went.

Nothing here waits: `look` is called again and again, so one thread looks after many firings.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeAlias

from search.control.supervision import progress_mark
from search.failures import ExitCode
from search.schedules.deciding import Progress, why_stop
from search.schedules.naming import experiment_of, file_of
from search.schedules.notices import Results, notice_body, results_of
from search.schedules.processes import Child, Launcher
from storage import queries
from storage.errors import ExperimentNotFound
from storage.experiments import Experiments
from storage.records import ExperimentRecord
from storage.schedule_records import Beat, FiringRecord, FiringState, ScheduleRecord
from storage.schedules import Schedules

Say: TypeAlias = Callable[[str], None]

MOST_STARTS = 3
"""Of a firing's process that dies, or finds the database away: by this one, and by those before."""
AGAIN_AFTER = timedelta(seconds=30)
ASK_FOR = timedelta(seconds=120)
"""How long a run may take to end its epochs once it was asked to, before it gets SIGTERM."""
TERM_FOR = timedelta(seconds=60)
"""How long it may take after SIGTERM, before it is killed."""

ASKED_TO_END = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a process that somebody else told to end: the machine is being taken away."""


def runner_name() -> str:
    """Who runs a firing, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


class FiringRun:
    """One firing that this process holds. One thread."""

    def __init__(
        self,
        schedules: Schedules,
        schedule: ScheduleRecord,
        firing: FiringRecord,
        launcher: Launcher,
        say: Say,
        *,
        tell: bool,
    ) -> None:
        """`tell`: a note goes out at its end."""
        self.schedule = schedule
        self.firing = firing
        self.experiment = experiment_of(schedule.name, schedule.each, firing.generation, schedule.spec)
        self.ended: FiringState | None = None
        """How it ended; None while it runs. `queued`: given back, or somebody else holds it."""
        self._schedules = schedules
        self._experiments = Experiments(schedules.database)
        self._launcher = launcher
        self._say = say
        self._tell = tell
        self._child: Child | None = None
        self._starts = 0
        self._start_at: datetime | None = None
        self._progress: Progress | None = None
        self._stop: tuple[FiringState, str] | None = None
        self._stop_at: datetime | None = None
        self._leaving = ""

    def look(self) -> FiringState | None:
        """Do what is to be done now; how it ended, or None. Raises what the database does."""
        if self.ended is not None:
            return self.ended
        beat = self._schedules.beat(self.firing)
        if beat is None:
            return self._lost()
        if self._start_at is None and self._child is None:
            self._begin(beat.now)
        elif self._child is None:
            self._start_when_due(beat)
        elif (code := self._child.poll()) is not None:
            self._child = None
            self._conclude(code, beat.now)
        else:
            self._watch(beat)
        return self.ended

    def leave(self, why: str) -> None:
        """Ask the process to end, once, and give the firing back; `look` until that is done."""
        if self._leaving:
            return
        self._leaving = why
        if self._child is not None:
            self._child.end()
        elif self.ended is None:
            self._release(why)

    def kill(self) -> None:
        """End the process at once; `look` sees it."""
        if self._child is not None:
            self._child.kill()

    # Beginning

    def _begin(self, now: datetime) -> None:
        self._schedules.name_experiment(self.firing, self.experiment)
        record = self._record()
        if self.firing.attempts > MOST_STARTS:
            self._end("failed", f"the processes that ran it died {MOST_STARTS} times")
        elif self.schedule.each == "continue" and record is not None and self._nothing_left(record):
            self._end("finished", "nothing was left to do")
        else:
            self._start(now)

    def _nothing_left(self, record: ExperimentRecord) -> bool:
        """Whether the experiment is finished and nobody asked for more since."""
        if record.state != "finished" or dict(record.spec) != dict(self.schedule.spec):
            return False
        rows = queries.progress(self._schedules.database, record.id)
        return not any(row.waiting or row.running for row in rows)

    def _start(self, now: datetime) -> None:
        self._starts += 1
        self._start_at = now
        self._progress = Progress(self._mark(), now)
        file = file_of(self.schedule.name, self.schedule.each, self.firing.generation, self.schedule.spec)
        self._say(f"{self._name} starts {self.experiment}")
        try:
            self._child = self._launcher.start(file, self.schedule.options)
        except OSError as error:
            self._again(f"can't be started: {error.strerror or error}", now)

    def _start_when_due(self, beat: Beat) -> None:
        assert self._start_at is not None
        stop = self._reason_to_stop(beat)
        if stop is not None:
            self._end(*stop)
        elif beat.now >= self._start_at:
            self._start(beat.now)

    # Watching

    def _watch(self, beat: Beat) -> None:
        assert self._progress is not None
        assert self._child is not None
        self._progress = self._progress.seen(self._mark(), beat.now)
        if self._stop is None:
            self._stop = self._reason_to_stop(beat)
            if self._stop is None:
                return
            self._stop_at = beat.now
            self._say(f"{self._name}: {self._stop[1]}; asking {self.experiment} to stop")
        assert self._stop_at is not None
        record = self._record()
        if record is not None:
            # Again at each look: one that begins takes back what it was asked before.
            self._experiments.request_stop(record.id)
        if beat.now - self._stop_at >= ASK_FOR + TERM_FOR:
            self._child.kill()
        elif beat.now - self._stop_at >= ASK_FOR or record is None:
            self._child.end()

    def _reason_to_stop(self, beat: Beat) -> tuple[FiringState, str] | None:
        assert self._progress is not None
        return why_stop(
            spent_seconds=beat.spent_seconds,
            budget_seconds=self.firing.budget_seconds,
            stalled_seconds=self.schedule.stalled_seconds,
            progress=self._progress,
            now=beat.now,
            removed=beat.removed,
        )

    def _mark(self) -> tuple[int, int]:
        record = self._record()
        if record is None:
            return (0, 0)
        return progress_mark(queries.progress(self._schedules.database, record.id, role=None))

    # Ending

    def _conclude(self, code: int, now: datetime) -> None:
        record = self._record()
        state = None if record is None else record.state
        if state == "finished" and self._stop is None and code in (0, 1):
            results = results_of(self._schedules.database, self.experiment)
            if results is not None and results.all_failed:
                self._end("failed", "every trial failed", results)
            else:
                self._end("finished", "" if code == 0 else "it ended with exit code 1: see its log", results)
        elif self._stop is not None:
            # It may have come to its end while it was asked to stop.
            self._end(*(("finished", "") if state == "finished" and code == 0 else self._stop))
        elif self._leaving or code in ASKED_TO_END:
            self._release(self._leaving or "its process was told to end")
        elif code == ExitCode.CONFLICT and self.firing.attempts == 1:
            self._end("skipped", f"somebody else was running {self.experiment}, or it differs from the file")
        elif code < 0:
            self._again(f"was killed by signal {-code}", now)
        elif code in (ExitCode.CONFLICT, ExitCode.UNREACHABLE, 128 + signal.SIGKILL):
            self._again(f"ended with exit code {code}", now)
        elif state == "stopped":
            self._end("stopped", "somebody asked it to stop")
        else:
            self._end("failed", f"it ended with exit code {code}: see its log")

    def _again(self, why: str, now: datetime) -> None:
        if self._starts + self.firing.attempts - 1 >= MOST_STARTS:
            self._end("failed", f"its process {why}, after {self._starts} starts")
            return
        self._say(f"{self._name}: its process {why}; it is started again in {AGAIN_AFTER.seconds} s")
        self._start_at = now + AGAIN_AFTER

    def _end(self, state: FiringState, reason: str, results: Results | None = None) -> None:
        results = results or results_of(self._schedules.database, self.experiment)

        def tell(schedule: ScheduleRecord, firing: FiringRecord, id: str) -> str:
            return notice_body(schedule, firing, id, results)

        report = self._launcher.report(self.experiment, self.schedule.options) if self._starts else None
        ours = self._schedules.end(
            self.firing, state, reason, report=report, tell=tell if self._tell and self._wanted() else None
        )
        self.ended = state if ours else "queued"
        self._say(f"{self._name}: {state.replace('_', ' ')}{f' ({reason})' if reason else ''}")

    def _wanted(self) -> bool:
        return self.schedule.webhook is not None

    def _release(self, why: str) -> None:
        self._schedules.release(self.firing, why)
        self.ended = "queued"
        self._say(f"{self._name}: {why}; it goes on when somebody fires again")

    def _lost(self) -> FiringState:
        """Somebody else holds it: what we would store is refused, so the process must not go on."""
        if self._child is not None:
            self._child.end()
            self._say(f"{self._name} was taken over by another process")
        self.ended = "queued"
        return self.ended

    def _record(self) -> ExperimentRecord | None:
        try:
            return self._experiments.get(self.experiment)
        except ExperimentNotFound:
            return None

    @property
    def _name(self) -> str:
        return f"{self.schedule.name} generation {self.firing.generation}"
