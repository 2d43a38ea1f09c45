"""Writes what fires a schedule on a cluster: manifests, scripts and units that call `shoal schedule fire`.

What they say of times is a copy; whether a firing is due, overlaps or comes too late is decided in the
database when they call (`--if-due`), so that nothing fires twice, whatever calls how often.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from markupsafe import Markup

from search.experiment.problems import Problem, shown
from search.schedules.calendar import clock_changes, on_calendar, plain_cron
from search.schedules.templating import environment
from search.schedules.timing import Timetable
from storage.schedule_records import ScheduleRecord

Target: TypeAlias = Literal["kubernetes", "raycronjob", "slurm", "systemd"]

MARK = "Rendered by `shoal schedule render`"
"""Stands in the first lines of every file; whoever changes one by hand takes it away."""

PROGRAM = "/opt/shoal/bin/shoal"
"""Where units find the command."""

LONGEST_OBJECT = 52
"""Kubernetes adds to a CronJob's name, so that it may be no longer."""
END_IN_ORDER = 900
"""Seconds beyond a budget that a cluster leaves a firing: its start, its last epochs, its report."""

IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._:/@-]{0,254}")
NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class RenderError(Exception):
    """A schedule can't be said there; `problems` tells why, and what to do."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Place:
    """Where a schedule is to run."""

    image: str = "shoal:latest"
    namespace: str = "shoal"
    gpus: int = 1
    """Of a machine that trains."""
    nodes: int = 1
    program: str = PROGRAM

    def problems(self) -> list[Problem]:
        """What is wrong with it."""
        found = []
        if not IMAGE.fullmatch(self.image):
            found.append(Problem("image", f"{shown(self.image)} is no image", "one like registry/shoal:1"))
        if not NAMESPACE.fullmatch(self.namespace):
            found.append(Problem("namespace", f"{shown(self.namespace)} is no namespace", "one like shoal"))
        if not 0 <= self.gpus <= 64:
            found.append(Problem("gpus", f"{self.gpus} GPUs of a machine", "0 to 64"))
        if not 1 <= self.nodes <= 10_000:
            found.append(Problem("nodes", f"{self.nodes} machines", "at least 1"))
        return found


def rendered(schedule: ScheduleRecord, target: Target, place: Place | None = None) -> dict[str, str]:
    """File name → text. Raises `RenderError`."""
    place = place or Place()
    problems = place.problems() + _without_gpus(schedule, target, place)
    if problems:
        raise RenderError(problems)
    return TARGETS[target](schedule, place)


def _without_gpus(schedule: ScheduleRecord, target: Target, place: Place) -> list[Problem]:
    """What a schedule asks for that machines without GPUs don't have, where they are what is asked for."""
    asks_for_machines = target != "systemd" and not schedule.options.get("address")
    if place.gpus or not asks_for_machines or schedule.options.get("precision") != "tf32":
        return []
    return [Problem("gpus", "0 of them, and the schedule's precision tf32 needs one", "--gpus 1 or more")]


def object_name(name: str) -> str:
    """A schedule's name as Kubernetes allows it: one that had to be changed carries a digest of the name."""
    plain = "shoal-" + re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if plain == f"shoal-{name}" and len(plain) <= LONGEST_OBJECT:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: LONGEST_OBJECT - 9].rstrip('-')}-{digest}"


def _kubernetes(schedule: ScheduleRecord, place: Place) -> dict[str, str]:
    values = _values(schedule, place, cron=_plain(schedule))
    submits, trains_itself = bool(schedule.options.get("address")), bool(schedule.options.get("in_process"))
    if submits or trains_itself:
        text = _yaml(
            "cronjob.yaml.j2", values, rayjob=None, pod=_block("pod.yaml.j2", values, submits=submits)
        )
    else:
        text = _yaml("cronjob.yaml.j2", values, rayjob=_rayjob(schedule, values), pod=None)
    return {f"{values['object']}.yaml": text}


def _raycronjob(schedule: ScheduleRecord, place: Place) -> dict[str, str]:
    if schedule.options.get("address"):
        what = "submits to a standing cluster, and a RayCronJob makes one for each firing"
        raise RenderError([Problem("address", what, "--to kubernetes")])
    values = _values(schedule, place, cron=_plain(schedule))
    text = _yaml("raycronjob.yaml.j2", values, rayjob=_rayjob(schedule, values))
    return {f"{values['object']}.yaml": text}


