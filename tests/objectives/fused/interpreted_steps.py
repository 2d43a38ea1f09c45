"""What the kernels of recorded steps compute, in Triton's interpreter: run by `test_triton_steps.py`.

As `interpreted_triton.py`, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import os
from math import inf, nan

import pytest
import torch

from objectives.devices import reproducible
from objectives.fused import triton_tried
from objectives.fused.pool import Pool
from objectives.fused.triton_trials import TRIALS
from objectives.fused.triton_tried import same
from tests.contracts.parity_contract import CPU, PAIRS, fused_pool, relative, tiny
from tests.contracts.recorders import Strict


@pytest.fixture(autouse=True)
def one_thread() -> object:
    assert os.environ["TRITON_INTERPRET"] == "1", "run by test_triton_steps.py"
    torch.manual_seed(1)
    with reproducible(1):
        yield


@pytest.mark.parametrize("name", TRIALS)
def test_what_operations_give(name: str) -> None:
    trials = TRIALS[name](CPU)
    assert trials
    assert all(same(trial) for trial in trials)


def test_a_trial_notices_other_numbers() -> None:
    """In any of the results: what is held against each other is all that a kernel writes."""
    for trials in (TRIALS[name](CPU) for name in TRIALS):
        for trial in trials:
            found = trial.by_operations()
            for place, one in enumerate(found):
                if not one.numel():
                    continue
                other = [each.double() for each in found]
                other[place].view(-1)[-1] += 0.1 * (float(one.double().nan_to_num().abs().max()) or 1.0)
                changed = dataclasses.replace(trial, by_kernel=lambda other=other: other)  # type: ignore[misc]
                assert not same(changed)


def pool_of(count: int, monkeypatch: pytest.MonkeyPatch, *, kernels: bool) -> Pool:
    """All losses and optimizers in turn, in steps by kernels or by operations, after three of them."""
    monkeypatch.setattr(triton_tried, "_taken", {(name, CPU): kernels for name in TRIALS})
    starts = [
        tiny(
            number,
            *PAIRS[number * 9 % len(PAIRS)],
            epochs=1,
            augment={"flip": 0.5, "crop": 1, "cutout": 3} if number % 3 else {"translation": 0.1},
        )
        for number in range(count)
    ]
    pool = fused_pool(starts, recorder=Strict(watched=0))  # the interpreter has operations of its own
    for _ in range(3):
        pool.step()
    assert pool.why_unrecorded is None
    return pool


def test_steps_of_a_pool_are_those_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    found, expected = (pool_of(8, monkeypatch, kernels=which) for which in (True, False))
    assert found._sums is not None
    assert expected._sums is not None
    for slot in range(8):
        for mine, theirs in zip(found.program.state.tensors(), expected.program.state.tensors(), strict=True):
            if mine.is_floating_point():
                assert relative(mine[slot], theirs[slot]) <= 1e-4
        assert relative(found._sums.sums_T2[slot], expected._sums.sums_T2[slot]) <= 1e-5
    idle = found.program.state.idle
    assert all((tensor[idle] == 0).all() for tensor in found.program.state.tensors())
    assert (found._sums.sums_T2[idle] == 0).all()


def test_a_sick_trial_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in one slot, infinity in another: the bits of all others are as they were."""
    found = []
    for sick in (False, True):
        monkeypatch.setattr(triton_tried, "_taken", {(name, CPU): True for name in TRIALS})
        starts = [tiny(number, *PAIRS[number * 9 % len(PAIRS)], epochs=1) for number in range(6)]
        pool = fused_pool(starts, recorder=Strict(watched=0))
        if sick:
            pool.program.state.weights_TP[1], pool.program.state.weights_TP[4] = nan, inf
        for _ in range(3):
            pool.step()
        found.append(pool.program.state.weights_TP[[0, 2, 3, 5]])
    assert torch.equal(*found)
    assert found[0].isfinite().all()
