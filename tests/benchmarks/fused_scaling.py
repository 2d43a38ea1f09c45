"""How fused training scales with slots, models and batches, and what mixing and admitting cost.

    python -m tests.benchmarks.fused_scaling [--part slots …] [--rounds 5] [--device auto] [--output FILE]

Parts: `slots` (the rate by number of slots, and the knee), `models` (fused against one by one, from a small
CNN to ResNet-18 and a net of airbench's size), `batches` (the same by size of batch), `mixed` (batch sizes
mixed against uniform ones; every pair of loss and optimizer in one program against one pair), `admissions` (a
thousand trials through the slots: time of each, and what was built or compiled after the first hundred).
Sizes are those that a CPU core can do in minutes; on a GPU give larger ones.

Rates are images of training per CPU second of this process, on a GPU per second of the clock; all ways of a
part train in every round, in a turning order, after a round that is not counted. Each part is written down
by itself, with its circumstances and every round; parts that a file has are kept. `missed` lists the targets
that were not met, by how much, and why, from a profile taken there and then.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._dynamo.utils import counters

from objectives.base import Choice, DataSpec, Task, TrialStart
from objectives.bench import BASE, FUSED, MODEL, Ran, Work, summary, timed
from objectives.choices import AlwaysFused
from objectives.devices import resolve_device
from objectives.fused import FusedEngine
from objectives.fused.pool import Pool
from objectives.imports import ALLOW_VARIABLE
from objectives.trainer import PlainEngine
from search.environment import environment
from tests.benchmarks import fused_models
from tests.benchmarks.reasons import by_profile, missed

SEED = 1

LARGE_LIMIT, LARGE_SIDE, LARGE_TRIALS = 80, 16, 4
"""Images, pixels a side, and trials of models with millions of parameters."""

SHORT_LIMIT = 100
"""Images where many trials of one epoch are trained."""

WARM_UP = 100
"""Admissions after which nothing may be built or compiled any more."""

KNEE = 0.95
"""Of the best rate: who has the fewest slots that reach it stands at the knee."""

SIZES = (32, 64, 128)
"""Of batches that are mixed."""

SIZES_TARGET, KINDS_TARGET = 0.85, 0.9
"""What mixed batch sizes, and mixed losses and optimizers, are to be worth against uniform ones at least."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    data: DataSpec
    device: str
    rounds: int
    slots: Sequence[int]
    least_trials: int
    models: Sequence[str]
    batches: Sequence[int]
    admissions: int
    rows: int | None = None
    """Of a step at most; None: the engine's own number."""

    @property
    def short(self) -> DataSpec:
        """The data where there are many trials."""
        return replace(self.data, limit=min(SHORT_LIMIT, self.data.limit or SHORT_LIMIT))

    @property
    def gpu(self) -> bool:
        return resolve_device(self.device).type == "cuda"

    def task(self, work: Work) -> Task:
        return Task(data=work.data, allow_imports=(fused_models.MODULE,))

    def engine(self, work: Work, slots: int) -> FusedEngine:
        return FusedEngine(self.task(work), self.device, slots=slots, rows=self.rows, choices=AlwaysFused())

    def fused(self, work: Work, slots: int) -> Ran:
        return timed(self.engine(work, slots), work.starts(), work.ends())

    def alone(self, work: Work) -> Ran:
        return timed(PlainEngine(self.task(work), self.device, eager=True), work.starts(), work.ends())

    def rate(self, work: Work, ran: Ran) -> float:
        """Images per second: of this process on a CPU, of the clock on a GPU."""
        seconds = ran.seconds if self.gpu else ran.cpu_seconds
        assert seconds
        return work.images() / seconds


Ways = Mapping[str, Callable[[], float]]
"""Name → trains once and returns its rate."""


