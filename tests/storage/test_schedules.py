"""Schedules and firings in the database."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import ScheduleExists, ScheduleNotFound, ValueRefused
from storage.outbox import Outbox
from storage.schedule_records import FiringRecord, NewFiring, ScheduleRecord
from storage.schedules import LEASE_SECONDS, Schedules
from tests.contracts.schedules import body, fire, held, settings


@pytest.fixture
def schedules(database: Database) -> Schedules:
    return Schedules(database)


@pytest.fixture
def made(schedules: Schedules) -> ScheduleRecord:
    return schedules.declare("nightly", settings(webhook="https://example.org/x"))[0]


# Declaring


def test_what_was_declared_is_read_again(schedules: Schedules) -> None:
    wanted = settings(budget_seconds=60.0, stalled_seconds=5.0, late_seconds=0.0, options={"workers": 2})
    made, what = schedules.declare("nightly", wanted)
    assert what == "made"
    assert schedules.get("nightly") == made
    assert made.settings == wanted
    assert made.decided_until <= schedules.now()


def test_declaring_the_same_again_changes_nothing(schedules: Schedules, made: ScheduleRecord) -> None:
    assert schedules.declare("nightly", made.settings) == (made, "unchanged")


def test_other_settings_want_to_be_asked_for(schedules: Schedules, made: ScheduleRecord) -> None:
    other = replace(made.settings, cron="0 3 * * *")
    with pytest.raises(ScheduleExists, match="nightly"):
        schedules.declare("nightly", other)
    fire(schedules, made)
    changed, what = schedules.declare("nightly", other, replace=True)
    assert (what, changed.id, changed.cron) == ("changed", made.id, "0 3 * * *")
    assert changed.decided_until > made.decided_until
    assert len(schedules.firings(made.id)) == 1


def test_a_removed_schedule_is_gone_and_can_be_taken_up_again(
    schedules: Schedules, made: ScheduleRecord
) -> None:
    fire(schedules, made)
    schedules.remove("nightly")
    assert schedules.list() == []
    assert [one.state for one in schedules.firings(made.id)] == ["stopped"]
    for gone in (schedules.get, schedules.pause, schedules.resume, schedules.remove):
        with pytest.raises(ScheduleNotFound):
            gone("nightly")
    again, what = schedules.declare("nightly", made.settings)
    assert (what, again.id, again.removed_at) == ("made", made.id, None)
    assert fire(schedules, again).generation == 2


def test_a_missing_name_names_similar_ones(schedules: Schedules, made: ScheduleRecord) -> None:
    with pytest.raises(ScheduleNotFound, match="did you mean 'nightly'"):
        schedules.get("nigthly")
    with pytest.raises(ScheduleNotFound):
        schedules.get("\x00\ud800")


def test_what_was_due_during_a_pause_is_decided(schedules: Schedules, made: ScheduleRecord) -> None:
    paused = schedules.pause("nightly")
    assert paused.paused_at is not None
    assert schedules.pause("nightly").paused_at == paused.paused_at
    schedules.ahead += timedelta(hours=5)
    resumed = schedules.resume("nightly")
    assert resumed.paused_at is None
    assert resumed.decided_until - made.decided_until > timedelta(hours=5)
    assert schedules.resume("nightly").decided_until == resumed.decided_until


@pytest.mark.parametrize(
    "changes",
    [
        {"overlap": "both"},
        {"each": "old"},
        {"webhook_format": "xml"},
        {"budget_seconds": 0.0},
        {"budget_seconds": float("inf")},
        {"stalled_seconds": -1.0},
        {"late_seconds": -1.0},
        {"cron": ""},
    ],
)
def test_the_schema_refuses_what_can_not_be(schedules: Schedules, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueRefused):
        schedules.declare("bad", settings(**changes))


# Firing


def test_generations_count_every_firing(schedules: Schedules, made: ScheduleRecord) -> None:
    states = ["queued", "skipped", "missed", "queued"]
    assert [fire(schedules, made, state).generation for state in states] == [1, 2, 3, 4]
    ended = [one.ended_at is not None for one in reversed(schedules.firings(made.id))]
    assert ended == [False, True, True, False]


def test_a_firing_time_is_fired_once(schedules: Schedules, made: ScheduleRecord) -> None:
    at = schedules.now()
    first = schedules.consider(made.id, lambda *_: [NewFiring(at, "queued")])
    assert schedules.consider(made.id, lambda *_: [NewFiring(at, "queued")]) == []
    assert schedules.firing_at(made.id, at) == first[0]
    assert schedules.firing_at(made.id, at + timedelta(seconds=1)) is None


def test_of_schedulers_that_fire_at_once_one_does(database: Database, made: ScheduleRecord) -> None:
    """All have read the schedule before any decides: only the lock makes them see each other's decision."""
    began = threading.Barrier(4)
    added: list[FiringRecord] = []
    decided: list[datetime] = []

    def decide(one: ScheduleRecord, _live: object, now: datetime) -> list[NewFiring]:
        due = made.decided_until + timedelta(hours=1)
        if one.decided_until >= due:
            return []
        decided.append(now)
        return [NewFiring(due, "queued")]

    def work() -> None:
        schedules = Schedules(database, ahead=timedelta(hours=2))
        began.wait()
        added.extend(schedules.consider(made.id, decide))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(added) == 1
    assert len(decided) == 1, "the schema alone kept them from firing twice"


