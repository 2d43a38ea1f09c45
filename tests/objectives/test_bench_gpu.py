"""Memory is counted on a GPU alone, and a Multi-Process Service that was started is ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from objectives import bench_gpu
from objectives.bench_gpu import (
    CONTROL,
    NotHereError,
    held_by_torch,
    shared_by_processes,
    start_counting,
)

SERVICE = """#!/bin/sh
echo "$1 $(cat) $(basename "$CUDA_MPS_PIPE_DIRECTORY") $(ls -d "$CUDA_MPS_LOG_DIRECTORY" | wc -l)" >> "{log}"
exit {code}
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    """A service that writes down what it is told; returns where."""
    program, log = folder / CONTROL, folder / "log"
    program.write_text(SERVICE.format(log=log, code=code), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return log


def test_the_service_lives_as_long_as_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch)
    with shared_by_processes() as variables:
        assert set(variables) == {"CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"}
        assert all(Path(place).is_dir() for place in variables.values())
    assert not any(Path(place).exists() for place in variables.values())
    assert log.read_text(encoding="utf-8").split("\n") == [
        "-d  pipe 1", " get_server_list pipe 1", " quit pipe 1", "",
    ]  # fmt: skip


def test_it_is_ended_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path, monkeypatch)
    with pytest.raises(ZeroDivisionError), shared_by_processes():
        raise ZeroDivisionError
    assert "quit" in log.read_text(encoding="utf-8")


def test_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, code=3)
    with pytest.raises(NotHereError, match="can't be started: 3"), shared_by_processes():
        pass
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(NotHereError, match="not on this machine"), shared_by_processes():
        pass


def test_without_a_gpu_nothing_is_counted() -> None:
    start_counting()
    assert held_by_torch() is None


def test_clients_of_our_service_alone_are_ended_if_they_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(bench_gpu, "no_longer_than", limits.append)
    monkeypatch.delenv(bench_gpu.SERVICE, raising=False)
    bench_gpu.as_client()
    monkeypatch.setenv(bench_gpu.SERVICE, "/tmp/nvidia-mps")
    bench_gpu.as_client()
    install(tmp_path, monkeypatch)
    with shared_by_processes() as variables:
        monkeypatch.setenv(bench_gpu.SERVICE, variables[bench_gpu.SERVICE])
        bench_gpu.as_client()
    assert limits == [None, None, bench_gpu.MOST_SECONDS]


@pytest.mark.parametrize("hangs", [False, True])
def test_what_hangs_is_ended(hangs: bool) -> None:
    lines = [
        "import time",
        "from objectives.bench_gpu import no_longer_than",
        f"with no_longer_than({0.2 if hangs else 60.0}):",
        f"    time.sleep({60 if hangs else 0})",
        "with no_longer_than(None):",
        "    print('went on')",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode == 0, "went on" in done.stdout) == (not hangs, not hangs)
    assert ("Timeout" in done.stderr) == hangs
