"""Fires schedules: all of them in a loop, or one of them once, as an outside clock asks for.

Both may run at once, and several of each: what fires is decided in the database, and held by leases.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from search.schedules.deciding import on_demand, what_is_due
from search.schedules.firing import FiringRun, Say, runner_name
from search.schedules.notices import notice_body
from search.schedules.processes import Launcher
from search.schedules.timing import UNREADABLE, Timetable
from search.schedules.webhook import Sent, deliver_one
from storage.errors import DatabaseUnreachable
from storage.outbox import Outbox
from storage.schedule_records import FiringRecord, FiringState, ScheduleRecord
from storage.schedules import Schedules

BUSY_SECONDS = 1.0
"""Between two looks while something runs or waits."""
IDLE_SECONDS = 10.0
"""The longest between two looks while nothing does: somebody may add a schedule, or leave a firing behind."""
FLUSH_SECONDS = 30.0
"""For which a process that fired once tries to send its note, before it leaves that to the next."""
SOON_SECONDS = 15.0
"""A note whose next try is later than that is not waited for."""


def tell_skipped(schedule: ScheduleRecord, firing: FiringRecord, id: str) -> str | None:
    """The note about a firing that never ran, where the schedule asks for such notes."""
    if schedule.webhook is None or not schedule.options.get("webhook_skipped"):
        return None
    return notice_body(schedule, firing, id)


class Scheduler:
    """Looks after schedules in this process: fires what is due, runs what waits. One thread."""

    def __init__(
        self, schedules: Schedules, launcher: Launcher, say: Say, *, names: Collection[str] | None = None
    ) -> None:
        """`names`: only these; None: all there are."""
        self.running: dict[int, FiringRun] = {}
        """By schedule: of each at most one firing runs anywhere."""
        self._schedules = schedules
        self._launcher = launcher
        self._say = say
        self._names = names
        self._next: datetime | None = None
        self._ended = False
        """Something ended in the last `tick`: what waits for its turn is not to wait for more."""
        self._unreadable: set[int] = set()

    def tick(self) -> None:
        """Decide, claim, look. Raises what the database does; may be called again."""
        now = self._schedules.now()
        known = [one for one in self._schedules.list() if self._names is None or one.name in self._names]
        times = [self._fire_if_due(schedule, now) for schedule in known if schedule.paused_at is None]
        for schedule in known:
            if schedule.id not in self.running:
                self._claim(schedule)
        self._look()
        self._next = min((at for at in times if at is not None), default=None)

    def _fire_if_due(self, schedule: ScheduleRecord, now: datetime) -> datetime | None:
        """Fire it if it is due; when it fires next. One that can't be read keeps no other from firing."""
        try:
            if _next_of(schedule) <= now:
                for firing in self._schedules.consider(schedule.id, what_is_due, tell_skipped):
                    self._note(schedule, firing)
            return _next_of(schedule, now)
        except UNREADABLE as error:
            if schedule.id not in self._unreadable:
                self._say(f"{schedule.name} can't be fired here: {error}")
            self._unreadable.add(schedule.id)
            return None

    def wait_seconds(self) -> float:
        """How long nothing needs to be done."""
        if self.running or self._ended:
            return BUSY_SECONDS
        if self._next is None:
            return IDLE_SECONDS
        rest = (self._next - self._schedules.now()).total_seconds()
        return min(max(rest, 0.0) + 0.05, IDLE_SECONDS)

    def leave(self, why: str) -> None:
        """Ask all that runs to end and to be given back; again does nothing. `settle` until nothing runs."""
        for run in self.running.values():
            run.leave(why)

    def kill(self) -> None:
        """End all that runs at once."""
        for run in self.running.values():
            run.kill()

    def settle(self) -> None:
        """Look at what runs, and start nothing."""
        self._look()

    def _look(self) -> None:
        before = len(self.running)
        for id, run in list(self.running.items()):
            if run.look() is not None:
                del self.running[id]
        self._ended = len(self.running) < before

    def _claim(self, schedule: ScheduleRecord) -> None:
        firing = self._schedules.claim(schedule.id, runner_name())
        if firing is not None:
            self.running[schedule.id] = FiringRun(
                self._schedules, schedule, firing, self._launcher, self._say, tell=True
            )

    def _note(self, schedule: ScheduleRecord, firing: FiringRecord) -> None:
        missed = f", {firing.missed} before it were missed" if firing.missed else ""
        why = f": {firing.reason}" if firing.reason else ""
        self._say(f"{schedule.name} generation {firing.generation} is {firing.state}{why}{missed}")


def _next_of(schedule: ScheduleRecord, now: datetime | None = None) -> datetime:
    since = schedule.decided_until if now is None else max(now, schedule.decided_until)
    return Timetable(schedule.cron, schedule.timezone).after(since)


@dataclass(frozen=True, slots=True)
class Fired:
    """What firing once came to."""

    firing: FiringRecord | None
    """None: nothing was due."""
    state: FiringState | None
    """How it ended; `queued`: it was given back, because this process was told to leave."""


