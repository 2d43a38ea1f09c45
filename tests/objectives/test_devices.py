"""A GPU that does no more work for a process is no trial's failure."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from objectives import trainer
from objectives.base import Choice, TrialFailure
from objectives.devices import DeviceLostError, check_works
from objectives.fused import FusedEngine, engine
from objectives.trainer import PlainEngine
from tests.contracts.engine_contract import TASK
from tests.contracts.parity_contract import small_cnn, tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")

BROKEN = tiny(1, "mse", "sgd", model=Choice("nobody:knows"), epochs=1)
SOUND = dataclasses.replace(tiny(2, "mse", "sgd", model=small_cnn(), epochs=1), trial_id=2)


def lost(device: torch.device) -> None:
    raise DeviceLostError(f"{device} does nothing")


def test_whether_a_gpu_works_is_asked_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    check_works(CPU)
    assert asked == []
    check_works(GPU)
    assert asked == [GPU]

    def fails(_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        check_works(GPU)
    check_works(CPU)


@pytest.mark.parametrize(("kind", "of"), [(PlainEngine, trainer), (FusedEngine, engine)])
def test_trials_do_not_fail_one_after_the_other_on_a_lost_device(
    kind: type[PlainEngine | FusedEngine], of: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = kind(TASK, "cpu")
    sound.admit(BROKEN)
    assert [type(event) for event in sound.advance()] == [TrialFailure]
    monkeypatch.setattr(of, "check_works", lost)
    dead = kind(TASK, "cpu")
    dead.admit(BROKEN)
    with pytest.raises(DeviceLostError):
        dead.advance()


def test_the_trials_of_a_pool_are_not_scattered_over_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    held = FusedEngine(TASK, "cpu", slots=2)
    held.admit(SOUND)

    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("objectives.fused.pool.Pool.step", breaks)
    monkeypatch.setattr(engine, "check_works", lost)
    with pytest.raises(DeviceLostError):
        held.advance()
