"""Tests of what kernels in Triton's language compute, by its interpreter, in a process of their own: Triton
reads what it is to do when it is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is built for Linux alone"
)


def assert_passes_interpreted(tests: str) -> None:
    """All tests of a file of this folder pass there, and none is skipped."""
    apart = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib"]
    # Triton 3.6 interprets by what NumPy warns of, and refuses from 2.4 on: see `make test-torch`.
    apart += ["-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *apart, str(Path(__file__).with_name(tests))],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
