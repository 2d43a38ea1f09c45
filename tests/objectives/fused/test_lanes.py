"""What a pool's turn does about errors."""

from __future__ import annotations

from weakref import ref

import pytest
import torch

from objectives.devices import reproducible
from objectives.fused.lanes import PoolLane
from objectives.fused.memory import Sizes
from objectives.fused.pool import Pool
from tests.contracts.parity_contract import TASK, empty_pool, new_member, tiny


class Large:
    """Stands for the tensors of a step."""


def test_a_step_that_had_too_little_memory_is_let_go_of_before_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, held, seen = tiny(0, "mse", "sgd"), list[ref[Large]](), list[bool]()

    def make(sizes: Sizes) -> Pool:
        return empty_pool(start, slots=sizes.slots, capacity=sizes.rows)

    def short() -> None:
        large = Large()
        held.append(ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with reproducible(1):
        lane = PoolLane(make, Sizes(2, 2, 16), TASK)
        lane.admit(new_member(lane.pool, start, slot=0))
        rewind = lane.pool.rewind

        def watched() -> None:
            seen.append(any(each() for each in held))
            rewind()

        monkeypatch.setattr(lane.pool, "rewind", watched)
        monkeypatch.setattr(lane.pool, "step", short)
        lane.run()
    assert held
    assert not any(seen)
    assert lane.sizes.slots == 1
