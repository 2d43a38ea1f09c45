"""When a schedule fires: the instants that a cron expression names in a time zone.

A clock that is set forward or back is treated as Debian's cron treats it (cronsim's rules). A time
that names an hour (``30 2 * * *``) comes exactly once: where a day has no such time, at the first
moment after the gap; where it has two, at the first. A wildcard (``*/30 * * * *``) goes by elapsed time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from search.experiment.problems import Problem, nearest, shown

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
EXAMPLE = '"0 2 * * *" (at two every night)'
MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
UNREADABLE = (CronSimError, ZoneInfoNotFoundError, ValueError)
"""What is raised for an expression or a zone that another version, or another machine, knows and we don't."""
LONGEST = 256
"""Characters of an expression."""
MOST_MISSED = 10_000
"""Firing times that are counted at most when somebody comes back after a long time."""

WIDEST_SHIFT = timedelta(hours=26)
"""More than any clock was ever set forward or back: the Pacific has skipped whole days."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """A cron expression in a time zone; both valid, see `timing_problems`.

    Else all of its methods raise one of `UNREADABLE`.
    """

    cron: str
    timezone: str

    def after(self, moment: datetime) -> datetime:
        """The first firing time later than a moment; UTC."""
        found = next(at for at in self._forwards(moment) if at > moment)
        # Where a clock is set back by half an hour (Lord Howe Island), cronsim's way forwards may miss a
        # time that its way backwards finds.
        for at in self._backwards(found):
            if at <= moment:
                break
            found = min(found, at)
        return found

    def latest(self, until: datetime) -> datetime | None:
        """The last firing time up to a moment, itself included; None if there was none in 50 years."""
        return next((at for at in self._backwards(until) if at <= until), None)

    def due(self, after: datetime, until: datetime) -> tuple[datetime | None, int]:
        """The last firing time later than `after` and up to `until`, and how many there are.

        Counts up to `MOST_MISSED`.
        """
        latest, count = None, 0
        for at in self._backwards(until):
            if at > until:
                continue
            if at <= after or count == MOST_MISSED:
                break
            latest, count = latest or at, count + 1
        return latest, count

    def upcoming(self, moment: datetime, count: int) -> list[datetime]:
        """The next firing times after a moment."""
        found: list[datetime] = []
        while len(found) < count:
            moment = self.after(moment)
            found.append(moment)
        return found

    def longest_gap(self, moment: datetime, count: int = 100) -> timedelta:
        """The longest time between two of the next firing times."""
        times = self.upcoming(moment, count)
        return max(later - earlier for earlier, later in pairwise(times))

    # Where a time names an hour, cronsim compares local times, so near a change of the clock it may begin on
    # the wrong side of one: begin well before and leave out what is not asked for.

    def _margin(self) -> timedelta:
        minute, hour = self.cron.split()[:2]
        named = not minute.startswith("*") and not hour.startswith("*")
        return WIDEST_SHIFT if named else timedelta(minutes=2)

    def _forwards(self, moment: datetime) -> Iterator[datetime]:
        for at in CronSim(self.cron, self._local(moment - self._margin())):
            yield at.astimezone(UTC)

    def _backwards(self, moment: datetime) -> Iterator[datetime]:
        for at in CronSim(self.cron, self._local(moment + self._margin()), reverse=True):
            yield at.astimezone(UTC)

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(UTC if self.timezone == "UTC" else ZoneInfo(self.timezone))


def timing_problems(cron: str, timezone: str) -> list[Problem]:
    """What is wrong with a cron expression and a time zone; empty if a `Timetable` can be made of them."""
    found = _zone_problems(timezone)
    problem = _cron_problem(cron)
    if problem is not None:
        return [problem, *found]
    if not found and next(iter(Timetable(cron, timezone)._forwards(datetime.now(UTC))), None) is None:
        found.append(Problem("cron", f"{shown(cron)} never comes", "name a day that exists"))
    return found


def _zone_problems(timezone: str) -> list[Problem]:
    if timezone in zones():
        return []
    remedy = nearest(timezone, zones()) if timezone else ""
    remedy = remedy if remedy.startswith("did") else "one like Europe/Berlin, or UTC"
    return [Problem("timezone", f"there is no time zone {shown(timezone)}", remedy)]


@lru_cache(maxsize=1)
def zones() -> frozenset[str]:
    """The names of all time zones."""
    return frozenset(available_timezones())


def _cron_problem(cron: str) -> Problem | None:
    parts = cron.split()
    if len(cron) > LONGEST:
        return Problem("cron", f"the expression has {len(cron)} characters", f"at most {LONGEST}")
    if cron.strip().lower() in MACROS:
        return Problem(
            "cron", f"{shown(cron)} is no expression of five fields", f'"{MACROS[cron.strip().lower()]}"'
        )
    if len(parts) != len(FIELDS):
        what = f"{shown(cron)} has {len(parts)} fields, not five"
        return Problem("cron", what, f"{', '.join(FIELDS)}: {EXAMPLE}")
    if not re.fullmatch(r"[A-Za-z0-9*/,#\- ]+", " ".join(parts)):
        return Problem("cron", f"{shown(cron)} holds characters that mean nothing there", f"like {EXAMPLE}")
    try:
        CronSim(cron, datetime.now(UTC))
    except CronSimError as error:
        field = str(error).removeprefix("Bad ")
        return Problem(
            "cron", f"{shown(cron)}: the {field.replace('-', ' ')} can't be that", f"like {EXAMPLE}"
        )
    return None
