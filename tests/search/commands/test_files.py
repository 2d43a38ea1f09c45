"""What `shoal plan` prints of how trials are trained, and of numbers that are one."""

from __future__ import annotations

from pathlib import Path

import pytest

import search.plan
from objectives.base import Task, TrialConfig
from search.plan import Rates
from tests.contracts.shoal_command import ONE_METHOD, printed, tiny

REASON = "torch.func can't run the model: RuntimeError: vmap: It looks like you call .item() on a Tensor."

SPACE = ("space:", "space:\n  model.dense: [4, 8]\n  batch_size: [32, 128]")


def measured(_task: Task, config: TrialConfig, **_options: object) -> Rates:
    """Trials of 32 images a batch can't be fused, those of 64 neither, those of 128 are."""
    if config.batch_size == 128:
        return Rates(alone=1000.0, fused=2000.0, slots=16, bytes_per_slot=1 << 20)
    return Rates(alone=1000.0, reason=REASON)


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_a_reason_stands_once_and_is_not_squeezed_into_a_column(
    columns: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(search.plan, "measured_speed", measured)
    file = tmp_path / "e.yaml"
    file.write_text(tiny("e", (", dense: 8", ""), SPACE, *ONE_METHOD))
    out, _ = printed(capsys, "plan", str(file))
    words = out.split()
    assert words.count("torch.func") == 1
    assert len([line for line in out.splitlines() if ".item()" in line or "vmap" in line]) <= 3
    assert "trained alone, not fused" in out
    assert "batch_size 32, model.dense 4; batch_size 32, model.dense 8" in " ".join(words) or columns != "200"
    assert "1 (1 method × 1 replicate)" in out


def test_where_all_are_fused_nothing_is_said_of_training_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.plan, "measured_speed", measured)
    file = tmp_path / "e.yaml"
    file.write_text(tiny("e", ("epochs: 3", "epochs: 3, batch_size: 128")))
    assert "alone, not fused" not in printed(capsys, "plan", str(file))[0]
