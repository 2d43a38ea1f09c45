"""Which targets a benchmark missed, by how much, and why: from a profile taken in the same run.

A profile says how many microseconds an image costs, by what operators are about. Two of them, of the way that
was to be fast and of the one that it is held against, say where a gain stays away: what takes the time, what
the other way pays for the same, and what could be gained at most if all the rest were free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS: Mapping[str, tuple[str, ...]] = {
    "convolutions": ("conv", "SmallMaps"),
    "pooling": ("pool",),
    "matrix products": ("mm", "linear", "matmul", "einsum"),
    "copies": (
        *("copy", "cat", "stack", "index", "gather", "scatter", "clone", "contiguous", "reorder", "pad"),
        *("zero", "fill", "empty", "::to", "resize", "select", "slice", "view"),
    ),
}
"""What operators are about → parts of their names; the first that fits counts, the rest is arithmetic."""

ARITHMETIC = "arithmetic on single numbers"
OUTSIDE = "Python, outside of operators"

TOP = 8
"""Operators that are listed by name."""


def kind_of(operator: str) -> str:
    """What an operator is about."""
    return next((kind for kind, parts in KINDS.items() if any(p in operator for p in parts)), ARITHMETIC)


def profiled(train: Callable[[], object], images: int) -> dict[str, Any]:
    """Microseconds per image by kind of operator, and the shares of the top operators, of `train`.

    `images`: how many it trains. On a GPU the device's time, else the clock of this thread and of what it
    calls; profiling itself costs a part of it.
    """
    gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    # There is one cycle; torch before 2.13 warns that it would forget all but the last.
    with profile(activities=activities, acc_events=True) as found:
        started = time.perf_counter()
        train()
        passed = 1e6 * (time.perf_counter() - started)
    field = "self_device_time_total" if gpu else "self_cpu_time_total"
    spent = {one.key: float(getattr(one, field)) for one in found.key_averages()}
    kinds: dict[str, float] = {}
    for name, micros in spent.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + micros
    if not gpu:
        kinds[OUTSIDE] = max(0.0, passed - sum(spent.values()))
    total = sum(kinds.values()) or 1.0
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    top = sorted(spent.items(), key=lambda item: -item[1])[:TOP]
    return {
        "microseconds_per_image": {kind: round(micros / images, 2) for kind, micros in ordered},
        "share_of_top_operators": {name: round(micros / total, 3) for name, micros in top},
        "images": images,
    }


def compared(profiles: Mapping[str, dict[str, Any]]) -> str:
    """Why the first of two profiled ways is no faster against the second, in words."""
    (one, mine), (other, theirs) = (
        (name, found["microseconds_per_image"]) for name, found in profiles.items()
    )
    total, base = sum(mine.values()), sum(theirs.values())
    kind = max(mine, key=lambda name: mine[name])
    cost, same = mine[kind], theirs.get(kind, 0.0)
    bound = base / cost if cost else float("inf")
    return (
        f"under the profiler an image takes {total:.0f} µs {one} and {base:.0f} µs {other}; {kind} are "
        f"{cost / total:.0%} of it, {cost:.0f} µs against {same:.0f}, and all the rest {total - cost:.0f} "
        f"against {base - same:.0f}; were the rest free, {one} would be {bound:.2f} times as fast"
    )


def missed(
    target: str, found: float, least: float, why: Callable[[], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """An entry if `found` is under `least`; only then is `why` asked."""
    if found >= least:
        return []
    short = round(1 - found / least, 3)
    return [{"target": target, "least": least, "found": round(found, 3), "short_by": short, **why()}]


def by_profile(ways: Sequence[tuple[str, Callable[[], object], int]]) -> dict[str, Any]:
    """The reason why the first of two ways is no faster: name, what trains, and its images, of each."""
    profiles = {name: profiled(train, images) for name, train, images in ways}
    return {"why": compared(profiles), "profiles": profiles}