def _rayjob(schedule: ScheduleRecord, values: Mapping[str, Any]) -> Markup:
    """The spec of a RayJob that fires once."""
    entrypoint = f"shoal schedule fire {schedule.name} --if-due --ray-address auto"
    pods = {role: _block("raypod.yaml.j2", values, role=role) for role in ("head", "worker")}
    # One that waits for its turn must not be ended while it waits.
    ends = schedule.budget_seconds is not None and schedule.overlap == "skip"
    return _block(
        "rayjob.yaml.j2",
        values,
        entrypoint=f"{entrypoint} --reports /var/lib/shoal/reports",
        pods=pods,
        deadline=round(schedule.budget_seconds + END_IN_ORDER) if ends and schedule.budget_seconds else None,
    )


def _slurm(schedule: ScheduleRecord, place: Place) -> dict[str, str]:
    values = _values(schedule, place, cron=_plain(schedule))
    budget = schedule.budget_seconds
    script = _text(
        "slurm.sbatch.j2",
        shlex.quote,
        values,
        many=place.nodes > 1,
        time=None if budget is None else _slurm_time(budget + END_IN_ORDER),
    )
    return {
        f"{schedule.name}.sbatch": script,
        f"{schedule.name}.scrontab": _text("scrontab.j2", shlex.quote, values),
    }


def _slurm_time(seconds: float) -> str:
    minutes = -int(-seconds // 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:00"


def _systemd(schedule: ScheduleRecord, place: Place) -> dict[str, str]:
    calendar, problems = on_calendar(schedule.cron, schedule.timezone)
    if problems:
        raise RenderError(problems)
    values = _values(schedule, place, cron=schedule.cron)
    unit = f"shoal-{schedule.name}"
    submits = bool(schedule.options.get("address"))
    return {
        f"{unit}.service": _text("service.j2", _refused, values, submits=submits),
        f"{unit}.timer": _text("timer.j2", _refused, values, calendar=calendar),
    }


def _plain(schedule: ScheduleRecord) -> str:
    cron, problems = plain_cron(schedule.cron)
    if problems:
        raise RenderError(problems)
    return cron


def _values(schedule: ScheduleRecord, place: Place, *, cron: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    gap = Timetable(schedule.cron, schedule.timezone).longest_gap(now).total_seconds()
    changes = clock_changes(schedule.cron, schedule.timezone)
    remarks = [f"{changes[0]}: firings of that night may come late or be left out"] if changes else []
    return {
        "mark": f"{MARK} {schedule.name}; the schedule itself is in the database.",
        "name": schedule.name,
        "object": object_name(schedule.name),
        "cron": cron,
        "timezone": schedule.timezone,
        "overlap": schedule.overlap,
        # Kubernetes counts one that is later than ten seconds as missed if that is all that is allowed.
        "starting_deadline": max(round(gap if schedule.late_seconds is None else schedule.late_seconds), 30),
        "webhook": schedule.webhook is not None,
        # Slack checks no signature.
        "signs": schedule.webhook is not None and schedule.webhook_format == "json",
        "place": place,
        "remarks": remarks,
    }


def _refused(value: object) -> str:
    """For forms without quotes: every value that is put in was checked, and says so by `raw`."""
    raise AssertionError(f"{value!r} is put in unchecked")


def _yaml(template: str, values: Mapping[str, Any], **more: Any) -> str:
    """Every value as JSON, which YAML reads as it is meant."""
    return _text(template, json.dumps, values, **more)


def _block(template: str, values: Mapping[str, Any], **more: Any) -> Markup:
    """A part of a YAML file, to be put in as it is."""
    return Markup(_yaml(template, values, **more).strip("\n"))  # noqa: S704 (YAML of our own, no HTML)


def _text(template: str, escape: Callable[[Any], str], values: Mapping[str, Any], **more: Any) -> str:
    def finalize(value: object) -> object:
        return value if isinstance(value, Markup) else escape(value)

    made = environment(finalize=finalize)
    made.filters["raw"] = lambda value: Markup(str(value))  # noqa: S704 (what `raw` is for: the template's author vouches)
    return made.get_template(template).render({**values, **more})


TARGETS: Mapping[Target, Callable[[ScheduleRecord, Place], dict[str, str]]] = {
    "kubernetes": _kubernetes,
    "raycronjob": _raycronjob,
    "slurm": _slurm,
    "systemd": _systemd,
}
"""Where schedules can be rendered to."""
