"""Cron expressions in the words of others."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import UTC, datetime

import pytest

from search.schedules.calendar import clock_changes, on_calendar, plain_cron
from search.schedules.timing import Timetable


@pytest.mark.parametrize(
    ("cron", "plain"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("*/15 * * * *", "0,15,30,45 * * * *"),
        ("0 9 * * MON-FRI", "0 9 * * 1,2,3,4,5"),
        ("0 9 * * 7", "0 9 * * 0"),
        ("0 9 * * 0-7", "0 9 * * *"),
        ("0 0 1,15 JAN-MAR *", "0 0 1,15 1,2,3 *"),
        ("5/20 0-3 * * *", "5,25,45 0,1,2,3 * * *"),
        ("0 0 13 * 5", "0 0 13 * 5"),
        ("0 0 */10 * *", "0 0 1,11,21,31 * *"),
    ],
)
def test_kubernetes_and_slurm_get_numbers(cron: str, plain: str) -> None:
    assert plain_cron(cron) == (plain, [])


@pytest.mark.parametrize(
    ("cron", "said"),
    [("0 0 L * *", "L, LW and #"), ("0 0 * * MON#1", "L, LW and #"), ("0 0 */2 * 1", "must both hold")],
)
def test_what_they_can_not_say_is_refused(cron: str, said: str) -> None:
    [problem] = plain_cron(cron)[1]
    assert said in problem.message
    assert "shoal schedule run" in problem.remedy


@pytest.mark.parametrize(
    "cron", ["0 2 * * *", "*/15 1-4 * * 1-5", "5/20 0-3 1,15 * *", "0 0 13 * 5", "0 6 * 2,7 *"]
)
def test_numbers_name_the_same_times(cron: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    plain, _ = plain_cron(cron)
    assert Timetable(plain, "UTC").upcoming(now, 200) == Timetable(cron, "UTC").upcoming(now, 200)


@pytest.mark.parametrize(
    ("cron", "zone", "change"),
    [
        ("30 2 * * *", "Europe/Berlin", True),
        ("0 4 * * *", "Europe/Berlin", False),
        ("0 3 * * *", "Europe/Berlin", False),
        ("0 * * * *", "Europe/Berlin", True),
        ("0 * * * *", "Asia/Tokyo", False),
        ("0 * * * *", "UTC", False),
        ("30 1 * * *", "America/New_York", True),
        ("30 2 15 6 *", "Europe/Berlin", False),
        ("45 1 * * SUN", "Australia/Lord_Howe", True),
    ],
)
def test_times_that_a_day_has_not_or_twice_are_found(cron: str, zone: str, change: bool) -> None:
    assert bool(clock_changes(cron, zone)) is change


def test_systemd_is_refused_what_it_does_differently() -> None:
    calendar, [problem] = on_calendar("30 2 * * *", "Europe/Berlin")
    assert calendar == []
    assert "Europe/Berlin" in problem.message
    assert "such as 4" in problem.remedy
    assert "--timezone UTC" in on_calendar("0 * * * *", "Europe/Berlin")[1][0].remedy
    assert on_calendar("0 0 LW * *", "UTC")[1]


SYSTEMD = [
    ("0 4 * * *", "Europe/Berlin"),
    ("*/15 * * * *", "UTC"),
    ("30 5 * * MON-FRI", "America/New_York"),
    ("0 0 13 * 5", "UTC"),
    ("0 0 */2 * 1", "UTC"),
    ("0 12 1,15 3-5 *", "Asia/Kathmandu"),
    ("0 6 L * *", "UTC"),
    ("0 6 L * 0", "UTC"),
    ("0 6 L * *", "Europe/Berlin"),
    ("7 9,17 * * 0", "Australia/Sydney"),
]


def elapses(expression: str, start: datetime, count: int) -> list[datetime]:
    """When systemd itself says that an expression comes."""
    command = ["systemd-analyze", "calendar", f"--iterations={count}", expression]
    command.insert(2, f"--base-time={start:%Y-%m-%d %H:%M:%S} UTC")
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"}
    )
    times = re.findall(r"(?:elapse|#\d+): \w+ (\S+ \S+) UTC", done.stdout)
    return [datetime.fromisoformat(time).replace(tzinfo=UTC) for time in times]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize(("cron", "zone"), SYSTEMD)
@pytest.mark.parametrize("start", [datetime(2026, 2, 20, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC)])
def test_systemd_names_the_same_times(cron: str, zone: str, start: datetime) -> None:
    expressions, problems = on_calendar(cron, zone)
    assert problems == []
    count = 60
    theirs = sorted({time for expression in expressions for time in elapses(expression, start, count)})
    assert theirs[:count] == Timetable(cron, zone).upcoming(start, count)
