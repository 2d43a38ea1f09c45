"""How fast this machine trains trials, fused and in other ways: what `shoal bench` and benchmarks measure.

A round trains the same trials in every way. An engine that trains many at once lives through all rounds, as
it does in a worker: what it compiles, records and chooses is done in the round that isn't counted. Pruning is
played, not decided by values: a trial ends after 1 or 3 epochs, or comes to its end, as successive halving
with eta 3 would have it on average, so that all ways do the same work whatever the order in which their
trials report. A way that this machine hasn't what it takes for is left out with the reason, and so is one
that raises: one row more or less must not cost the others.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

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
from objectives.bench_gpu import (
    NotHereError,
    as_client,
    held_by_torch,
    shared_by_processes,
    start_counting,
)
from objectives.choices import AlwaysFused, ChoicesInMemory
from objectives.datasets import describe
from objectives.devices import resolve_device
from objectives.fused import FusedEngine
from objectives.losses import LOSSES
from objectives.optimizers import OPTIMIZERS
from objectives.precision import resolve_precision
from objectives.trainer import PlainEngine

logger = logging.getLogger(__name__)

RUNGS = (1, 3, 9)
"""Epochs after which two thirds of the trials end; those that are left at the last end there."""

BASE = "one by one"
"""The way that the others are held against: one process, one trial at a time, in plain PyTorch."""

FUSED = "fused"

MODEL = Choice("cnn")

WARM_UP_SHARE = 0.6
"""Of the time that there is, after which no further way is begun: it would have no round."""

ROWS_PER_SLOT = 2
"""Of a step: as many as a batch of 64 images needs."""


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
    convolutions: Mapping[str, str] | None = None
    """Layer → the backend of this convolution; None where none was computed for many trials at once."""
    memory: int | None = None
    """Bytes of a GPU that torch held at most, in all processes together; None: not on a GPU."""
    held_back: Sequence[str] = ()
    """What made it slower than it might have been on this machine, as far as the engine knows."""


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
def ways(
    work: Work, device: str, processes: Sequence[int] = (2,), precision: str = "auto"
) -> Iterator[dict[str, Way]]:
    """Name → a way to train the work, ready to be timed; `BASE` is among them.

    `processes`: for each number, as many processes that train one trial at a time each; on a GPU once more
    under MPS. Raises `ObjectiveError` for a device or precision that isn't there.
    """
    task, starts, ends = task_of(work, device, precision), work.starts(), work.ends()
    choices, always = ChoicesInMemory(), AlwaysFused()
    found: dict[str, Way] = {
        BASE: lambda: timed(PlainEngine(task, device, eager=True), starts, ends),
        FUSED: lived_through(lambda: FusedEngine(task, device, choices=always), starts, ends),
        "as chosen (default)": lived_through(
            lambda: FusedEngine(task, device, choices=choices), starts, ends
        ),
    }
    with ExitStack() as pools:
        for count in processes:
            found[f"{count} processes"] = pools.enter_context(in_processes(work, device, task, count))
            if resolve_device(device).type == "cuda":
                found[f"{count} processes, MPS"] = pools.enter_context(
                    in_processes(work, device, task, count, mps=True)
                )
        yield found


def task_of(work: Work, device: str, precision: str) -> Task:
    """What the trials of a round share. Raises `ObjectiveError`."""
    return Task(data=work.data, precision=resolve_precision(precision, resolve_device(device)))


def measured(
    found: Mapping[str, Way],
    rounds: int,
    told: Callable[[str], object] = lambda _: None,
    *,
    until: float = math.inf,
    left_out: dict[str, str] | None = None,
    first: dict[str, float] | None = None,
    kept: Callable[[Mapping[str, Sequence[Ran]]], object] = lambda _: None,
) -> dict[str, list[Ran]]:
    """Every way in every round, in a turning order, after one round that is not counted.

    `until`, by `time.perf_counter`: nothing is begun that, as long as it took before, would end later, so
    that some ways may have fewer rounds. `left_out` gets the ways that raised, with what they said, and those
    that there was no time for; without it what they raise is raised. `first` gets the seconds of the round
    that isn't counted, and `kept` is told of what there is whenever there is more.
    """
    results: dict[str, list[Ran]] = {}
    taken: dict[str, float] = {}
    began = time.perf_counter()
    for name, way in found.items():
        told(f"warming up: {name}")
        if time.perf_counter() > began + WARM_UP_SHARE * (until - began):
            _leave_out(left_out, name, "there was no time for it")
            continue
        started = time.perf_counter()
        try:
            way()
        except Exception as error:
            if left_out is None or name == BASE:
                raise
            logger.info("%s is left out", name, exc_info=not isinstance(error, NotHereError))
            _leave_out(left_out, name, str(error) or type(error).__name__)
        else:
            results[name] = []
            taken[name] = time.perf_counter() - started
            if first is not None:
                first[name] = taken[name]
    names, broken = list(results), set[str]()
    for number in range(rounds):
        turn = number % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            if name in broken or started + taken[name] > until:
                continue
            told(f"round {number + 1} of {rounds}: {name}")
            try:
                ran = found[name]()
            except Exception as error:
                if left_out is None:
                    raise
                logger.info(
                    "%s breaks in round %s", name, number + 1, exc_info=not isinstance(error, NotHereError)
                )
                _leave_out(left_out, name, f"round {number + 1}: {str(error) or type(error).__name__}")
                broken.add(name)
                continue
            taken[name] = max(time.perf_counter() - started, ran.seconds)
            results[name].append(ran)
            kept({way: ran for way, ran in results.items() if ran})
    for name in names:
        if not results[name]:
            if name not in broken:
                _leave_out(left_out, name, "there was no time for it")
            del results[name]
    return results


def _leave_out(left_out: dict[str, str] | None, name: str, reason: str) -> None:
    if left_out is not None:
        left_out[name] = reason


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(
    results: Mapping[str, Sequence[Ran]], work: Work, works: Mapping[str, Work] | None = None
) -> list[dict[str, object]]:
    """A row per way: its rates, and what it is worth against `BASE` per image, round by round.

    `works`: of the ways that trained other trials than `work`. By CPU time where both are one process on a
    CPU, for others on the machine disturb it least; else by the clock.
    """
    rows = []
    bases = results[BASE]
    for name, ran in results.items():
        mine = (works or {}).get(name, work)
        images, share = mine.images(), work.images() / mine.images()
        by_cpu = [images / one.cpu_seconds for one in ran if one.cpu_seconds]
        row: dict[str, object] = {
            "way": name,
            "images_per_second": summary([images / one.seconds for one in ran]),
            "trials_per_hour": summary([3600 * mine.trials / one.seconds for one in ran]),
            "images_per_cpu_second": summary(by_cpu) if by_cpu else None,
            "ratio": summary([_ratio(one, base) / share for one, base in zip(ran, bases, strict=False)]),
            "ratio_of": "CPU seconds" if by_cpu else "seconds",
            "n": len(ran),
            "memory_bytes": max((one.memory for one in ran if one.memory is not None), default=None),
            "occupancy": ran[-1].occupancy,
            "programs_built": ran[-1].programs,
            "convolutions": ran[-1].convolutions,
            "held_back": list(ran[-1].held_back),
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
    before = start_counting()
    started, cpu = time.perf_counter(), time.process_time()
    run(engine, starts, ends)
    ran = Ran(time.perf_counter() - started, time.process_time() - cpu)
    if (memory := held_by_torch(before)) is not None:  # a GPU's work is not in this process's CPU time
        ran = replace(ran, cpu_seconds=None, memory=memory)
    if isinstance(engine, FusedEngine):
        return replace(
            ran,
            occupancy=engine.occupancy,
            programs=engine.programs_built,
            convolutions=next(iter(engine.convolutions), None),  # a round has one model
            held_back=engine.held_back,
        )
    return ran


def lived_through(
    make: Callable[[], FusedEngine], starts: Sequence[TrialStart], ends: Mapping[int, int]
) -> Way:
    """A way by one engine that lives through all rounds, and has the memory that it took in the first."""
    engines: list[FusedEngine] = []
    most: list[int] = []

    def way() -> Ran:
        if not engines:
            engines.append(make())
        ran = timed(engines[0], starts, ends)
        if ran.memory is None:
            return ran
        most.append(ran.memory)
        return replace(ran, memory=max(most))

    return way


@contextmanager
def in_processes(work: Work, device: str, task: Task, count: int, *, mps: bool = False) -> Iterator[Way]:
    """A way to train the work in so many processes, one trial at a time each; they live as long as the block.

    With `mps` they share the GPU by its Multi-Process Service, which is started for them; where it can't be,
    the way raises `NotHereError`.
    """
    with ExitStack() as held:
        variables: dict[str, str] = {}
        try:
            if mps:
                variables = held.enter_context(shared_by_processes())
        except NotHereError as error:
            yield _refusing(error)
            return
        pool = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=_have_variables, initargs=(variables,)
        )
        held.callback(pool.shutdown, cancel_futures=True)
        yield partial(_spread, pool, work, device, task)


def _have_variables(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)


def _refusing(error: Exception) -> Way:
    def way() -> Ran:
        raise error

    return way


def _spread(pool: ProcessPoolExecutor, work: Work, device: str, task: Task) -> Ran:
    started = time.perf_counter()
    jobs = [pool.submit(_one, work, device, task, number) for number in range(work.trials)]
    most: dict[int, int] = {}
    try:
        for process, memory in (job.result() for job in jobs):
            if memory is not None:
                most[process] = max(most.get(process, 0), memory)
    except BrokenProcessPool as error:
        raise ObjectiveError("a process ended in the midst of a trial, or hung and was ended") from error
    return Ran(time.perf_counter() - started, None, memory=sum(most.values()) if most else None)


def _one(work: Work, device: str, task: Task, number: int) -> tuple[int, int | None]:
    """One trial, in a process of the pool: which one, and what it holds of a GPU."""
    with as_client():
        start_counting()
        run(PlainEngine(task, device, eager=True), [work.starts()[number]], work.ends())
        return os.getpid(), held_by_torch()
