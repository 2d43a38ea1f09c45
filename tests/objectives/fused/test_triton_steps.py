"""Kernels of recorded steps: where they are taken, that they compile for GPUs, and once; what they compute is
tested by Triton's interpreter, in a process of its own (`interpreted_steps.py`). No GPU is needed for any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objectives.fused import triton_tried
from objectives.fused.triton_images import SHOWS
from objectives.fused.triton_trials import TRIALS
from objectives.fused.triton_tried import Trial, same, takes
from tests.objectives.fused.compiling_triton import compiling
from tests.objectives.fused.interpreting_triton import assert_passes_interpreted, needs_triton

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A kernel that is tried on a made-up GPU; what runs, in order."""
    ran: list[str] = []
    monkeypatch.setattr(triton_tried, "_taken", {})
    monkeypatch.setattr(triton_tried, "has_triton", lambda: True)

    def on(by_kernel: Callable[[], Sequence[Tensor]]) -> list[str]:
        def by_operations() -> Sequence[Tensor]:
            ran.append("operations")
            return [torch.ones(3)]

        def noted() -> Sequence[Tensor]:
            ran.append("kernel")
            return by_kernel()

        trial = Trial(noted, by_operations, 1e-6)
        monkeypatch.setattr("objectives.fused.triton_trials.TRIALS", {"sums": lambda _: [trial]})
        return ran

    return on


def test_a_gpu_takes_a_kernel_that_gives_the_same(tried: Callable[..., list[str]]) -> None:
    ran = tried(lambda: [torch.ones(3)])
    assert takes("sums", GPU)
    assert takes("sums", GPU)
    assert ran == ["kernel", "operations"], "it is tried once"
    assert not takes("sums", CPU)


def _fails() -> Sequence[Tensor]:
    raise RuntimeError("no compiler\nat all")


@pytest.mark.parametrize(
    ("by_kernel", "says"),
    [
        (lambda: [torch.tensor([1.0, 1.0, 1.0001])], "gives others"),
        (lambda: [torch.tensor([1.0, 1.0, torch.nan])], "gives others"),
        (_fails, "RuntimeError: no compiler"),
    ],
)
def test_one_that_fails_or_gives_others_is_not_taken(
    by_kernel: Callable[[], Sequence[Tensor]],
    says: str,
    tried: Callable[..., list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried(by_kernel)
    assert not takes("sums", GPU)
    assert not takes("sums", GPU)
    (line,) = caplog.messages
    assert says in line


def test_without_triton_it_is_done_by_operations(
    tried: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(_fails)
    monkeypatch.setattr(triton_tried, "has_triton", lambda: False)
    assert not takes("sums", GPU)


def test_too_little_memory_is_the_steps_own(tried: Callable[..., list[str]]) -> None:
    def short() -> Sequence[Tensor]:
        raise torch.OutOfMemoryError

    tried(short)
    with pytest.raises(torch.OutOfMemoryError):
        takes("sums", GPU)


def test_numbers_are_held_against_the_largest_of_their_tensor() -> None:
    large, nan = torch.tensor([1e6, 0.1]), torch.tensor([1.0, torch.nan])
    for mine, theirs, close in (
        (large + torch.tensor([0.0, 0.5]), large, True),
        (large + torch.tensor([0.0, 5.0]), large, False),
        (nan, nan.clone(), True),
        (nan, torch.ones(2), False),
        (torch.ones(0), torch.ones(0), True),
    ):
        assert same(Trial(lambda one=mine: [one], lambda one=theirs: [one], 1e-6)) == close  # type: ignore[misc]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", TRIALS)
def test_kernels_compile_for_gpus(
    name: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without an addition by whoever comes first, the order of which would show in the last bits."""
    from objectives.fused import triton_image_kernels, triton_step_kernels

    modules = triton_image_kernels if name == SHOWS else triton_step_kernels
    calls = compiling(modules, monkeypatch, tmp_path)(capability)
    for trial in TRIALS[name](CPU):
        trial.by_kernel()
    assert calls
    for call in calls:
        assert call.asm["cubin"]
        assert call.metadata.shared <= 48 * 1024
        assert not re.search(r"\b(atom|red)\.", call.asm["ptx"])


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_tails_compile_for_gpus_once(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from objectives.fused import triton_tail_kernels
    from objectives.fused.convolutions import CONVOLUTIONS

    calls = compiling(triton_tail_kernels, monkeypatch, tmp_path)(capability)
    block = CONVOLUTIONS["grouped_tail"].block
    assert block is not None
    for rows, images in ((2, 3), (16, 16), (5, 7)):
        x = torch.zeros(images, rows * 2, 7, 6).to(memory_format=torch.channels_last)
        kernel, bias = torch.zeros(rows, 4, 3, 3, 2, requires_grad=True), torch.zeros(rows, 4)
        y = block(x, kernel, bias.requires_grad_(), torch.nn.Conv2d(2, 4, 3), 2)
        torch.autograd.grad(y, [kernel, bias], torch.zeros_like(y))
    assert [call.metadata.name for call in calls] == ["_tail", "_tail_gradient"] * 3
    assert len({call.hash for call in calls}) == 2
    assert all(call.asm["cubin"] for call in calls)


@needs_triton
def test_other_numbers_of_trials_and_rows_take_the_same_machine_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is compiled when trials come and go: a recording could not be made meanwhile."""
    from objectives.fused import triton_step_kernels
    from objectives.fused.triton_steps import add_rows_by_triton

    calls = compiling(triton_step_kernels, monkeypatch, tmp_path)(90)
    for slots, rows, numbers in ((1, 2, 1), (16, 16, 1600), (64, 128, 36864), (7, 12, 33)):
        sums = torch.zeros(slots + 1, numbers + slots).narrow(1, slots, numbers)  # begins anywhere
        table = torch.zeros(4, rows + 1, dtype=torch.long).narrow(1, slots % 2, rows)
        turn, fresh = (table[0], table[1]), table[2] > 0
        add_rows_by_triton(sums, torch.zeros(rows, numbers), turn, table[3], fresh)
    assert len(calls) == 4
    assert len({call.hash for call in calls}) == 1


@needs_triton
@pytest.mark.slow
def test_what_kernels_compute_in_tritons_interpreter() -> None:
    assert_passes_interpreted("interpreted_steps.py")
