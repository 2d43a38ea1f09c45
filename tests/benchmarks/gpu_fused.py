"""What slots are worth on a GPU: every way to train the same mix of trials, in one command of minutes.

    python -m tests.benchmarks.gpu_fused [--minutes 8.5] [--rounds 5] [--output FILE]

The default CNN on 3×32×32 images (10,000, made for it: speed does not depend on what they show), a mix of
batches of 32, 64 and 128, all losses and optimizers, trials that end early as under successive halving. Ways:
one plain process, the base; the same under a CUDA graph; 8 and 16 processes, also under MPS; Ray Tune with
actors that are used again and Optuna's search; fused in 64 and 256 slots, in fp32, tf32 and bf16. Each way
trains as many trials as fill it a few times over: rates are per image, and trials per hour those of its own
mix. Engines live through all rounds: what they compile, record and choose is done in the first one, which is
not counted and takes `first_round_seconds`. The file is written anew after every way of every round, and a
command that hangs ends itself a minute late and says where it was. What this machine hasn't got (Ray, Optuna,
MPS, a GPU) leaves a row out, with the reason.

It takes no network, nor Ray, Optuna or Postgres. On a CPU, say `--slots 4 --processes 2 --image-size 8`: that
shows that it works, and no more.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from objectives.base import Choice, DataSpec, ObjectiveError, Precision, Task
from objectives.bench import (
    BASE,
    MODEL,
    Ran,
    Way,
    Work,
    in_processes,
    measured,
    table,
    task_of,
    timed,
)
from objectives.bench_fused import fused_ways
from objectives.bench_gpu import NotHereError
from objectives.devices import kind_of_device, memory_of, prepare
from objectives.precision import PRECISIONS, resolve_precision
from objectives.recording import recorder_for
from objectives.trainer import PlainEngine
from search.environment import environment
from tests.benchmarks.ray_tune import tuned

ALONE_TRIALS = 16
"""Of the ways that train one at a time."""

TRIALS_PER_PLACE = 2
"""Of the others: every slot and every process is filled so often."""

CLASSES = 10

GRACE_MINUTES = 1.0
"""After the time is up, until the command is ended wherever it is."""


@contextmanager
def made_images(count: int, side: int) -> Iterator[DataSpec]:
    """So many colour images of noise that is a little brighter where the class says so, in a folder."""
    chance = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="shoal-images-") as folder:
        for number in range(count):
            label = number % CLASSES
            pixels = chance.integers(0, 200, (side, side, 3), dtype=np.uint8)
            pixels[label * side // CLASSES] += 50
            place = Path(folder, f"class {label}")
            place.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(place / f"{number}.png")
        yield DataSpec(name="image_folder", root=Path(folder), image_size=side)


def recorded(task: Task, device: str) -> PlainEngine:
    """The plain trainer as it is on a GPU. Raises `NotHereError` without one."""
    if recorder_for(prepare(device)) is None:
        raise NotHereError("a CUDA graph needs a GPU")
    return PlainEngine(task, device)


def all_ways(
    given: argparse.Namespace, data: DataSpec, model: Choice, held: ExitStack
) -> tuple[dict[str, Way], dict[str, Work], dict[str, str]]:
    """Name → way and work, and what is left out because of the device."""

    def work_of(trials: int) -> Work:
        return Work(data, trials, model=model)

    device, left_out = given.device, {}
    alone = work_of(given.alone_trials)
    task = task_of(alone, device, "fp32")
    graph = f"{BASE}, CUDA graph"
    ways: dict[str, Way] = {
        BASE: lambda: timed(PlainEngine(task, device, eager=True), alone.starts(), alone.ends()),
        graph: lambda: timed(recorded(task, device), alone.starts(), alone.ends()),
    }
    works = {BASE: alone, graph: alone}
    found: list[Precision] = []
    for name in given.precisions:
        try:
            found.append(resolve_precision(name, prepare(device)))
        except ObjectiveError as error:
            left_out |= {f"fused, {count} slots, {name}": str(error) for count in given.slots}
    for name, (way, work) in fused_ways(
        lambda slots: work_of(TRIALS_PER_PLACE * slots), device, given.slots, found
    ).items():
        ways[name], works[name] = way, work
    # Last those that depend most on what else is on the machine.
    for mps in (False, True):
        for count in given.processes:
            shared = work_of(TRIALS_PER_PLACE * count)
            name = f"{count} processes{', MPS' * mps}"
            ways[name] = held.enter_context(in_processes(shared, device, task, count, mps=mps))
            works[name] = shared
    most = max(given.processes, default=1)
    works["Ray Tune"] = work_of(TRIALS_PER_PLACE * most)
    ways["Ray Tune"] = partial(tuned, works["Ray Tune"], device, task, most)
    return ways, works, left_out


def against_the_best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the fastest fused way is worth against the base, the fastest set of processes, and the graph."""
    rate = {row["way"]: row["images_per_second"]["median"] for row in rows}
    fused = {name: value for name, value in rate.items() if name.startswith("fused")}
    if not fused:
        return {}
    best = max(fused, key=lambda name: fused[name])
    processes = [value for name, value in rate.items() if "processes" in name or name == "Ray Tune"]
    others = {BASE: rate[BASE], "the best of several processes": max(processes, default=None)}
    others[f"{BASE}, CUDA graph"] = rate.get(f"{BASE}, CUDA graph")
    return {"way": best, **{name: fused[best] / value for name, value in others.items() if value}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="nothing is begun that would end later")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slots", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--processes", type=int, nargs="*", default=[8, 16])
    parser.add_argument("--alone-trials", type=int, default=ALONE_TRIALS)
    parser.add_argument("--images", type=int, default=12_500, help="a fifth of them is sealed, unused")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int, help="of the CNN's first layer; default: the CNN's own")
    parser.add_argument("--revision", help="of the code, where there is no checkout")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    until = time.perf_counter() + 60 * given.minutes
    faulthandler.dump_traceback_later(60 * (given.minutes + GRACE_MINUTES), exit=True)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    load = os.getloadavg()
    small = {} if given.width is None else {"width": given.width, "depth": 2, "dense": 8}
    with made_images(given.images, given.image_size) as data, ExitStack() as held:
        ways, works, left_out = all_ways(given, data, Choice(MODEL.name, small), held)
        first: dict[str, float] = {}

        def so_far(results: Mapping[str, Sequence[Ran]]) -> dict[str, Any]:
            body = said(given, load, rows_of(results, works, first), left_out, works[BASE])
            if given.output:
                given.output.parent.mkdir(parents=True, exist_ok=True)
                given.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
            return body

        results = measured(
            ways,
            given.rounds,
            lambda told: print(f"{until - time.perf_counter():5.0f} s left, {told}", file=sys.stderr),
            until=until,
            left_out=left_out,
            first=first,
            kept=so_far,
        )
        if BASE not in results:
            sys.exit("there was no time for the base; give more --minutes, or fewer --alone-trials")
        body = so_far(results)
    faulthandler.cancel_dump_traceback_later()
    show(body)


