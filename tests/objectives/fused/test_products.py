"""Products of a row's matrices don't know how many rows there are, nor which one it is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from objectives.devices import reproducible
from objectives.fused.layers import Linear
from objectives.fused.products import aligned, begins_lines, into, products, room
from tests.contracts.parity_contract import relative

NEIGHBOURS = [(1, 0), (2, 1), (3, 3), (7, 5), (12, 6)]
"""How many other rows there are, and how many of them come before."""

SIZES = [(7, 10, 32), (10, 5, 32), (33, 5, 5), (5, 7, 16), (9, 6, 125), (64, 10, 32), (3, 1, 50)]
"""Numbers in, numbers out, images: with most of them `torch.bmm` tells where a row lay (2.13 on AVX-512)."""


def among(row: Tensor, others: int, before: int) -> Tensor:
    """A row with others before and after it."""
    noise = torch.randn(others, *row.shape, dtype=row.dtype)
    return torch.cat([noise[:before], row[None], noise[before:]])


@pytest.fixture(autouse=True)
def one_thread() -> object:
    torch.manual_seed(5)
    with reproducible(1):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("features", "out", "images"), SIZES)
def test_a_rows_numbers_depend_on_nothing_beside_it(
    features: int, out: int, images: int, dtype: torch.dtype
) -> None:
    x_MF, weight_OF, bias_O, dy_MO = (
        torch.randn(*sizes, dtype=dtype)
        for sizes in ((images, features), (out, features), (out,), (images, out))
    )
    found = []
    for others, before in NEIGHBOURS:
        x, weight, bias, dy = (among(row, others, before) for row in (x_MF, weight_OF, bias_O, dy_MO))
        interleaved = dy.transpose(0, 1).contiguous().transpose(0, 1)
        results = [
            products(x, weight.transpose(1, 2), bias[:, None]),
            products(x, weight.transpose(1, 2)),
            products(dy, weight),
            products(dy.transpose(1, 2), x),
            products(interleaved, weight),
            products(interleaved.transpose(1, 2), x),
        ]
        found.append([result[before] for result in results])
    for these, those in itertools.pairwise(found):
        assert all(torch.equal(one, other) for one, other in zip(these, those, strict=True))
    expected = [x_MF @ weight_OF.T + bias_O, x_MF @ weight_OF.T, dy_MO @ weight_OF, dy_MO.T @ x_MF]
    for got, wanted in zip(found[0], [*expected, *expected[2:]], strict=True):
        assert relative(got.double(), wanted.double()) <= (1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 8, 10, 16, 33])
def test_every_row_begins_at_a_line(size: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, size, dtype=dtype)
    found = aligned(x)
    assert torch.equal(found, x)
    assert {row.data_ptr() % 64 for row in found} == {0}
    assert (found is x) == begins_lines(x) == (3 * size * x.element_size() % 64 == 0)
    shifted = torch.randn(5, 32, dtype=torch.float64).view(-1)[1:129].view(4, 32)
    assert not begins_lines(shifted)
    assert begins_lines(aligned(shifted))


def test_what_is_written_into_may_lie_between_other_rows() -> None:
    left, right, added = (torch.randn(3, *sizes) for sizes in ((4, 16), (16, 16), (1, 16)))
    maps = torch.zeros(4, 3, 16)
    assert into(maps.transpose(0, 1), left, right, added).data_ptr() == maps.data_ptr()
    torch.testing.assert_close(maps.transpose(0, 1), left @ right + added)
    assert room(left, (2, 5)).shape == (3, 2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("features", "out", "images"), SIZES)
def test_a_dense_layers_numbers_depend_on_nothing_beside_it(
    features: int, out: int, images: int, dtype: torch.dtype
) -> None:
    rows = [torch.randn(*sizes, dtype=dtype) for sizes in ((images, features), (out, features), (out,))]
    dy_MO = torch.randn(images, out, dtype=dtype)
    found = []
    for others, before in NEIGHBOURS:
        leaves = [among(row, others, before).requires_grad_() for row in rows]
        y = Linear.apply(*leaves)
        found.append([t[before] for t in (y, *torch.autograd.grad(y, leaves, among(dy_MO, others, before)))])
    for these, those in itertools.pairwise(found):
        assert all(torch.equal(one, other) for one, other in zip(these, those, strict=True))
