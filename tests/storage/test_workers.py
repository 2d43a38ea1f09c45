"""Workers of this host that are known to be dead, and what names a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from storage.batched_ledger import BatchedLedger
from storage.processes import birth, this_process
from storage.workers import dead_on_this_host
from tests.contracts.ledger_writes import STUDY

REPOSITORY = Path(__file__).parents[2]

CLAIM = """
import sys
from storage.batched_ledger import BatchedLedger
from storage.database import Database
ledger = BatchedLedger(Database(sys.argv[1]))
ledger.claim("e/tpe/0", ledger.register("child"), waiting=0, new=1)
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ledger(database, optuna_storage, experiment) -> BatchedLedger:
    import optuna

    optuna.create_study(storage=optuna_storage, study_name=STUDY)
    return BatchedLedger(database)


@pytest.fixture
def child(ledger, database_url):
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, database_url],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


def worker_of(database, name: str) -> int:
    with database.begin() as connection:
        return int(connection.scalar(text("SELECT id FROM shoal.workers WHERE name = :name"), {"name": name}))


def test_a_killed_process_is_dead_at_once(ledger, child, database, experiment):
    mine = ledger.register("mine")
    ledger.claim(STUDY, mine, waiting=0, new=1)
    assert dead_on_this_host(database, experiment.id) == []
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, until somebody reaps it
    dead = worker_of(database, "child")
    assert dead_on_this_host(database, experiment.id) == [dead]
    child.communicate()
    assert dead_on_this_host(database, experiment.id) == [dead]
    assert dead_on_this_host(database, experiment.id + 1) == []
    (expired,) = ledger.expire(experiment.id, dead_workers=[dead])
    assert expired.worker == "child"
    assert dead_on_this_host(database, experiment.id) == []


@pytest.mark.parametrize(
    "elsewhere",
    ["host = 'other'", "boot = 'other'", "process_space = 'pid:[1]'", "process_birth = NULL"],
)
def test_nothing_is_said_of_what_is_not_known(ledger, child, database, experiment, elsewhere):
    child.kill()
    child.communicate()
    with database.begin() as connection:
        connection.execute(text(f"UPDATE shoal.workers SET {elsewhere}"))
    assert dead_on_this_host(database, experiment.id) == []


def test_a_number_that_is_used_again_is_another_process(ledger, database, experiment):
    worker = ledger.register("before")
    ledger.claim(STUDY, worker, waiting=0, new=1)
    with database.begin() as connection:
        connection.execute(text("UPDATE shoal.workers SET process_birth = '1'"))
    assert dead_on_this_host(database, experiment.id) == [worker]


def test_what_names_a_process():
    here = this_process()
    assert here.process == os.getpid()
    assert here.process_birth == birth(os.getpid()) == this_process().process_birth
    assert here.boot
    assert birth(2**22 + 1) is None
