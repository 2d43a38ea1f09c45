"""`shoal bench` says how fast this machine is, and on what that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.cli import run_command


@pytest.mark.slow
def test_the_table_and_its_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results" / "bench.json"
    small = ["--rounds", "2", "--trials", "3", "--limit", "60", "--device", "cpu"]
    assert run_command(["bench", *small, "--output", str(file)]) == 0
    out, err = capsys.readouterr()
    for word in ("one by one", "fused", "as chosen (default)", "processes", "images/s", "seed 1", "torch"):
        assert word in out
    assert "2 rounds show little of the spread" in err
    body = json.loads(file.read_text(encoding="utf-8"))
    assert body["work"] == {
        "data": "digits",
        "image_size": None,
        "limit": 60,
        "trials": 3,
        "batch_sizes": [32, 64, 128],
        "rungs": [1, 3, 9],
        "model": "cnn",
        "images": 48 * (9 + 1 + 1),
    }
    assert body["environment"]["versions"]["torch"]
    assert [len(way["rounds"]) for way in body["ways"]] == [2] * 4
    fused = body["ways"][1]
    assert fused["programs_built"] == 1
    assert fused["convolutions"] == {"0": "grouped", "2": "winograd", "4": "winograd"}
    assert body["ways"][0]["convolutions"] is None
    spread = fused["ratio"]
    assert 0 < spread["least"] <= spread["median"] <= spread["most"]


def test_what_can_not_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", "--rounds", "0"]) == 2
    assert run_command(["bench", "--data", "nothing"]) == 2
    assert capsys.readouterr().out == ""
