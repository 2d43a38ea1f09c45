"""Winograd's matrices and convolutions: sizes, padding, and how far off they are in single precision.

That they give torch's own numbers, row for row: `test_convolutions.py`, with all other backends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from objectives.devices import reproducible
from objectives.fused.convolutions import CONVOLUTIONS
from tests.contracts.parity_contract import relative
from tests.objectives.fused.test_convolutions import ON_CPU, Drawn, shape_of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(1)
    with reproducible(1):
        yield


def drawn(
    sides: tuple[int, int], padding: tuple[int, int] = (0, 0), dtype: torch.dtype = torch.float64
) -> Drawn:
    module = nn.Conv2d(16, 32, 3, padding=padding, bias=padding == (0, 0))
    assert CONVOLUTIONS["winograd"].offered(shape_of(module, sides), ON_CPU)
    return Drawn(module, sides, 2, 5, dtype)


@pytest.mark.parametrize("high", [2, 3, 4])
@pytest.mark.parametrize("wide", [2, 3, 4])
def test_every_size_of_a_map_out(high: int, wide: int) -> None:
    case = drawn((high + 2, wide + 2))
    for mine, wanted in zip(case.run("winograd"), case.plain(), strict=True):
        assert relative(mine, wanted) <= 1e-12


@pytest.mark.parametrize(
    ("sides", "padding"),
    [((2, 2), (1, 1)), ((4, 3), (1, 1)), ((5, 4), (0, 1)), ((1, 2), (2, 2)), ((4, 1), (1, 2))],
)
def test_padding(sides: tuple[int, int], padding: tuple[int, int]) -> None:
    case = drawn(sides, padding)
    for contiguous in (True, False):
        for mine, wanted in zip(case.run("winograd", contiguous=contiguous), case.plain(), strict=True):
            assert relative(mine, wanted) <= 1e-12


@pytest.mark.parametrize("side", [4, 5, 6])
def test_single_precision_loses_little(side: int) -> None:
    case = drawn((side, side), dtype=torch.float32)
    exact = Drawn(case.module, (side, side), 2, 5, torch.float64)
    for name in ("x_MHWRC", "kernel_ROHWC", "bias_RO", "dy_MHWRO"):
        setattr(exact, name, getattr(case, name).double())
    for mine, wanted in zip(case.run("winograd"), exact.plain(), strict=True):
        assert relative(mine.double(), wanted) <= 2e-6


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(16, 16, 3, padding=2),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(8, 16, 3),
        nn.Conv2d(16, 24, 3),
    ],
    ids=str,
)
def test_others_are_not_taken(module: nn.Conv2d) -> None:
    assert not CONVOLUTIONS["winograd"].offered(shape_of(module, (5, 5)), ON_CPU)


def test_a_map_of_one_place_is_not_taken() -> None:
    assert not CONVOLUTIONS["winograd"].offered(shape_of(nn.Conv2d(16, 16, 3), (3, 5)), ON_CPU)


def test_the_gradient_of_the_first_map_is_not_computed() -> None:
    case = drawn((4, 4))
    x = case.x_MHWRC.flatten(3).permute(0, 3, 1, 2)
    kernel = case.kernel_ROHWC.clone().requires_grad_()
    y = CONVOLUTIONS["winograd"].run(x, kernel, None, case.module)
    dy = case.dy_MHWRO.flatten(3).permute(0, 3, 1, 2)
    (found,) = torch.autograd.grad(y, [kernel], dy)
    assert relative(found, case.plain()[2]) <= 1e-12


@pytest.mark.parametrize("tail", [1, 2])
def test_a_tail_gives_what_the_layers_give_one_by_one(tail: int) -> None:
    case = drawn((6, 6))
    way = CONVOLUTIONS["winograd"]
    assert way.block is not None

    def run(*, together: bool) -> list[torch.Tensor]:
        x = case.x_MHWRC.flatten(3).permute(0, 3, 1, 2).requires_grad_()
        assert case.bias_RO is not None
        leaves = [x, *(tensor.clone().requires_grad_() for tensor in (case.kernel_ROHWC, case.bias_RO))]
        if together:
            assert way.block is not None
            y = way.block(x, leaves[1], leaves[2], case.module, tail)
        else:
            y = torch.relu(way.run(x, leaves[1], leaves[2], case.module))
            y = nn.functional.max_pool2d(y, 2) if tail == 2 else y
        slope = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        return [y.detach(), *torch.autograd.grad(y, leaves, slope)]

    for mine, wanted in zip(run(together=True), run(together=False), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_a_row_that_diverges_leaves_nothing_in_the_memory_that_all_rows_go_through(bad: float) -> None:
    module, block = nn.Conv2d(16, 32, 3), CONVOLUTIONS["winograd"].block
    assert block is not None

    def of_sound_rows(first: float | None) -> list[torch.Tensor]:
        """Map out and gradients of the second row and the third, after a first one of such numbers."""
        torch.manual_seed(2)
        x, dy = torch.randn(4, 3 * 16, 6, 6), torch.randn(4, 3 * 32, 4, 4)
        kernel_ROHWC, bias_RO = torch.randn(3, 32, 3, 3, 16), torch.randn(3, 32)
        if first is not None:
            x[:, :16] = kernel_ROHWC[0] = first
        leaves = [each.requires_grad_() for each in (x, kernel_ROHWC, bias_RO)]
        y = block(*leaves, module, 1)
        dx, dkernel, dbias = torch.autograd.grad(y, leaves, dy)
        return [y[:, 32:].detach(), dx[:, 16:], dkernel[1:], dbias[1:]]

    for mine, wanted in zip(of_sound_rows(bad), of_sound_rows(None), strict=True):
        assert torch.equal(mine, wanted)
