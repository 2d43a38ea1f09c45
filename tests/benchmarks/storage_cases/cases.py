"""The cases, each for one arm, in a process of its own."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import optuna

from tests.benchmarks.storage_cases.arms import ARMS, Arm, Batch, Grpc
from tests.benchmarks.storage_cases.measuring import Cost, Meter, load, summary

T = TypeVar("T")

SPAWN = get_context("forkserver")
SPAWN.set_forkserver_preload(["tests.benchmarks.storage_cases.arms"])


@dataclass(frozen=True)
class Place:
    """Where a case runs."""

    arm: str
    url: str
    servers: tuple[int, ...] = ()
    """First processes of the other side."""
    address: tuple[str, int] | None = None
    """Of the gRPC server, for the arm that has one."""

    def open(self, size: int) -> Arm:
        """The arm, at a study of that size; its `open` was not called yet."""
        kind = ARMS[self.arm]
        if issubclass(kind, Grpc):
            assert self.address is not None
            return kind(self.url, size, self.address)
        return kind(self.url, size)


@dataclass(frozen=True)
class Pools:
    """How much of everything."""

    sizes: tuple[int, ...] = (100, 1000, 10_000)
    ask: int = 64
    pool: int = 256
    epochs: int = 5
    limit: float = 3.0
    """Seconds of calls for a case of a stock storage; then it is extrapolated."""
    lives: int = 5


def lifecycle(place: Place, pools: Pools) -> dict[int, dict[str, Any]]:
    """Open, ask, report, decide, tell at every size: size → case → costs of every epoch or the one cost."""
    meter = Meter(place.servers)
    warm_up(place.open(pools.sizes[0]))
    return {size: _one_size(place.open(size), pools, meter) for size in pools.sizes}


def warm_up(arm: Arm) -> None:
    """Import and prepare everything that is there once.

    What was imported is then taken from the garbage collector: to look through it takes a tenth of a
    second, once in a process's life, and would always fall into the same case.
    """
    arm.open()
    life(arm, 1, epochs=1)
    arm.drop()
    arm.close()
    gc.collect()
    gc.freeze()


def _one_size(arm: Arm, pools: Pools, meter: Meter) -> dict[str, Any]:
    found: dict[str, Any] = {"load": load()}
    found["open"] = [meter.measure(1, _none(arm.open))]
    life(arm, 1, epochs=1)  # what is counted of a study once is no part of an ask or a decision
    arm.drop()
    # What was opened makes a look through all objects due, once, which falls into whatever case comes next.
    gc.collect()
    for case, count in (("ask", pools.ask), ("ask a pool", pools.pool)):
        found[case] = [meter.measure(count, lambda count=count: arm.ask(count, pools.limit))]
        arm.drop()
    arm.adopt(pools.pool)
    found["report"], found["decide"] = [], []
    for step in range(1, pools.epochs + 1):
        found["report"].append(meter.measure(pools.pool, lambda step=step: arm.report(step, pools.limit)))
        found["decide"].append(meter.measure(pools.pool, lambda step=step: arm.decide(step, pools.limit)))
    if isinstance(arm, Batch):
        found["decide by Optuna's pruner"] = [meter.measure(pools.pool, arm.decide_by_optuna)]
    found["tell"] = [meter.measure(pools.pool, lambda: arm.tell(pools.limit))]
    arm.drop()
    arm.close()
    return found


def lives(place: Place, size: int, pool: int, count: int) -> list[Cost]:
    """Whole lives of pools: asked for, 20 × (reported, decided), told."""
    arm = place.open(size)
    arm.open()
    life(arm, 1, epochs=1)
    meter = Meter(place.servers)
    try:
        return [meter.measure(pool, _none(lambda: life(arm, pool))) for _ in range(count)]
    finally:
        arm.close()


def life(arm: Arm, pool: int, epochs: int = 20) -> None:
    """One life of a pool."""
    arm.ask(pool)
    for step in range(1, epochs + 1):
        arm.report(step)
        arm.decide(step)
    arm.tell()


@dataclass(frozen=True)
class Steady:
    """Going on for a while, in several processes at once."""

    processes: int
    size: int
    pool: int
    seconds: float
    decides: bool
    """Whether every report is followed by a decision."""


@dataclass(frozen=True)
class Rate:
    """What came out of it."""

    trials_per_second: float
    """Reports per second, each with its decision if there are any: all processes together."""
    client_cpu: float
    loops_ms: list[dict[str, float]]
    """Of each process: milliseconds that a report (and decision) of its pool took."""


def steady(place: Place, how: Steady) -> Rate:
    """Reports as fast as it goes, in processes that begin together."""
    ready, results = SPAWN.Barrier(how.processes), SPAWN.SimpleQueue()
    workers = [SPAWN.Process(target=_go_on, args=(place, how, ready, results)) for _ in range(how.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"a process of {place.arm} ended with an error")
    found = [results.get() for _ in workers]
    return Rate(
        trials_per_second=sum(done / seconds for done, seconds, _, _ in found),
        client_cpu=sum(cpu for *_, cpu in found),
        loops_ms=[loops for _, _, loops, _ in found],
    )


def _go_on(place: Place, how: Steady, ready: Any, results: Any) -> None:
    try:
        arm = place.open(how.size)
        arm.open()
        arm.adopt(how.pool)
        ready.wait(120)
    except BaseException:
        ready.abort()
        raise
    began, cpu = time.perf_counter(), time.process_time()
    done, loops = 0, []
    for step in itertools.count(1):
        left = began + how.seconds - time.perf_counter()
        if left <= 0:
            break
        before = time.perf_counter()
        calls = arm.report(step, left)
        count = how.pool if calls is None else len(calls)
        if how.decides:
            # A decision for each report, so what didn't fit into the time counts by its decisions.
            left = began + how.seconds - time.perf_counter()
            calls = arm.decide(step, left)
            count = how.pool if calls is None else len(calls)
        done += count
        loops.append(time.perf_counter() - before)
    seconds = time.perf_counter() - began
    results.put((done, seconds, summary([1e3 * loop for loop in loops]), time.process_time() - cpu))
    ready.wait(120)
    # Running trials are left to whoever looks after the database; an exit by the way of connections
    # would wait for what the stock storages hold.
    os._exit(0)


def in_process(work: Callable[..., T], *arguments: Any) -> T:
    """What some work returns, done in a new process."""
    results = SPAWN.SimpleQueue()
    worker = SPAWN.Process(target=_do, args=(work, arguments, results))
    worker.start()
    found = None
    while found is None and worker.is_alive():
        worker.join(0.02)
        if not results.empty():
            found = results.get()
    worker.join()
    if found is None:
        raise RuntimeError(f"{work.__name__} ended without a result")
    return found  # type: ignore[no-any-return]


def _do(work: Callable[..., Any], arguments: Sequence[Any], results: Any) -> None:
    results.put(work(*arguments))


@contextmanager
def grpc_server(url: str) -> Iterator[tuple[tuple[str, int], int]]:
    """Optuna's gRPC proxy server in a process of its own: its address, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = SPAWN.Process(target=_serve, args=(url, port), daemon=True)
    server.start()
    try:
        from optuna.storages import GrpcStorageProxy

        proxy = GrpcStorageProxy(host="127.0.0.1", port=port)
        proxy.wait_server_ready(60)
        proxy.close()
        assert server.pid is not None
        yield ("127.0.0.1", port), server.pid
    finally:
        server.terminate()
        server.join()


def _serve(url: str, port: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(url), host="127.0.0.1", port=port)


def _none(work: Callable[[], object]) -> Callable[[], None]:
    def done() -> None:
        work()

    return done
