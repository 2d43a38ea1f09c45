"""How fast this machine trains trials, fused and in other ways: what `shoal bench` and benchmarks measure.

A round trains the same trials in every way. Pruning is played, not decided by values: a trial ends after 1 or
3 epochs, or comes to its end, as successive halving with eta 3 would have it on average, so that all ways do
the same work whatever the order in which their trials report.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from objectives.base import (
    Choice,
    DataSpec,
    Engine,
    ObjectiveError,
    Task,
    TrialConfig,
    TrialFailure,
    TrialStart,
    derive_seed,
)
from objectives.choices import ChoicesInMemory
from objectives.datasets import describe
from objectives.fused import FusedEngine
from objectives.losses import LOSSES
from objectives.optimizers import OPTIMIZERS
from objectives.trainer import PlainEngine

RUNGS = (1, 3, 9)
"""Epochs after which two thirds of the trials end; those that are left at the last end there."""

BASE = "one by one"
"""The way that the others are held against: one process, one trial at a time, in plain PyTorch."""

FUSED = "fused"

MODEL = Choice("cnn")


@dataclass(frozen=True, slots=True)
class Work:
    """The trials of a round."""

    data: DataSpec
    trials: int
    batch_sizes: Sequence[int] = (32, 64, 128)
    """Taken in turn; as are all losses and all optimizers but the one of full batches."""
    model: Choice = MODEL
    rungs: Sequence[int] = RUNGS
    seed: int = 1
    mixed: bool = True
    """Whether losses and optimizers differ; else cross-entropy and momentum."""

    def starts(self) -> list[TrialStart]:
        """Each trial as an engine is given it: with the epochs that it would have if it were not pruned."""
        losses = list(LOSSES) if self.mixed else ["cross_entropy"]
        optimizers = (
            [name for name in OPTIMIZERS if name != "gradient_descent"] if self.mixed else ["momentum"]
        )
        found = []
        for number in range(self.trials):
            config = TrialConfig(
                loss=Choice(losses[number % len(losses)]),
                optimizer=Choice(optimizers[number % len(optimizers)]),
                learning_rate=0.003,
                batch_size=self.batch_sizes[number % len(self.batch_sizes)],
                strength=1e-4,
                epochs=self.rungs[-1],
                model=self.model,
            )
            seed = derive_seed(self.seed, number)
            found.append(TrialStart(trial_id=number, config=config, seed=seed, split_seed=self.seed))
        return found

    def ends(self) -> dict[int, int]:
        """Trial → the epoch after which it ends: of three that reach a rung but the last, two end there."""
        left = list(range(self.trials))
        ends: dict[int, int] = {}
        for rung in self.rungs[:-1]:
            survivors = left[::3]
            ends |= {number: rung for number in left if number not in survivors}
            left = survivors
        return ends | dict.fromkeys(left, self.rungs[-1])

    def images(self) -> int:
        """Training images of a round, every epoch of every trial counted."""
        return describe(self.data).train_images * sum(self.ends().values())


@dataclass(frozen=True, slots=True)
class Ran:
    """What a way took for a round."""

    seconds: float
    cpu_seconds: float | None
    """Of this process; None where others worked as well."""
    occupancy: float | None = None
    """Part of a step's rows that belonged to a trial; None where there are no rows."""
    programs: int | None = None
    """Programs that were built."""


def run(engine: Engine, starts: Sequence[TrialStart], ends: Mapping[int, int]) -> None:
    """Train trials as a worker does: a slot that gets free is taken again. Raises `ObjectiveError`."""
    waiting, held = list(reversed(starts)), 0
    while waiting or held:
        while waiting and engine.free_slots:
            engine.admit(waiting.pop())
            held += 1
        for event in engine.advance():
            if isinstance(event, TrialFailure):
                raise ObjectiveError(f"trial {event.trial_id}: {event.reason}")
            if event.last or event.report.epoch >= ends[event.trial_id]:
                engine.retire(event.trial_id)
                held -= 1


Way = Callable[[], Ran]
"""Trains the trials of a round."""


@contextmanager
def ways(work: Work, device: str, processes: Sequence[int] = (2,)) -> Iterator[dict[str, Way]]:
    """Name → a way to train the work, ready to be timed; `BASE` is among them.

    `processes`: for each number, as many processes that train one trial at a time each.
    """
    task, starts, ends = Task(data=work.data), work.starts(), work.ends()
    choices = ChoicesInMemory()
    found: dict[str, Way] = {
        BASE: lambda: timed(PlainEngine(task, device), starts, ends),
        FUSED: lambda: timed(FusedEngine(task, device), starts, ends),
        "as chosen (default)": lambda: timed(FusedEngine(task, device, choices=choices), starts, ends),
    }
    pools = []
    try:
        for count in processes:
            pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
            pools.append(pool)
            found[f"{count} processes"] = _spread(pool, work, device)
        yield found
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def measured(
    found: Mapping[str, Way], rounds: int, told: Callable[[str], object] = lambda _: None
) -> dict[str, list[Ran]]:
    """Every way in every round, in a turning order, after one round that is not counted."""
    for name, way in found.items():
        told(f"warming up: {name}")
        way()
    results: dict[str, list[Ran]] = {name: [] for name in found}
    names = list(found)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            told(f"round {number + 1} of {rounds}: {name}")
            results[name].append(found[name]())
    return results


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(results: Mapping[str, Sequence[Ran]], work: Work) -> list[dict[str, object]]:
    """A row per way: its rates, and what it is worth against `BASE`, round by round.

    By CPU time where both are one process, for others on the machine disturb it least; else by the clock.
    """
    images, rows = work.images(), []
    for name, ran in results.items():
        by_cpu = [images / one.cpu_seconds for one in ran if one.cpu_seconds]
        row: dict[str, object] = {
            "way": name,
            "images_per_second": summary([images / one.seconds for one in ran]),
            "trials_per_hour": summary([3600 * work.trials / one.seconds for one in ran]),
            "images_per_cpu_second": summary(by_cpu) if by_cpu else None,
            "ratio": summary([_ratio(one, base) for one, base in zip(ran, results[BASE], strict=True)]),
            "ratio_of": "CPU seconds" if by_cpu else "seconds",
            "occupancy": ran[-1].occupancy,
            "programs_built": ran[-1].programs,
            "rounds": [{"seconds": one.seconds, "cpu_seconds": one.cpu_seconds} for one in ran],
        }
        rows.append(row)
    return rows


def _ratio(ran: Ran, base: Ran) -> float:
    if ran.cpu_seconds is None or base.cpu_seconds is None:
        return base.seconds / ran.seconds
    return base.cpu_seconds / ran.cpu_seconds


def timed(engine: Engine, starts: Sequence[TrialStart], ends: Mapping[int, int]) -> Ran:
    """`run`, with what it took."""
    started, cpu = time.perf_counter(), time.process_time()
    run(engine, starts, ends)
    ran = Ran(time.perf_counter() - started, time.process_time() - cpu)
    if isinstance(engine, FusedEngine):
        return replace(ran, occupancy=engine.occupancy, programs=engine.programs_built)
    return ran


def _spread(pool: ProcessPoolExecutor, work: Work, device: str) -> Way:
    def way() -> Ran:
        started = time.perf_counter()
        jobs = [pool.submit(_one, work, device, number) for number in range(work.trials)]
        for job in jobs:
            job.result()
        return Ran(time.perf_counter() - started, None)

    return way


def _one(work: Work, device: str, number: int) -> None:
    """One trial, in a process of the pool."""
    run(PlainEngine(Task(data=work.data), device), [work.starts()[number]], work.ends())
