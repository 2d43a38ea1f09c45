"""`shoal schedule`: declare, list, pause and remove schedules; what fires them is in `firing`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import App, Parameter
from cyclopts.types import NonNegativeFloat, PositiveFloat, PositiveInt
from rich.text import Text

from search import output
from search.commands.options import (
    AsJson,
    DatabaseUrl,
    DeviceOption,
    PrecisionOption,
    SpecFile,
    Trainer,
    flag,
    opened,
)
from search.commands.schedule_display import (
    best_json,
    facts_of,
    firing_json,
    last_firing,
    local_time,
    next_time,
    row_of,
    schedule_json,
    timetable,
)
from search.commands.signals import ending_at_once
from search.experiment.problems import Problem, shown
from search.failures import bad_input

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from storage.database import Database
    from storage.schedule_records import ScheduleRecord, ScheduleSettings

schedule = App(name="schedule", help="Run an experiment again and again, at the times of a cron expression.")

Name: TypeAlias = Annotated[str, Parameter(help="Name of the schedule, as `shoal schedule list` shows it.")]

NEXT_SHOWN = 3
"""Firing times that are shown once a schedule is made."""
FIRINGS_SHOWN = 20


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """When a schedule fires, and what then."""

    cron: str
    """Minute, hour, day of month, month and day of week, such as "0 2 * * *"."""
    timezone: str = "UTC"
    """The time zone of these, such as Europe/Berlin."""
    each: Literal["new", "continue"] = "new"
    """A firing makes a new generation of the experiment, NAME.gN, with a seed of its own; or runs it on."""
    overlap: Literal["skip", "queue"] = "skip"
    """A firing while the one before is not over is left out, or waits for its turn."""
    late_minutes: NonNegativeFloat | None = None
    """A firing later than that is not made up for. Default: until the next is due."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What ends a firing early."""

    budget_hours: PositiveFloat | None = None
    """A firing that has run for so long is asked to stop: everything so far is stored."""
    stalled_minutes: PositiveFloat | None = None
    """A firing in which no epoch and no trial ended for so long is ended."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Who is told about the end of a firing."""

    webhook: str | None = None
    """Send notes to the https address in the file file:/PATH, signed with $SHOAL_WEBHOOK_SECRET(_FILE)."""
    webhook_format: Literal["json", "slack"] = "json"
    """Form of the notes."""
    webhook_skipped: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Tell of firings that were skipped or missed as well."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a firing runs the experiment."""

    workers: PositiveInt | None = None
    """Workers at once; default: one per GPU, else one per CPU core."""
    address: str | None = None
    """Submit to the Ray cluster with this job server, such as http://head:8265."""
    in_process: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Train in the firing's process, without Ray."""
    device: DeviceOption = "auto"
    trainer: Trainer = "fused"
    """How workers train; `fused`: many trials at once, where that is faster; `plain`: one at a time."""
    precision: PrecisionOption = "auto"

    def options(self) -> dict[str, Any]:
        """As they are stored; without `auto`, so that a schedule of before there was a choice is the same."""
        chosen = {} if self.precision == "auto" else {"precision": self.precision}
        return chosen | {
            "workers": self.workers,
            "address": self.address,
            "in_process": self.in_process,
            "device": self.device,
            "trainer": self.trainer,
        }


