"""`shoal db check`: the history of trials among what has to be right."""

from __future__ import annotations

import json

import optuna
import pytest
from sqlalchemy import text

from search.cli import run_command
from search.failures import ExitCode
from storage.batched_ledger import BatchedLedger
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.ledger_writes import end


@pytest.fixture
def url(database) -> str:
    """A database with two experiments that each ended a trial."""
    storage = open_optuna_storage(database.url)
    ledger = BatchedLedger(database)
    for name in ("one", "two"):
        Experiments(database).create(name, {"experiment": name}, "hash", {}, [("tpe", 0, f"{name}/tpe/0")])
        optuna.create_study(storage=storage, study_name=f"{name}/tpe/0")
        (lease,) = ledger.claim(f"{name}/tpe/0", ledger.register("w"), waiting=0, new=1)
        ledger.write(endings=[end(lease)])
    close_optuna_storage(storage)
    return database.url


def check(capsys, url: str, *options: str) -> tuple[int, str]:
    code = run_command(["db", "check", "--database", url, *options])
    return code, capsys.readouterr().out


def test_an_honest_history(capsys, url):
    code, printed = check(capsys, url)
    assert code == ExitCode.OK
    assert "history" in printed
    assert "no violations" in printed
    code, printed = check(capsys, url, "--json")
    document = json.loads(printed)
    assert document["violations"] == []
    assert {"name": "history", "ok": True, "detail": "no violations"} in document["checks"]


def test_a_violation_is_told_and_fails(capsys, url, database):
    with database.begin() as connection:
        connection.execute(text("UPDATE trials SET state = 'FAIL' WHERE trial_id = 1"))
    code, printed = check(capsys, url)
    assert code == ExitCode.FAILED
    assert "a trial ends once: trial 0 of one/tpe/0: ended as completed" in " ".join(printed.split())
    code, printed = check(capsys, url, "--json")
    (violation,) = json.loads(printed)["violations"]
    assert (violation["rule"], violation["where"]) == ("a trial ends once", "trial 0 of one/tpe/0")
    assert check(capsys, url, "--experiment", "one")[0] == ExitCode.FAILED
    assert check(capsys, url, "--experiment", "two")[0] == ExitCode.OK


def test_an_unknown_experiment(capsys, url):
    assert check(capsys, url, "--experiment", "three")[0] == ExitCode.NOT_FOUND


def test_before_there_are_tables(capsys, empty_database_url):
    code, printed = check(capsys, empty_database_url)
    assert code == ExitCode.FAILED
    assert "none yet" in printed
    assert "history" not in printed
