"""Commands about experiment files: `init`, `plan`, `schema`. None of them needs a database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from search import output
from search.commands.options import AsJson, PrecisionOption, SpecFile, flag
from search.commands.signals import ending_at_once
from search.failures import CommandError, ExitCode, Failure
from search.formats import (
    format_backends,
    format_count,
    format_number,
    format_number_of,
    format_seconds,
    format_value,
)

if TYPE_CHECKING:
    from rich.table import Table

    from search.plan import MethodPlan, Plan, Speed
    from search.plan_comparison import ComparisonPlan


NEW_FILE = Path("experiment.yaml")


def init(
    file: Annotated[Path, Parameter(help="Where to write it.")] = NEW_FILE,
    /,
    *,
    to_stdout: Annotated[bool, flag("Print it instead of writing a file.", "--stdout")] = False,
    force: Annotated[bool, flag("Write over a file that is there.")] = False,
) -> None:
    """Write a commented experiment file to start from."""
    from search.experiment.template import template

    text = template()
    if to_stdout:
        output.text(text)
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise CommandError(
            Failure(ExitCode.CONFLICT, "exists", f"{file} exists", next="name another file, or --force")
        ) from None
    output.message(f"wrote {file}; next: shoal plan {file}")


def plan(
    file: SpecFile,
    /,
    *,
    measure: Annotated[
        bool, Parameter(help="Train a few seconds to tell how long the experiment will take.")
    ] = True,
    workers: Annotated[int | None, Parameter(help="Workers to reckon with; default: the CPU cores.")] = None,
    precision: PrecisionOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what a file would do, without doing it: studies, grid points, trials, epochs, expected time."""
    with ending_at_once():
        from search.cluster import usable_cores
        from search.experiment.spec import load_spec
        from search.plan import make_plan, measured_speed

        spec = load_spec(file)
        count = workers or usable_cores()
        measured = partial(measured_speed, precision=precision)
        made = make_plan(spec, measure=measured if measure else None, workers=count)
    if as_json:
        output.document("plan/1", made.to_json())
    else:
        _show_plan(made)


def _show_plan(plan: Plan) -> None:
    output.show(Text(plan.experiment, style="bold"))
    grid = "none" if plan.grid_points is None else f"{format_count(plan.grid_points)} points"
    methods = format_number_of(len(plan.methods), "method")
    rows = [
        *_objective(plan),
        ("pruner", plan.pruner),
        ("studies", f"{plan.studies} ({methods} × {format_number_of(plan.replicates, 'replicate')})"),
        ("grid", grid),
        ("trials", format_count(plan.trials)),
        ("epochs", f"at most {format_count(plan.epochs)}"),
        ("time", _time(plan)),
    ]
    if plan.speeds:
        rates = [speed.images_per_second for speed in plan.speeds]
        span = dict.fromkeys(format_number(rate) for rate in (min(rates), max(rates)))
        rows.append(("speed", f"{' to '.join(span)} images/s per worker"))
        fused = [speed.rates.convolutions for speed in plan.speeds if speed.rates.reason is None]
        backends = dict.fromkeys(format_backends(found) for found in fused if found)
        if backends:
            rows.append(("convolutions", " or ".join(backends)))
    output.show(output.facts(rows), "")
    if plan.speeds:
        output.show(_programs(plan.speeds), "")
        alone = _alone(plan.speeds)
        if alone:
            output.show(Text("trained alone, not fused", style="bold"))
            output.show(output.facts(alone), "")
    shown = [
        (method.name, method.trials, method.epochs, _in_flight(method), _settings(method.settings))
        for method in plan.methods
    ]
    columns = ("method", "trials per study", "epochs per study", "at once", "settings")
    output.show(output.table(columns, shown, numbers=columns[1:4]))
    if plan.grid:
        levels = [
            (axis.name, len(axis.points), axis.kind, ", ".join(map(format_value, axis.points)))
            for axis in plan.grid
        ]
        output.show("", Text("grid of the first replicate", style="bold"))
        output.show(output.table(("dimension", "levels", "from", "values"), levels, numbers=("levels",)))
    if plan.comparison is not None:
        output.show("", Text("comparison, declared before the run", style="bold"))
        output.show(output.facts(_declared(plan.comparison)))
    for note in plan.notes:
        output.message(f"note: {note}")


def _objective(plan: Plan) -> list[tuple[str, str]]:
    if plan.train_images is None or plan.validation_images is None:
        return [("objective", str(plan.objective)), ("metric", plan.metric)]
    trained, validated = format_count(plan.train_images), format_count(plan.validation_images)
    images = f"{plan.dataset}: {trained} images to train, {validated} to validate, the test set sealed"
    return [("data", images), ("metric", f"{plan.metric} on the validation images")]


def _programs(speeds: Sequence[Speed]) -> Table:
    """How trials train: what was tried, and how fast it was."""
    columns = ("trained", "slots", "memory/slot", "images/s fused", "alone", "trials/hour")
    rows = []
    for speed in speeds:
        rates = speed.rates
        memory = "" if rates.bytes_per_slot is None else f"{rates.bytes_per_slot / 2**20:.1f} MiB"
        rows.append(
            (
                _corner(speed),
                rates.slots if rates.reason is None else 1,
                memory,
                format_number(rates.fused),
                format_number(rates.alone),
                format_count(round(speed.trials_per_hour)),
            )
        )
    return output.table(columns, rows, numbers=columns[1:])


def _alone(speeds: Sequence[Speed]) -> list[tuple[str, str]]:
    """Why some trials aren't fused, each reason once: it may be as long as an error of torch's."""
    reasons = [(speed.rates.reason, _corner(speed)) for speed in speeds if speed.rates.reason is not None]
    return [
        ("; ".join(corner for other, corner in reasons if other == reason), reason)
        for reason in dict.fromkeys(reason for reason, _ in reasons)
    ]


def _corner(speed: Speed) -> str:
    """Which trials were measured."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in speed.values.items()) or "all"


def _declared(comparison: ComparisonPlan) -> list[tuple[str, str]]:
    pairs = ", ".join(f"{better} and {than}" for better, than in comparison.pairs)
    seeds = f"{format_count(comparison.retrainings)} trainings of winners with fresh seeds"
    return [
        ("pairs", pairs),
        ("axis", f"{comparison.axis} first"),
        ("alpha", f"{comparison.alpha:g} over all pairs together, Holm's correction"),
        ("difference", f"{comparison.smallest_difference:g} or more matters"),
        ("detects", comparison.detects),
        ("needed", f"{comparison.replicates_needed} replicates for P(A > B) = {comparison.meaningful:g}"),
        ("retraining", f"{seeds}, at most {format_count(comparison.retraining_epochs)} epochs on top"),
    ]


def _settings(settings: Mapping[str, object]) -> str:
    shown = {key: value for key, value in settings.items() if value is not None and key != "in_flight"}
    return ", ".join(f"{key}={format_value(value)}" for key, value in shown.items())


def _in_flight(method: MethodPlan) -> str:
    """How many trials of one of its studies run at once."""
    most = method.settings["in_flight"]
    return "any" if most is None else str(most)


def _time(plan: Plan) -> str:
    if plan.seconds is None:
        return "not measured"
    low, high = (format_seconds(seconds) for seconds in plan.seconds)
    span = low if low == high else f"{low} to {high}"
    workers = f"{plan.workers} worker{'' if plan.workers == 1 else 's'}"
    return f"{span} on {workers} of this machine, without pruning"


def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    from search.experiment.spec import schema as file_schema

    output.text(json.dumps(file_schema(), indent=2, ensure_ascii=False) + "\n")
