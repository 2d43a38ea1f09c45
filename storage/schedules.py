"""Schedules and their firings: who may fire, who runs what, how it ended. By the database's clock alone.

A firing is held by a lease, as trials are: the process that runs it says now and then that it lives,
and one that stopped saying so may be replaced. `attempts` is the fence: what a process writes that
has been replaced is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from storage import outbox
from storage.database import Database
from storage.errors import ScheduleExists, ScheduleNotFound, StorageError
from storage.schedule_records import (
    Beat,
    FiringRecord,
    FiringState,
    NewFiring,
    ScheduleRecord,
    ScheduleSettings,
)
from storage.schedule_statements import (
    ADD,
    BEAT,
    CHANGE,
    CLAIM,
    CLOCK,
    COLUMNS,
    CREATE,
    DECIDED,
    END,
    END_QUEUED,
    FIRING,
    LIVE_FIRINGS,
    NAME_EXPERIMENT,
    PAUSE,
    RELEASE,
    REMOVE,
    RESUME,
)
from storage.values import json_text, storable

LEASE_SECONDS = 60.0
"""For which a process holds a firing without saying that it lives."""

AT_REST = timedelta(0)

Decide: TypeAlias = Callable[[ScheduleRecord, Sequence[FiringRecord], datetime], Sequence[NewFiring]]
"""What to do now, from the schedule, its firings that are not over, and the time."""
Tell: TypeAlias = Callable[[ScheduleRecord, FiringRecord, str], str | None]
"""The body of the note with that id about a firing that is over; None: nobody is to be told."""
Declared: TypeAlias = Literal["made", "changed", "unchanged"]


class Schedules:
    """Reads and writes schedules and firings. May be shared by threads."""

    def __init__(self, database: Database, *, ahead: timedelta = AT_REST) -> None:
        """`ahead` moves the clock, for tests."""
        self.database = database
        self.ahead = ahead

    def now(self) -> datetime:
        """The time."""
        with self.database.begin() as connection:
            return self._now(connection)

    # What was declared

    def declare(
        self, name: str, settings: ScheduleSettings, *, replace: bool = False
    ) -> tuple[ScheduleRecord, Declared]:
        """Make a schedule, change the one of that name (`replace`), or take up one that was removed.

        Generations go on counting. Raises `ScheduleExists` where another one has the name, and
        `ValueRefused`.
        """
        values = {
            **asdict(settings),
            "name": storable(name),
            "spec": json_text(dict(settings.spec)),
            "options": json_text(dict(settings.options)),
        }
        with self.database.begin() as connection:
            row = self._execute(connection, CREATE, **values).mappings().one_or_none()
            if row is not None:
                return ScheduleRecord(**row), "made"
            lock = f"SELECT {COLUMNS} FROM shoal.schedules WHERE name = :name FOR UPDATE"  # noqa: S608 (here and below: only our own constants are put in)
            there = ScheduleRecord(**self._execute(connection, lock, name=values["name"]).mappings().one())
            if there.removed_at is None and there.settings == settings:
                return there, "unchanged"
            if there.removed_at is None and not replace:
                raise ScheduleExists(f"the schedule {name!r} exists, with other settings")
            row = self._execute(connection, CHANGE, **values, id=there.id).mappings().one()
            return ScheduleRecord(**row), "made" if there.removed_at else "changed"

    def get(self, name: str, *, removed: bool = False) -> ScheduleRecord:
        """The schedule of that name, if `removed` also one that was. Raises `ScheduleNotFound`."""
        statement = f"SELECT {COLUMNS} FROM shoal.schedules WHERE name = :name"  # noqa: S608
        with self.database.begin() as connection:
            row = self._execute(connection, statement, name=storable(name)).mappings().one_or_none()
            if row is not None and (removed or row["removed_at"] is None):
                return ScheduleRecord(**row)
            raise self._missing(connection, name)

    def list(self) -> list[ScheduleRecord]:
        """All schedules that were not removed, by name."""
        statement = f"SELECT {COLUMNS} FROM shoal.schedules WHERE removed_at IS NULL ORDER BY name"  # noqa: S608
        with self.database.begin() as connection:
            return [ScheduleRecord(**row) for row in self._execute(connection, statement).mappings()]

    def pause(self, name: str) -> ScheduleRecord:
        """Fire it no more until it is resumed; what runs goes on. Raises `ScheduleNotFound`."""
        with self.database.begin() as connection:
            return self._update(connection, name, PAUSE)

    def resume(self, name: str) -> ScheduleRecord:
        """Fire it again, from now on. Raises `ScheduleNotFound`."""
        with self.database.begin() as connection:
            return self._update(connection, name, RESUME)

    def remove(self, name: str) -> ScheduleRecord:
        """Fire it never again; a firing that runs is stopped by its process. Raises `ScheduleNotFound`.

        Experiments, firings and notes that wait stay.
        """
        with self.database.begin() as connection:
            removed = self._update(connection, name, REMOVE)
            self._execute(connection, END_QUEUED, id=removed.id)
            return removed

    # Firings

    def consider(
        self, schedule_id: int, decide: Decide, tell: Tell | None = None, *, decides_times: bool = True
    ) -> Sequence[FiringRecord]:
        """Decide what is to be fired now, and store that: one process at a time, so nothing fires twice.

        Returns what was added. `decides_times`: no firing time up to now is to be decided about again.
        """
        with self.database.begin() as connection:
            lock = f"SELECT {COLUMNS} FROM shoal.schedules WHERE id = :id FOR UPDATE"  # noqa: S608
            schedule = ScheduleRecord(**self._execute(connection, lock, id=schedule_id).mappings().one())
            # Only now: we may have waited for the lock.
            now = self._now(connection)
            live = [
                FiringRecord(**row)
                for row in self._execute(connection, LIVE_FIRINGS, id=schedule_id).mappings()
            ]
            added = [
                FiringRecord(**row)
                for one in decide(schedule, live, now)
                for row in self._execute(
                    connection,
                    ADD,
                    id=schedule_id,
                    scheduled_for=one.scheduled_for,
                    manual=one.manual,
                    state=one.state,
                    reason=storable(one.reason) or None,
                    missed=one.missed,
                    budget_seconds=schedule.budget_seconds,
                    now=now,
                ).mappings()
            ]
            if decides_times:
                self._execute(connection, DECIDED, id=schedule_id, now=now)
            if tell is not None:
                for firing in added:
                    if not firing.live:
                        outbox.store(connection, firing.id, now, partial(tell, schedule, firing))
            return added

    def firings(self, schedule_id: int, *, limit: int | None = None) -> Sequence[FiringRecord]:
        """The newest firings of a schedule, newest first."""
        statement = f"""
        SELECT {FIRING} FROM shoal.firings WHERE schedule_id = :id ORDER BY generation DESC LIMIT :limit
        """  # noqa: S608
        with self.database.begin() as connection:
            rows = self._execute(connection, statement, id=schedule_id, limit=limit).mappings()
            return [FiringRecord(**row) for row in rows]

    def firing(self, firing_id: int) -> FiringRecord:
        """A firing as it is now. Raises `ScheduleNotFound`."""
        return self._firing("id = :id", id=firing_id)

    def firing_at(self, schedule_id: int, scheduled_for: datetime) -> FiringRecord | None:
        """What became of a firing time; None if nothing did."""
        try:
            return self._firing(
                "schedule_id = :schedule AND scheduled_for = :at", schedule=schedule_id, at=scheduled_for
            )
        except ScheduleNotFound:
            return None

    def claim(
        self, schedule_id: int, runner: str, *, lease_seconds: float = LEASE_SECONDS
    ) -> FiringRecord | None:
        """Hold the oldest firing that is not over, if nobody does; None otherwise.

        Of a paused schedule only one that somebody asked for.
        """
        lease = timedelta(seconds=lease_seconds)
        try:
            with self.database.begin() as connection:
                row = self._execute(connection, CLAIM, id=schedule_id, runner=storable(runner), lease=lease)
                found = row.mappings().one_or_none()
                return None if found is None else FiringRecord(**found)
        except IntegrityError:  # somebody was quicker by less than a snapshot
            return None

    def name_experiment(self, firing: FiringRecord, experiment: str) -> None:
        """Note what a held firing runs."""
        with self.database.begin() as connection:
            self._execute(
                connection, NAME_EXPERIMENT, id=firing.id, attempt=firing.attempts, experiment=experiment
            )

    def beat(self, firing: FiringRecord, *, lease_seconds: float = LEASE_SECONDS) -> Beat | None:
        """Keep holding it. None: somebody else took it over, or ended it."""
        lease = timedelta(seconds=lease_seconds)
        with self.database.begin() as connection:
            found = self._execute(connection, BEAT, id=firing.id, attempt=firing.attempts, lease=lease)
            row = found.mappings().one_or_none()
            return None if row is None else Beat(**row)

    def end(
        self,
        firing: FiringRecord,
        state: FiringState,
        reason: str = "",
        *,
        report: str | None = None,
        tell: Tell | None = None,
    ) -> bool:
        """End a held firing, together with the note about it. False if it is not ours any more."""

        def work(unsure: bool) -> bool:
            with self.database.begin() as connection:
                row = (
                    self._execute(
                        connection,
                        END,
                        id=firing.id,
                        attempt=firing.attempts,
                        state=state,
                        reason=storable(reason) or None,
                        report=storable(report),
                    )
                    .mappings()
                    .one_or_none()
                )
                if row is not None:
                    ended = FiringRecord(**row)
                    if tell is not None:
                        schedule = self._schedule(connection, ended.schedule_id)
                        now = self._now(connection)
                        outbox.store(connection, ended.id, now, partial(tell, schedule, ended))
                    return True
            # The answer to the try before may have been lost after all was stored.
            there = self.firing(firing.id)
            return unsure and there.state == state and there.attempts == firing.attempts

        return self.database.retrying(work)

    def release(self, firing: FiringRecord, reason: str) -> None:
        """Give a held firing back, for whoever comes next."""

        def work(_unsure: bool) -> None:
            with self.database.begin() as connection:
                self._execute(
                    connection, RELEASE, id=firing.id, attempt=firing.attempts, reason=storable(reason)
                )

        self.database.retrying(work)

    # Helpers

    def _now(self, connection: Connection) -> datetime:
        found: datetime = self._execute(connection, f"SELECT {CLOCK}").scalar_one()
        return found

    def _execute(self, connection: Connection, statement: str, **values: Any) -> Any:
        clock = {"ahead": self.ahead} if ":ahead" in statement else {}
        return connection.execute(text(statement), values | clock)

    def _schedule(self, connection: Connection, schedule_id: int) -> ScheduleRecord:
        statement = f"SELECT {COLUMNS} FROM shoal.schedules WHERE id = :id"  # noqa: S608
        return ScheduleRecord(**self._execute(connection, statement, id=schedule_id).mappings().one())

    def _firing(self, condition: str, **values: Any) -> FiringRecord:
        statement = f"SELECT {FIRING} FROM shoal.firings WHERE {condition}"  # noqa: S608
        with self.database.begin() as connection:
            row = self._execute(connection, statement, **values).mappings().one_or_none()
        if row is None:
            raise ScheduleNotFound("there is no such firing")
        return FiringRecord(**row)

    def _update(self, connection: Connection, name: str, statement: str) -> ScheduleRecord:
        row = self._execute(connection, statement, name=storable(name)).mappings().one_or_none()
        if row is None:
            raise self._missing(connection, name)
        return ScheduleRecord(**row)

    def _missing(self, connection: Connection, name: str) -> StorageError:
        statement = "SELECT name FROM shoal.schedules WHERE removed_at IS NULL ORDER BY id DESC LIMIT 1000"
        names = connection.scalars(text(statement)).all()
        near = tuple(difflib.get_close_matches(name, names, n=3))
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return ScheduleNotFound(f"there is no schedule {name!r}{hint}")
