"""Kernels and bytes of a recorded step are counted as the numbers that an operation needs say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from objectives.base import Choice
from tests.benchmarks.launches import META, Launch, Launches, Places
from tests.benchmarks.step_bytes import PLACES, Case, Machine, counted

SMALL = Choice("cnn", {"depth": 2, "width": 4, "dense": 8})


def seen(work: Callable[[], object]) -> list[tuple[str, int, int, int]]:
    with Launches(Places({})) as mode:
        work()
    return [(one.name, one.read, one.written, one.flops) for one in mode.seen]


def far(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def test_every_number_counts_once() -> None:
    one, index = far(4, 5), torch.zeros(3, dtype=torch.long, device=META)
    assert seen(lambda: one + one) == [("add", 80, 80, 0)]
    assert seen(lambda: one + far(1, 5)) == [("add", 100, 80, 0)]
    assert seen(lambda: one.mul_(far(8, 1)[:4].expand(4, 5))) == [("mul_", 96, 80, 0)]
    assert seen(lambda: one.view(5, 4).t()[1:]) == []
    assert seen(lambda: one.copy_(far(5).bfloat16())) == [("_to_copy", 20, 10, 0), ("copy_", 10, 80, 0)]
    assert seen(lambda: one.index_select(0, index)) == [("index_select", 60 + 24, 60, 0)]
    assert seen(lambda: one.index_copy_(0, index, far(3, 5))) == [("index_copy_", 24 + 60, 60, 0)]
    assert seen(lambda: one.index_fill_(0, index, 0.0)) == [("index_fill_", 24, 60, 0)]
    assert seen(lambda: torch.bmm(far(2, 3, 4), far(2, 4, 5))) == [("bmm", 96 + 160, 120, 240)]


def test_a_convolution_is_what_cudnn_makes_of_it() -> None:
    """The bias is added by a kernel of its own; maps stay channels last; three gradients."""
    x = far(2, 6, 5, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    kernel = far(8, 3, 3, 3, dtype=torch.bfloat16).requires_grad_()
    bias = far(8, dtype=torch.bfloat16).requires_grad_()
    map_in, map_out, weights = 2 * 300, 2 * 2 * 8 * 9, 2 * 8 * 27
    flops = 2 * (2 * 8 * 9) * 27

    def work() -> None:
        y = functional.conv2d(x, kernel, bias, groups=2)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.autograd.grad(y, [x, kernel, bias], torch.empty_like(y))

    assert seen(work) == [
        ("convolution", map_in + weights, map_out, flops),
        ("bias added", map_out + 16, map_out, 0),
        ("gradient of the map", map_out + weights, map_in, flops),
        ("gradient of the kernel", map_out + map_in, weights, flops),
        ("gradient of the bias", map_out, 16, 0),
    ]


def test_what_is_one_kernel_reads_and_writes_what_is_outside() -> None:
    weights, gradient = far(10), far(10)
    with Launches(Places({})) as mode, mode.fused("all"):
        weights.sub_((gradient * 2).square_().mul_(gradient))
    assert [(one.name, one.read, one.written) for one in mode.seen] == [("all", 80, 40)]


@pytest.mark.parametrize("backend", ["grouped", "triton_block"])
def test_all_of_a_step_is_counted_and_has_a_place(backend: str) -> None:
    pytest.importorskip("triton")
    found = {}
    for kernels in (True, False):
        launches, steps, images = counted(Case(backend, "bf16", True, 4, kernels), SMALL, images=640)
        assert steps > 1
        assert images > 32 * steps
        assert not [one for one in launches if "elsewhere" in one.place]
        assert {place for place in _fixed() if place not in {one.place for one in launches}} <= {
            "normalisation",
            "flatten",
            "activation",
            "pooling",
            "weights cast",
        }
        found[kernels] = launches
    assert 3 * len(found[True]) < len(found[False])
    assert _bytes(found[True]) < _bytes(found[False])
    assert any(one.name == "compiled update" for one in found[False])
    flops = [sum(one.flops for one in launches) for launches in found.values()]
    assert flops[0] == flops[1] > 0


def _fixed() -> set[str]:
    return {place for place in PLACES.values() if isinstance(place, str)} - {
        "copies and casts",
        "augmentation",
    }


def _bytes(launches: list[Launch]) -> int:
    return sum(one.read + one.written for one in launches)


def test_the_longest_of_three_times_is_a_kernels_floor() -> None:
    machine = Machine(1e9, {"bf16": 1e12}, 1e-6)
    assert machine.seconds(Launch("", "", 1500, 500), "bf16") == 2e-6
    assert machine.seconds(Launch("", "", 1500, 500, 3_000_000), "bf16") == 3e-6
    assert machine.seconds(Launch("", "", 1, 1), "bf16") == 1e-6


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    out = tmp_path / "out.json"
    backends = ("grouped", "triton_block")
    module = [sys.executable, "-m", "tests.benchmarks.step_bytes", "--slots", "6", "--output", str(out)]
    module += ["--backends", *backends]
    done = subprocess.run(module, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text(encoding="utf-8"))
    seen = [(case["backend"], case["precision"], case["chance"]) for case in body["cases"]]
    assert sorted(seen) == sorted(product(backends, ("bf16", "fp32"), (False, True)))
    for case in body["cases"]:
        assert case["images_per_second_at_most"] > 0
        places = case["places"].values()
        assert sum(one["bytes_per_image"] for one in places) == pytest.approx(case["bytes_per_image"])
    assert "images/s, by these counts" in done.stdout
