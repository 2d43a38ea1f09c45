"""When schedules fire, with clocks that are set forward and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.schedules.timing import MACROS, MOST_MISSED, Timetable, timing_problems

BERLIN = ZoneInfo("Europe/Berlin")
FORWARD = datetime(2027, 3, 28, 1, tzinfo=UTC)
"""In Berlin 02:00 becomes 03:00."""
BACK = datetime(2026, 10, 25, 1, tzinfo=UTC)
"""In Berlin 03:00 becomes 02:00."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_the_next_time_is_later_than_the_moment() -> None:
    table = Timetable("0 2 * * *", "UTC")
    assert table.after(utc("2026-01-01 01:59:59")) == utc("2026-01-01 02:00")
    assert table.after(utc("2026-01-01 02:00")) == utc("2026-01-02 02:00")


def test_the_latest_time_may_be_the_moment_itself() -> None:
    table = Timetable("0 2 * * *", "UTC")
    assert table.latest(utc("2026-01-01 02:00")) == utc("2026-01-01 02:00")
    assert table.latest(utc("2026-01-01 01:59:59")) == utc("2025-12-31 02:00")


def test_hours_are_those_of_the_time_zone() -> None:
    table = Timetable("0 2 * * *", "Europe/Berlin")
    assert table.after(utc("2026-01-01 00:00")) == utc("2026-01-01 01:00")
    assert table.after(utc("2026-07-01 00:30")) == utc("2026-07-02 00:00")


def test_a_time_that_a_day_does_not_have_comes_after_the_gap() -> None:
    table = Timetable("30 2 * * *", "Europe/Berlin")
    found = table.upcoming(FORWARD - timedelta(days=1), 3)
    assert found == [utc("2027-03-27 01:30"), FORWARD, utc("2027-03-29 00:30")]


def test_times_of_one_gap_are_one_firing() -> None:
    table = Timetable("0,30 2 * * *", "Europe/Berlin")
    assert table.upcoming(FORWARD - timedelta(minutes=1), 2) == [FORWARD, utc("2027-03-29 00:00")]
    assert table.due(FORWARD - timedelta(minutes=1), FORWARD + timedelta(hours=2)) == (FORWARD, 1)


def test_a_time_that_a_day_has_twice_comes_at_the_first() -> None:
    table = Timetable("30 2 * * *", "Europe/Berlin")
    first = BACK - timedelta(minutes=30)
    assert table.upcoming(BACK - timedelta(hours=3), 2) == [first, utc("2026-10-26 01:30")]


@pytest.mark.parametrize("minutes", [0, 15, 29, 31, 45, 75])
def test_the_repeated_hour_hides_no_firing(minutes: int) -> None:
    """By the wall's clock 02:30 lies ahead again; it has come already, and comes no more that day."""
    table = Timetable("30 2 * * *", "Europe/Berlin")
    moment = BACK + timedelta(minutes=minutes)
    assert table.latest(moment) == BACK - timedelta(minutes=30)
    assert table.after(moment) == utc("2026-10-26 01:30")


def test_a_wildcard_goes_by_elapsed_time() -> None:
    table = Timetable("*/30 * * * *", "Europe/Berlin")
    start = BACK - timedelta(hours=2, minutes=1)
    found = table.upcoming(start, 8)
    assert [later - earlier for earlier, later in pairwise(found)] == [timedelta(minutes=30)] * 7


def test_a_clock_that_is_set_back_by_half_an_hour_hides_no_firing() -> None:
    """On Lord Howe Island 02:00 became 01:30 at 15:00 UTC; the even hour 02:05 came half an hour later."""
    table = Timetable("5 */2 * * *", "Australia/Lord_Howe")
    expected = [utc("2017-04-01 13:05"), utc("2017-04-01 15:35"), utc("2017-04-01 17:35")]
    assert table.upcoming(utc("2017-04-01 12:00"), 3) == expected
    assert table.after(utc("2017-04-01 14:58:59")) == expected[1]


