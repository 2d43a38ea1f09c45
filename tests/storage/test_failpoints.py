"""Failpoints: off unless the environment says so, and then exactly where and when it says."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from storage.failpoints import FAILPOINTS, FailpointError, failpoint, forget_visits

REPOSITORY = Path(__file__).parents[2]
NAME = "ledger.write.committed"


@pytest.fixture(autouse=True)
def from_the_beginning():
    forget_visits()


def test_nothing_happens_without_an_order(monkeypatch):
    monkeypatch.delenv("SHOAL_FAILPOINTS", raising=False)
    failpoint(NAME)
    failpoint("no such name costs nothing either")
    monkeypatch.setenv("SHOAL_FAILPOINTS", "ledger.claim.committed:raise")
    failpoint(NAME)
    with pytest.raises(KeyError):
        failpoint("no such name")


def test_at_every_visit_or_at_one(monkeypatch):
    monkeypatch.setenv("SHOAL_FAILPOINTS", f"{NAME}:raise@2, ledger.claim.committed:raise")
    failpoint(NAME)
    with pytest.raises(FailpointError, match=NAME):
        failpoint(NAME)
    failpoint(NAME)
    for _ in range(2):
        with pytest.raises(FailpointError):
            failpoint("ledger.claim.committed")


@pytest.mark.parametrize("said", ["nowhere:kill", f"{NAME}:explode", f"{NAME}:kill@soon", NAME])
def test_a_wrong_order_is_told(monkeypatch, said):
    monkeypatch.setenv("SHOAL_FAILPOINTS", said)
    with pytest.raises(ValueError, match="looks like"):
        failpoint(NAME)


@pytest.mark.parametrize(("action", "sign"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_signals(action, sign):
    code = "from storage.failpoints import failpoint\n"
    code += f"for _ in range(3): print('x', flush=True); failpoint({NAME!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | {"SHOAL_FAILPOINTS": f"{NAME}:{action}@2"},
        stdout=subprocess.PIPE,
        text=True,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if action == "stop":
        assert os.WSTOPSIG(status) == sign
        process.kill()
        os.waitpid(process.pid, 0)
    else:
        assert os.WTERMSIG(status) == sign
    process.returncode = -sign
    assert process.stdout.read() == "x\nx\n"
    process.stdout.close()


def test_every_failpoint_is_somewhere():
    used = set()
    for path in [*REPOSITORY.glob("storage/**/*.py"), *REPOSITORY.glob("search/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                assert isinstance(node.args[0], ast.Constant)
                used.add(node.args[0].value)
    assert used == set(FAILPOINTS)
