"""What is done about a schedule, as pure functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from search.schedules.deciding import MOST_QUEUED, Progress, hours, on_demand, what_is_due, why_stop
from storage.schedule_records import FiringRecord, NewFiring
from tests.contracts.schedules import record

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def firing(generation: int = 1, state: Any = "running") -> FiringRecord:
    return FiringRecord(
        id=generation,
        schedule_id=1,
        generation=generation,
        scheduled_for=NOON,
        manual=False,
        state=state,
        reason=None,
        missed=0,
        experiment=None,
        attempts=1,
        runner=None,
        lease_until=None,
        budget_seconds=None,
        spent_seconds=0.0,
        report=None,
        created_at=NOON,
        started_at=None,
        ended_at=None,
    )


def test_nothing_is_due_between_two_times() -> None:
    assert what_is_due(record(), [], NOON + timedelta(seconds=59)) == []


def test_a_time_that_has_come_is_fired_for_that_time() -> None:
    due = what_is_due(record(), [], NOON + MINUTE + timedelta(seconds=2))
    assert due == [NewFiring(NOON + MINUTE, "queued")]


def test_a_time_that_was_decided_about_is_not_due_again() -> None:
    assert what_is_due(record(decided_until=NOON + MINUTE), [], NOON + MINUTE) == []


def test_a_new_schedule_fires_nothing_of_the_past() -> None:
    assert what_is_due(record(cron="0 12 * * *"), [], NOON + MINUTE) == []


def test_after_downtime_one_firing_makes_up_for_all() -> None:
    due = what_is_due(record(), [], NOON + timedelta(hours=8))
    assert due == [NewFiring(NOON + timedelta(hours=8), "queued", missed=479)]


def test_a_firing_that_would_be_too_late_is_missed() -> None:
    late = record(cron="0 * * * *", late_seconds=600.0)
    [one] = what_is_due(late, [], NOON + timedelta(hours=2, minutes=11))
    assert (one.scheduled_for, one.state, one.missed) == (NOON + timedelta(hours=2), "missed", 1)
    assert "660 s late, 600 s are allowed" in one.reason


def test_a_firing_may_be_as_late_as_was_allowed() -> None:
    late = record(cron="0 * * * *", late_seconds=600.0)
    [one] = what_is_due(late, [], NOON + timedelta(hours=1, minutes=10))
    assert one.state == "queued"


@pytest.mark.parametrize("changes", [{"paused_at": NOON}, {"removed_at": NOON}])
def test_what_is_paused_or_removed_does_not_fire(changes: dict[str, Any]) -> None:
    assert what_is_due(record(**changes), [], NOON + timedelta(hours=1)) == []


@pytest.mark.parametrize(
    ("state", "why"),
    [("running", "generation 4 was still running"), ("queued", "generation 4 had not run to its end")],
)
def test_an_overlap_is_skipped(state: str, why: str) -> None:
    [one] = what_is_due(record(overlap="skip"), [firing(4, state)], NOON + MINUTE)
    assert (one.state, one.reason, one.scheduled_for) == ("skipped", why, NOON + MINUTE)


def test_an_overlap_waits_for_its_turn() -> None:
    [one] = what_is_due(record(overlap="queue"), [firing(1), firing(2, "queued")], NOON + MINUTE)
    assert one.state == "queued"


def test_a_queue_ends_somewhere() -> None:
    waiting = [firing(1), *(firing(n, "queued") for n in range(2, 2 + MOST_QUEUED))]
    [full] = what_is_due(record(overlap="queue"), waiting, NOON + MINUTE)
    [room] = what_is_due(record(overlap="queue"), waiting[:-1], NOON + MINUTE)
    assert (full.state, room.state) == ("skipped", "queued")


def test_what_was_missed_is_told_by_a_skipped_firing_too() -> None:
    [one] = what_is_due(record(), [firing()], NOON + 3 * MINUTE)
    assert (one.state, one.missed) == ("skipped", 2)


def test_somebody_may_ask_at_any_time() -> None:
    at = NOON + timedelta(seconds=10)
    assert on_demand(record(paused_at=NOON), [], at) == [NewFiring(at, "queued", manual=True)]
    [overlapping] = on_demand(record(), [firing()], at)
    assert (overlapping.state, overlapping.manual) == ("skipped", True)


def test_the_hour_that_comes_twice_fires_once() -> None:
    table = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    [one] = what_is_due(record(**table, decided_until=first - MINUTE), [], first)
    assert one.scheduled_for == first
    for later in (30, 60, 61, 90):
        assert what_is_due(record(**table, decided_until=first), [], first + later * MINUTE) == []


def test_the_hour_that_is_left_out_fires_after_the_gap() -> None:
    after_gap = datetime(2027, 3, 28, 1, tzinfo=UTC)
    table = record(cron="30 2 * * *", timezone="Europe/Berlin", decided_until=after_gap - MINUTE)
    assert what_is_due(table, [], after_gap - timedelta(seconds=1)) == []
    assert what_is_due(table, [], after_gap) == [NewFiring(after_gap, "queued")]


# Ending a firing


def reason(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "spent_seconds": 10.0,
        "budget_seconds": None,
        "stalled_seconds": None,
        "progress": Progress((0, 0), NOON),
        "now": NOON + timedelta(minutes=10),
    }
    return why_stop(**values | changes)


def test_without_bounds_nothing_ends_it() -> None:
    assert reason(now=NOON + timedelta(days=30), spent_seconds=1e7) is None


@pytest.mark.parametrize(("spent", "state"), [(3599.9, None), (3600.0, "out_of_budget")])
def test_the_budget_ends_it(spent: float, state: str | None) -> None:
    found = reason(spent_seconds=spent, budget_seconds=3600.0)
    assert (found and found[0]) == state


@pytest.mark.parametrize(("stalled", "state"), [(601.0, None), (600.0, "stalled")])
def test_no_progress_ends_it(stalled: float, state: str | None) -> None:
    found = reason(stalled_seconds=stalled)
    assert (found and found[0]) == state


def test_progress_begins_the_wait_anew() -> None:
    progress = Progress((3, 1), NOON).seen((4, 1), NOON + timedelta(minutes=9))
    assert reason(stalled_seconds=600.0, progress=progress) is None
    assert progress.seen((4, 1), NOON + timedelta(hours=1)) is progress


def test_a_removed_schedule_ends_it_first() -> None:
    assert reason(removed=True, budget_seconds=1.0)[0] == "stopped"


@pytest.mark.parametrize(("seconds", "text"), [(3600, "1 hour"), (5400, "1.5 hours"), (36, "0.01 hours")])
def test_hours_in_words(seconds: float, text: str) -> None:
    assert hours(seconds) == text
