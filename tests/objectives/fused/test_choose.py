"""Which way is faster is found by trying, once, and the engine goes that way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from objectives.base import Choice, TrialConfig, TrialFailure
from objectives.choices import (
    ANY_BATCH,
    CONVOLUTIONS,
    ChoicesError,
    ChoicesInMemory,
    ProgramChoice,
    ProgramKey,
)
from objectives.datasets import load
from objectives.devices import processor
from objectives.fused import FusedEngine, choose
from objectives.fused.convolutions import Setting, Shape
from objectives.fused.fusable import Fusing
from objectives.fused.memory import Sizes
from objectives.fused.pool import Pool
from objectives.fused.state import SlotState
from tests.contracts.engine_contract import GOOD, advance_to_end_of, run, trial
from tests.contracts.parity_contract import CPU, TASK

SIZES = {"slots": 3, "rows": 4, "images_per_row": 16}


class Away:
    """Choices that can't be reached."""

    def get(self, key: ProgramKey) -> ProgramChoice | None:
        raise OSError("gone")

    def put(self, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
        raise AssertionError("nothing was measured")


def tried(config: TrialConfig) -> choose.Speed:
    return choose.speed(TASK, config, load(TASK.data, 0, CPU), Sizes(**SIZES), seconds=0.01)


@pytest.mark.parametrize("batch_size", [16, None])
def test_both_ways_are_tried(batch_size: int | None) -> None:
    found = tried(dataclasses.replace(GOOD, batch_size=batch_size))
    assert found.fused > 0
    assert found.alone > 0
    assert (found.reason is None) == (found.gain >= choose.LEAST_GAIN["cpu"])
    assert (found.slots, found.rows) == (None, None)
    parameters, statistics = 510, 2 * (4 + 8)
    counters = 2 * 8  # bytes
    in_slot = 4 * (4 * parameters + statistics) + counters
    copied = 4 * (3 * parameters + statistics) + counters  # all but the gradient
    assert found.bytes_per_slot == in_slot + copied


def test_large_batches_are_tried_as_smaller_ones_that_leave_no_single_image() -> None:
    data = load(TASK.data, 0, CPU)
    data = dataclasses.replace(data, training_indices=data.training_indices.repeat(3)[:321])
    for size in (None, 321):
        affordable = choose._affordable(dataclasses.replace(GOOD, batch_size=size), data)
        assert affordable.batch_size == choose.MOST_IMAGES
    odd = dataclasses.replace(
        data, training_indices=data.training_indices.repeat(2)[: choose.MOST_IMAGES + 1]
    )
    config = dataclasses.replace(GOOD, batch_size=None, optimizer=Choice("gradient_descent"))
    affordable = choose._affordable(config, odd)
    assert (affordable.batch_size, affordable.optimizer.name) == (choose.MOST_IMAGES - 1, "sgd")


def test_trials_that_diverge_are_tried_like_others() -> None:
    assert tried(dataclasses.replace(GOOD, learning_rate=1e30, optimizer=Choice("sgd"))).fused > 0


def test_a_gpu_must_gain_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose.LEAST_GAIN == {"cpu": 1.1, "cuda": 1.5}
    monkeypatch.setitem(choose.LEAST_GAIN, "cpu", 1e9)
    found = tried(GOOD)
    assert found.fused > 0
    assert "pays from 1e+09× on" in (found.reason or "")


def test_trying_leaves_the_processes_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tried(GOOD)
    assert torch.equal(torch.rand(4), expected)


def test_trying_goes_on_with_less_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Pool.step

    def short(pool: Pool) -> object:
        if pool.capacity > 2 or pool.program.state.idle > 1:
            raise torch.OutOfMemoryError("out of memory")
        return step(pool)

    monkeypatch.setattr(Pool, "step", short)
    found = tried(GOOD)
    assert (found.slots, found.rows) == (1, 2)
    assert found.fused > 0


def test_what_a_choice_is_for() -> None:
    data = load(TASK.data, 0, CPU)
    key = choose.key_of(GOOD, data, CPU)
    same = dataclasses.replace(GOOD, optimizer=Choice("sgd"), batch_size=64)
    assert choose.key_of(same, data, CPU) == key
    assert key.batch == 64
    assert key.device == processor() != ""
    batches = {size: dataclasses.replace(GOOD, batch_size=size) for size in (1, 32, 33, 100, 160, None)}
    found = {size: choose.key_of(config, data, CPU).batch for size, config in batches.items()}
    assert found == {1: 32, 32: 32, 33: 64, 100: 128, 160: 256, None: 256}
    wider = dataclasses.replace(GOOD, model=Choice("cnn", {**GOOD.model.options, "width": 5}))
    assert choose.key_of(wider, data, CPU) != key
    dropping = dataclasses.replace(GOOD, model=Choice("cnn", {**GOOD.model.options, "dropout": 0.1}))
    assert choose.key_of(dropping, data, CPU) == key


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """What the next measurements say; the last holds for those that follow."""
    reasons: list[str | None] = [None]

    def told(*_: object, **__: object) -> choose.Speed:
        reason = reasons.pop(0) if len(reasons) > 1 else reasons[0]
        return choose.Speed(2.0, 1.0, 2.0, 0, reason)

    monkeypatch.setattr(choose, "speed", told)
    return reasons


@pytest.mark.parametrize("faster", ["fused", "alone"])
def test_the_first_choice_holds_for_all_engines(faster: str, said: list[str | None]) -> None:
    said[:] = [None, "slower"] if faster == "fused" else ["slower", None]
    choices = ChoicesInMemory()
    for _ in range(3):
        engine = FusedEngine(TASK, "cpu", choices=choices, **SIZES)
        for number in range(2):
            engine.admit(trial(number))
        advance_to_end_of(engine, 0)
        assert engine.why_alone(0) == (None if faster == "fused" else "slower")


def test_batches_of_other_sizes_have_a_choice_of_their_own(said: list[str | None]) -> None:
    said[:] = [None, "slower"]
    engine = FusedEngine(TASK, "cpu", choices=ChoicesInMemory(), **SIZES)
    starts = [trial(1), trial(2, dataclasses.replace(GOOD, batch_size=16))]
    for start in starts:
        engine.admit(start)
    advance_to_end_of(engine, 1)
    assert [engine.why_alone(start.trial_id) for start in starts] == [None, "slower"]


def test_no_trial_begins_where_choices_can_not_be_read() -> None:
    engine = FusedEngine(TASK, "cpu", choices=Away(), **SIZES)
    engine.admit(trial(1))
    engine.admit(trial(2))
    for _ in range(2):
        with pytest.raises(ChoicesError, match="gone"):
            engine.advance()
    assert engine.free_slots == 1
    engine.retire(1)


def test_what_memory_has_room_for_is_remembered(
    said: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [trial(n) for n in range(3)]
    expected = run(FusedEngine(TASK, "cpu", **SIZES), starts)
    choices = ChoicesInMemory()
    backward, sizes = Pool._backward, []

    def short(pool: Pool, *arguments: object) -> object:
        found = backward(pool, *arguments)  # type: ignore[arg-type]
        sizes.append((pool.capacity, pool.program.state.idle))
        if len(sizes) > 7 and (pool.capacity > 2 or pool.program.state.idle > 1):
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(Pool, "_backward", short)
    assert run(FusedEngine(TASK, "cpu", choices=choices, **SIZES), starts) == expected
    assert list(dict.fromkeys(sizes)) == [(4, 3), (2, 3), (2, 1)]
    sizes.clear()
    later = FusedEngine(TASK, "cpu", choices=choices, **SIZES)
    assert run(later, starts) == expected
    assert set(sizes) == {(2, 1)}


def test_slots_for_which_there_is_no_memory_are_not_made(
    said: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [trial(n) for n in range(3)]
    expected = run(FusedEngine(TASK, "cpu", **SIZES), starts)
    allocate = SlotState._allocate

    def short(state: SlotState, slots: int) -> None:
        if slots > 1:
            raise torch.OutOfMemoryError("out of memory")
        allocate(state, slots)

    monkeypatch.setattr(SlotState, "_allocate", short)
    choices = ChoicesInMemory()
    assert run(FusedEngine(TASK, "cpu", choices=choices, **SIZES), starts) == expected
    held = choices.get(choose.key_of(GOOD, load(TASK.data, 0, CPU), CPU))
    assert held is not None
    assert (held.slots, held.rows) == (1, 4)


def test_trials_fail_and_may_be_tried_again_where_there_is_memory_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(pool: Pool, *_: object) -> object:
        monkeypatch.setattr(SlotState, "_allocate", full)
        raise torch.OutOfMemoryError("out of memory")

    engine = FusedEngine(TASK, "cpu", **SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "_backward", full)
        found = run(engine, [trial(1), trial(2)])
    assert all(isinstance(said, TrialFailure) and said.retryable for (said,) in found.values())
    monkeypatch.undo()
    assert len(run(engine, [trial(1)])[1]) == GOOD.epochs


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Convolutions are measured here as well; the next measurements find these, one for each convolution."""
    names = ["im2col"]

    def found(*_: object) -> str:
        return names.pop(0) if len(names) > 1 else names[0]

    monkeypatch.setattr(choose, "MEASURED", {"cpu"})
    monkeypatch.setattr(choose, "fastest", found)
    return names


def backends_of(engine: FusedEngine) -> list[str]:
    """Of all convolutions of the one program."""
    (found,) = engine.convolutions
    return list(found.values())


def test_the_first_choice_of_backends_holds_for_all_engines_and_batches(
    measuring: list[str], said: list[str | None]
) -> None:
    measuring[:] = ["im2col", "hybrid", "grouped"]  # a program of two convolutions; the third is never asked
    choices = ChoicesInMemory()
    starts = [trial(1), trial(2, dataclasses.replace(GOOD, batch_size=16))]
    found = []
    for _ in range(2):
        engine = FusedEngine(TASK, "cpu", choices=choices, **SIZES)
        found.append(run(engine, starts))
        assert backends_of(engine) == ["im2col", "hybrid"]
    assert found[0] == found[1]
    assert measuring == ["grouped"]


def test_backends_are_measured_with_the_sizes_of_steps(
    said: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def noted(shape: Shape, setting: Setting, *_: object) -> str:
        asked.append((shape.out, shape.inner, setting.rows, setting.images, setting.dtype))
        if setting.rows == 4:
            raise torch.OutOfMemoryError("out of memory")
        return "grouped"

    monkeypatch.setattr(choose, "MEASURED", {"cpu"})
    monkeypatch.setattr(choose, "fastest", noted)
    engine = FusedEngine(TASK, "cpu", choices=ChoicesInMemory(), **SIZES)
    engine.admit(trial(1))
    advance_to_end_of(engine, 1)
    single = torch.float32
    assert asked == [(4, False, 4, 16, single), (4, False, 2, 16, single), (8, True, 2, 16, single)]


@pytest.mark.parametrize("held", [("im2col",), ("im2col", "by hand"), ("im2col", "grouped_mm"), ()])
def test_no_trial_begins_where_what_was_chosen_is_not_to_be_had(
    held: tuple[str, ...], measuring: list[str]
) -> None:
    choices = ChoicesInMemory()
    key = choose.key_of(GOOD, load(TASK.data, 0, CPU), CPU)
    key = dataclasses.replace(key, program=CONVOLUTIONS + key.program, batch=ANY_BATCH)
    choices.put(key, ProgramChoice(fused=True, convolutions=held))
    engine = FusedEngine(TASK, "cpu", choices=choices, **SIZES)
    engine.admit(trial(1))
    for _ in range(2):
        with pytest.raises(ChoicesError, match="not possible here"):
            engine.advance()
    assert engine.free_slots == 2


def test_backends_are_the_usual_ones_where_nothing_is_measured_or_kept(
    measuring: list[str], said: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FusedEngine(TASK, "cpu", **SIZES)  # without choices
    engine.admit(trial(1))
    advance_to_end_of(engine, 1)
    expected = backends_of(engine)
    assert "im2col" not in expected
    monkeypatch.undo()
    assert list(choose.MEASURED) == ["cuda"]
    monkeypatch.setattr(choose, "speed", lambda *_, **__: choose.Speed(2.0, 1.0, 2.0, 0, None))
    engine = FusedEngine(TASK, "cpu", choices=ChoicesInMemory(), **SIZES)
    engine.admit(trial(1))
    advance_to_end_of(engine, 1)
    assert backends_of(engine) == expected


def test_speed_is_that_of_the_chosen_backends(measuring: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "SECONDS", 0.01)
    seen = choose.speed_on(TASK, GOOD, "cpu")
    assert list(seen.convolutions.values()) == ["im2col", "im2col"]
    monkeypatch.setattr(choose, "MEASURED", set())
    assert "im2col" not in tried(GOOD).convolutions.values()


def test_a_model_without_a_stacked_form_has_no_backends(
    measuring: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "speed", lambda *_, convolutions, **__: convolutions)
    assert choose.speed_on(TASK, GOOD, "cpu") == ("im2col", "im2col")
    monkeypatch.setattr(choose, "fusing", lambda *_: Fusing("vmapped"))
    assert choose.speed_on(TASK, GOOD, "cpu") is None
