"""How the trials were run, for the protocol: trainer, devices, workers, slots, trials at once, shared ones.

All of it is what workers and their attempts left in the database; what an older experiment did not
record is said to be unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from search.compare.base import Comparison, Way
from search.formats import format_count

UNKNOWN = "not recorded"

MOST_WAYS = 12
"""Kinds of trials whose way of training is written out; more are counted."""

TRAINERS = {
    "fused": "fused: the trials in a worker's slots train together, but for kinds that are faster one by one",
    "plain": "plain: one trial after the other",
    "function": "none: trials call the objective",
}


def execution_entries(comparison: Comparison) -> list[tuple[str, str]]:
    """Names and texts of the protocol's part on how the trials were run."""
    ran = comparison.execution
    return [
        ("trainer", _trainer(comparison)),
        *_ways(ran.ways),
        ("devices", _listed(device for device in _devices(comparison)) or UNKNOWN),
        ("workers", _workers(comparison)),
        ("slots", _slots(comparison)),
        ("shared trials", shared_in_words(comparison)),
    ]


def most_in_flight(comparison: Comparison, method: str) -> int | None:
    """The most trials of one of the method's studies that were under a lease at once; None: not recorded."""
    held = comparison.execution.most_held
    found = [held[study.name] for study in comparison.studies_of(method) if study.name in held]
    return max(found, default=None)


def shared_in_words(comparison: Comparison) -> str:
    """Which trials were trained once and counted for several studies."""
    shared = {
        method: sum(
            trial.shared_with is not None for study in comparison.studies_of(method) for trial in study.trials
        )
        for method in comparison.methods
    }
    told = [f"{format_count(n)} of {method}" for method, n in shared.items() if n]
    if not told:
        return "none: every trial was trained for its own study"
    saved = sum(trial.shared_epochs for study in comparison.studies for trial in study.trials)
    return (
        f"trained once with another study's trial and counted for each: {', '.join(told)}; "
        f"{format_count(saved)} epochs that are counted were not trained therefore"
    )


def _trainer(comparison: Comparison) -> str:
    told = Counter(worker.trainer for worker in comparison.execution.workers if worker.trainer is not None)
    if told:
        return "; ".join(TRAINERS.get(name, name) for name in told)
    if comparison.is_function:
        return TRAINERS["function"]
    return TRAINERS["fused"] if comparison.execution.ways else UNKNOWN


def _devices(comparison: Comparison) -> list[str]:
    ran = comparison.execution
    told = [worker.device for worker in ran.workers if worker.device is not None]
    return told or sorted({way.device for way in ran.ways})


def _workers(comparison: Comparison) -> str:
    hosts = Counter(worker.host for worker in comparison.execution.workers)
    if not hosts:
        return UNKNOWN
    where = ", ".join(f"{n} on {host}" for host, n in hosts.items())
    return f"{where}; replaced ones among them"


def _slots(comparison: Comparison) -> str:
    workers = comparison.execution.workers
    if not workers:
        return UNKNOWN
    slots = sorted({worker.slots for worker in workers if worker.slots is not None})
    each = f"{' to '.join(map(str, dict.fromkeys((slots[0], slots[-1]))))} per worker; " if slots else ""
    most = max(worker.most_held for worker in workers)
    return f"{each}a worker held {most} trials at most, those claimed ahead among them"


def _ways(ways: Sequence[Way]) -> list[tuple[str, str]]:
    """One entry per architecture and device, with what was measured per size of batches."""
    kinds: dict[tuple[str, str], list[Way]] = {}
    for way in sorted(ways, key=lambda way: way.batch):
        kinds.setdefault((way.program, way.device), []).append(way)
    entries = [
        ("chosen way", f"{architecture(program)} on {device}: {'; '.join(map(_way, found))}")
        for (program, device), found in kinds.items()
    ]
    more = len(entries) - MOST_WAYS
    left = [("chosen way", f"{more} more architectures, in the database")] if more > 0 else []
    return entries[:MOST_WAYS] + left


def _way(way: Way) -> str:
    said = "fused" if way.fused else f"one by one ({way.reason})"
    if way.fused_rate is not None and way.alone_rate is not None:
        said += f", at {way.fused_rate:,.0f} images a second fused and {way.alone_rate:,.0f} one by one"
    if way.slots is not None:
        said += f", memory for {way.slots} slots"
    return f"batches up to {way.batch}: {said}"


def architecture(program: str) -> str:
    """`cnn (dense 32, depth 2, width 8)` out of a program's key; the key itself if it is another's."""
    try:
        name, options, *_ = json.loads(program)
        told = ", ".join(f"{option} {value}" for option, value in options)
    except (ValueError, TypeError):
        return program
    return f"{name} ({told})" if told else str(name)


def _listed(names: Iterable[str]) -> str:
    counted = Counter(names)
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counted.items())
