"""What recordings read is there for as long as they can be replayed, and no longer."""

from __future__ import annotations

import gc

import pytest
import torch

from objectives.base import TrialStart
from objectives.devices import reproducible
from objectives.fused.member import Member
from objectives.recording import RecordingError
from tests.contracts.parity_contract import PAIRS, fused_pool, tiny
from tests.contracts.recorders import Forgetful


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def starts(count: int) -> list[TrialStart]:
    """Of all losses, optimizers and batch sizes, with batch normalisation, dropout, and augmented images."""
    return [tiny(number, *PAIRS[number * 9 % len(PAIRS)], epochs=2) for number in range(count)]


def test_what_recordings_read_stays_where_it_is() -> None:
    """A CUDA graph holds no tensors: those that it reads must be somebody's for as long as it is replayed."""
    recorder = Forgetful()
    pool = fused_pool(starts(8), slots=9, recorder=recorder)
    for _ in range(12):
        for due in pool.step():
            assert isinstance(due, Member)
    pool.score(list(pool.members.values()))
    assert pool.why_unrecorded is pool.why_scores_unrecorded is None
    assert recorder.read > 12 * 20


def test_a_recorder_that_holds_nothing_notices() -> None:
    """The test above could fail."""
    kept, held = torch.ones(3), [torch.ones(3)]
    recording = Forgetful()(lambda: (kept + held[0],))
    recording.replay()
    held.clear()
    with pytest.raises(AssertionError, match="is gone"):
        recording.replay()


@pytest.mark.parametrize("way", ["dropped", "unrecorded", "resized"])
def test_who_lets_go_of_a_pool_has_its_recordings_memory_at_once(way: str) -> None:
    """Without waiting for Python to look for circles."""
    recorder = Forgetful()
    pool = fused_pool(starts(4), recorder=recorder)
    for _ in range(2):
        pool.step()
    pool.score(list(pool.members.values()))
    assert len(recorder.alive) > 4
    gc.collect()
    gc.disable()
    try:
        match way:
            case "dropped":
                del pool
            case "unrecorded":
                pool._record_no_more(RecordingError("not here"))
            case _:
                pool.resize(2)
        assert not recorder.alive
    finally:
        gc.enable()
