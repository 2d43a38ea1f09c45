"""Which way is faster is found by trying, once, and the engine goes that way."""

from __future__ import annotations

import dataclasses

import pytest

from objectives.base import Choice, TrialConfig
from objectives.datasets import load
from objectives.fused import FusedEngine, choose
from tests.contracts.engine_contract import GOOD, advance_to_end_of, trial
from tests.contracts.parity_contract import CPU, TASK

SIZES = {"slots": 3, "rows": 4, "images_per_row": 16}


def tried(config: TrialConfig) -> choose.Speed:
    return choose.speed(TASK, config, load(TASK.data, 0, CPU), seconds=0.05, **SIZES)


@pytest.mark.parametrize("batch_size", [16, None])
def test_both_ways_are_tried(batch_size: int | None) -> None:
    found = tried(dataclasses.replace(GOOD, batch_size=batch_size))
    assert found.fused > 0
    assert found.alone > 0
    assert (found.reason is None) == (found.fused >= found.alone)
    parameters, statistics = 510, 2 * (4 + 8)
    counters = 2 * 8  # bytes
    in_slot = 4 * (4 * parameters + statistics) + counters
    copied = 4 * (3 * parameters + statistics) + counters  # all but the gradient
    assert found.bytes_per_slot == in_slot + copied


def test_trials_that_diverge_are_tried_like_others() -> None:
    assert tried(dataclasses.replace(GOOD, learning_rate=1e30, optimizer=Choice("sgd"))).fused > 0


@pytest.mark.parametrize("faster", ["fused", "alone"])
def test_the_engine_goes_the_faster_way(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def told(*_: object, **__: object) -> choose.Speed:
        calls.append(1)
        return choose.Speed(2.0, 1.0, 0, None if faster == "fused" else "faster alone: so it was said")

    monkeypatch.setattr(choose, "speed", told)
    monkeypatch.setattr(choose, "_REMEMBERED", {})
    for _ in range(2):
        engine = FusedEngine(TASK, "cpu", measure=True, **SIZES)
        for number in range(2):
            engine.admit(trial(number))
        advance_to_end_of(engine, 0)
        assert (engine.why_alone(0) is None) == (faster == "fused")
    assert len(calls) == 1
