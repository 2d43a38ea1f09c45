"""Schedules as the storage hands them out: frozen values. All times are UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

Overlap: TypeAlias = Literal["skip", "queue"]
"""What becomes of a firing while the one before is not over."""

Each: TypeAlias = Literal["new", "continue"]
"""What a firing runs: a new generation of the experiment, or the same experiment on."""

WebhookFormat: TypeAlias = Literal["json", "slack"]

FiringState: TypeAlias = Literal[
    "queued", "running", "finished", "out_of_budget", "stopped", "failed", "stalled", "skipped", "missed"
]
"""queued → running → one of the others for good, or back to queued (its process was told to leave).
`out_of_budget`: its hours were used up, and it ended in order; `stalled`: it made no progress for too
long; `skipped`: the one before was not over; `missed`: nobody was there to fire it in time."""

LIVE: tuple[FiringState, ...] = ("queued", "running")
"""States of firings that are not over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """What somebody declared: which experiment, when, and within which bounds."""

    spec: Mapping[str, Any]
    cron: str
    timezone: str
    overlap: Overlap = "skip"
    each: Each = "new"
    budget_seconds: float | None = None
    """That one firing may run, all its processes together; None: no limit."""
    stalled_seconds: float | None = None
    """Without any progress, after which a firing is ended; None: never."""
    late_seconds: float | None = None
    """By which a firing may be late and still be made up for; None: until the next is due."""
    webhook: str | None = None
    """Where notes go: an https URL, or `file:` and the path of a file that holds it."""
    webhook_format: WebhookFormat = "json"
    options: Mapping[str, Any]
    """How the experiment is run: workers, device, trainer, address. No secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord(ScheduleSettings):
    """A schedule in the database."""

    id: int
    name: str
    paused_at: datetime | None
    removed_at: datetime | None
    decided_until: datetime
    """Every firing time up to this one has been decided about."""
    created_at: datetime
    updated_at: datetime

    @property
    def settings(self) -> ScheduleSettings:
        """What was declared, without what came of it."""
        return ScheduleSettings(**{name: getattr(self, name) for name in SETTINGS})


SETTINGS = tuple(ScheduleSettings.__dataclass_fields__)
"""The names of what is declared."""


@dataclass(frozen=True, slots=True)
class NewFiring:
    """A firing that was decided on."""

    scheduled_for: datetime
    state: Literal["queued", "skipped", "missed"]
    reason: str = ""
    missed: int = 0
    """Firing times before this one that nobody was there for."""
    manual: bool = False
    """Somebody asked for it, whatever the hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringRecord:
    """One firing of a schedule: its generation."""

    id: int
    schedule_id: int
    generation: int
    """From 1, without gaps, per schedule; skipped and missed ones count."""
    scheduled_for: datetime
    manual: bool
    state: FiringState
    reason: str | None
    missed: int
    experiment: str | None
    """What it runs; None as long as it never ran."""
    attempts: int
    """Processes that have run it so far; also the fence against those before."""
    runner: str | None
    lease_until: datetime | None
    budget_seconds: float | None
    spent_seconds: float
    report: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it is not over."""
        return self.state in LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a process that runs a firing learns when it says that it lives."""

    now: datetime
    spent_seconds: float
    removed: bool
    """Its schedule was removed meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoticeRecord:
    """A note that waits to be sent."""

    id: str
    """The same however often it is sent: receivers drop what they have seen."""
    firing_id: int
    body: str
    """JSON, as it is signed and sent."""
    tries: int
    """This one counts."""
    webhook: str | None
    """As the schedule says now; None: nobody is to be told any more."""
    webhook_format: WebhookFormat
    created_at: datetime
    now: datetime
