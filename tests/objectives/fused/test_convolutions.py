"""Every way to compute convolutions gives torch's own numbers, row for row the same beside any others.

But for Triton's: `test_triton_convolutions.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from objectives.base import Choice
from objectives.devices import reproducible
from objectives.fused import convolutions, triton_convolutions
from objectives.fused.convolutions import (
    CONVOLUTIONS,
    Backend,
    Im2col,
    Setting,
    Shape,
    shapes_of,
    usual,
)
from objectives.models import build
from tests.contracts.parity_contract import relative

ON_CPU = Setting("a processor", "cpu", (0, 0), rows=3, images=5, dtype=torch.float32, precision="fp32")
ON_GPU = dataclasses.replace(ON_CPU, type="cuda", capability=(9, 0), dtype=torch.bfloat16, precision="bf16")

MODULES = [
    nn.Conv2d(2, 4, 3),
    nn.Conv2d(3, 5, (3, 2), padding=(1, 0)),
    nn.Conv2d(2, 7, (2, 3), stride=(2, 3), padding=(0, 2)),
    nn.Conv2d(5, 6, 1, bias=False),
    nn.Conv2d(4, 3, 1, stride=2),
    nn.Conv2d(1, 2, 5, padding=2),
    nn.Conv2d(8, 16, 3, padding=1),
    nn.Conv2d(16, 8, 1, stride=2, bias=False),
    nn.Conv2d(3, 16, 4, stride=3, padding=1, bias=False),
    nn.Conv2d(2, 3, 3, dilation=2),
    nn.Conv2d(2, 3, 3, padding="same"),
    nn.Conv2d(16, 32, 3),
]
SIDES = [(6, 6), (7, 9)]


def name_of(module: nn.Conv2d) -> str:
    said = f"{module.in_channels}-{module.out_channels} {module.kernel_size} {module.stride}"
    return f"{said} {module.padding} {module.dilation}"


def shape_of(module: nn.Conv2d, sides: Sequence[int]) -> Shape:
    (shape,) = shapes_of(nn.Sequential(module), (module.in_channels, sides[0], sides[1])).values()
    return shape


class Drawn:
    """Random images and parameters of so many rows, and a gradient of the map out."""

    def __init__(
        self, module: nn.Conv2d, sides: Sequence[int], rows: int, images: int, dtype: torch.dtype
    ) -> None:
        self.module, self.rows = module, rows
        self.x_MHWRC = torch.randn(images, *sides, rows, module.in_channels, dtype=dtype)
        kernel = (*module.kernel_size, module.in_channels)
        self.kernel_ROHWC = torch.randn(rows, module.out_channels, *kernel, dtype=dtype)
        has_bias = module.bias is not None
        self.bias_RO = torch.randn(rows, module.out_channels, dtype=dtype) if has_bias else None
        sizes = module.to(dtype)(self.x_MHWRC[:, :, :, 0].permute(0, 3, 1, 2)).shape
        module.float()
        self.dy_MHWRO = torch.randn(images, *sizes[2:], rows, sizes[1], dtype=dtype)

    def of(self, rows: list[int]) -> Drawn:
        """These rows, in this order."""
        chosen = object.__new__(Drawn)
        chosen.module, chosen.rows = self.module, len(rows)
        chosen.x_MHWRC, chosen.dy_MHWRO = self.x_MHWRC[:, :, :, rows], self.dy_MHWRO[:, :, :, rows]
        chosen.kernel_ROHWC = self.kernel_ROHWC[rows]
        chosen.bias_RO = None if self.bias_RO is None else self.bias_RO[rows]
        return chosen

    def run(self, backend: str, *, contiguous: bool = True) -> list[Tensor]:
        """The map out and the gradients of images and parameters, R… each."""
        x = self.x_MHWRC.flatten(3).permute(0, 3, 1, 2).requires_grad_()
        leaves = [x, self.kernel_ROHWC.clone().requires_grad_()]
        bias = None if self.bias_RO is None else self.bias_RO.clone().requires_grad_()
        leaves += [] if bias is None else [bias]
        y = CONVOLUTIONS[backend].run(x, leaves[1], bias, self.module)
        dy = self.dy_MHWRO.flatten(3).permute(0, 3, 1, 2)
        if not contiguous:  # laid out otherwise
            dy = dy.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
        dx, *others = torch.autograd.grad(y, leaves, dy)
        return [self._by_rows(y.detach()), self._by_rows(dx), *others]

    def plain(self) -> list[Tensor]:
        """The same from one call of torch for each row."""
        found: list[list[Tensor]] = []
        for row in range(self.rows):
            leaves = [self.x_MHWRC[:, :, :, row].permute(0, 3, 1, 2), self.kernel_ROHWC[row]]
            leaves += [] if self.bias_RO is None else [self.bias_RO[row]]
            leaves = [leaf.clone().requires_grad_() for leaf in leaves]
            x, kernel, *bias = leaves
            m = self.module
            y = functional.conv2d(
                x, kernel.permute(0, 3, 1, 2), *(bias or [None]), m.stride, m.padding, m.dilation
            )
            dx, *others = torch.autograd.grad(y, leaves, self.dy_MHWRO[:, :, :, row].permute(0, 3, 1, 2))
            found.append([y.detach().permute(0, 2, 3, 1), dx.permute(0, 2, 3, 1), *others])
        return [torch.stack(tensors) for tensors in zip(*found, strict=True)]

    def _by_rows(self, tensor: Tensor) -> Tensor:
        images, _, height, width = tensor.shape
        return tensor.permute(0, 2, 3, 1).reshape(images, height, width, self.rows, -1).movedim(3, 0)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    torch.manual_seed(1)
    with reproducible(1):
        yield


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("module", MODULES, ids=name_of)
@pytest.mark.parametrize("backend", [name for name in CONVOLUTIONS if name != "triton"])
def test_numbers_and_gradients_are_torchs_own(backend: str, module: nn.Conv2d, rows: int) -> None:
    # On a CPU torch has a `grouped_mm` in float32 as well, so that what is done with it can be seen there.
    alike = ON_GPU if backend == "grouped_mm" else ON_CPU
    dtype = torch.float32 if backend == "grouped_mm" else torch.float64
    for sides in SIDES:
        shape = shape_of(module, sides)
        if not CONVOLUTIONS[backend].offered(shape, alike):
            continue
        drawn = Drawn(module, sides, rows, 5, dtype)
        for contiguous in (True, False):
            got = drawn.run(backend, contiguous=contiguous)
            for mine, wanted in zip(got, drawn.plain(), strict=True):
                assert mine.shape == wanted.shape
                assert relative(mine, wanted) <= (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [5, 32])
@pytest.mark.parametrize("module", MODULES, ids=name_of)
@pytest.mark.parametrize("backend", [name for name in CONVOLUTIONS if name not in {"grouped_mm", "triton"}])
def test_a_rows_numbers_depend_on_nothing_beside_it(
    backend: str, module: nn.Conv2d, images: int, dtype: torch.dtype
) -> None:
    sides = (5, 6)
    if not CONVOLUTIONS[backend].offered(shape_of(module, sides), ON_CPU):
        return
    drawn = Drawn(module, sides, 13, images, dtype)
    found = []
    for rows in ([0, 1], [2, 0, 3], [1, 2, 3, 0], [*range(6, 12), 0, 4, 5], [*range(12, -1, -1)]):
        place = rows.index(0)
        found.append([tensor[place] for tensor in drawn.of(rows).run(backend)])
    for these, those in itertools.pairwise(found):
        assert all(torch.equal(one, other) for one, other in zip(these, those, strict=True))


@pytest.mark.parametrize("backend", ["hybrid", "im2col", "winograd"])
def test_a_nan_stays_in_its_row(backend: str) -> None:
    drawn = Drawn(MODULES[-1], (6, 6), 4, 5, torch.float32)
    sound = drawn.run(backend)
    drawn.x_MHWRC[:, :, :, 2] = torch.nan
    drawn.kernel_ROHWC[2] = torch.inf
    for mine, theirs in zip(drawn.run(backend), sound, strict=True):
        others = [0, 1, 3]
        assert torch.equal(mine[others], theirs[others])


def test_half_precision_adds_up_in_single() -> None:
    """A number of a map in is used for 25 of the map out: their gradients are not added in bfloat16."""
    drawn = Drawn(nn.Conv2d(2, 8, 5, padding=2), (9, 9), 2, 4, torch.bfloat16)
    exact = Drawn(drawn.module, (9, 9), 2, 4, torch.float64)
    for name in ("x_MHWRC", "kernel_ROHWC", "bias_RO", "dy_MHWRO"):
        setattr(exact, name, getattr(drawn, name).double())
    expected = exact.plain()
    for backend in ("grouped", "im2col"):
        got = drawn.run(backend)
        assert [tensor.dtype for tensor in got] == [torch.bfloat16] * 4
        assert max(relative(one.double(), other) for one, other in zip(got, expected, strict=True)) <= 4e-3


@pytest.mark.parametrize(
    ("module", "side", "expected"),
    [
        (nn.Conv2d(1, 1, 3), 5, "hybrid"),  # 3×3 places
        (nn.Conv2d(1, 1, 3), 6, "grouped"),
        (nn.Conv2d(1, 1, 3, stride=2), 7, "hybrid"),
        (nn.Conv2d(1, 1, 3, padding=1), 4, "grouped"),
        (nn.Conv2d(1, 1, 3, bias=False), 5, "grouped"),
        (nn.Conv2d(1, 1, 3, padding="same"), 3, "grouped"),
        (nn.Conv2d(1, 1, 2, dilation=2), 4, "grouped"),
        (nn.Conv2d(32, 64, 3), 6, "winograd"),  # 4×4 places
        (nn.Conv2d(64, 32, 3, padding=1, bias=False), 2, "winograd"),
        (nn.Conv2d(32, 64, 3), 7, "grouped"),
        (nn.Conv2d(32, 64, 3), 3, "hybrid"),
        (nn.Conv2d(32, 64, 3, stride=2), 7, "hybrid"),
        (nn.Conv2d(32, 16, 3), 6, "grouped"),
        (nn.Conv2d(32, 40, 3), 6, "grouped"),
        (nn.Conv2d(32, 64, (3, 2)), 5, "grouped"),
    ],
)
def test_only_small_maps_are_usually_done_otherwise(module: nn.Conv2d, side: int, expected: str) -> None:
    assert convolutions.MOST_PLACES == 9
    shape = shape_of(module, (side, side))
    assert usual(shape, "cpu", torch.float32) == usual(shape, "cpu", torch.float64) == expected
    assert usual(shape, "cuda", torch.float32) == "grouped"
    assert usual(shape, "cpu", torch.bfloat16) != "winograd"  # which has too few bits for it


def test_backends_are_offered_where_they_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_convolutions, "has_triton", lambda: True)
    whole, odd = shape_of(nn.Conv2d(8, 16, 3), (6, 6)), shape_of(nn.Conv2d(3, 16, 3), (6, 6))

    def offered(shape: Shape, setting: Setting) -> list[str]:
        return [name for name, one in CONVOLUTIONS.items() if one.offered(shape, setting)]

    assert offered(whole, ON_CPU) == ["grouped", "hybrid", "im2col"]
    many = shape_of(nn.Conv2d(16, 16, 3), (6, 6))
    assert offered(many, ON_CPU) == ["grouped", "hybrid", "im2col", "winograd"]
    assert "winograd" not in offered(many, ON_GPU)
    assert "winograd" not in offered(many, dataclasses.replace(ON_CPU, dtype=torch.bfloat16))
    assert offered(whole, ON_GPU) == ["grouped", "hybrid", "im2col", "grouped_mm", "triton"]
    assert offered(whole, dataclasses.replace(ON_GPU, dtype=torch.float32))[3:] == ["triton"]
    assert offered(whole, dataclasses.replace(ON_GPU, capability=(7, 5))) == ["grouped", "hybrid", "im2col"]
    assert offered(odd, ON_GPU) == ["grouped", "hybrid", "im2col", "triton"]
    for module in (nn.Conv2d(8, 16, 3, dilation=2), nn.Conv2d(8, 16, 3, padding="same")):
        assert offered(shape_of(module, (6, 6)), ON_GPU) == ["grouped"]
    assert isinstance(CONVOLUTIONS["grouped"], Backend)


def test_a_models_convolutions_are_found_in_the_order_in_which_they_run() -> None:
    model = build(Choice("resnet", {"depth": 1, "width": 4}), (3, 8, 8), 10, 0)
    found = shapes_of(model, (3, 8, 8))
    convolutions_there = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert sorted(found) == sorted(convolutions_there)
    first, *others = found.values()
    assert (first.channels, first.height, first.inner) == (3, 8, False)
    assert all(shape.inner for shape in others)
    assert {shape.height for shape in others} > {8, 4}
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_products_of_ones_own_are_taken() -> None:
    """Three for a step: forward, and two backward."""
    asked: list[tuple[int, ...]] = []

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        asked.append((*left.shape, right.shape[2]))
        return torch.bmm(left, right)

    x = torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    kernel = torch.randn(3, 5, 3, 3, 2, requires_grad=True)
    Im2col.apply(x, kernel, None, (1, 1), (0, 0), multiply).sum().backward()
    assert asked == [(3, 8, 18, 5), (3, 8, 5, 18), (3, 5, 8, 18)]
