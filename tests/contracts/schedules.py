"""Schedules without waiting: a clock that is moved, processes that do as told, a receiver of notes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from search.schedules.scheduler import Scheduler
from storage.database import Database
from storage.errors import ExperimentExists
from storage.experiments import Experiments
from storage.outbox import Outbox
from storage.schedule_records import FiringRecord, NewFiring, ScheduleRecord, ScheduleSettings
from storage.schedules import Schedules

SPEC = {
    "experiment": "nightly",
    "seed": 7,
    "metric": "value",
    "methods": {"random": {}},
    "budget": {"trials": 4},
    "comparison": {"retrain": {"seeds": 0}},
}
"""What of a stored experiment schedules look at."""

SECRET = "a secret of enough length"


def settings(**changes: Any) -> ScheduleSettings:
    """Every minute, in UTC."""
    values: dict[str, Any] = {"spec": SPEC, "cron": "* * * * *", "timezone": "UTC", "options": {}}
    return ScheduleSettings(**values | changes)


def record(**changes: Any) -> ScheduleRecord:
    """A schedule that was made at noon and is in no database."""
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    values: dict[str, Any] = {
        "id": 1,
        "name": "nightly",
        "spec": SPEC,
        "cron": "* * * * *",
        "timezone": "UTC",
        "options": {},
        "paused_at": None,
        "removed_at": None,
        "decided_until": noon,
        "created_at": noon,
        "updated_at": noon,
    }
    return ScheduleRecord(**values | changes)


def fire(schedules: Schedules, made: ScheduleRecord, state: Any = "queued", tell: Any = None) -> FiringRecord:
    """Add a firing for this moment."""

    def decide(_s: ScheduleRecord, _live: Sequence[FiringRecord], now: datetime) -> list[NewFiring]:
        return [NewFiring(now, state, "because" if state != "queued" else "", manual=True)]

    [added] = schedules.consider(made.id, decide, tell)
    return added


def held(schedules: Schedules, made: ScheduleRecord) -> FiringRecord:
    """A firing that we run."""
    fire(schedules, made)
    claimed = schedules.claim(made.id, "me")
    assert claimed is not None
    return claimed


def body(_schedule: ScheduleRecord, firing: FiringRecord, id: str) -> str:
    """A note that is none."""
    return f"{id} {firing.generation} {firing.state}"


@dataclass
class FakeChild:
    """A process that ends when a test says so."""

    experiment: str
    code: int | None = None
    asked: int = 0
    """Times that it was asked to end."""
    killed: bool = False
    obeys: bool = True
    """Whether it ends when it is asked to."""

    def poll(self) -> int | None:
        """See `search.schedules.processes.Child`."""
        return self.code

    def end(self) -> None:
        """See `Child`."""
        self.asked += 1
        if self.obeys:
            self.code = 143

    def kill(self) -> None:
        """See `Child`."""
        self.killed = True
        self.code = -9


@dataclass
class FakeLauncher:
    """Makes the experiment, as `shoal run` would, and a process that a test ends."""

    database: Database
    children: list[FakeChild] = field(default_factory=list)
    files: list[Mapping[str, Any]] = field(default_factory=list)
    makes: bool = True
    """Whether processes live long enough to make their experiment."""

    def start(self, file: Mapping[str, Any], options: Mapping[str, Any]) -> FakeChild:
        """See `search.schedules.processes.Launcher`."""
        self.files.append(file)
        experiments = Experiments(self.database)
        name = str(file["experiment"])
        if self.makes:
            try:
                made = experiments.create(name, file, "hash", {}, [("random", 0, f"{name}/random/0")])
            except ExperimentExists as exists:
                made = exists.existing
            experiments.set_state(made.id, "running")
        self.children.append(FakeChild(name))
        return self.children[-1]

    def report(self, experiment: str, options: Mapping[str, Any]) -> str | None:
        """See `Launcher`."""
        return f"/reports/{experiment}/report.html"

    def ends(self, state: str | None = "finished", code: int = 0) -> None:
        """The newest process ends, having stored that state."""
        child = self.children[-1]
        if state is not None:
            experiments = Experiments(self.database)
            experiments.set_state(experiments.get(child.experiment).id, state)  # type: ignore[arg-type]
        child.code = code


class Bench:
    """A scheduler on a database whose clock stands at a whole minute and is moved by the test."""

    def __init__(self, database: Database, **changes: Any) -> None:
        self.schedules = Schedules(database)
        self.outbox = Outbox(database)
        self.experiments = Experiments(database)
        self.launcher = FakeLauncher(database)
        self.said: list[str] = []
        # Half a minute after a whole one: no firing time is near while a test runs.
        now = self.schedules.now()
        self.move(60 - now.second - now.microsecond / 1e6 + 30)
        self.schedule, _ = self.schedules.declare("nightly", settings(**changes))
        self.scheduler = self.another()

    def another(self) -> Scheduler:
        """A further scheduler, as in another process."""
        return Scheduler(self.schedules, self.launcher, self.said.append)

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.schedules.ahead += timedelta(seconds=seconds)
        self.outbox.ahead = self.schedules.ahead

    def tick(self, *, seconds: float = 0.0) -> None:
        """Let time pass, and the scheduler look."""
        self.move(seconds)
        self.scheduler.tick()

    def states(self) -> list[str]:
        """Of all firings, oldest first."""
        return [one.state for one in reversed(self.schedules.firings(self.schedule.id))]

    def newest(self) -> Any:
        """The last firing."""
        return self.schedules.firings(self.schedule.id, limit=1)[0]


@dataclass
class Receiver:
    """A web server that notes are sent to."""

    url: str
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """For the next requests; then 204."""

    def bodies(self) -> list[dict[str, Any]]:
        """The notes, parsed."""
        return [json.loads(body) for _, body in self.received]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver on this machine, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.received.append((dict(self.headers), body))
            status, headers = made.answers.pop(0) if made.answers else (204, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 (the library's name): a redirect that is followed would come here

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Receiver(f"http://127.0.0.1:{server.server_port}/hook/s3cret-path")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()
        thread.join()