def test_deciding_is_told_what_is_not_over(schedules: Schedules, made: ScheduleRecord) -> None:
    fire(schedules, made, "skipped")
    running = held(schedules, made)
    fire(schedules, made)
    seen: list[tuple[int, str]] = []

    def look(_s: ScheduleRecord, live: Sequence[FiringRecord], now: datetime) -> list[NewFiring]:
        seen.extend((one.generation, one.state) for one in live)
        assert now >= running.started_at
        return []

    before = schedules.get("nightly").decided_until
    schedules.consider(made.id, look, decides_times=False)
    assert schedules.get("nightly").decided_until == before
    schedules.consider(made.id, look)
    assert schedules.get("nightly").decided_until > before
    assert seen == [(2, "running"), (3, "queued")] * 2


def test_of_a_schedule_one_firing_runs_at_a_time(schedules: Schedules, made: ScheduleRecord) -> None:
    fire(schedules, made)
    fire(schedules, made)
    first = schedules.claim(made.id, "me")
    assert first is not None
    assert (first.generation, first.state, first.attempts, first.runner) == (1, "running", 1, "me")
    assert schedules.claim(made.id, "you") is None
    schedules.end(first, "finished")
    second = schedules.claim(made.id, "you")
    assert second is not None
    assert second.generation == 2


def test_of_many_that_claim_at_once_one_does(database: Database, made: ScheduleRecord) -> None:
    schedules = Schedules(database)
    for _ in range(3):
        fire(schedules, made)
    began = threading.Barrier(6)
    claimed: list[FiringRecord | None] = []

    def work() -> None:
        began.wait()
        claimed.append(schedules.claim(made.id, "me"))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.generation for one in claimed if one is not None] == [1]


def test_the_schema_itself_keeps_firings_apart(schedules: Schedules, made: ScheduleRecord) -> None:
    held(schedules, made)
    second = fire(schedules, made)
    run = "UPDATE shoal.firings SET state = 'running', lease_until = now(), beaten_at = now() WHERE id = :id"
    with (
        pytest.raises(IntegrityError, match="firings_one_running_per_schedule"),
        schedules.database.begin() as c,
    ):
        c.execute(text(run), {"id": second.id})


def test_a_paused_schedule_runs_only_what_somebody_asked_for(
    schedules: Schedules, made: ScheduleRecord
) -> None:
    schedules.consider(made.id, lambda _s, _l, now: [NewFiring(now, "queued")])
    schedules.pause("nightly")
    assert schedules.claim(made.id, "me") is None
    schedules.resume("nightly")
    first = schedules.claim(made.id, "me")
    assert first is not None
    schedules.end(first, "finished")
    schedules.pause("nightly")
    fire(schedules, made)
    assert schedules.claim(made.id, "me") is not None


def test_time_is_counted_over_all_processes(schedules: Schedules, made: ScheduleRecord) -> None:
    firing = held(schedules, made)
    schedules.ahead += timedelta(seconds=30)
    beat = schedules.beat(firing)
    assert beat is not None
    assert beat.spent_seconds == pytest.approx(30, abs=2)
    schedules.ahead += timedelta(seconds=10)
    schedules.release(firing, "told to leave")
    schedules.ahead += timedelta(hours=3)
    again = schedules.claim(made.id, "you")
    assert again is not None
    assert (again.attempts, again.started_at) == (2, firing.started_at)
    schedules.ahead += timedelta(seconds=5)
    assert schedules.end(again, "finished")
    assert schedules.firing(firing.id).spent_seconds == pytest.approx(45, abs=3)


def test_a_silent_process_is_replaced_and_has_nothing_to_say(
    schedules: Schedules, made: ScheduleRecord
) -> None:
    first = held(schedules, made)
    schedules.ahead += timedelta(seconds=LEASE_SECONDS - 5)
    assert schedules.claim(made.id, "you") is None
    assert schedules.beat(first) is not None
    schedules.ahead += timedelta(seconds=LEASE_SECONDS + 1)
    second = schedules.claim(made.id, "you")
    assert second is not None
    assert (second.id, second.attempts, second.runner) == (first.id, 2, "you")
    assert schedules.beat(first) is None
    assert not schedules.end(first, "failed", "too late", tell=body)
    schedules.release(first, "too late")
    schedules.name_experiment(first, "wrong")
    found = schedules.firing(first.id)
    assert (found.state, found.experiment) == ("running", None)
    assert Outbox(schedules.database, ahead=schedules.ahead).take() is None


def test_an_ended_firing_stays_as_it_ended(schedules: Schedules, made: ScheduleRecord) -> None:
    firing = held(schedules, made)
    assert schedules.end(firing, "stalled", "why", report="/r")
    assert not schedules.end(firing, "finished")
    found = schedules.firing(firing.id)
    assert (found.state, found.reason, found.report, found.live) == ("stalled", "why", "/r", False)
    assert schedules.beat(firing) is None


def test_a_running_firing_hears_of_its_schedules_end(schedules: Schedules, made: ScheduleRecord) -> None:
    firing = held(schedules, made)
    schedules.remove("nightly")
    beat = schedules.beat(firing)
    assert beat is not None
    assert beat.removed
