"""Notes that wait to be sent: stored with what they tell of, taken by one at a time, never lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from storage.database import Database
from storage.outbox import HOLD_SECONDS, Outbox
from storage.schedule_records import ScheduleRecord
from storage.schedules import Schedules
from tests.contracts.schedules import body, fire, held, settings


@pytest.fixture
def schedules(database: Database) -> Schedules:
    return Schedules(database)


@pytest.fixture
def made(schedules: Schedules) -> ScheduleRecord:
    return schedules.declare("nightly", settings(webhook="https://example.org/x"))[0]


def test_a_note_is_stored_with_the_end_or_not_at_all(schedules: Schedules, made: ScheduleRecord) -> None:
    firing = held(schedules, made)

    def broken(*_: object) -> str:
        raise KeyError

    with pytest.raises(KeyError):
        schedules.end(firing, "finished", tell=broken)
    assert schedules.firing(firing.id).state == "running"
    assert schedules.end(firing, "finished", tell=body)
    notice = Outbox(schedules.database).take()
    assert notice is not None
    assert notice.body == f"{notice.id} 1 finished"
    assert (notice.tries, notice.webhook) == (1, "https://example.org/x")


def test_skipped_firings_may_be_told_of(schedules: Schedules, made: ScheduleRecord) -> None:
    fire(schedules, made, "skipped", body)
    fire(schedules, made, "missed", lambda *_: None)
    fire(schedules, made, "queued", body)
    outbox = Outbox(schedules.database)
    notice = outbox.take()
    assert notice is not None
    assert notice.body.endswith("1 skipped")
    assert outbox.take() is None


def test_who_takes_a_note_has_it_for_a_while(schedules: Schedules, made: ScheduleRecord) -> None:
    schedules.end(held(schedules, made), "finished", tell=body)
    outbox = Outbox(schedules.database)
    first = outbox.take()
    assert outbox.take() is None
    outbox.ahead += timedelta(seconds=HOLD_SECONDS + 1)
    second = outbox.take()
    assert first is not None
    assert second is not None
    assert (second.id, second.body, second.tries) == (first.id, first.body, 2)
    # The first one's failure is not the last word: the second is at it.
    outbox.failed(first, "slow", wait_seconds=0, final=True)
    outbox.sent(second)
    outbox.ahead += timedelta(days=1)
    assert outbox.take() is None
    assert outbox.of_schedule(made.id)[second.firing_id]["sent_at"] is not None


def test_a_note_that_failed_comes_again_until_it_is_given_up(
    schedules: Schedules, made: ScheduleRecord
) -> None:
    schedules.end(held(schedules, made), "finished", tell=body)
    outbox = Outbox(schedules.database)
    notice = outbox.take()
    assert notice is not None
    outbox.failed(notice, "x" * 9000, wait_seconds=60)
    assert outbox.waiting(within_seconds=30) == 0
    assert outbox.waiting(within_seconds=90) == 1
    assert outbox.take() is None
    outbox.ahead += timedelta(seconds=61)
    again = outbox.take()
    assert again is not None
    outbox.failed(again, "gone", wait_seconds=0, final=True)
    outbox.ahead += timedelta(days=9)
    assert outbox.take() is None
    state = outbox.of_schedule(made.id)[again.firing_id]
    assert (state["tries"], state["last_error"]) == (2, "gone")
    assert state["given_up_at"] is not None
