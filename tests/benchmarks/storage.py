"""What storing a search costs, against Optuna's own storages on the same Postgres.

    python -m tests.benchmarks.storage [--quick] [--parts counts costs lives rates] [--output results.json]

Five ways: `stock` is RDBStorage with its cache; `grpc` GrpcStorageProxy before a server with that (it needs
`pip install grpcio protobuf`, and is left out without); `plain` is our storage called as those are; `batch`
our storage with the whole pool in a batch; `worker` what our workers do: leases, one write for a pool with
all metrics, the pruning rule for a pool. The studies have 100, 1,000 and 10,000 trials × 20 values; each way
and round begins on its own copy of the same database, in a process of its own, the ways in a turning order.

`counts`: messages on the wire (round trips), statements and commits of each case, exact. `costs`: wall and
CPU milliseconds (of the client; of Postgres with the proxy's server) of opening a study, asking for 64 and
for 256 trials with 6 parameters, and, with 256 running, of one report each, one decision of the median rule
each, and the end of each. The ways over our storage ask our pruner, which says what Optuna's says; what that
one costs in a batch is a case of its own. `lives`: whole lives of trials, alone and 64 at a time. `rates`:
reports per second for as long as given, and reports with their decisions from 1, 4 and 16 processes with a
pool of 16 each.

Ways that call trial by trial have some seconds for a case; what they had not done by then is extrapolated
from the calls that they did, and marked so. Their cost per call grows with the trials that run, so asking is
put too low rather than too high. A part that is run again replaces what the file has of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from optuna.exceptions import ExperimentalWarning

from storage.optuna import outbox
from tests.benchmarks.fused_cpu import git
from tests.benchmarks.storage_cases.arms import ARMS, OURS, SEED, Arm, Grpc
from tests.benchmarks.storage_cases.cases import (
    Place,
    Pools,
    Steady,
    grpc_server,
    in_process,
    life,
    lifecycle,
    lives,
    steady,
)
from tests.benchmarks.storage_cases.databases import Server
from tests.benchmarks.storage_cases.measuring import Cost, load, summary, trips
from tests.contracts.postgres_proxy import PostgresProxy

CASES = ("open", "ask", "ask a pool", "report", "decide", "report + decide", "tell")
STOCK = ("stock", "grpc")
POOLED = ("batch", "worker")
STOCK_KINDS = tuple(ARMS[name] for name in STOCK)
IN_POOL = "in a pool of 64, per trial"
KINDS = ("ms", "client_cpu_ms")


class Benchmark:
    """The parts, on one server."""

    def __init__(self, server: Server, pools: Pools, *, quick: bool) -> None:
        self.server = server
        self.pools = pools
        self.quick = quick
        self.arms = [name for name in ARMS if name != "grpc" or find_spec("grpc") is not None]

    @contextmanager
    def place(self, arm: str, proxied: bool = False) -> Iterator[tuple[Place, PostgresProxy | None]]:
        """A fresh database with all that an arm needs; on request behind a proxy that counts."""
        with self.server.copy() as url:
            proxy = PostgresProxy(url) if proxied else None
            place = Place(arm, proxy.url if proxy else url, (self.server.pid,))
            try:
                if arm == "grpc":
                    with grpc_server(place.url) as (address, pid):
                        yield replace(place, address=address, servers=(*place.servers, pid)), proxy
                else:
                    yield place, proxy
            finally:
                if proxy:
                    proxy.__exit__()

    def counts(self) -> dict[str, Any]:
        """Exact counts at the study of middle size, or of so many trials as are called."""
        size = self.pools.sizes[len(self.pools.sizes) // 2]
        found: dict[str, Any] = {"trials": size}
        for name in self.arms:
            with self.place(name, proxied=True) as (place, proxy):
                assert proxy is not None
                # What waits to be written goes out with what comes next, not at a moment of its own.
                with mock.patch.object(outbox, "INTERVAL", 3600):
                    found[name] = self._counts_of(place.open(size), proxy)
            print(name, {case: one["round_trips"] for case, one in found[name].items()}, flush=True)
        return found

    def _counts_of(self, arm: Arm, proxy: PostgresProxy) -> dict[str, Any]:
        found: dict[str, Any] = {}
        arm.open()
        life(arm, 1, epochs=1)
        pools = self.pools
        most = 16 if type(arm) in STOCK_KINDS else pools.pool

        def count(case: str, wanted: int, work: Callable[[], Sequence[float] | None]) -> None:
            proxy.taken()
            before = arm.calls if isinstance(arm, Grpc) else 0
            made = work()
            done = wanted if made is None else len(made)
            found[case] = {
                **{key: number * wanted / done for key, number in trips(proxy.taken()).items()},
                "for": wanted,
                "done": done,
            }
            if isinstance(arm, Grpc):
                found[case]["calls_of_the_proxy"] = (arm.calls - before) * wanted / done

        count("life alone", 1, lambda: life(arm, 1))  # type: ignore[func-returns-value]
        if type(arm) in (ARMS[name] for name in POOLED):
            count("64 lives", 64, lambda: life(arm, 64))  # type: ignore[func-returns-value]
        count("ask", pools.ask, lambda: arm.ask(min(pools.ask, most)))
        arm.drop()
        arm.adopt(min(pools.pool, most))
        count("report", pools.pool, lambda: arm.report(1))
        count("decide", pools.pool, lambda: arm.decide(1))
        count("tell", pools.pool, arm.tell)
        arm.drop()
        arm.close()
        return found

    def costs(self, rounds: int, stock_rounds: int) -> dict[str, Any]:
        """Every case at every size, in rounds."""
        taken: dict[str, dict[int, dict[str, list[Cost]]]] = {name: {} for name in self.arms}
        loads: list[dict[str, Any]] = []
        for number in range(rounds):
            turn = number % len(self.arms)
            for name in self.arms[turn:] + self.arms[:turn]:
                if name not in POOLED and number >= stock_rounds:
                    continue
                epochs = self.pools.epochs if name in POOLED else 1
                with self.place(name) as (place, _):
                    done = in_process(lifecycle, place, replace(self.pools, epochs=epochs))
                for size, cases in done.items():
                    loads.append({"arm": name, "round": number, "trials": size, "load": cases.pop("load")})
                    cases["report + decide"] = [
                        _together(*both) for both in zip(cases["report"], cases["decide"], strict=True)
                    ]
                    of_size = taken[name].setdefault(size, {})
                    for case, costs in cases.items():
                        of_size.setdefault(case, []).extend(costs)
                print(name, number, _medians(taken[name]), load(), flush=True)
        return _cost_tables(taken) | {"loads": loads}

    def lives(self) -> dict[str, Any]:
        """Whole lives."""
        size = self.pools.sizes[len(self.pools.sizes) // 2]
        found: dict[str, Any] = {"trials": size, "alone": {}, IN_POOL: {}}
        for name in self.arms:
            count = self.pools.lives
            with self.place(name) as (place, _):
                found["alone"][name] = _of_costs(in_process(lives, place, size, 1, count)) | {"load": load()}
                if name in POOLED:
                    costs = in_process(lives, place, size, 64, count)
                    found[IN_POOL][name] = _of_costs(costs, per=64) | {"load": load()}
            print(name, found["alone"][name]["ms"], load(), flush=True)
        stock = found["alone"]["stock"]["ms"]["median"]
        found["stock alone / ours"] = {
            f"{name} {how}": stock / of_arm[name]["ms"]["median"]
            for how, of_arm in (("alone", found["alone"]), (IN_POOL, found[IN_POOL]))
            for name in of_arm
            if name not in STOCK
        }
        return found

    def rates(self, seconds: float, window: float) -> dict[str, Any]:
        """Reports per second: for long from one or two processes; with decisions from more."""
        largest, middle = self.pools.sizes[-1], self.pools.sizes[len(self.pools.sizes) // 2]
        pool = self.pools.pool
        found: dict[str, Any] = {"reports": [], "reports with decisions": []}
        for name, processes, long in (
            ("worker", 1, True),
            ("worker", 2, True),
            ("batch", 1, True),
            ("batch", 2, True),
            ("stock", 1, False),
            ("grpc", 1, False),
        ):
            how = Steady(processes, largest, pool, seconds if long else window, decides=False)
            if name in self.arms:
                found["reports"].append(self._rate(name, how))
        for name in self.arms:
            for processes in (1, 4) if self.quick else (1, 4, 16):
                how = Steady(processes, middle, 16, window, decides=True)
                found["reports with decisions"].append(self._rate(name, how))
        return found

    def _rate(self, name: str, how: Steady) -> dict[str, Any]:
        before = load()
        with self.place(name) as (place, _):
            rate = steady(place, how)
        found = {
            "arm": name,
            "processes": how.processes,
            "pool": how.pool,
            "trials": how.size,
            "seconds": how.seconds,
            "per_second": rate.trials_per_second,
            "client_cpu_seconds": rate.client_cpu,
            "ms_per_round_of_the_pool": rate.loops_ms,
            "load": [before, load()],
        }
        print(name, how.processes, how.pool, round(rate.trials_per_second, 1), load(), flush=True)
        return found


def _together(report: Cost, decide: Cost) -> Cost:
    """A report and a decision for the whole pool; what was extrapolated of either is so here."""
    return Cost(
        wanted=report.wanted,
        done=min(report.done, decide.done),
        seconds=_both(report, decide, "seconds"),
        client_cpu=_both(report, decide, "client_cpu"),
        server_cpu=_both(report, decide, "server_cpu"),
    )


def _both(report: Cost, decide: Cost, name: str) -> float:
    share = min(report.done, decide.done) / report.wanted
    return share * sum(cost.whole(getattr(cost, name)) for cost in (report, decide))


def _of_costs(costs: Sequence[Cost], per: int = 1) -> dict[str, Any]:
    """Costs of rounds: medians and extremes, and every one."""
    values = [cost.as_values() for cost in costs]
    found: dict[str, Any] = {
        kind: summary([one[kind] / per for one in values]) | {"all": [one[kind] / per for one in values]}
        for kind in ("ms", "client_cpu_ms", "server_cpu_ms")
    }
    found["done"] = min(cost.done for cost in costs)
    found["extrapolated"] = any(cost.extrapolated for cost in costs)
    if len(costs[0].call_seconds) > 1:
        calls = [1e3 * seconds for cost in costs for seconds in cost.call_seconds]
        found["ms_per_call"] = summary(calls)
    return found


def _cost_tables(taken: Mapping[str, Mapping[int, Mapping[str, list[Cost]]]]) -> dict[str, Any]:
    arms = {
        name: {
            str(size): {case: _of_costs(costs) for case, costs in cases.items()} for size, cases in of.items()
        }
        for name, of in taken.items()
    }
    sizes = list(next(iter(arms.values())))
    first, last = sizes[0], sizes[-1]
    return {
        "arms": arms,
        "ratios": {
            f"{other} / {name}": {size: _ratios(arms[other][size], arms[name][size]) for size in sizes}
            for other in STOCK
            for name in OURS
            if other in arms
        },
        f"growth {first} → {last}": {
            name: {
                case: {kind: _ratio(of_arm[last][case], of_arm[first][case], kind) for kind in KINDS}
                for case in of_arm[last]
                if case != "open"
            }
            for name, of_arm in arms.items()
        },
    }


def _ratios(others: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    return {
        case: {
            "ms": _ratio(others[case], ours[case], "ms"),
            "cpu": _cpu(others[case]) / _cpu(ours[case]),
            "extrapolated": others[case]["extrapolated"],
        }
        for case in CASES
    }


def _ratio(case: Mapping[str, Any], other: Mapping[str, Any], kind: str) -> float:
    return float(case[kind]["median"] / other[kind]["median"])


def _cpu(case: Mapping[str, Any]) -> float:
    """CPU of both sides, the mean of all rounds: the kernel counts the server's in steps."""
    return max(sum(statistics.fmean(case[kind]["all"]) for kind in ("client_cpu_ms", "server_cpu_ms")), 1e-9)


