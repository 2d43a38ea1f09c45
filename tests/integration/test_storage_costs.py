"""What a pool costs: exact messages to the database, CPU seconds against stock Optuna, and the benchmark itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.database import Database
from tests.benchmarks.storage_cases.arms import Batch, Plain, Stock, Worker
from tests.benchmarks.storage_cases.cases import life
from tests.benchmarks.storage_cases.measuring import trips
from tests.contracts.big_experiment import Size, store_big_experiment
from tests.contracts.postgres_proxy import PostgresProxy

TRIALS = 60


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


def counted(proxy: PostgresProxy, work: Callable[[], object]) -> int:
    """Messages that some work sends, each a round trip."""
    proxy.taken()
    work()
    return len(proxy.taken())


def test_a_workers_pool(proxy: PostgresProxy) -> None:
    worker = Worker(proxy.url, TRIALS)
    worker.open()
    # The study's lock taken and given back; the study read; the leases; the values.
    assert counted(proxy, lambda: worker.ask(64)) == 5
    worker.drop()
    worker.adopt(256)
    assert counted(proxy, lambda: worker.report(1)) == 1
    assert counted(proxy, lambda: worker.decide(1)) == 1
    assert counted(proxy, lambda: worker.tell()) == 1
    worker.close()


def test_whole_lives_of_a_workers_pool(proxy: PostgresProxy) -> None:
    worker = Worker(proxy.url, TRIALS)
    worker.open()
    assert counted(proxy, lambda: life(worker, 64)) == 5 + 20 * 2 + 1
    worker.close()


def test_whole_lives_of_a_batch(proxy: PostgresProxy) -> None:
    batch = Batch(proxy.url, TRIALS)
    batch.open()
    assert counted(proxy, lambda: life(batch, 64)) == 3 + 20 * 2 + 1
    batch.close()


def test_a_whole_life_call_by_call(proxy: PostgresProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other Optuna clients pay on our storage: a message for each decision, and three more."""
    monkeypatch.setattr("storage.optuna.outbox.INTERVAL", 3600)  # the background thread does not interfere
    plain = Plain(proxy.url, TRIALS)
    plain.open()
    assert counted(proxy, lambda: life(plain, 1)) == 3 + 20
    plain.close()


def test_statements_and_commits_are_told_apart() -> None:
    stock = [
        "BEGIN",
        "SELECT ';', 'it''s'",
        "INSERT INTO a VALUES (1)",
        "COMMIT",
        "BEGIN",
        "SELECT 1",
        "ROLLBACK",
    ]
    assert trips(stock) == {"round_trips": 7, "statements": 3, "commits": 1}
    ours = ["SELECT 1; INSERT INTO a VALUES (';;');", "SELECT 2"]
    assert trips(ours) == {"round_trips": 2, "statements": 3, "commits": 2}


@pytest.mark.slow
def test_cpu_seconds_against_stock_optuna(stored: str) -> None:
    """Of this process, in one run: far more than these ratios are measured (tests/benchmarks/storage.py)."""
    spent: dict[str, dict[str, float]] = {}
    for kind in (Stock, Batch, Worker):
        arm = kind(stored, TRIALS)
        arm.open()
        life(arm, 1, epochs=1)
        arm.drop()
        cases: dict[str, Callable[[], object]] = {
            "ask": lambda arm=arm: arm.ask(64),
            "report": lambda arm=arm: arm.report(1),
            "decide": lambda arm=arm: arm.decide(1),
            "tell": lambda arm=arm: arm.tell(),
        }
        spent[kind.__name__] = {}
        for case, work in cases.items():
            began = time.process_time()
            work()
            spent[kind.__name__][case] = time.process_time() - began
        arm.close()
    ratios = {
        name: {case: spent["Stock"][case] / spent[name][case] for case in spent[name]}
        for name in ("Batch", "Worker")
    }
    print(ratios)
    assert min(ratios["Batch"].values()) >= 20, ratios
    assert min(ratios["Worker"][case] for case in ("report", "decide", "tell")) >= 20, ratios
    assert ratios["Worker"]["ask"] >= 5, ratios


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    """Its command, small; what it says of counts is exact at any size."""
    output = tmp_path / "storage.json"
    command = [sys.executable, "-m", "tests.benchmarks.storage", "--quick", "--output", str(output)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert set(found) >= {"counts", "costs", "lives", "rates"}
    assert found["counts"]["stock"]["life alone"]["round_trips"] == 349
    assert found["counts"]["worker"]["report"] == {
        "round_trips": 1,
        "statements": 5,
        "commits": 1,
        "for": 8,
        "done": 8,
    }
    assert found["costs"]["ratios"]["stock / batch"]["60"]["report + decide"]["ms"] > 1
    assert all(
        rate["per_second"] > 0
        for kind in ("reports", "reports with decisions")
        for rate in found["rates"][kind]
    )
