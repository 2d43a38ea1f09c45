"""The benchmark for GPUs trains the same trials in all of its ways; and it can be run, on a CPU in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from objectives.bench_gpu import NotHereError
from tests.benchmarks.gpu_fused import recorded
from tests.benchmarks.ray_tune import claimed
from tests.contracts.engine_contract import TASK


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(NotHereError):
        recorded(TASK, "cpu")


def test_every_trial_is_claimed_once(tmp_path: Path) -> None:
    assert [claimed(tmp_path, 3) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        claimed(tmp_path, 3)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    small = (
        "--minutes 5 --rounds 1 --device cpu --slots 3 --precisions fp32 tf32 bf16 --processes --image-size 8"
    )
    more = f"--images 60 --alone-trials 3 --width 2 --revision abc --output {out}"
    blocked = "import sys; sys.modules.update(dict.fromkeys(['ray', 'optuna', 'psycopg2', 'sqlalchemy']));"
    run = "import runpy; runpy.run_module('tests.benchmarks.gpu_fused', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked} {run}", *small.split(), *more.split()],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text(encoding="utf-8"))
    assert [row["way"] for row in body["ways"]] == [
        "one by one",
        "fused, 3 slots, fp32",
        "fused, 3 slots, bf16",
    ]
    assert all(row["n"] == 1 and row["images"] > 0 for row in body["ways"])
    assert set(body["left_out"]) == {"Ray Tune", "fused, 3 slots, tf32", "one by one, CUDA graph"}
    assert body["revision"] == "abc"
    assert body["fused_against"]["one by one"] > 0