def test_what_was_due_is_counted_and_the_last_is_known() -> None:
    table = Timetable("0 * * * *", "UTC")
    assert table.due(utc("2026-01-01 00:00"), utc("2026-01-01 03:30")) == (utc("2026-01-01 03:00"), 3)
    assert table.due(utc("2026-01-01 03:00"), utc("2026-01-01 03:30")) == (None, 0)


def test_counting_ends_somewhere() -> None:
    table = Timetable("* * * * *", "UTC")
    latest, count = table.due(utc("2020-01-01 00:00"), utc("2026-01-01 00:00"))
    assert (latest, count) == (utc("2026-01-01 00:00"), MOST_MISSED)


def test_the_longest_gap_is_over_a_weekend() -> None:
    table = Timetable("0 2 * * 1-5", "UTC")
    assert table.longest_gap(utc("2026-01-01 00:00")) == timedelta(days=3)


EXPRESSIONS = (
    "30 2 * * *",
    "0,30 1-3 * * *",
    "*/15 * * * *",
    "5 */2 * * *",
    "0 0 1 * *",
    "10 3 * * SUN",
    "0 2 L * *",
)
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu")


@settings(max_examples=150, derandomize=True)
@given(
    cron=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from(ZONES),
    moment=st.datetimes(datetime(2011, 1, 1), datetime(2035, 1, 1)),  # noqa: DTZ001 (a zone is added)
)
def test_forwards_and_backwards_name_the_same_times(cron: str, zone: str, moment: datetime) -> None:
    table = Timetable(cron, zone)
    now = moment.replace(tzinfo=UTC)
    following = table.after(now)
    assert following > now
    assert table.latest(following) == following
    assert table.due(now, following) == (following, 1)
    before = table.latest(now)
    assert before is not None
    assert before <= now
    assert table.after(before) == following


@pytest.mark.parametrize("shift", [FORWARD, BACK])
def test_no_firing_is_lost_or_doubled_around_a_change(shift: datetime) -> None:
    """Whoever looks every ten minutes sees each time exactly once."""
    for cron in EXPRESSIONS:
        table = Timetable(cron, "Europe/Berlin")
        start, end = shift - timedelta(hours=6), shift + timedelta(hours=6)
        seen, since = [], start
        while since < end:
            until = since + timedelta(minutes=10)
            latest, count = table.due(since, until)
            seen += [latest] * count
            since = until
        expected = [at for at in table.upcoming(start, 500) if at <= end]
        assert seen == expected


@pytest.mark.parametrize(
    "cron", [*MACROS.values(), "0 2 * * MON-FRI", "15 4 L * *", "0 0 * * 7", "0 9 * * MON#1"]
)
def test_good_expressions_pass(cron: str) -> None:
    assert timing_problems(cron, "Europe/Berlin") == []


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("0 0 2 * * *", "6 fields"),
        ("61 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 32 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day of week"),
        ("*/0 * * * *", "minute"),
        ("0 0 31 2 *", "day of month"),
        ("@daily", "five fields"),
        ("0 2 * * *\n* * * * *", "10 fields"),
        ("0 2 * * $(x)", "characters"),
        ("0 0 * * " + "9" * 200, "week"),
        ("0 0 * * " + "9" * 5000, "5008 characters"),
    ],
)
def test_bad_expressions_are_named(cron: str, said: str) -> None:
    problems = timing_problems(cron, "UTC")
    assert [problem.place for problem in problems] == ["cron"]
    assert said in problems[0].message
    assert len(problems[0].message) < 200
    assert problems[0].remedy


@pytest.mark.parametrize(
    ("zone", "remedy"),
    [("Europe/Berln", "Europe/Berlin"), ("", "UTC"), ("../etc/passwd", "UTC"), ("\x00", "UTC")],
)
def test_bad_time_zones_are_named(zone: str, remedy: str) -> None:
    problems = timing_problems("* * * * *", zone)
    assert [problem.place for problem in problems] == ["timezone"]
    assert remedy in problems[0].remedy


def test_both_problems_are_listed() -> None:
    assert [problem.place for problem in timing_problems("x", "y")] == ["cron", "timezone"]
