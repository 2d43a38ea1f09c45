"""Forks: what tests expect of a program that is started the long way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.forks import FRESH, ROOT, Fork, can_fork, fork
from tests.contracts.processes import PATIENCE, until

HERE = "tests.contracts.test_forks"


def main(told: Mapping[str, Any]) -> None:
    """What a fork of these tests does."""
    globals()[f"_{told['does']}"](told)


def _tells(_told: Mapping[str, Any]) -> None:
    said = (os.getpid(), os.getsid(0), Path.cwd() == ROOT, os.environ.get("FORKED"), os.environ.get("HIDDEN"))
    print(*said, "ray" in sys.modules, "torch" in sys.modules)
    print("a word", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo and its child"], check=True)


def _exits(told: Mapping[str, Any]) -> None:
    sys.exit(told["code"])


def _raises(_told: Mapping[str, Any]) -> None:
    raise LookupError("it is nowhere")


def _warns(_told: Mapping[str, Any]) -> None:
    warnings.warn("beware", stacklevel=1)


def _waits(told: Mapping[str, Any]) -> None:
    Path(told["here"]).touch()
    threading.Event().wait()


def _writes_much(_told: Mapping[str, Any]) -> None:
    print("much " * 100_000)


def test_it_has_a_session_an_environment_and_outputs_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HIDDEN", "here")
    seen = fork(HERE, {"does": "tells"}, environment={"FORKED": "yes"})
    monkeypatch.delenv("HIDDEN")
    later = fork(HERE, {"does": "tells"}, environment={})
    for run, variables in ((seen, "yes here"), (later, "None None")):
        out, err = run.communicate(PATIENCE)
        assert out == f"{run.pid} {run.pid} True {variables} False True\nand its child\n"
        assert (err, run.returncode) == ("a word\n", 0)


def test_what_it_writes_is_appended_to_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    assert fork(HERE, {"does": "tells"}, environment={}, log=log).wait(PATIENCE) == 0
    said = log.read_text().splitlines()
    assert said[0] == "before"
    assert {"a word", "and its child"} <= set(said)


@pytest.mark.parametrize("code", [0, 3])
def test_its_exit_code_is_told(code: int) -> None:
    run = fork(HERE, {"does": "exits", "code": code}, environment={})
    assert run.wait(PATIENCE) == code
    assert (run.poll(), run.returncode) == (code, code)


@pytest.mark.parametrize(("does", "said"), [("raises", "LookupError: it is nowhere"), ("warns", "beware")])
def test_an_exception_or_a_warning_ends_it_with_1_and_its_traceback(does: str, said: str) -> None:
    run = fork(HERE, {"does": does}, environment={})
    assert said in run.communicate(PATIENCE)[1]
    assert run.returncode == 1


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Fork]:
    """A fork that waits for ever."""
    here = tmp_path / "here"
    run = fork(HERE, {"does": "waits", "here": str(here)}, environment={})
    until(here.exists, run=run)
    yield run
    run.kill()


def test_a_signal_to_its_group_ends_it_and_once_it_has_ended_it_gets_none(waiting: Fork) -> None:
    assert (waiting.poll(), waiting.returncode) == (None, None)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.communicate(0)
    os.killpg(waiting.pid, signal.SIGTERM)
    waiting.communicate(PATIENCE)
    assert waiting.returncode == -signal.SIGTERM
    waiting.kill()


def test_ctrl_c_reaches_it(waiting: Fork) -> None:
    waiting.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in waiting.communicate(PATIENCE)[1]
    assert waiting.returncode == 1


def test_more_than_a_pipe_holds_is_read() -> None:
    assert (
        fork(HERE, {"does": "writes_much"}, environment={}).communicate(PATIENCE)[0]
        == "much " * 100_000 + "\n"
    )


@pytest.fixture
def threads_that_interrupt_one_another() -> Iterator[None]:
    """Between any two steps of the interpreter, not every few milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_its_end_is_seen_by_many_threads_alike(threads_that_interrupt_one_another: None) -> None:
    """multiprocessing alone tells all but the first that it exited with 255."""
    run = fork(HERE, {"does": "exits", "code": 3}, environment={})
    wait([run.sentinel], PATIENCE)
    with ThreadPoolExecutor(16) as threads:
        begin = threading.Barrier(16)
        asked = [threads.submit(lambda: (begin.wait(PATIENCE), run.poll())[1]) for _ in range(16)]
        seen = [one.result(PATIENCE) for one in asked]
    assert [*seen, run.returncode] == [3] * 17


@pytest.mark.parametrize("name", FRESH)
def test_what_a_fresh_interpreter_alone_heeds_is_not_for_a_fork(name: str) -> None:
    assert can_fork({"FORKED": "yes"})
    assert not can_fork({name: "yes"})
