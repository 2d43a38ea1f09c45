"""Ctrl-C before anything is open."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from search.commands.signals import ending_at_once

INTERRUPTED_LIBRARY = """
import os, signal, sys
import search.experiment.spec
from search.cli import run_command

def load_spec(file):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        print("a library saw it")
    print("not reached")

search.experiment.spec.load_spec = load_spec
sys.exit(run_command(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_import_is_not_interrupted_halfway(command: str) -> None:
    line = [sys.executable, "-c", INTERRUPTED_LIBRARY, command, __file__]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_the_handler_before_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ending_at_once():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
