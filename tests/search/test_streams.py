"""stdout and stderr as odd callers leave them: closed, or in an encoding without our characters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("closed", "arguments", "code"),
    [
        (">&-", "init --stdout", 0),
        ("<&- >&- 2>&-", "init --stdout", 0),
        ("2>&-", "plan nothing.yaml", 2),
        (">&- 2>&-", "trials stored --limit many", 2),
    ],
)
def test_whoever_closed_our_streams_gets_the_exit_code(closed: str, arguments: str, code: int) -> None:
    """As a daemon may, or a job that throws output away."""
    line = f"exec {sys.executable} -m search.cli {arguments} {closed}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "mistake in shoal" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("told", "encoding", "times"), [({}, "utf-8", "×"), ({"PYTHONIOENCODING": "ascii"}, "ascii", "?")]
)
def test_a_locale_without_our_characters_is_no_error(told: dict[str, str], encoding: str, times: str) -> None:
    """What is kept is UTF-8, unless the user asked for something else."""
    without = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "search.cli", "init", "--stdout"],
        capture_output=True, check=True, env={**os.environ, **without, **told},
    )  # fmt: skip
    assert f"Each method {times} replicate" in done.stdout.decode(encoding)
