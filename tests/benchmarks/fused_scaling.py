"""How fused training scales, what slots are worth, and what mixing and admitting cost.

    python -m tests.benchmarks.fused_scaling [--part slots …] [--rounds 5] [--device auto] [--output FILE]

Parts: `slots`, `models`, `batches` (fused against one by one), `occupancy` (successive halving with eta 3 in
slots that are refilled, against groups that wait for their last trial), `mixed` (batch sizes and kinds mixed,
against uniform ones), `admissions` (a thousand trials through the slots). Sizes are those that a CPU can do
in minutes; on a GPU give larger ones. What counts on a CPU is CPU seconds, on a GPU the clock. Each part is
written down by itself, with its circumstances and every round; parts that a file has are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objectives.base import Choice, DataSpec, Engine, Task, TrialStart
from objectives.bench import BASE, Ran, Work, run, summary, timed
from objectives.devices import resolve_device
from objectives.fused import FusedEngine
from objectives.trainer import PlainEngine
from search.environment import environment

MODELS = {
    "cnn of width 8": Choice("cnn", {"depth": 2, "width": 8, "dense": 32, "padding": "same"}),
    "cnn": Choice("cnn"),
    "resnet-8": Choice("resnet"),
}


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    data: DataSpec
    device: str
    rounds: int
    slots: Sequence[int]
    batches: Sequence[int]
    admissions: int

    @property
    def task(self) -> Task:
        return Task(data=self.data)

    @property
    def gpu(self) -> bool:
        return resolve_device(self.device).type == "cuda"

    def fused(self, work: Work, slots: int) -> Ran:
        return timed(FusedEngine(self.task, self.device, slots=slots), work.starts(), work.ends())

    def alone(self, work: Work) -> Ran:
        return timed(PlainEngine(self.task, self.device), work.starts(), work.ends())

    def rate(self, work: Work, ran: Ran) -> float:
        """Images per second: of this process on a CPU, of the clock on a GPU."""
        seconds = ran.seconds if self.gpu else ran.cpu_seconds
        assert seconds
        return work.images() / seconds


def compared(scale: Scale, ways: Mapping[str, Callable[[], float]], base: str) -> dict[str, Any]:
    """The rate of every way in every round, in turns, and what each is worth against `base`."""
    for way in ways.values():
        way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(scale.rounds):
        names = list(ways)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rates[name].append(ways[name]())
    return {
        name: {
            "images_per_second": summary(found),
            "ratio": summary([one / other for one, other in zip(found, rates[base], strict=True)]),
            "rounds": found,
        }
        for name, found in rates.items()
    }


def uniform(scale: Scale, trials: int, batch: int, model: Choice = MODELS["cnn"]) -> Work:
    return Work(scale.data, trials, batch_sizes=(batch,), model=model, rungs=(1,), mixed=False)


def pair(scale: Scale, work: Work, slots: int) -> dict[str, Callable[[], float]]:
    return {
        BASE: lambda: scale.rate(work, scale.alone(work)),
        "fused": lambda: scale.rate(work, scale.fused(work, slots)),
    }


def by_slots(scale: Scale) -> dict[str, Any]:
    """The same trials in ever more slots; the base has the fewest."""
    work = uniform(scale, max(scale.slots), 32)
    ways = {
        str(slots): (lambda slots=slots: scale.rate(work, scale.fused(work, slots))) for slots in scale.slots
    }
    return compared(scale, ways, str(scale.slots[0]))


def by_model(scale: Scale) -> dict[str, Any]:
    return {
        name: compared(scale, pair(scale, uniform(scale, 8, 32, model), 8), BASE)
        for name, model in MODELS.items()
    }


def by_batch(scale: Scale) -> dict[str, Any]:
    return {
        str(batch): compared(scale, pair(scale, uniform(scale, 16, batch), 16), BASE)
        for batch in scale.batches
    }


class Watched:
    """An engine that notes for how much of the time how many of its slots had a trial to train."""

    def __init__(self, engine: FusedEngine) -> None:
        self._engine = engine
        self._slots = engine.free_slots
        self.busy = self.passed = 0.0

    @property
    def free_slots(self) -> int:
        return self._engine.free_slots

    def admit(self, start: TrialStart) -> None:
        self._engine.admit(start)

    def retire(self, trial_id: int) -> None:
        self._engine.retire(trial_id)

    def save(self, trial_id: int, path: Path) -> None:
        self._engine.save(trial_id, path)

    def advance(self) -> Sequence[Any]:
        taken, started = self._slots - self._engine.free_slots, time.process_time()
        events = self._engine.advance()
        passed = time.process_time() - started
        self.busy += passed * taken / self._slots
        self.passed += passed
        return events


def occupancy(scale: Scale) -> dict[str, Any]:
    """Slots in use, over the steps' time: refilled while trials wait, against groups of as many as there are
    slots, of which the next begins when the last trial of the one before has ended. In the group's case the
    steps get smaller as trials end, so that epochs, not seconds, say how much of it stands still.
    """
    work = Work(scale.data, 108, batch_sizes=(32,), mixed=False)
    ends, slots = work.ends(), 12
    refilled = []
    for _ in range(scale.rounds):
        watched = Watched(FusedEngine(scale.task, scale.device, slots=slots))
        drive: Engine = watched
        run(drive, work.starts(), ends)
        refilled.append(watched.busy / watched.passed)
    epochs_of = [ends[number] for number in range(work.trials)]
    groups = [epochs_of[first : first + slots] for first in range(0, work.trials, slots)]
    epochs = sum(max(group) for group in groups)
    return {
        "refilled": {**summary(refilled), "rounds": refilled},
        "group": sum(ends.values()) / (epochs * slots),
        "note": "refilled: slots in use by CPU time, with the run-out at the end; group: by epochs",
    }


def mixed(scale: Scale) -> dict[str, Any]:
    """Mixed batch sizes against the mean time per image of the uniform ones; mixed kinds against one."""
    works = {str(size): Work(scale.data, 18, (size,), rungs=(1,), mixed=False) for size in (32, 64, 128)}
    every = Work(scale.data, 18, (32, 64, 128), rungs=(1,), mixed=False)
    kinds, one = (Work(scale.data, 56, (64,), rungs=(1,), mixed=flag) for flag in (True, False))
    sizes, pairs = [], []
    for counted in [False] + [True] * scale.rounds:
        uniform_rates = [scale.rate(work, scale.fused(work, 18)) for work in works.values()]
        size_ratio = scale.rate(every, scale.fused(every, 18)) / statistics.harmonic_mean(uniform_rates)
        kind_ratio = scale.rate(kinds, scale.fused(kinds, 56)) / scale.rate(one, scale.fused(one, 56))
        if counted:
            sizes.append(size_ratio)
            pairs.append(kind_ratio)
    return {
        "batch sizes mixed / uniform": {**summary(sizes), "rounds": sizes},
        "56 pairs of loss and optimizer / one": {**summary(pairs), "rounds": pairs},
    }


def admissions(scale: Scale) -> dict[str, Any]:
    """A thousand trials of one epoch; what taking one in and letting it go costs, beside a step."""
    data = DataSpec(name=scale.data.name, limit=100)
    work = Work(data, scale.admissions, (32, 64, 128), rungs=(1,))
    engine = FusedEngine(Task(data=data), scale.device, slots=16)
    spent: dict[str, list[float]] = {"_place": [], "retire": []}
    for name, times in spent.items():
        setattr(engine, name, clocked(getattr(engine, name), times))
    run(engine, work.starts(), work.ends())
    pools = [lane.pool for lane in engine._pools.values()]
    return {
        "admissions": len(spent["_place"]),
        "programs_built": engine.programs_built,
        "step_shapes": sorted(set().union(*(pool.shapes for pool in pools))),
        "milliseconds_of_taking_in": quartiles(spent["_place"]),
        "milliseconds_of_letting_go": quartiles(spent["retire"]),
    }


def clocked(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def timed_call(*arguments: Any) -> Any:
        started = time.process_time()
        result = function(*arguments)
        times.append(time.process_time() - started)
        return result

    return timed_call


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
    return {"median": median, "lower_quartile": low, "upper_quartile": high, "most": 1000 * max(seconds)}


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {
    "slots": by_slots,
    "models": by_model,
    "batches": by_batch,
    "occupancy": occupancy,
    "mixed": mixed,
    "admissions": admissions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--admissions", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    data = DataSpec(name=given.data, image_size=given.image_size, limit=given.limit)
    scale = Scale(data, given.device, given.rounds, given.slots, given.batches, given.admissions)
    arguments = {key: str(value) for key, value in vars(given).items() if key not in {"output", "part"}}
    results: dict[str, Any] = {}
    if given.output and given.output.exists():
        results = json.loads(given.output.read_text(encoding="utf-8"))
    for name in given.part:
        load = os.getloadavg()
        found = PARTS[name](scale)
        circumstances = {"arguments": arguments, "seed": 1, "load_before": load, **environment()}
        results[name] = {**circumstances, "found": found}
        print(name, json.dumps(found), flush=True)
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
