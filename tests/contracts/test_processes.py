"""Waits in tests: what is not seen to happen is told with what is known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts import shoal_command
from tests.contracts.processes import ended, until
from tests.contracts.shoal_command import Shoal

WAITS = "import sys, time; print('nearly', file=sys.stderr, flush=True); time.sleep(600)"


def test_what_does_not_happen_is_told_with_a_report() -> None:
    with pytest.raises(AssertionError, match=r"it did not happen in time\nthe pump is broken"):
        until(lambda: False, seconds=0, report=lambda: "the pump is broken")


def test_a_process_that_does_not_end_is_ended_and_told_of() -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    os.read(process.stderr.fileno(), 1)  # it has spoken
    with pytest.raises(AssertionError, match=r"(?s)it did not end in time.*early.*the pump is broken"):
        ended(process, seconds=0.01, report=lambda: "the pump is broken")
    assert process.poll() is not None


def test_a_run_that_never_comes_so_far_is_told_of() -> None:
    run = subprocess.Popen([sys.executable, "-c", WAITS], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    os.read(run.stderr.fileno(), 1)
    with pytest.raises(AssertionError, match=r"(?s)did not happen in time.*early"):
        until(lambda: False, run=run, seconds=0)
    assert run.poll() is not None


def test_one_that_ends_has_its_words_given_back() -> None:
    says = [sys.executable, "-c", "import sys; sys.exit('done')"]
    assert ended(subprocess.Popen(says, stderr=subprocess.PIPE, text=True)) == "done\n"


def test_a_command_that_does_not_end_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "shoal"
    script.write_text('#!/bin/sh\ntrap "" HUP; exec sleep 600\n')
    script.chmod(0o755)
    monkeypatch.setattr(shoal_command, "COMMAND", script)
    monkeypatch.setattr(shoal_command, "SECONDS", 0.01)
    with pytest.raises(AssertionError, match="shoal status far did not end in time"):
        Shoal(tmp_path, os.environ)("status", "far")
