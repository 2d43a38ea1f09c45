"""The doctor's findings on machines that are not this one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from search import doctor
from search.doctor import Finding, Probe

CPU = {"torch": "2.13.0+cpu", "build": None, "devices": [], "threads": 1, "torchvision": "0.28.0"}
CUDA = CPU | {"torch": "2.13.0", "build": "12.8", "devices": ["H200"]}


def states(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.name, finding.state) for finding in found]


def test_a_cpu_build_beside_a_gpu_is_a_warning() -> None:
    found = list(doctor.torch(Probe(CPU), "/dev/nvidia0"))
    assert states(found) == [("torch", "warn"), ("torchvision", "ok")]
    assert "CPU build" in found[0].detail
    assert "CUDA build" in found[0].remedy


def test_a_cpu_build_without_a_gpu_is_fine() -> None:
    assert states(list(doctor.torch(Probe(CPU), None))) == [("torch", "ok"), ("torchvision", "ok")]


def test_a_cuda_build_that_sees_its_gpu_is_fine() -> None:
    (found, _) = doctor.torch(Probe(CUDA), "/dev/nvidia0")
    assert found.state == "ok"
    assert "CUDA 12.8" in found.detail
    assert "H200" in found.detail


def test_a_cuda_build_that_sees_no_device_points_at_the_driver() -> None:
    (found, _) = doctor.torch(Probe(CUDA | {"devices": []}), "/dev/nvidia0")
    assert found.state == "warn"
    assert "driver" in found.remedy


def test_libraries_that_fail_on_import_are_failures() -> None:
    (found,) = doctor.torch(Probe({}, "Segmentation fault"), None)
    assert (found.state, "Segmentation fault" in found.detail) == ("fail", True)
    assert doctor.ray(Probe({}, "No module named 'ray'")).state == "fail"
    broken = {key: value for key, value in CPU.items() if key != "torchvision"} | {"torchvision_error": "nms"}
    assert states(list(doctor.torch(Probe(broken), None)))[1] == ("torchvision", "fail")


def test_probes_run_in_another_process_and_survive_its_death() -> None:
    assert doctor._probe("print('{\"a\": 1}')") == Probe({"a": 1})
    died = doctor._probe("import os, sys; print('boom', file=sys.stderr, flush=True); os.abort()")
    assert died.found == {}
    assert "boom" in died.error
    assert "exit code" in doctor._probe("pass").error


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python().state == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert doctor.python() == Finding("python", "fail", "3.9.1", "use Python 3.11 or newer")


class Memory(NamedTuple):
    available: int
    total: int


@pytest.mark.parametrize(("available", "state"), [(3 * 2**30, "ok"), (2**30, "warn")])
def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, available: int, state: str) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(available, 4 * 2**30))
    assert doctor.memory().state == state


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    found = list(doctor.disk_and_data([tmp_path / "images", tmp_path / "nowhere"]))
    assert [finding.state for finding in found[1:]] == ["ok", "fail"]
    assert doctor.disk("disk", tmp_path / "a" / "b").name == "disk"
    assert doctor.shared_memory(tmp_path / "no-shm").state == "ok"


def test_an_embedded_server_that_does_not_run_is_not_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    (found,) = doctor.database(None)
    assert found.state == "ok"
    assert "not running" in found.detail
    assert not (tmp_path / "home" / "postgres").exists()


def test_a_database_that_answers_is_checked(database_url: str) -> None:
    found = list(doctor.database(database_url))
    assert {finding.state for finding in found} == {"ok"}
    assert len(found) > 3


def test_an_unreachable_database_fails_without_its_password() -> None:
    found = list(doctor.database("postgresql://me:sesame@127.0.0.1:1/none"))
    assert [finding.state for finding in found] == ["fail"]
    assert "sesame" not in str(found)


@pytest.mark.parametrize(
    ("count", "words"), [(5, "5 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**31, "2.0 GiB")]
)
def test_sizes(count: int, words: str) -> None:
    assert doctor.size(count) == words
