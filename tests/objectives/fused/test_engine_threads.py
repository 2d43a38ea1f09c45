"""Whatever an engine computes, it does with its own number of threads, however many the process has.

Also small things: emptying a slot with a second thread takes no less time, and far more where that thread has
no core of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from objectives.fused import FusedEngine
from objectives.fused.state import SlotState
from tests.contracts.engine_contract import TASK
from tests.contracts.parity_contract import small_cnn, tiny


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_slot_is_emptied_with_the_engines_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    wipe = SlotState.wipe

    def noting(state: SlotState, slot: int) -> None:
        seen.append(torch.get_num_threads())
        wipe(state, slot)

    monkeypatch.setattr(SlotState, "wipe", noting)
    engine = FusedEngine(TASK, "cpu", slots=2)
    start = tiny(0, "cross_entropy", "sgd", model=small_cnn())
    engine.admit(start)
    engine.advance()
    engine.retire(start.trial_id)
    assert seen == [1]
    assert torch.get_num_threads() == 2