def rows_of(
    results: Mapping[str, Sequence[Ran]], works: Mapping[str, Work], first: Mapping[str, float]
) -> list[dict[str, Any]]:
    """A row per way, once the base has been measured."""
    if BASE not in results:
        return []
    rows: list[dict[str, Any]] = table(results, works[BASE], works)
    for row in rows:
        work = works[row["way"]]
        row |= {
            "trials": work.trials,
            "images": work.images(),
            "first_round_seconds": first.get(row["way"]),
        }
    return rows


def said(
    given: argparse.Namespace,
    load: tuple[float, float, float],
    rows: list[dict[str, Any]],
    left_out: Mapping[str, str],
    base: Work,
) -> dict[str, Any]:
    """What the file says."""
    device = prepare(given.device)
    return {
        "command": shlex.join(["python", "-m", "tests.benchmarks.gpu_fused", *sys.argv[1:]]),
        "image": [3, given.image_size, given.image_size],
        "batch_sizes": list(base.batch_sizes),
        "rungs": list(base.rungs),
        "device": kind_of_device(device),
        "device_memory_bytes": memory_of(device).get("total"),
        "load_before": load,
        **environment(),
        **({} if given.revision is None else {"revision": given.revision}),
        "ways": rows,
        "left_out": dict(left_out),
        "fused_against": against_the_best(rows) if rows else {},
    }


def show(body: dict[str, Any]) -> None:
    """A short table, last."""
    for row in body["ways"]:
        images, ratio, trials = row["images_per_second"], row["ratio"], row["trials_per_hour"]["median"]
        print(
            f"{row['way']:34} {trials:>12,.0f} trials/h {images['median']:>12,.0f} images/s"
            f" ({images['least']:,.0f}-{images['most']:,.0f}, n={row['n']}) {ratio['median']:>8.2f}x"
            f" {(row['memory_bytes'] or 0) / 2**20:>8,.0f} MiB"
        )
        for reason in row["held_back"]:
            print(f"{'':34} slower than it might be: {reason}")
    for name, reason in body["left_out"].items():
        print(f"{name:34} left out: {reason}")
    print("fused against:", json.dumps(body["fused_against"]))


if __name__ == "__main__":
    main()
