"""What engines say of themselves to whoever watches: images trained, slots, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from objectives.base import DataSpec, Engine, EpochEnd, Task, TrialConfig, TrialStart
from objectives.devices import memory_of, resolve_device
from objectives.fused.engine import FusedEngine
from objectives.trainer import PlainEngine

TASK = Task(data=DataSpec(name="digits", limit=100))
TRAINING_IMAGES = 80
"""A fifth is held out."""

ENGINES: dict[str, Callable[[], FusedEngine | PlainEngine]] = {
    "fused": lambda: FusedEngine(TASK, "cpu", slots=3),
    "plain": lambda: PlainEngine(TASK, "cpu"),
}


def start(trial_id: int, epochs: int, checkpoint: Path | None = None) -> TrialStart:
    config = TrialConfig(epochs=epochs, learning_rate=0.01)
    return TrialStart(trial_id=trial_id, config=config, seed=trial_id, split_seed=0, checkpoint=checkpoint)


def run_out(engine: Engine) -> int:
    """Train until nothing is left; how many epochs that were."""
    epochs = 0
    while events := engine.advance():
        for event in events:
            assert isinstance(event, EpochEnd)
            epochs += 1
            if event.last:
                engine.retire(event.trial_id)
    return epochs


@pytest.mark.parametrize("name", ENGINES)
def test_images_are_counted_by_the_epoch(name: str) -> None:
    engine = ENGINES[name]()
    assert engine.images_trained == 0
    engine.admit(start(1, epochs=2))
    assert run_out(engine) == 2
    assert engine.images_trained == 2 * TRAINING_IMAGES
    engine.admit(start(2, epochs=1))
    assert run_out(engine) == 1
    assert engine.images_trained == 3 * TRAINING_IMAGES


def test_trials_side_by_side_count_each() -> None:
    engine = ENGINES["fused"]()
    for trial_id in (1, 2, 3):
        engine.admit(start(trial_id, epochs=trial_id))
    assert run_out(engine) == 6
    assert engine.images_trained == 6 * TRAINING_IMAGES


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_of_a_trial_that_had_ended_counts_nothing(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name]()
    engine.admit(start(1, epochs=1))
    (event,) = engine.advance()
    engine.save(1, tmp_path / "checkpoint")
    engine.retire(1)
    assert isinstance(event, EpochEnd)
    before = engine.images_trained
    engine.admit(start(1, epochs=1, checkpoint=tmp_path / "checkpoint"))
    assert run_out(engine) == 1
    assert engine.images_trained == before


def test_slots_and_memory() -> None:
    engine = FusedEngine(TASK, "cpu", slots=3)
    assert engine.slots == 3
    assert engine.device_memory() == {}
    assert memory_of(resolve_device("cpu")) == {}
