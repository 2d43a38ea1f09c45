"""A trial's files: the newest whole one of this trial is used, however the others came about."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from objectives.checkpoint_files import CheckpointError, TrialFolder

OURS = "fingerprint"


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return TrialFolder(tmp_path / "root", "tpe", "0", "17")


def _says(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def _save(folder: TrialFolder, epoch: int, attempt: int = 1, *, fingerprint: str = OURS) -> Path:
    return folder.save(_says(f"{epoch} of {attempt}"), fingerprint=fingerprint, epoch=epoch, attempt=attempt)


def _newest(folder: TrialFolder, at_most: int | None = 99) -> str | None:
    found = folder.newest(OURS, at_most=at_most)
    return None if found is None else found.read_text()


def _names(folder: TrialFolder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir() if path.suffix == ".pt")


def test_the_newest_is_used_and_the_one_before_is_kept(folder: TrialFolder) -> None:
    assert _newest(folder) is None
    for epoch in (1, 2, 3, 10):
        _save(folder, epoch)
    assert _newest(folder) == "10 of 1"
    assert _names(folder) == ["10-1.pt", "3-1.pt"]
    assert len(list(folder.path.iterdir())) == 4, "each with its manifest, and nothing else"


def test_none_that_is_ahead_of_the_stored_curve(folder: TrialFolder) -> None:
    _save(folder, 4)
    _save(folder, 5)
    assert _newest(folder, at_most=5) == "5 of 1"
    assert _newest(folder, at_most=4) == "4 of 1"
    assert _newest(folder, at_most=3) is None
    assert _newest(folder, at_most=None) is None


def test_a_later_attempt_goes_on(folder: TrialFolder) -> None:
    _save(folder, 4)
    _save(folder, 5)
    _save(folder, 5, attempt=2)
    _save(folder, 6, attempt=2)
    assert _names(folder) == ["5-2.pt", "6-2.pt"]
    assert _newest(folder, at_most=5) == "5 of 2"


def test_a_worker_that_lost_its_trial_removes_nothing_of_the_next(folder: TrialFolder) -> None:
    _save(folder, 1, attempt=2)
    _save(folder, 2, attempt=2)
    for epoch in (5, 6, 7, 8):
        _save(folder, epoch, attempt=1)
    assert _names(folder) == ["1-2.pt", "2-2.pt"]


def test_an_attempt_that_began_anew_is_kept_beside_older_and_further_ones(folder: TrialFolder) -> None:
    _save(folder, 8)
    _save(folder, 9)
    _save(folder, 1, attempt=2)
    assert _names(folder) == ["1-2.pt", "9-1.pt"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lose_manifest(path: Path) -> None:
    path.with_suffix(".json").unlink()


def _spoil_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


def _strange_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text("[1]")


def _swap_manifest(path: Path) -> None:
    path.with_suffix(".json").write_bytes((path.parent / "1-1.json").read_bytes())


def _rename(path: Path) -> None:
    path.rename(path.with_name("3-1.pt"))
    path.with_suffix(".json").rename(path.with_name("3-1.json"))


def _link(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "damage",
    [_flip, _cut, _lose_manifest, _spoil_manifest, _strange_manifest, _swap_manifest, _rename, _link],
)
def test_of_a_damaged_one_the_one_before_is_used(
    folder: TrialFolder, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    _save(folder, 1)
    damage(_save(folder, 2))
    with caplog.at_level(logging.WARNING):
        assert _newest(folder) == "1 of 1"
    assert "can't be used" in caplog.text


def test_one_of_another_trial_or_version_is_not_used(
    folder: TrialFolder, caplog: pytest.LogCaptureFixture
) -> None:
    _save(folder, 1)
    _save(folder, 2, fingerprint="another")
    with caplog.at_level(logging.WARNING):
        assert _newest(folder) == "1 of 1"
    assert "of another trial or version" in caplog.text


def test_a_manifest_of_an_earlier_file_does_not_speak_for_a_later_one(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same epoch of the same attempt can't be written twice, but if it is, a crash must not mix them."""
    _save(folder, 1)
    monkeypatch.setattr("objectives.checkpoint_files._write_manifest", lambda *_: None)
    folder.save(_says("another"), fingerprint=OURS, epoch=1, attempt=1)
    assert _newest(folder) is None