@schedule.default
def declare(
    file: SpecFile,
    /,
    *,
    when: When,
    bounds: Bounds | None = None,
    notes: Notes | None = None,
    how: How | None = None,
    name: Annotated[str | None, Parameter(help="Default: the experiment's name.")] = None,
    replace: Annotated[bool, flag("Change the schedule of that name; its generations count on.")] = False,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment file at the times of a cron expression, from now on.

    The file is read now and stored. Something has to fire it: `shoal schedule run` here, or what `shoal
    schedule render` writes for a cluster.
    """
    from search.trials.precisions import check_precision
    from storage.schedules import Schedules

    bounds, notes, how = bounds or Bounds(), notes or Notes(), how or How()
    spec, problems = _read(file)
    problems += _problems(when, bounds, notes, how)
    chosen = name if name is not None else None if spec is None else spec.experiment
    if chosen is not None:
        problems += _name_problems(chosen, when.each)
    if problems or spec is None or chosen is None:
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        raise bad_input(f"the schedule has {count}", problems=problems)
    with opened(database) as connection:
        if when.each == "continue":
            check_precision(connection, spec.experiment, how.precision)
        schedules = Schedules(connection)
        made, what = schedules.declare(chosen, _settings(spec, when, bounds, notes, how), replace=replace)
        now = schedules.now()
    if as_json:
        output.document("schedule/1", {"declared": what, **schedule_json(made, now)})
        return
    times = ", ".join(local_time(at, made.timezone) for at in timetable(made).upcoming(now, NEXT_SHOWN))
    output.message(f"{what}: {made.name} fires {times}, … ({made.timezone})")
    output.message("next: shoal schedule run, or shoal schedule render for a cluster")


def _read(file: SpecFile) -> tuple[ExperimentSpec | None, list[Problem]]:
    """The file, or what is wrong with it."""
    with ending_at_once():
        from search.experiment.spec import SpecError, load_spec

        try:
            return load_spec(file), []
        except SpecError as error:
            return None, list(error.problems)


def _problems(when: When, bounds: Bounds, notes: Notes, how: How) -> list[Problem]:
    from search.launch.jobs import AddressError, canonical_address
    from search.schedules.timing import timing_problems
    from search.schedules.webhook import declared_problems

    found = timing_problems(when.cron, when.timezone)
    for place, value in (
        ("late-minutes", when.late_minutes),
        ("budget-hours", bounds.budget_hours),
        ("stalled-minutes", bounds.stalled_minutes),
    ):
        if value is not None and not math.isfinite(value):
            found.append(Problem(place, f"{value} is no number of them", "leave it out for no limit"))
    if notes.webhook is not None:
        found += declared_problems(notes.webhook)
    elif notes.webhook_skipped:
        found.append(Problem("webhook-skipped", "nobody is to be told anything", "add --webhook"))
    if how.address is not None:
        try:
            canonical_address(how.address)
        except AddressError as error:
            found.append(Problem("address", str(error), "one like http://head:8265"))
        if how.in_process:
            found.append(Problem("in-process", "has no meaning on a cluster", "leave out one of the two"))
    if how.precision == "tf32" and how.device == "cpu":
        found.append(Problem("precision", "tf32 needs a GPU", "bf16 or fp32, or another --device"))
    return found


def _name_problems(name: str, each: str) -> list[Problem]:
    from search.experiment.spec import NAME, NAME_RULE
    from search.schedules.naming import LONGEST_NAME

    if not NAME.fullmatch(name):
        return [Problem("name", f"{shown(name)} is no name", NAME_RULE)]
    if each == "new" and len(name) > LONGEST_NAME:
        what = f"has {len(name)} characters, and generations are named NAME.gN"
        return [Problem("name", what, f"at most {LONGEST_NAME}: --name SHORTER, or --each continue")]
    return []


def _settings(spec: ExperimentSpec, when: When, bounds: Bounds, notes: Notes, how: How) -> ScheduleSettings:
    from storage.schedule_records import ScheduleSettings

    def seconds(amount: float | None, unit: float) -> float | None:
        return None if amount is None else amount * unit

    return ScheduleSettings(
        spec=spec.to_json(),
        cron=" ".join(when.cron.split()),
        timezone=when.timezone,
        overlap=when.overlap,
        each=when.each,
        budget_seconds=seconds(bounds.budget_hours, 3600),
        stalled_seconds=seconds(bounds.stalled_minutes, 60),
        late_seconds=seconds(when.late_minutes, 60),
        webhook=notes.webhook,
        webhook_format=notes.webhook_format,
        options=how.options() | {"webhook_skipped": notes.webhook_skipped},
    )


@schedule.command(name="list")
def list_(*, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List schedules: when they fire next, and how they fired last."""
    from storage.schedules import Schedules

    with opened(database) as connection:
        schedules = Schedules(connection)
        now = schedules.now()
        found = [(one, schedules.firings(one.id, limit=1)) for one in schedules.list()]
    if as_json:
        entries = [
            schedule_json(one, now) | {"last": firing_json(firings[0]) if firings else None}
            for one, firings in found
        ]
        output.document("schedules/1", {"schedules": entries})
    elif found:
        rows = [
            (
                one.name,
                one.cron,
                one.timezone,
                next_time(one, now),
                one.overlap,
                one.each,
                last_firing(firings),
            )
            for one, firings in found
        ]
        columns = ("schedule", "cron", "time zone", "next", "overlap", "each", "last")
        output.show(output.table(columns, rows))
    else:
        output.message('no schedules yet; shoal schedule FILE --cron "0 2 * * *" makes one')


@schedule.command
def show(name: Name, /, *, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Show a schedule, its generations and what became of each."""
    with opened(database) as connection:
        show_family(connection, name, as_json=as_json)


def show_family(connection: Database, name: str, *, as_json: bool) -> None:
    """Show a schedule with its generations. Raises `ScheduleNotFound`."""
    from search.schedules.notices import results_of
    from storage.outbox import Outbox
    from storage.schedules import Schedules

    schedules = Schedules(connection)
    found, now = schedules.get(name), schedules.now()
    firings = schedules.firings(found.id, limit=None if as_json else FIRINGS_SHOWN)
    results = {one.experiment: results_of(connection, one.experiment) for one in firings if one.experiment}
    notes = Outbox(connection).of_schedule(found.id)
    if as_json:
        entries = [
            firing_json(one)
            | {"best": best_json(results.get(one.experiment or "")), "note": notes.get(one.id)}
            for one in firings
        ]
        output.document("schedule/1", {**schedule_json(found, now), "firings": entries})
        return
    output.show(Text(output.clean(found.name), style="bold"), output.facts(facts_of(found, now)))
    if not firings:
        output.message("it has not fired yet")
        return
    rows = [row_of(one, found, results.get(one.experiment or ""), notes.get(one.id)) for one in firings]
    columns = ("generation", "for", "state", "ran", "experiment", "best", "why", "note")
    output.show("", output.table(columns, rows, numbers=("generation", "ran")))


@schedule.command
def pause(name: Name, /, *, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Fire a schedule no more until it is resumed; a firing that runs goes on, one that waits waits."""
    _change(name, "pause", database, as_json=as_json)
    if not as_json:
        output.message(f"{name} is paused; shoal schedule resume {name} goes on with it")


@schedule.command
def resume(name: Name, /, *, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Fire a schedule again, from now on; what was due meanwhile is not made up for."""
    changed, now = _change(name, "resume", database, as_json=as_json)
    if not as_json:
        output.message(f"{name} fires next {next_time(changed, now)} ({changed.timezone})")


@schedule.command
def remove(name: Name, /, *, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Fire a schedule never again, and stop a firing that runs. Its experiments stay."""
    _change(name, "remove", database, as_json=as_json)
    if not as_json:
        output.message(f"{name} is removed; its experiments are kept")


def _change(
    name: str, verb: Literal["pause", "resume", "remove"], database: str | None, *, as_json: bool
) -> tuple[ScheduleRecord, datetime]:
    from storage.schedules import Schedules

    with opened(database) as connection:
        schedules = Schedules(connection)
        changed, now = getattr(schedules, verb)(name), schedules.now()
    if as_json:
        output.document("schedule/1", schedule_json(changed, now))
    return changed, now
