"""A log of an experiment in words, from what the database kept: pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.event_log import EventRecord
    from storage.records import LaunchRecord

SAID = {
    "claimed": "begins",
    "drawn": "has its values",
    "released": "was given back, to go on later",
    "requeued": "is queued again: this attempt failed",
    "completed": "is complete",
    "pruned": "is pruned",
    "failed": "has failed",
    "expired": "was taken from its worker, which let its lease run out or is dead",
    "given_up": "has failed: it used up its attempts",
    "refused": "was told something that came too late, and refused it",
    "retried": "is repeated by a new trial",
}
"""What became of a trial, by the kind of event."""

QUIET = frozenset({"drawn"})
"""Kinds that a log leaves out: they say what the next line says."""


def event_line(event: EventRecord) -> str:
    """One event: when, who, which trial, what."""
    who = event.worker or "–"
    trial = f"trial {event.trial_number} of {event.study}" if event.trial_number is not None else "–"
    again = f" (attempt {event.attempt})" if event.attempt is not None and event.attempt > 1 else ""
    reason = (event.detail or {}).get("reason")
    why = f": {' '.join(str(reason).split())}" if reason else ""
    return f"{moment(event.at)}  {who}  {trial}{again} {SAID.get(event.kind, event.kind)}{why}"


def launch_line(launch: LaunchRecord) -> str:
    """How a launch is: where, since when, how it ended."""
    where = f"launch {launch.generation} ({launch.submission}) on {launch.address}"
    if launch.ended_at is not None:
        code = f", exit code {launch.exit_code}" if launch.exit_code is not None else ""
        why = f": {launch.reason}" if launch.reason else ""
        return f"{where}: {launch.state} at {moment(launch.ended_at)}{code}{why}"
    if launch.started_at is not None:
        return f"{where}: its driver runs since {moment(launch.started_at)}"
    return f"{where}: submitted at {moment(launch.submitted_at)}, its driver has not begun"


def launch_events(launches: Iterable[LaunchRecord]) -> list[tuple[datetime, str]]:
    """What happened to launches, with the time of each."""
    found: list[tuple[datetime, str]] = []
    for launch in launches:
        name = f"launch {launch.generation} ({launch.submission})"
        found.append((launch.submitted_at, f"{name} is submitted to {launch.address}"))
        if launch.started_at is not None:
            found.append((launch.started_at, f"{name}: its driver begins"))
        if launch.ended_at is not None:
            why = f": {launch.reason}" if launch.reason else ""
            found.append((launch.ended_at, f"{name}: {launch.state}{why}"))
    return sorted(found)


def moment(at: datetime) -> str:
    """To the second; the storage gives UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
