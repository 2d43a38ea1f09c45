"""What something costs: by the clock, and of the CPU on both sides of the wire."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Cost:
    """What `calls` calls of `wanted` cost, or everything at once if it is one call."""

    wanted: int
    """Trials that the case is about."""
    done: int
    """Trials that were done; if fewer, the rest is extrapolated."""
    seconds: float
    client_cpu: float
    """Of the measuring process, all threads."""
    server_cpu: float
    """Of Postgres and, where there is one, of the proxy; in steps of the kernel's clock."""
    call_seconds: tuple[float, ...] = field(default=())
    """Of every call, where a case consists of many."""

    @property
    def extrapolated(self) -> bool:
        """Whether not all was done."""
        return self.done < self.wanted

    def whole(self, seconds: float) -> float:
        """What all would have cost if it had gone on like that."""
        return seconds * self.wanted / self.done

    def as_values(self) -> dict[str, Any]:
        """For JSON: milliseconds for all that was wanted."""
        values: dict[str, Any] = {
            "ms": 1e3 * self.whole(self.seconds),
            "client_cpu_ms": 1e3 * self.whole(self.client_cpu),
            "server_cpu_ms": 1e3 * self.whole(self.server_cpu),
            "done": self.done,
            "extrapolated": self.extrapolated,
        }
        if len(self.call_seconds) > 1:
            values["ms_per_call"] = summary([1e3 * seconds for seconds in self.call_seconds])
        return values


@dataclass(frozen=True, slots=True)
class Meter:
    """Measures in this process; `servers` are the first processes of those on the other side."""

    servers: tuple[int, ...] = ()

    def measure(self, wanted: int, work: Callable[[], Sequence[float] | None]) -> Cost:
        """Do work. It returns the seconds of every call if it was done trial by trial, else None."""
        server, client, clock = cpu_of(self.servers), time.process_time(), time.perf_counter()
        calls = work()
        seconds = time.perf_counter() - clock
        return Cost(
            wanted=wanted,
            done=wanted if calls is None else len(calls),
            seconds=seconds,
            client_cpu=time.process_time() - client,
            server_cpu=cpu_of(self.servers) - server,
            call_seconds=() if calls is None else tuple(calls),
        )


def cpu_of(processes: Iterable[int]) -> float:
    """CPU seconds of processes with all their descendants, also of those that ended."""
    total = 0.0
    for pid in processes:
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
    return total


def each(things: Iterable[Any], call: Callable[[Any], object], limit: float) -> list[float]:
    """Call something for one after the other, until `limit` seconds are over; the seconds of each call."""
    began = time.perf_counter()
    seconds: list[float] = []
    for thing in things:
        before = time.perf_counter()
        call(thing)
        after = time.perf_counter()
        seconds.append(after - before)
        if after - began > limit:
            break
    return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of values."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "n": len(values),
    }


def load() -> list[float]:
    """The machine's load averages."""
    return [round(value, 2) for value in os.getloadavg()]


_QUOTED = re.compile(r"'(?:[^']|'')*'")
_ENDING = re.compile(r"\s*(COMMIT|ROLLBACK)\b", re.IGNORECASE)
_BEGINNING = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK)\b", re.IGNORECASE)


def trips(messages: Sequence[str]) -> dict[str, int]:
    """What messages to Postgres amount to.

    Outside of a transaction that a BEGIN opened, a message is a transaction of its own, whatever
    number of statements it has.
    """
    statements = commits = 0
    open_transaction = False
    for message in messages:
        parts = [part for part in _QUOTED.sub("''", message).split(";") if part.strip()]
        statements += sum(not _BEGINNING.match(part) for part in parts)
        if _ENDING.match(message):
            commits += message.strip().upper().startswith("COMMIT")
            open_transaction = False
        elif _BEGINNING.match(message):
            open_transaction = True
        elif not open_transaction:
            commits += 1
    return {"round_trips": len(messages), "statements": statements, "commits": commits}