class Once:
    """One firing of one schedule, as a CronJob, a timer or a person asks for. One thread."""

    def __init__(self, schedules: Schedules, schedule: ScheduleRecord, launcher: Launcher, say: Say) -> None:
        self._schedules = schedules
        self._schedule = schedule
        self._say = say
        self._scheduler = Scheduler(schedules, launcher, say, names=[])
        self._launcher = launcher
        self.leaving = ""
        """Set by a signal's handler, to why this process is to give back what runs, and end."""

    def fire(self, *, if_due: bool, wait: Callable[[float], object] = time.sleep) -> Fired:
        """Fire, wait for the turn, run it to its end. `if_due`: at most once for each firing time.

        What an earlier process left behind is run to its end first: it is older. Where the new
        firing is skipped because of it, that is all.
        """
        mine = self._decide(if_due=if_due)
        if mine is None:
            return Fired(None, None)
        last: FiringState = mine.state
        left_behind = mine.state == "skipped"
        while not self.leaving:
            try:
                mine = self._schedules.firing(mine.id)
                if not mine.live and not left_behind:
                    return Fired(mine, mine.state)
                run = self._claim()
                if run is not None:
                    last = self._run(run, wait)
                elif left_behind:
                    return Fired(mine, last)
                elif mine.state == "queued" and not mine.manual and self._paused():
                    return Fired(mine, "queued")
                else:
                    wait(BUSY_SECONDS)
            except DatabaseUnreachable as error:
                if not error.retryable:
                    raise
                wait(BUSY_SECONDS)
        return Fired(mine, "queued")

    def kill(self) -> None:
        """End what runs at once."""
        self._scheduler.kill()

    def _decide(self, *, if_due: bool) -> FiringRecord | None:
        if not if_due:
            added = self._schedules.consider(self._schedule.id, on_demand, tell_skipped, decides_times=False)
            return self._added(added)
        added = self._schedules.consider(self._schedule.id, what_is_due, tell_skipped)
        if added:
            return self._added(added)
        if self._schedule.paused_at is not None:
            return None
        timetable = Timetable(self._schedule.cron, self._schedule.timezone)
        latest = timetable.latest(self._schedules.now())
        # Fired already: by another scheduler, or by a process before us that was taken away.
        return None if latest is None else self._schedules.firing_at(self._schedule.id, latest)

    def _paused(self) -> bool:
        return self._schedules.get(self._schedule.name, removed=True).paused_at is not None

    def _added(self, added: Sequence[FiringRecord]) -> FiringRecord:
        firing = added[0]
        why = f": {firing.reason}" if firing.reason else ""
        self._say(f"{self._schedule.name} generation {firing.generation} is {firing.state}{why}")
        return firing

    def _claim(self) -> FiringRun | None:
        firing = self._schedules.claim(self._schedule.id, runner_name())
        if firing is None:
            return None
        run = FiringRun(self._schedules, self._schedule, firing, self._launcher, self._say, tell=True)
        self._scheduler.running[self._schedule.id] = run
        return run

    def _run(self, run: FiringRun, wait: Callable[[float], object]) -> FiringState:
        while self._scheduler.running:
            try:
                if self.leaving:
                    self._scheduler.leave(self.leaving)
                self._scheduler.settle()
            except DatabaseUnreachable as error:
                if not error.retryable:
                    raise
            if self._scheduler.running:
                wait(BUSY_SECONDS)
        assert run.ended is not None
        return run.ended


class Postman(threading.Thread):
    """Sends notes, in a thread of its own: a receiver may be slow, and firings have to be watched."""

    def __init__(self, outbox: Outbox, say: Say) -> None:
        super().__init__(name="shoal postman", daemon=True)
        self._outbox = outbox
        self._say = say
        self._ended = threading.Event()
        self._sending = False

    def run(self) -> None:
        """Until `finish`."""
        while not self._ended.is_set():
            if not self._deliver():
                self._ended.wait(BUSY_SECONDS)

    def finish(self, seconds: float = FLUSH_SECONDS) -> int:
        """Wait until what is due soon is sent, but not for longer than that; how many notes are left."""
        deadline = time.monotonic() + seconds
        left = self._left()
        while (left or self._sending) and time.monotonic() < deadline and self.is_alive():
            self._ended.wait(BUSY_SECONDS / 5)
            left = self._left()
        self._ended.set()
        self.join(timeout=BUSY_SECONDS)
        return left

    def _left(self) -> int:
        with suppress(DatabaseUnreachable):
            return self._outbox.waiting(within_seconds=SOON_SECONDS)
        return 0

    def _deliver(self) -> bool:
        """Send one; whether there was one."""
        self._sending = True
        try:
            done = deliver_one(self._outbox)
        except DatabaseUnreachable:
            return False
        except Exception as error:  # noqa: BLE001  it must not keep all other notes from being sent
            self._say(f"a note can't be sent: {type(error).__name__}: {error}")
            return False
        finally:
            self._sending = False
        if done is not None:
            self._say(_said(done))
        return done is not None


def _said(done: Sent) -> str:
    if not done.error:
        return f"sent note {done.notice.id}"
    rest = "given up" if done.final else "it is tried again"
    return f"note {done.notice.id} did not arrive ({done.error}); {rest}"
