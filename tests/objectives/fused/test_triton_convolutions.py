"""Triton's kernels: where they are taken, that they compile for GPUs, and once; what they compute is tested
by Triton's interpreter, in a process of its own (`interpreted_triton.py`). No GPU is needed for any of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from objectives.fused import triton_convolutions
from objectives.fused.convolutions import CONVOLUTIONS
from objectives.fused.triton_chance import words_by_triton
from objectives.fused.triton_convolutions import (
    Geometry,
    blocks_of,
    images_gradient,
    kernel_gradient,
    map_out,
    takes_triton,
)
from tests.objectives.fused.compiling_triton import compiling
from tests.objectives.fused.interpreting_triton import assert_passes_interpreted, needs_triton
from tests.objectives.fused.test_convolutions import ON_CPU, ON_GPU, shape_of

WHOLE = shape_of(nn.Conv2d(3, 8, 3, padding=1), (6, 6))


@pytest.fixture
def interpreting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def said(value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        else:
            monkeypatch.setenv("TRITON_INTERPRET", value)

    said(None)
    monkeypatch.setattr(triton_convolutions, "has_triton", lambda: True)
    return said


def test_it_is_offered_where_triton_can_compile_or_interpret(
    interpreting: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert takes_triton(WHOLE, ON_GPU)
    assert takes_triton(WHOLE, dataclasses.replace(ON_GPU, dtype=torch.float32))
    assert not takes_triton(WHOLE, dataclasses.replace(ON_GPU, dtype=torch.float64))
    assert not takes_triton(WHOLE, dataclasses.replace(ON_GPU, capability=(7, 5)))
    assert not takes_triton(WHOLE, ON_CPU)
    interpreting("0")
    assert not takes_triton(WHOLE, ON_CPU)
    interpreting("1")
    assert takes_triton(WHOLE, ON_CPU)
    monkeypatch.setattr(triton_convolutions, "has_triton", lambda: False)
    for setting in (ON_CPU, ON_GPU):
        assert not takes_triton(WHOLE, setting)


def test_it_says_which_convolutions_it_does_not_serve(interpreting: Callable[[str | None], None]) -> None:
    for module in (nn.Conv2d(3, 8, 3, dilation=2), nn.Conv2d(3, 8, 3, padding="same")):
        assert not CONVOLUTIONS["triton"].offered(shape_of(module, (6, 6)), ON_GPU)
    for module in (nn.Conv2d(3, 8, 1, 2), nn.Conv2d(3, 8, (2, 5), (3, 1), (0, 2))):
        assert CONVOLUTIONS["triton"].offered(shape_of(module, (6, 6)), ON_GPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 17, 33, 64, 65, 1000])
def test_blocks_are_powers_of_two_that_tensor_cores_take(size: int, dtype: torch.dtype) -> None:
    found = blocks_of(size, size, size, dtype)
    for block in (found.long, found.short, found.added):
        assert block in {16, 32, 64}
    assert found.long == found.short == min(64, max(16, 1 << (size - 1).bit_length()))
    assert blocks_of(None, size, size, dtype) == dataclasses.replace(found, long=64)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], list[Any]]:
    """Kernels are compiled instead of started: for a GPU of such a capability, what is called, in order."""
    from objectives.fused import triton_kernels

    return compiling(triton_kernels, monkeypatch, tmp_path)


def step(geometry: Geometry, rows: int, images: int, dtype: torch.dtype, precision: str) -> None:
    """One convolution, forward and backward, as it is asked for."""
    g = geometry
    x = torch.zeros((images, g.height, g.width, rows * g.channels), dtype=dtype)
    kernel = torch.zeros((rows, g.out, g.high, g.wide, g.channels), dtype=dtype)
    bias = torch.zeros((rows, g.out), dtype=dtype)
    choice = torch.zeros((images, *g.shown, rows * g.out), dtype=torch.uint8) if g.tail else None
    dy = map_out(x, kernel, bias, g, precision, choice)
    images_gradient(dy, kernel, g, precision, choice)
    kernel_gradient(x, dy, rows, g, precision, choice, bias=True)


@needs_triton
@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize(
    ("dtype", "precision", "multiplies", "capability"),
    [
        (torch.float32, "ieee", "fma.rn.f32", 80),
        (torch.float32, "tf32", ".tf32.tf32", 90),
        (torch.bfloat16, "ieee", ".f32.bf16.bf16", 80),
        (torch.bfloat16, "ieee", ".f32.bf16.bf16", 90),
    ],
    ids=["fp32 on 8.0", "tf32 on 9.0", "bf16 on 8.0", "bf16 on 9.0"],
)
def test_kernels_compile_for_gpus(
    dtype: torch.dtype,
    precision: str,
    multiplies: str,
    capability: int,
    tail: int,
    compiled: Callable[[int], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_convolutions, "PART", 64)
    calls = compiled(capability)
    sides = (6, 6) if tail == 0 else (12, 12)
    step(Geometry(8, 20, *sides, 3, 3, 2, 2, 1, 1, tail), 2, 10, dtype, precision)
    assert [call.metadata.name for call in calls] == [
        "_forward",
        "_images_gradient",
        "_kernel_gradient",
        "_add_parts",
        "_add_parts",
    ]
    for call in calls[:3]:
        assert call.asm["cubin"]
        assert call.metadata.shared <= 48 * 1024  # what every GPU has without being asked for more
        assert multiplies in call.asm["ptx"]
        assert (".tf32.tf32" in call.asm["ptx"]) == (precision == "tf32")
        assert not re.search(r"\b(atom|red)\.", call.asm["ptx"])


@needs_triton
@pytest.mark.parametrize("tail", [0, 2])
def test_other_numbers_of_rows_and_images_take_the_same_machine_code(
    tail: int, compiled: Callable[[int], list[Any]]
) -> None:
    """So nothing is compiled when trials come and go: a recording could not be made meanwhile."""
    calls = compiled(90)
    found = []
    for rows, images in ((1, 1), (2, 5), (16, 16), (17, 32)):
        step(Geometry(3, 5, 5, 5, 3, 3, 1, 1, 0, 0, tail), rows, images, torch.float32, "ieee")
        found.append([call.hash for call in calls])
        calls.clear()
    assert len(found[0]) == 3
    assert found[1:] == [found[0]] * 3


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_random_words_compile_once_for_all_sizes(
    capability: int, compiled: Callable[[int], list[Any]]
) -> None:
    calls = compiled(capability)
    for images, blocks in ((1, 1), (7, 2), (64, 16), (1000, 33)):
        counter, keys = (torch.zeros(shape, dtype=torch.long) for shape in ((3, blocks), (images, 2)))
        words_by_triton(counter, torch.zeros(images, dtype=torch.long), keys)
    assert {call.metadata.name for call in calls} == {"_philox_words"}
    assert len({call.hash for call in calls}) == 1
    assert all(call.asm["cubin"] for call in calls)


@needs_triton
@pytest.mark.slow
def test_what_kernels_compute_in_tritons_interpreter() -> None:
    assert_passes_interpreted("interpreted_triton.py")
