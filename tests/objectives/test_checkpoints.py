"""A checkpoint is whole and of this trial, or it is not used. Its use: the engine contract."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import os
from pathlib import Path

import pytest
import torch

from objectives.base import Choice, DataSpec, EpochReport, Scalar, TrialConfig, TrialStart
from objectives.checkpoints import Checkpoint, fingerprint, load, save

REPORT = EpochReport(
    epoch=2,
    train_loss=0.5,
    validation_loss=None,
    metrics={"accuracy": 0.75},
    gradient_norm=1.25,
    learning_rate=0.1,
    seconds=3.0,
    images_per_second=100.0,
)
START = TrialStart(trial_id=1, config=TrialConfig(), seed=2, split_seed=3)
DATA = DataSpec(name="digits")


def checkpoint(fill: float = 1.0) -> Checkpoint:
    state = {
        "model": {"weight": torch.full((3, 2), fill)},
        "optimizer": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    }
    return Checkpoint(fingerprint(START, DATA), REPORT, state)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "made" / "checkpoint", checkpoint())
    found = load(tmp_path / "made" / "checkpoint", fingerprint(START, DATA))
    assert found is not None
    assert found.report == REPORT
    assert torch.equal(found.state["model"]["weight"], torch.ones(3, 2))
    assert found.state["optimizer"] == checkpoint().state["optimizer"]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    save(path, checkpoint(1.0))

    def full(handle: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)  # what was written so far lies in a file aside
    with pytest.raises(OSError, match="no space"):
        save(path, checkpoint(2.0))
    monkeypatch.undo()
    found = load(path, fingerprint(START, DATA))
    assert found is not None
    assert torch.equal(found.state["model"]["weight"], torch.ones(3, 2))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file_is_no_error(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path / "checkpoint", fingerprint(START, DATA)) is None
    assert "starts anew" in caplog.text


def test_every_place_of_a_cut_file_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", checkpoint())
    whole = (tmp_path / "checkpoint").read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        (tmp_path / "checkpoint").write_bytes(whole[:length])
        assert load(tmp_path / "checkpoint", fingerprint(START, DATA)) is None


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", checkpoint())
    whole = (tmp_path / "checkpoint").read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "checkpoint").write_bytes(damaged)
        assert load(tmp_path / "checkpoint", fingerprint(START, DATA)) is None


def test_nothing_in_a_file_is_executed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "executed",))

    save(tmp_path / "checkpoint", dataclasses.replace(checkpoint(), state={"model": Evil()}))
    assert load(tmp_path / "checkpoint", fingerprint(START, DATA)) is None
    assert "Weights only load failed" in caplog.text  # not the checksum, which anyone can make
    assert not (tmp_path / "executed").exists()


def test_a_file_of_another_shape_is_no_error(tmp_path: Path) -> None:
    body = io.BytesIO()
    torch.save([1, 2, 3], body)
    (tmp_path / "checkpoint").write_bytes(body.getvalue() + hashlib.sha256(body.getvalue()).digest())
    assert load(tmp_path / "checkpoint", fingerprint(START, DATA)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.2),
        ("batch_size", None),
        ("epochs", 11),
        ("loss", Choice("focal")),
        ("loss", Choice("cross_entropy", {"label_smoothing": 0.1})),
        ("model", Choice("cnn", {"width": 16})),
        ("augment", {"flip": 0.5}),
        ("class_weights", "balanced"),
    ],
)
def test_the_fingerprint_covers_the_config(field: str, value: Scalar) -> None:
    other = dataclasses.replace(START, config=dataclasses.replace(START.config, **{field: value}))
    assert fingerprint(other, DATA) != fingerprint(START, DATA)


def test_the_fingerprint_covers_what_decides_and_nothing_else() -> None:
    own = fingerprint(START, DATA)
    assert fingerprint(dataclasses.replace(START, seed=3), DATA) != own
    assert fingerprint(dataclasses.replace(START, split_seed=4), DATA) != own
    assert fingerprint(START, dataclasses.replace(DATA, limit=500)) != own
    assert fingerprint(START, dataclasses.replace(DATA, root=Path("/elsewhere"), download=True)) == own
    assert fingerprint(dataclasses.replace(START, trial_id=9, checkpoint=Path("x")), DATA) == own
