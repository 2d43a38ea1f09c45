"""What a process may still take of the host's memory, with control groups made up in a folder."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from search.work.host_memory import free_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 64 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def second(folder: Path, limit: str, used: int, cached: int = 0) -> None:
    group(
        folder,
        memory__max=f"{limit}\n",
        memory__current=f"{used}\n",
        memory__stat=f"anon 5\ninactive_file {cached}\nactive_file 7\n",
    )


def own(folder: Path, *lines: str) -> Path:
    path = folder / "own"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_without_groups_the_machines_is_told(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path / "absent") == 64 * GIB
    assert free_memory(tmp_path, own(tmp_path, "0::/a/b", "nonsense")) == 64 * GIB


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    second(tmp_path / "a" / "b", "max", 5 * GIB)
    second(tmp_path / "a", f"{8 * GIB}", 7 * GIB, cached=2 * GIB)
    second(tmp_path, f"{32 * GIB}", 20 * GIB)
    assert free_memory(tmp_path, own(tmp_path, "0::/a/b")) == 3 * GIB
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 12 * GIB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    second(tmp_path, f"{2 * GIB}", GIB)
    assert free_memory(tmp_path, own(tmp_path, "0::/hosts/name/of/it")) == GIB


def test_a_group_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    second(tmp_path, f"{GIB}", 2 * GIB)
    assert free_memory(tmp_path, own(tmp_path, "0::/")) == 0


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    group(
        tmp_path / "memory" / "a",
        memory__limit_in_bytes=f"{4 * GIB}",
        memory__usage_in_bytes=f"{3 * GIB}",
        memory__stat=f"inactive_file 9\ntotal_inactive_file {GIB}\n",
    )
    assert free_memory(tmp_path, own(tmp_path, "4:memory:/a", "1:cpu:/a", "0::/")) == 2 * GIB
    second(tmp_path, f"{GIB}", 0)
    assert free_memory(tmp_path, own(tmp_path, "1:cpu:/a", "4:cpu,memory:/a")) == 2 * GIB


def test_this_machine_has_some() -> None:
    assert free_memory() > 0
