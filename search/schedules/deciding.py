"""What to do about a schedule now: pure functions of it, its firings that are not over, and the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from search.schedules.timing import Timetable
from storage.schedule_records import FiringRecord, FiringState, NewFiring, ScheduleRecord

MOST_QUEUED = 24
"""Firings of a schedule that may wait for their turn; a further one is skipped."""


def what_is_due(schedule: ScheduleRecord, live: Sequence[FiringRecord], now: datetime) -> list[NewFiring]:
    """At most one firing: the last time that came since it was decided last.

    Those before it were missed, and are only counted: after a night without a scheduler an hourly
    schedule fires once. One that is later than the schedule allows is missed as well.
    """
    if schedule.paused_at is not None or schedule.removed_at is not None:
        return []
    latest, count = Timetable(schedule.cron, schedule.timezone).due(schedule.decided_until, now)
    if latest is None:
        return []
    missed = count - 1
    late = (now - latest).total_seconds()
    if schedule.late_seconds is not None and late > schedule.late_seconds:
        allowed = f"{schedule.late_seconds:.0f} s are allowed"
        reason = f"nobody was there: it would have been {late:.0f} s late, {allowed}"
        return [NewFiring(latest, "missed", reason, missed)]
    return [_in_turn(schedule, live, NewFiring(latest, "queued", missed=missed))]


def on_demand(schedule: ScheduleRecord, live: Sequence[FiringRecord], now: datetime) -> list[NewFiring]:
    """A firing that somebody asks for, whatever the hour; it overlaps with others as any does."""
    return [_in_turn(schedule, live, NewFiring(now, "queued", manual=True))]


def _in_turn(schedule: ScheduleRecord, live: Sequence[FiringRecord], wanted: NewFiring) -> NewFiring:
    """The same firing, or that it is skipped."""
    if not live:
        return wanted
    if schedule.overlap == "skip":
        first = live[0]
        doing = "was still running" if first.state == "running" else "had not run to its end"
        reason = f"generation {first.generation} {doing}"
    elif sum(firing.state == "queued" for firing in live) >= MOST_QUEUED:
        reason = f"{MOST_QUEUED} firings were waiting already: they come faster than they end"
    else:
        return wanted
    return NewFiring(wanted.scheduled_for, "skipped", reason, wanted.missed, wanted.manual)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a process that watches a firing remembers of it."""

    mark: tuple[int, int]
    """Changes with every epoch and every trial that ends."""
    at: datetime
    """When it changed last."""

    def seen(self, mark: tuple[int, int], now: datetime) -> Progress:
        """The same after another look."""
        return self if mark == self.mark else Progress(mark, now)


def why_stop(
    *,
    spent_seconds: float,
    budget_seconds: float | None,
    stalled_seconds: float | None,
    progress: Progress,
    now: datetime,
    removed: bool = False,
) -> tuple[FiringState, str] | None:
    """Whether a running firing is to be ended: the state that it ends in, and why."""
    if removed:
        return "stopped", "its schedule was removed"
    if budget_seconds is not None and spent_seconds >= budget_seconds:
        return "out_of_budget", f"its budget of {hours(budget_seconds)} is used up"
    still = now - progress.at
    if stalled_seconds is not None and still >= timedelta(seconds=stalled_seconds):
        return "stalled", f"no epoch and no trial ended for {still.total_seconds() / 60:.0f} minutes"
    return None


def hours(seconds: float) -> str:
    """Hours in words, as `--budget-hours` takes them."""
    amount = f"{seconds / 3600:.4g}"
    return f"{amount} hour{'' if amount == '1' else 's'}"