def in_turns(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """The rate of every way in every round, in a turning order, after a round that is not counted."""
    for way in ways.values():
        way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rates[name].append(ways[name]())
    return rates


def against(rates: Mapping[str, Sequence[float]], base: str) -> dict[str, Any]:
    """The spread of every way's rate, and of what it is worth against `base` round by round."""
    return {
        name: {
            "images_per_second": summary(found),
            "ratio": summary([one / other for one, other in zip(found, rates[base], strict=True)]),
            "rounds": found,
        }
        for name, found in rates.items()
    }


def uniform(data: DataSpec, trials: int, batch: int, model: Choice = MODEL) -> Work:
    return Work(data, trials, batch_sizes=(batch,), model=model, rungs=(1,), mixed=False, seed=SEED)


def pair(scale: Scale, work: Work, slots: int) -> dict[str, Any]:
    """Fused against one by one."""
    ways: Ways = {
        BASE: lambda: scale.rate(work, scale.alone(work)),
        FUSED: lambda: scale.rate(work, scale.fused(work, slots)),
    }
    return against(in_turns(ways, scale.rounds), BASE)


def by_slots(scale: Scale) -> dict[str, Any]:
    """Trials that fill the slots, but no fewer than `least_trials`; the base has the fewest slots."""

    def way(slots: int) -> Callable[[], float]:
        work = uniform(scale.short, max(slots, scale.least_trials), 32)
        return lambda: scale.rate(work, scale.fused(work, slots))

    rates = in_turns({str(slots): way(slots) for slots in scale.slots}, scale.rounds)
    return {"knee": knee_of(rates), "slots": against(rates, str(scale.slots[0]))}


def knee_of(rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The fewest slots whose median rate is within 5 % of the best, and those with the best."""
    medians = {int(slots): statistics.median(found) for slots, found in rates.items()}
    best = max(medians, key=lambda slots: medians[slots])
    knee = min(slots for slots, rate in medians.items() if rate >= KNEE * medians[best])
    return {"slots": knee, "best": best, "within": KNEE}


MODELS: Mapping[str, tuple[Choice, bool]] = {
    "cnn of width 8": (Choice("cnn", {"depth": 2, "width": 8, "dense": 32, "padding": "same"}), False),
    "cnn": (Choice("cnn"), False),
    "resnet-8": (Choice("resnet"), False),
    "airbench": (Choice(f"{fused_models.MODULE}:airbench"), True),
    "resnet-18": (Choice(f"{fused_models.MODULE}:resnet18"), True),
}
"""Name → model, and whether it is a large one: with fewer, but larger images on a CPU."""


def by_model(scale: Scale) -> dict[str, Any]:
    found = {}
    for name in scale.models:
        model, large = MODELS[name]
        data, trials = scale.data, 8
        if large and not scale.gpu:
            data, trials = replace(data, limit=LARGE_LIMIT, image_size=LARGE_SIDE), LARGE_TRIALS
        work = uniform(data, trials, 32, model)
        size = {"trials": trials, "images": data.limit, "image_size": data.image_size}
        found[name] = {**size, **pair(scale, work, trials)}
    return found


def by_batch(scale: Scale) -> dict[str, Any]:
    return {str(batch): pair(scale, uniform(scale.data, 16, batch), 16) for batch in scale.batches}


def mixed(scale: Scale) -> dict[str, Any]:
    """Mixed batch sizes against the mean time per image of the uniform ones; all kinds against one."""
    even = {str(size): uniform(scale.data, 18, size) for size in SIZES}
    every = Work(scale.data, 18, SIZES, rungs=(1,), mixed=False, seed=SEED)
    kinds = Work(scale.data, 56, (64,), rungs=(1,), mixed=True, seed=SEED)
    one = replace(kinds, mixed=False)

    def fused(work: Work) -> Callable[[], float]:
        return lambda: scale.rate(work, scale.fused(work, work.trials))

    ways = {f"batches of {name}": fused(work) for name, work in even.items()}
    ways |= {"sizes mixed": fused(every), "all kinds": fused(kinds), "one kind": fused(one)}
    rates = in_turns(ways, scale.rounds)
    means = [
        statistics.harmonic_mean([rates[f"batches of {name}"][number] for name in even])
        for number in range(scale.rounds)
    ]
    sizes = [found / mean for found, mean in zip(rates["sizes mixed"], means, strict=True)]
    pairs = [found / base for found, base in zip(rates["all kinds"], rates["one kind"], strict=True)]

    def trains(work: Work) -> Callable[[], object]:
        return lambda: scale.fused(work, work.trials)

    return {
        "batch sizes mixed / uniform": {**summary(sizes), "rounds": sizes},
        "56 pairs of loss and optimizer / one": {**summary(pairs), "rounds": pairs},
        "images_per_second": {name: {**summary(found), "rounds": found} for name, found in rates.items()},
        "missed": [
            *missed(
                "batch sizes mixed / uniform",
                statistics.median(sizes),
                SIZES_TARGET,
                lambda: by_profile(
                    [
                        ("mixed", trains(every), every.images()),
                        ("in batches of 64", trains(even["64"]), even["64"].images()),
                    ]
                ),
            ),
            *missed(
                "all pairs of loss and optimizer / one",
                statistics.median(pairs),
                KINDS_TARGET,
                lambda: by_profile(
                    [
                        ("with all kinds", trains(kinds), kinds.images()),
                        ("with one", trains(one), one.images()),
                    ]
                ),
            ),
        ],
    }


def admissions(scale: Scale) -> dict[str, Any]:
    """Trials of one epoch; what taking each in and letting it go costs, beside a step, and what was built."""
    work = Work(scale.short, scale.admissions, SIZES, rungs=(1,), seed=SEED)
    engine = scale.engine(work, 16)
    taking_in, letting_go, steps = Clocked(engine._place), Clocked(engine.retire), Clocked(Pool.step)
    built: list[dict[str, int]] = []

    def place(start: TrialStart) -> object:
        event = taking_in(start)
        built.append(built_by(engine))
        return event

    def step(pool: Pool) -> object:  # a function, which becomes a method where `steps` wouldn't
        return steps(pool)

    with (
        mock.patch.object(engine, "_place", place),
        mock.patch.object(engine, "retire", letting_go),
        mock.patch.object(Pool, "step", step),
        mock.patch.object(torch.cuda, "graph", CountedGraph),
    ):
        ran = timed(engine, work.starts(), work.ends())
    warm, after = built[min(WARM_UP, len(built)) - 1], built_by(engine)
    new = {name: after[name] - warm[name] for name in after}
    spent = sum(taking_in.seconds) + sum(letting_go.seconds)
    return {
        "admissions": len(taking_in.seconds),
        "after_warm_up": {"admissions": max(0, len(built) - WARM_UP), "new": new},
        "step_shapes": sorted(set().union(*(lane.pool.shapes for lane in engine._pools.values()))),
        "milliseconds_of_taking_in": quartiles(taking_in.seconds),
        "milliseconds_of_letting_go": quartiles(letting_go.seconds),
        "milliseconds_of_a_step": quartiles(steps.seconds),
        "share_of_all_time": spent / ran.seconds,
        "missed": [
            {"target": f"{name} after {WARM_UP} admissions", "least": 0, "found": count, "why": "see `new`"}
            for name, count in new.items()
            if count
        ],
    }


class Clocked:
    """A function that notes the seconds of each of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = self._function(*arguments)
        self.seconds.append(time.perf_counter() - started)
        return result


def built_by(engine: FusedEngine) -> dict[str, int]:
    """What has been built or compiled so far; not the shapes of steps, of which there are a handful."""
    return {
        "programs": engine.programs_built,
        "compilations": sum(counters["frames"].values()),
        "graphs captured": CountedGraph.captured,
    }


class CountedGraph(torch.cuda.graph):
    """What captures CUDA graphs, and counts them."""

    captured = 0

    def __enter__(self) -> None:
        CountedGraph.captured += 1
        super().__enter__()


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "most": 1000 * max(seconds)}


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "slots": by_slots,
    "models": by_model,
    "batches": by_batch,
    "mixed": mixed,
    "admissions": admissions,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int, default=250, help="images, of which a fifth is for validation")
    parser.add_argument(
        "--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512], help="ascending"
    )
    parser.add_argument("--trials", type=int, default=32, help="at least, for any number of slots")
    parser.add_argument("--rows", type=int, help="of a step, at most; default: as many as for users")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--admissions", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.environ[ALLOW_VARIABLE] = ",".join(filter(None, [os.environ.get(ALLOW_VARIABLE), fused_models.MODULE]))
    scale = Scale(
        data=DataSpec(name=given.data, image_size=given.image_size, limit=given.limit),
        device=given.device,
        rounds=given.rounds,
        slots=given.slots,
        least_trials=given.trials,
        models=given.models,
        batches=given.batches,
        admissions=given.admissions,
        rows=given.rows,
    )
    results: dict[str, Any] = {}
    if given.output and given.output.exists():
        results = json.loads(given.output.read_text(encoding="utf-8"))
    for name in given.part:
        load, started = os.getloadavg(), time.perf_counter()
        found = PARTS[name](scale)
        results[name] = {
            "command": shlex.join(["python", "-m", "tests.benchmarks.fused_scaling", *sys.argv[1:]]),
            "rounds": given.rounds,
            "seed": SEED,
            "load_before": load,
            "seconds": round(time.perf_counter() - started, 1),
            **environment(),
            "missed": found.pop("missed", []),
            "found": found,
        }
        print(
            name, json.dumps({key: results[name][key] for key in ("seconds", "missed", "found")}), flush=True
        )
        if given.output:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
