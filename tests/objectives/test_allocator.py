"""Freed memory is kept: taking as much again costs no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = 32 << 20

CODE = f"""
import resource, sys
from objectives.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("not glibc")
    sys.exit()
b"x" * {BLOCK}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * len(range({BLOCK}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Page faults of ten blocks taken and freed, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, timeout=240
    )
    if "not glibc" in done.stdout:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_memory_is_taken_from_the_system_once() -> None:
    assert faults("keep") < 100
    assert faults("default") > 1000
