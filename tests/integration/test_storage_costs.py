"""What a pool costs: exact messages to the database, CPU seconds against stock Optuna, and the benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from storage.database import Database
from tests.benchmarks.storage_cases.arms import Arm, Batch, Plain, Stock, Worker
from tests.benchmarks.storage_cases.cases import life
from tests.benchmarks.storage_cases.measuring import trips
from tests.contracts.big_experiment import Size, store_big_experiment
from tests.contracts.postgres_proxy import PostgresProxy

TRIALS = 60
AnyArm = TypeVar("AnyArm", bound=Arm)


@pytest.fixture
def stored(database: Database) -> str:
    """The URL of a database with a study of finished trials."""
    size = Size(methods=("random",), replicates=1, trials=TRIALS, running=0, waiting=0)
    store_big_experiment(database, f"n{TRIALS}", size)
    return database.url


@pytest.fixture
def proxy(stored: str) -> Iterator[PostgresProxy]:
    with PostgresProxy(stored) as opened:
        yield opened


def warm(arm: AnyArm) -> AnyArm:
    """Open the study, and do everything once: what a client asks a server that is new to it doesn't count."""
    arm.open()
    life(arm, 1, epochs=1)
    arm.drop()
    return arm


def counted(proxy: PostgresProxy, work: Callable[[], object]) -> int:
    """Messages that some work sends, each a round trip."""
    proxy.taken()
    work()
    return len(proxy.taken())


def test_whole_lives_of_a_workers_pool(proxy: PostgresProxy) -> None:
    worker = warm(Worker(proxy.url, TRIALS))
    # The study's lock, the study read, the leases, the values, the lock given back; write and read; the end.
    assert counted(proxy, lambda: life(worker, 64)) == 5 + 20 * 2 + 1
    worker.close()


def test_whole_lives_of_a_batch(proxy: PostgresProxy) -> None:
    batch = warm(Batch(proxy.url, TRIALS))
    assert counted(proxy, lambda: life(batch, 64)) == 3 + 20 * 2 + 1
    batch.close()


def test_a_whole_life_call_by_call(proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other Optuna clients pay on our storage: a message for each decision, and three more."""
    monkeypatch.setattr("storage.optuna.outbox.INTERVAL", 3600)  # the background thread does not interfere
    plain = warm(Plain(proxy.url, TRIALS))
    assert counted(proxy, lambda: life(plain, 1)) == 3 + 20
    plain.close()


def test_statements_and_commits_are_told_apart() -> None:
    stock = ["BEGIN", "SELECT ';', 'it''s'", "INSERT INTO a VALUES (1)", "COMMIT"]
    stock += ["BEGIN", "SELECT 1", "ROLLBACK"]
    assert trips(stock) == {"round_trips": 7, "statements": 3, "commits": 1}
    ours = ["SELECT 1; INSERT INTO a VALUES (';;');", "SELECT 2"]
    assert trips(ours) == {"round_trips": 2, "statements": 3, "commits": 2}


@pytest.mark.slow
def test_cpu_seconds_against_stock_optuna(stored: str) -> None:
    """Of this process, in one run: the ratios that tests/benchmarks/storage.py measures are far larger."""
    spent: dict[str, dict[str, float]] = {}
    for kind in (Stock, Batch, Worker):
        arm = warm(kind(stored, TRIALS))
        cases: dict[str, Callable[[], object]] = {
            "ask": lambda arm=arm: arm.ask(64),
            "report": lambda arm=arm: arm.report(1),
            "decide": lambda arm=arm: arm.decide(1),
            "tell": arm.tell,
        }
        spent[kind.__name__] = {}
        for case, work in cases.items():
            began = time.process_time()
            work()
            spent[kind.__name__][case] = time.process_time() - began
        arm.close()
    ratios = {
        f"{name} {case}": spent["Stock"][case] / spent[name][case]
        for name in ("Batch", "Worker")
        for case in spent[name]
    }
    print(ratios)
    # The sampler, which every trial is asked with anew, is most of what a worker's ask takes here.
    assert ratios.pop("Worker ask") >= 5
    assert min(ratios.values()) >= 20, ratios


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Its command, small and in part; what it says of counts is exact at any size."""
    output = tmp_path / "storage.json"
    module = [sys.executable, "-m", "tests.benchmarks.storage"]
    command = [*module, "--quick", "--parts", "counts", "costs", "--output", str(output)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert set(found) >= {"counts", "costs"}
    assert found["counts"]["stock"]["life alone"]["round_trips"] == 349
    report = found["counts"]["worker"]["report"]
    assert report == {"round_trips": 1, "statements": 5, "commits": 1, "for": 8, "done": 8}
    assert found["costs"]["ratios"]["stock / batch"]["60"]["report + decide"]["ms"] > 1