def _medians(taken: Mapping[int, Mapping[str, list[Cost]]]) -> dict[int, dict[str, float]]:
    return {
        size: {case: round(_of_costs(costs)["ms"]["median"], 1) for case, costs in cases.items()}
        for size, cases in taken.items()
    }


def circumstances(server: Server) -> dict[str, Any]:
    """Where and with what it was measured."""
    code = ["--", "storage", "search", "tests/benchmarks"]
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    versions = {}
    for name in ("optuna", "sqlalchemy", "psycopg2-binary", "grpcio", "protobuf"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "revision": git("rev-parse", "HEAD"),
        "changed_since": git("status", "--porcelain", *code).splitlines(),
        "seed": SEED,
        "python": platform.python_version(),
        "versions": versions,
        "postgres": server.settings,
        "stored_intermediate_values": server.values,
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--rounds", type=int, help="of our ways; 5")
    parser.add_argument("--stock-rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which reports are sustained")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ExperimentalWarning)
    os.environ["PYTHONWARNINGS"] = "ignore"  # the same for the processes of the cases
    pools, rounds, seconds, window = Pools(), arguments.rounds or 5, arguments.seconds, 3.0
    if arguments.quick:
        pools = Pools(sizes=(20, 60), ask=4, pool=8, epochs=2, limit=0.2, lives=2)
        rounds, seconds, window = arguments.rounds or 2, 0.5, 0.5
    results: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        results = json.loads(arguments.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), pools.sizes)
        try:
            benchmark = Benchmark(server, pools, quick=arguments.quick)
            results |= {"command": COMMAND, "quick": arguments.quick}
            for part in arguments.parts:
                print(f"-- {part}", load(), flush=True)
                began, before = time.perf_counter(), load()
                found = {
                    "counts": benchmark.counts,
                    "costs": lambda: benchmark.costs(rounds, arguments.stock_rounds),
                    "lives": benchmark.lives,
                    "rates": lambda: benchmark.rates(seconds, window),
                }[part]()
                found["circumstances"] = circumstances(server) | {
                    "load": [before, load()],
                    "seconds": time.perf_counter() - began,
                }
                results[part] = found
                if arguments.output:
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        finally:
            server.stop()


PARTS = ["counts", "costs", "lives", "rates"]
COMMAND = "python -m tests.benchmarks.storage --output tests/benchmarks/results/storage.json"


if __name__ == "__main__":
    main()
