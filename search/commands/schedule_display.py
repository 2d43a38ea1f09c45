"""How schedules and firings are shown: in tables, and as `--json` has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from search.formats import NOTHING, format_number, format_seconds

if TYPE_CHECKING:
    from search.schedules.notices import Results
    from search.schedules.timing import Timetable
    from storage.schedule_records import FiringRecord, ScheduleRecord


def timetable(record: ScheduleRecord) -> Timetable:
    """When it fires."""
    from search.schedules.timing import Timetable

    return Timetable(record.cron, record.timezone)


def local_time(moment: datetime | None, timezone: str) -> str:
    """A moment to the minute, as clocks show it there."""
    from zoneinfo import ZoneInfo

    return NOTHING if moment is None else f"{moment.astimezone(ZoneInfo(timezone)):%Y-%m-%d %H:%M}"


def next_time(record: ScheduleRecord, now: datetime) -> str:
    """When it fires next, by the clocks of its time zone."""
    if record.paused_at is not None:
        return "paused"
    return local_time(timetable(record).after(max(now, record.decided_until)), record.timezone)


def last_firing(firings: Sequence[FiringRecord]) -> str:
    """What became of the newest of its firings."""
    return f"{said(firings[0].state)} (generation {firings[0].generation})" if firings else NOTHING


def said(state: str) -> str:
    """A firing's state in words."""
    return state.replace("_", " ")


def facts_of(record: ScheduleRecord, now: datetime) -> list[tuple[str, object]]:
    """A schedule's settings, as a table of facts."""
    from search.schedules.webhook import masked

    options = {key: value for key, value in record.options.items() if value not in (None, False, "auto")}
    late, stalled, budget = record.late_seconds, record.stalled_seconds, record.budget_seconds
    rows: list[tuple[str, object]] = [
        ("experiment", record.spec["experiment"]),
        ("fires", f"{record.cron} ({record.timezone})"),
        ("next", next_time(record, now)),
        ("each firing", "a new generation" if record.each == "new" else "runs the experiment on"),
        ("overlap", "skipped" if record.overlap == "skip" else "waits for its turn"),
        ("late by", "any time until the next" if late is None else f"at most {format_seconds(late)}"),
        ("budget", "no limit" if budget is None else format_seconds(budget)),
        ("stalled after", "never" if stalled is None else format_seconds(stalled)),
        (
            "note to",
            "nobody" if record.webhook is None else f"{masked(record.webhook)} ({record.webhook_format})",
        ),
    ]
    return [*rows, ("options", ", ".join(f"{key}={value}" for key, value in options.items()))]


def row_of(
    one: FiringRecord, record: ScheduleRecord, results: Results | None, note: dict[str, Any] | None
) -> tuple[object, ...]:
    """A firing as a row of the table of generations."""
    best = (
        ", ".join(f"{name} {format_number(value)}" for name, value in results.best.items()) if results else ""
    )
    missed = f"{one.missed} before it were missed" if one.missed else ""
    return (
        one.generation,
        local_time(one.scheduled_for, record.timezone),
        said(one.state),
        format_seconds(one.spent_seconds) if one.started_at else NOTHING,
        one.experiment or NOTHING,
        best or NOTHING,
        "; ".join(part for part in (one.reason or "", missed) if part),
        _noted(note),
    )


def _noted(note: dict[str, Any] | None) -> str:
    if note is None:
        return NOTHING
    if note["sent_at"] is not None:
        return "sent"
    what = "given up" if note["given_up_at"] is not None else "waits"
    return f"{what}: {note['last_error']}" if note["last_error"] else what


def schedule_json(record: ScheduleRecord, now: datetime) -> dict[str, Any]:
    """A schedule as `--json` shows it; where notes go is masked."""
    from search.schedules.webhook import masked

    paused = record.paused_at is not None
    following = (
        None if paused or record.removed_at else timetable(record).after(max(now, record.decided_until))
    )
    return {
        "schedule": record.name,
        "experiment": record.spec["experiment"],
        "cron": record.cron,
        "timezone": record.timezone,
        "next": following and following.isoformat(),
        "paused": paused,
        "removed": record.removed_at is not None,
        "overlap": record.overlap,
        "each": record.each,
        "budget_seconds": record.budget_seconds,
        "stalled_seconds": record.stalled_seconds,
        "late_seconds": record.late_seconds,
        "webhook": record.webhook and masked(record.webhook),
        "webhook_format": record.webhook_format,
        "options": dict(record.options),
    }


def firing_json(one: FiringRecord) -> dict[str, Any]:
    """A firing as `--json` shows it."""
    times = ("scheduled_for", "created_at", "started_at", "ended_at")
    return {
        "generation": one.generation,
        "state": one.state,
        "reason": one.reason or "",
        "experiment": one.experiment,
        "manual": one.manual,
        "missed": one.missed,
        "attempts": one.attempts,
        "runner": one.runner,
        "seconds": one.spent_seconds,
        "report": one.report,
        **{name: (at := getattr(one, name)) and at.isoformat() for name in times},
    }


def best_json(results: Results | None) -> dict[str, float | None]:
    """Method → best value, of a generation that has results."""
    return dict(results.best) if results else {}
