"""The command that measures how fast this machine trains: `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.text import Text

from search import output
from search.commands.options import AsJson, DeviceOption, PrecisionOption
from search.commands.signals import ending_at_once
from search.formats import format_backends, format_number, format_revision

if TYPE_CHECKING:
    from objectives.bench import Work

LEAST_ROUNDS = 5
"""Fewer show no spread; said where fewer were asked for."""


def bench(
    *,
    rounds: Annotated[PositiveInt, Parameter(help="How often every way is measured.")] = LEAST_ROUNDS,
    trials: Annotated[PositiveInt, Parameter(help="Trials of a round.")] = 32,
    data: Annotated[
        Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "svhn"],
        Parameter(help="Images to train on; `digits` come with the package."),
    ] = "digits",
    root: Annotated[Path | None, Parameter(help="Folder of the images; default: the cache.")] = None,
    image_size: Annotated[
        PositiveInt | None, Parameter(help="Resize images to so many pixels a side.")
    ] = None,
    limit: Annotated[PositiveInt, Parameter(help="How many images to use.")] = 500,
    processes: Annotated[
        tuple[PositiveInt, ...] | None,
        Parameter(help="Numbers of processes that train one trial at a time each; default: the CPU cores."),
    ] = None,
    seed: Annotated[int, Parameter(help="All chance of the trials comes from it.")] = 1,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    out: Annotated[Path | None, Parameter(name="--output", help="Write the JSON document there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine trains trials: fused, one by one, and in several processes.

    The default CNN on a mix of batch sizes, losses and optimizers, with trials that end early as under
    successive halving. All ways train the same trials in every round.
    """
    with ending_at_once():
        from objectives.base import DataSpec
        from objectives.bench import BASE, Work, measured, table, task_of, ways
        from search.cluster import usable_cores
        from search.environment import environment

        spec = DataSpec(name=data, root=root, image_size=image_size, limit=limit)
        work = Work(spec, trials=trials, seed=seed)
        left_out: dict[str, str] = {}
        with ways(work, device, processes or (max(2, usable_cores()),), precision) as found:
            rows = table(measured(found, rounds, output.message, left_out=left_out), work)
        used = task_of(work, device, precision).precision
    body: dict[str, Any] = {
        "work": _told(work),
        "rounds": rounds,
        "seed": seed,
        "device": device,
        "precision": used,
        "base": BASE,
        "environment": environment(),
        "ways": rows,
        "left_out": left_out,
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        output.document("bench/1", body)
    else:
        _show(body)
    if rounds < LEAST_ROUNDS:
        output.message(f"note: {rounds} rounds show little of the spread; {LEAST_ROUNDS} are the least")


def _told(work: Work) -> dict[str, Any]:
    """What was trained, for the document."""
    return {
        "data": work.data.name,
        "image_size": work.data.image_size,
        "limit": work.data.limit,
        "trials": work.trials,
        "batch_sizes": list(work.batch_sizes),
        "rungs": list(work.rungs),
        "model": work.model.name,
        "images": work.images(),
    }


def _show(body: dict[str, Any]) -> None:
    work, machine = body["work"], body["environment"]
    columns = (
        "way",
        "trials/hour",
        "images/s",
        "images/CPU s",
        f"÷ {body['base']}",
        "occupancy",
        "GPU memory",
    )
    rows = [
        (
            row["way"],
            _spread(row["trials_per_hour"]),
            _spread(row["images_per_second"]),
            _spread(row["images_per_cpu_second"]),
            _spread(row["ratio"]),
            format_number(row["occupancy"]),
            format_number(None) if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:,.0f} MiB",
        )
        for row in body["ways"]
    ]
    size = "" if work["image_size"] is None else f" at {work['image_size']}×{work['image_size']}"
    output.show(Text(f"{work['trials']} trials of the {work['model']} on {work['data']}{size}", style="bold"))
    output.show(output.table(columns, rows, numbers=columns[1:]), "")
    sizes, rungs = (", ".join(map(str, work[key])) for key in ("batch_sizes", "rungs"))
    facts = [
        ("trials", f"batches of {sizes}; all losses and optimizers; they end after {rungs} epochs"),
        ("numbers", f"median (least–most) of {body['rounds']} rounds, seed {body['seed']}"),
        *((f"convolutions, {way}", backends) for way, backends in _backends(body["ways"]).items()),
        *((name, f"left out: {reason}") for name, reason in body["left_out"].items()),
        ("precision", body["precision"]),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['gpus']) or 'no GPU'}"),
        ("versions", f"torch {machine['versions']['torch']}, Python {machine['python']}"),
        ("revision", format_revision(machine["revision"])),
    ]
    output.show(output.facts(facts))


def _backends(ways: list[dict[str, Any]]) -> dict[str, str]:
    """Way → how its convolutions are computed, where that has a name."""
    return {row["way"]: format_backends(row["convolutions"]) for row in ways if row["convolutions"]}


def _spread(found: dict[str, float] | None) -> str:
    if found is None:
        return format_number(None)
    median, least, most = (format_number(found[key]) for key in ("median", "least", "most"))
    return f"{median} ({least}–{most})"
