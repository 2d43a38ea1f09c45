"""The benchmarks of fused training: what they say of their numbers; and they can be run, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import host_cost
from tests.benchmarks.fused_occupancy import Stay, shares
from tests.benchmarks.fused_scaling import knee_of
from tests.benchmarks.reasons import ARITHMETIC, compared, kind_of, missed, profiled


class TestShares:
    def test_slots_that_are_never_empty(self) -> None:
        found = shares([Stay(0, [2], 2), Stay(0, [3], 3), Stay(2, [4], 4), Stay(3, [4], 4)], 2)
        assert found["over all"] == found["while trials are left"] == {"held": 1, "useful": 1}
        assert found["empty"] == {"between": 0, "tail": 0}
        assert found["seconds"] == 4

    def test_where_slot_time_goes(self) -> None:
        """Of 20 slot-seconds 2 are empty before the last trial begins, 4 after, and 1 awaits a verdict."""
        found = shares([Stay(0, [1, 3], 4), Stay(0, [4], 4), Stay(6, [10], 10)], 2)
        assert found["over all"] == {"held": 12 / 20, "useful": 11 / 20}
        assert found["while trials are left"] == {"held": 8 / 12, "useful": 7 / 12}
        assert found["empty"] == pytest.approx({"between": 4 / 20, "tail": 4 / 20})
        assert found["awaiting a verdict"] == pytest.approx(1 / 20)

    def test_groups_of_fixed_shape_are_counted_by_epochs(self) -> None:
        stays = [Stay(at, [at + 1.0] * epochs, at + 1.0) for at, epochs in enumerate([9, 1, 1, 3])]
        assert shares(stays, 2)["by epochs"] == 14 / (2 * (9 + 3))


def test_the_knee_is_where_more_slots_gain_little() -> None:
    rates = {"1": [10.0, 12.0, 11.0], "4": [80.0, 97.0, 96.0], "16": [100.0], "64": [99.0]}
    assert knee_of(rates) == {"slots": 4, "best": 16, "within": 0.95}


class TestReasons:
    @pytest.mark.parametrize(
        ("operator", "kind"),
        [
            ("aten::mkldnn_convolution", "convolutions"),
            ("aten::convolution_backward", "convolutions"),
            ("aten::max_pool2d_with_indices", "pooling"),
            ("aten::baddbmm", "matrix products"),
            ("aten::index_select", "copies"),
            ("aten::addcmul_", ARITHMETIC),
        ],
    )
    def test_operators_are_told_apart(self, operator: str, kind: str) -> None:
        assert kind_of(operator) == kind

    def test_a_target_that_is_met_needs_no_reason(self) -> None:
        def why() -> dict[str, Any]:
            pytest.fail("asked for a reason")

        assert missed("t", 1.5, 1.5, why) == []

    def test_one_that_is_missed_says_by_how_much(self) -> None:
        (entry,) = missed("t", 1.2, 1.5, lambda: {"why": "so"})
        assert entry == {"target": "t", "least": 1.5, "found": 1.2, "short_by": 0.2, "why": "so"}

    def test_a_profile_says_where_the_time_goes(self) -> None:
        """All of it is told, by kinds that do not overlap."""
        one, other = torch.ones(200, 200), torch.ones(200, 200)
        found = profiled(lambda: [one @ other for _ in range(50)], 10)
        kinds = found["microseconds_per_image"]
        assert max(kinds, key=lambda kind: kinds[kind] if "Python" not in kind else 0) == "matrix products"
        assert found["share_of_top_operators"]["aten::mm"] > 0
        assert sum(found["share_of_top_operators"].values()) <= 1.01

    def test_what_can_be_gained_at_most(self) -> None:
        said = compared(
            {
                "fused": {"microseconds_per_image": {"convolutions": 50.0, "copies": 30.0}},
                "alone": {"microseconds_per_image": {"convolutions": 60.0, "copies": 40.0}},
            }
        )
        assert "convolutions are 62% of it, 50 µs against 60" in said
        assert "fused would be 2.00 times as fast" in said


def test_what_the_host_does_for_a_step() -> None:
    found = host_cost.measured([2, 3], images=200, steps=4, rounds=2)
    assert list(found) == [2, 3]
    for slots, one in found.items():
        assert one["n"] == len(one["rounds"]) == 2
        assert one["microseconds_per_trial_and_step"]["median"] > 0
        assert all(0 < timed["trials_per_step"] <= slots for timed in one["rounds"])
        assert 1 <= one["operations_per_step"] < 30, "one copy a step, and what an epoch's beginning takes"


SMALL = {
    "fused_cpu": ["--case", "8x8, batches of 64", "--limit", "80"],
    "fused_scaling": [
        *("--limit", "60", "--slots", "1", "4", "--trials", "4", "--models", "cnn of width 8", "airbench"),
        *("--batches", "32", "--admissions", "120"),
    ],
    "fused_occupancy": ["--limit", "60", "--trials", "9", "--slots", "3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_benchmark_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    module = [sys.executable, "-m", f"tests.benchmarks.{name}", "--rounds", "1", "--output", str(path)]
    done = subprocess.run([*module, *SMALL[name]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    parts = found.values() if name == "fused_scaling" else [found]
    for part in parts:
        assert f"tests.benchmarks.{name}" in part["command"]
        assert part["versions"]["torch"]
        assert all(entry["why"] for entry in part["missed"])
    if name == "fused_scaling":
        assert list(found) == ["slots", "models", "batches", "mixed", "admissions"]
        assert found["admissions"]["found"]["after_warm_up"]["new"] == dict.fromkeys(
            ["programs", "compilations", "graphs captured"], 0
        )
    if name == "fused_occupancy":
        assert found["ways"]["group"]["rounds"][0]["by epochs"] < 1
        assert found["ways"]["search"]["rounds"][0]["epochs"] >= 9