@pytest.mark.parametrize("call", ["os.fsync", "write"])
def test_what_can_not_be_written_leaves_the_older_ones(
    folder: TrialFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    _save(folder, 1)
    before = sorted(path.name for path in folder.path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def half(path: Path) -> None:
        path.write_text("half a fi")
        full()

    if call == "os.fsync":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(half if call == "write" else _says("2"), fingerprint=OURS, epoch=2, attempt=1)
    monkeypatch.undo()
    assert _newest(folder) == "1 of 1"
    if call == "write":
        assert sorted(path.name for path in folder.path.iterdir()) == before


@pytest.mark.parametrize("dies_at", range(1, 7))
def test_killed_at_any_step_of_a_save(folder: TrialFolder, dies_at: int) -> None:
    """In a process that ends without any clean-up at its n-th call to the system that writes."""
    _save(folder, 1)
    program = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from objectives import checkpoint_files as files
calls = 0
def dying(real):
    def call(*given, **named):
        global calls
        calls += 1
        if calls == {dies_at}:
            os._exit(9)
        return real(*given, **named)
    return call
os.fsync = dying(os.fsync)
pathlib.Path.replace = dying(pathlib.Path.replace)
files.TrialFolder(pathlib.Path({str(folder._root)!r}), *{folder._parts!r}).save(
    lambda path: path.write_text("2 of 1") and None, fingerprint={OURS!r}, epoch=2, attempt=1)
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == 9
    assert _newest(folder) in {"1 of 1", "2 of 1"}
    _save(folder, 3)
    assert _newest(folder) == "3 of 1"


def test_removed_at_the_trials_end(folder: TrialFolder) -> None:
    folder.remove()
    _save(folder, 1)
    folder.remove()
    assert not folder.path.exists()
    assert folder.path.parent.exists()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "-x", ".hidden", "a\0b", "ä", "x" * 129])
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError):
        TrialFolder(tmp_path, name)


def test_a_link_on_the_way_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = TrialFolder(tmp_path / "elsewhere", "0", "17")
    _save(elsewhere, 1)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "tpe").symlink_to(tmp_path / "elsewhere")
    linked = TrialFolder(tmp_path / "root", "tpe", "0", "17")
    with caplog.at_level(logging.WARNING):
        assert _newest(linked) is None
    with pytest.raises(CheckpointError):
        _save(linked, 2)
    linked.remove()
    assert _newest(elsewhere) == "1 of 1"


def test_the_manifest_says_what_it_is_of(folder: TrialFolder) -> None:
    path = _save(folder, 7, attempt=2)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert (manifest["epoch"], manifest["attempt"], manifest["fingerprint"]) == (7, 2, OURS)
    assert manifest["size"] == len("7 of 2")


def test_no_torch_is_needed() -> None:
    program = "import sys, objectives.checkpoint_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", [".3-1.pt.PID", ".3-1.json.PID", "3-1.pt", "3-1.json"])
def test_nothing_is_written_through_a_link_that_lies_in_the_way(
    folder: TrialFolder, tmp_path: Path, name: str
) -> None:
    name = name.replace("PID", str(os.getpid()))
    _save(folder, 1)
    (tmp_path / "elsewhere").write_text("mine")
    (folder.path / name).symlink_to(tmp_path / "elsewhere")
    _save(folder, 3)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert _newest(folder) == "3 of 1"
    assert not any(path.is_symlink() for path in folder.path.iterdir())


def test_a_link_in_place_of_a_manifest_is_not_followed(folder: TrialFolder, tmp_path: Path) -> None:
    path = _save(folder, 1)
    path.with_suffix(".json").rename(tmp_path / "manifest")
    path.with_suffix(".json").symlink_to(tmp_path / "manifest")
    assert _newest(folder) is None


def test_what_a_link_points_to_is_not_removed(folder: TrialFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    _save(folder, 1)
    (folder.path / "inner").symlink_to(tmp_path / "elsewhere")
    folder.remove()
    assert not folder.path.exists()
    assert (tmp_path / "elsewhere" / "mine").exists()
