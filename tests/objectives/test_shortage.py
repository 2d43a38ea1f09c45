"""Too little memory is told from other errors, and what an error holds can be let go of."""

from __future__ import annotations

from weakref import ref

import pytest
import torch

from objectives.shortage import is_out_of_memory, let_go


class Large:
    """Stands for a tensor."""


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_said_of_memory(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) == short
    caused = KeyError()
    caused.__cause__ = error
    assert is_out_of_memory(caused) == short


def test_what_an_error_holds_is_let_go_of() -> None:
    """And what the errors hold that it was raised from, or after."""
    held: list[ref[Large]] = []

    def first() -> None:
        large = Large()
        held.append(ref(large))
        raise ValueError

    def then() -> None:
        larger = Large()
        held.append(ref(larger))
        try:
            first()
        finally:
            raise KeyError

    caught: Exception | None = None
    try:
        try:
            then()
        except KeyError as error:
            raise RuntimeError from error
    except RuntimeError as error:
        caught = error
    assert all(each() for each in held)
    assert caught is not None
    let_go(caught)
    assert len(held) == 2
    assert not any(each() for each in held)


def test_errors_in_a_circle_are_gone_through_once() -> None:
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    let_go(one)
