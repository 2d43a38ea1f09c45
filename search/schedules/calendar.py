"""Cron expressions as other schedulers write them, where that says exactly the same.

Ours are read by cronsim, in the way of Debian's cron. Kubernetes, Slurm and systemd differ in what they
can say and in what they do when a clock is set forward or back; what can't be said exactly is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from search.experiment.problems import Problem

DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
YEARS_AHEAD = 3
"""For which changes of the clock are looked at: rules beyond are seldom known."""


def plain_cron(cron: str) -> tuple[str, list[Problem]]:
    """The expression for Kubernetes and Slurm: numbers alone, the same instants; or what can't be said.

    Their days of the month and of the week are alternatives if both are restricted, and `*/2` restricts;
    to Debian's cron a field that begins with a star is none that is chosen from.
    """
    simulated, parts = _read(cron)
    problems = _special(simulated)
    if problems:
        return cron, problems
    days, weekdays = _days(simulated)
    if _restricted(days, 31) and _restricted(weekdays, 7) and simulated.day_and:
        what = f"{parts[2]!r} and {parts[4]!r} must both hold, which they can't say"
        return cron, [Problem("cron", what, "choose by one of the two, or use `shoal schedule run`")]
    fields = (
        _numbers(simulated.minutes, range(60)),
        _numbers(simulated.hours, range(24)),
        _numbers(days, range(1, 32)),
        _numbers(simulated.months, range(1, 13)),
        _numbers(weekdays, range(7)),
    )
    return " ".join(fields), []


def on_calendar(cron: str, timezone: str) -> tuple[list[str], list[Problem]]:
    """OnCalendar expressions of systemd that name the same instants together; or what can't be said."""
    simulated, _ = _read(cron)
    problems = _special(simulated, last_day=True)
    problems += [
        Problem("timezone", f"{change}: systemd fires at other times then than cron", _remedy(cron))
        for change in clock_changes(cron, timezone)[:1]
    ]
    if problems:
        return [], problems
    days, weekdays = _days(simulated)
    day = "~01" if CronSim.LAST in simulated.days else f"-{_list(days, range(1, 32))}"
    time = f"{_list(simulated.hours, range(24))}:{_list(simulated.minutes, range(60))}:00 {timezone}"
    months = _list(simulated.months, range(1, 13))
    week = ",".join(DAYS[number] for number in sorted(weekdays)) if _restricted(weekdays, 7) else ""
    every_day = f"*-{months}-*"
    by_date = f"*-{months}{day}"
    chosen = CronSim.LAST in simulated.days or _restricted(days, 31)
    if week and chosen and not simulated.day_and:
        # Either of the two is enough.
        return [f"{by_date} {time}", f"{week} {every_day} {time}"], []
    return [" ".join(part for part in (week, by_date if chosen else every_day, time) if part)], []


def clock_changes(cron: str, timezone: str) -> list[str]:
    """Changes of the clock, in the next years, at which the expression names a time: in words."""
    if timezone == "UTC":
        return []
    zone = ZoneInfo(timezone)
    found = []
    for at, before, after in _transitions(zone):
        low, high = sorted((at + before, at + after))
        start, end = low.replace(tzinfo=None), high.replace(tzinfo=None)
        named = next(CronSim(cron, start - timedelta(seconds=1)), None)
        if named is not None and named < end:
            what = "does not exist" if after > before else "comes twice"
            found.append(f"{named:%H:%M} {what} on {named:%Y-%m-%d} in {timezone}")
    return found


def _transitions(zone: ZoneInfo) -> list[tuple[datetime, timedelta, timedelta]]:
    """Moments at which a zone's clock changes, with the shifts from UTC before and after."""
    hour = timedelta(hours=1)
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    found = []
    before = _shift(at, zone)
    for _ in range(YEARS_AHEAD * 366 * 24):
        at += hour
        after = _shift(at, zone)
        if after != before:
            # Zones change at whole hours of UTC, but for a few that change at a half one.
            exact = at if _shift(at - hour / 2, zone) == before else at - hour / 2
            found.append((exact, before, after))
        before = after
    return found


def _shift(moment: datetime, zone: ZoneInfo) -> timedelta:
    shift = moment.astimezone(zone).utcoffset()
    assert shift is not None
    return shift


def _remedy(cron: str) -> str:
    if cron.split()[1].startswith("*"):
        return "--timezone UTC, which an hourly schedule does not change"
    return "an hour that every day has once, such as 4, or --timezone UTC, or `shoal schedule run`"


def _read(cron: str) -> tuple[CronSim, list[str]]:
    return CronSim(cron, datetime.now(UTC)), cron.split()


def _special(simulated: CronSim, *, last_day: bool = False) -> list[Problem]:
    """Problems with L, LW and #, which few know; the last day of the month (L) can be said to some."""
    days = {day for day in simulated.days if day < 1}
    if last_day and simulated.days == {CronSim.LAST}:
        days = set()
    if days or any(not isinstance(day, int) for day in simulated.weekdays):
        what = "L, LW and # can't be said there"
        return [Problem("cron", what, "days as numbers, or `shoal schedule run`")]
    return []


def _days(simulated: CronSim) -> tuple[set[int], set[int]]:
    """Days of the month, and of the week from Sunday (0; 7 is another name for it)."""
    weekdays = {day % 7 for day in simulated.weekdays if isinstance(day, int)}
    return {day for day in simulated.days if day > 0}, weekdays


def _restricted(chosen: set[int], count: int) -> bool:
    return len(chosen) < count


def _numbers(chosen: set[int], every: range) -> str:
    return "*" if set(every) <= chosen else ",".join(map(str, sorted(chosen)))


def _list(chosen: set[int], every: range) -> str:
    return "*" if set(every) <= chosen else ",".join(f"{number:02}" for number in sorted(chosen))


__all__: Sequence[str] = ["clock_changes", "on_calendar", "plain_cron"]
