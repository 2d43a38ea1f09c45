"""What a device keeps of slots: nobody waits, nobody meets a neighbour, states move, memory may be short.

Inherit `SlotsContract` as `CurvesContract`, see there. Where a GPU rounds otherwise from run to run, what is
to be the same is held to what a second run of the same differs by.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from objectives.base import (
    Carried,
    Choice,
    Engine,
    EpochEnd,
)
from objectives.devices import Arriving, memory_of, moved
from objectives.fused import FusedEngine
from objectives.fused.member import Member
from objectives.fused.pool import Pool
from objectives.fused.recorded import RecordedSteps
from objectives.fused.scoring import score_rows
from objectives.metrics import worst_metrics
from objectives.recording import Recorder, Recording, Work
from objectives.trainer import PlainEngine
from tests.contracts.device_curves_contract import (
    DeviceContract,
    assert_all_near,
    assert_near,
    refusing,
    reports,
)
from tests.contracts.engine_contract import advance_to_end_of, run, what_counts
from tests.contracts.parity_contract import PAIRS, TASK, fused_pool, new_member, small_cnn, tiny
from tests.contracts.trained_devices import TrainedDevice

MODEL = small_cnn(dropout=0.25, batch_norm=True)

STARTS = [
    tiny(1, "cross_entropy", "momentum", model=MODEL, epochs=2, batch_size=16, strength=1e-4),
    tiny(2, "focal", "nesterov", model=MODEL, epochs=2, batch_size=24, strength=1e-4),
    tiny(3, "mse", "adagrad", model=MODEL, epochs=2, batch_size=48),
    tiny(5, "cross_entropy", "sgd", model=MODEL, epochs=2, batch_size=16, regulariser=Choice("l1")),
]
"""As many as there are slots; all of one architecture."""

SICK = 1
"""The slot of the neighbour that diverges."""

OTHERS = [0, 2, 3]

POISONS = {
    "NaN": math.nan,
    "infinity": math.inf,
    "a rate at which everything overflows": 1e30,
}


def engine_on(name: str, slots: int = 4, rows: int = 8) -> FusedEngine:
    return FusedEngine(TASK, name, slots=slots, rows=rows, images_per_row=16)


class SlotsContract(DeviceContract):
    """The suite."""

    # Nobody waits for the device

    @pytest.mark.usefixtures("uncompiled")
    @pytest.mark.parametrize("replayed", [True, False])
    @pytest.mark.parametrize("number", [0, 32])
    def test_no_step_waits_for_the_device(
        self,
        on: TrainedDevice,
        device: torch.device,
        number: int,
        replayed: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also where epochs begin, batches end, trials come, are kept, and go; and scores are computed."""
        starts = [tiny(n, *PAIRS[n % len(PAIRS)], epochs=2) for n in range(number, number + 18)]
        recorder = patiently(on.recorder()) if replayed else refusing
        pool = fused_pool(starts[:16], slots=20, capacity=30, device=device, recorder=recorder)
        pool.step()  # words of random numbers are tried once
        late = [new_member(pool, start, slot=slot) for slot, start in enumerate(starts[16:], 16)]
        with on.nobody_waits(monkeypatch):
            for each in late:
                pool.admit(each)
            for _ in range(8):
                for due in pool.step():
                    assert isinstance(due, Member)
                    pool.save(due)
            pool.retire(late[0])
            members = list(pool.members.values())
            given = pool.program, pool._pictures, members, pool.capacity, pool._per_row
            score_rows(*given, recorded=pool._recorded_scores if replayed else None)
        assert (pool.why_unrecorded is None) == replayed

    # A diverging neighbour

    @pytest.mark.parametrize("poison", POISONS)
    def test_a_neighbour_that_diverges_changes_nothing(
        self, on: TrainedDevice, device: torch.device, poison: str
    ) -> None:
        """The same steps beside a neighbour that is sound, twice, and beside one that is not."""
        once, again = (_others(on, device, None) for _ in range(2))
        found = _others(on, device, POISONS[poison])
        for mine, expected, repeated in zip(found, once, again, strict=True):
            assert mine.isfinite().all()
            if torch.equal(expected, repeated):
                assert torch.equal(mine, expected)
                continue
            assert not on.exact, "a CPU repeats itself to the bit"
            spread = (repeated - expected).double().norm()
            assert (mine - expected).double().norm() <= 4 * spread

    def test_neighbours_of_a_diverged_trial_have_their_curves(self, on: TrainedDevice) -> None:
        """Where its slot is taken by the next, so that steps are others than they would have been."""
        lost = tiny(99, "cross_entropy", "sgd", learning_rate=1e30, model=MODEL)
        found = reports(engine_on(on.names[0]), [STARTS[0], lost, *STARTS[1:]])
        (end,) = found.pop(99)
        assert end.diverged
        assert end.metrics == worst_metrics()
        expected = reports(engine_on(on.names[0]), STARTS)
        assert_all_near(found, expected)
        if on.exact:
            assert found == expected

    # What is in a slot, taken out and put back

    def test_a_paused_trial_goes_on_in_another_slot(self, on: TrainedDevice) -> None:
        whole = reports(engine_on(on.names[0]), STARTS)
        first, second = engine_on(on.names[0]), engine_on(on.names[0])
        left, rest, heads = {start.trial_id: start for start in STARTS}, [], {}
        for start in STARTS:
            first.admit(start)
        while left:
            for event in first.advance():
                assert isinstance(event, EpochEnd)
                heads[event.trial_id] = what_counts(event.report)
                copy = Carried(first.copy_of(event.trial_id))
                rest.append(dataclasses.replace(left.pop(event.trial_id), carried=copy))
                first.retire(event.trial_id)
        found = reports(second, rest[::-1])
        for trial_id, said in found.items():
            assert_near([heads[trial_id], *said], whole[trial_id])
            if on.exact:
                assert [heads[trial_id], *said] == whole[trial_id]

    @pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
    @pytest.mark.parametrize("way", ["fused here, fused on a CPU", "fused on a CPU, fused here",
                                     "fused here, plain on a CPU", "plain here, fused here",
                                     "plain on a CPU, plain here"])  # fmt: skip
    def test_a_checkpoint_goes_on_elsewhere(
        self, on: TrainedDevice, way: str, optimizer: str, tmp_path: Path
    ) -> None:
        model = small_cnn(dropout=0.25, batch_norm=optimizer != "adam")
        start = tiny(1, "cross_entropy", optimizer, model=model, batch_size=32)
        writer, reader = (_engine(on, said) for said in way.split(", "))
        path = tmp_path / "checkpoint"
        writer.admit(start)
        advance_to_end_of(writer, start.trial_id)
        writer.save(start.trial_id, path)
        found = reports(reader, [dataclasses.replace(start, checkpoint=path)])
        assert_near(found[1], reports(PlainEngine(TASK, "cpu"), [start])[1][1:])

    def test_a_device_is_the_same_by_all_its_names(self, on: TrainedDevice) -> None:
        found = [reports(engine_on(name), STARTS) for name in on.names]
        for other in found[1:]:
            assert_all_near(other, found[0], 1e-5)
        for name in on.names:
            assert (memory_of(torch.device(name)) == {}) == on.exact

    # Random numbers of the process

    def test_training_leaves_the_devices_random_numbers_alone(
        self, on: TrainedDevice, device: torch.device
    ) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4, device=device)
        torch.manual_seed(3)
        run(engine_on(on.names[0]), STARTS[:2])
        run(PlainEngine(TASK, on.names[0]), STARTS[:1])
        assert torch.equal(torch.rand(4, device=device), expected)

    # Memory

    def test_too_little_memory_for_all_slots_makes_them_fewer(
        self, on: TrainedDevice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = reports(engine_on(on.names[0]), STARTS)
        with on.short_of_memory(monkeypatch):
            engine = engine_on(on.names[0], slots=on.many_slots)
            found = reports(engine, STARTS)
        assert 1 <= engine.slots < on.many_slots
        assert_all_near(found, expected)

    @pytest.mark.parametrize(("at_step", "times", "left"), [(3, 2, 2), (14, 2, 2), (14, 1, 4)])
    def test_too_little_memory_for_a_step_halves_rows_then_slots_and_no_trial_is_lost(
        self, on: TrainedDevice, at_step: int, times: int, left: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the middle of things, in the first epoch or later; what the step held is let go before."""
        expected = reports(engine_on(on.names[0], rows=4), STARTS)
        with failing_steps(monkeypatch, at_step, times) as held:
            engine = engine_on(on.names[0], rows=4)
            found = reports(engine, STARTS)
        assert engine.slots == left
        assert held == []
        assert_all_near(found, expected)

    def test_too_little_memory_for_a_recording_makes_steps_smaller(
        self, on: TrainedDevice, device: torch.device
    ) -> None:
        recorder, left = on.recorder(), [2]

        def short(work: Work) -> Recording:
            if not left[0]:
                left[0] = -1
                work()
                raise torch.OutOfMemoryError("CUDA out of memory")
            left[0] -= 1
            return recorder(work)

        pool = fused_pool(STARTS, device=device, recorder=short)
        with pytest.raises(torch.OutOfMemoryError):
            _steps(pool, 9)
        pool.rewind()
        pool.capacity = 4
        again = fused_pool(STARTS, device=device, recorder=on.recorder(), capacity=4)
        _steps(pool, 6)
        _steps(again, 6)
        assert pool.why_unrecorded is None
        mine, theirs = (each.program.state.weights_TP for each in (pool, again))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)

    # Threads

    def test_an_engine_trains_in_another_thread_beside_one_that_copies(
        self, on: TrainedDevice, device: torch.device
    ) -> None:
        """As in a worker: made here, used there, while another asks for memory of both sides and moves it."""
        expected = reports(engine_on(on.names[0]), STARTS)
        engine, found, failed = engine_on(on.names[0]), {}, []
        done = threading.Event()

        def train() -> None:
            try:
                found.update(reports(engine, STARTS))
            except BaseException as error:  # noqa: BLE001 (told below)
                failed.append(error)
            finally:
                done.set()

        trainer = threading.Thread(target=train)
        trainer.start()
        copies = 0
        try:
            while not done.is_set() or not copies:
                there = moved(torch.full((1 + copies % 7, 1 << 12), float(copies)), device)
                assert Arriving(there * 2).here().eq(2 * copies).all()
                engine.device_memory()
                copies += 1
        finally:
            trainer.join()
        assert not failed
        assert [lane.pool.why_unrecorded for lane in engine._pools.values()] == [None]
        assert_all_near(found, expected, 1e-5)
        if on.exact:
            assert found == expected


def patiently(recorder: Recorder) -> Recorder:
    """Recording may wait for the device: it happens once."""

    def record(work: Work) -> Recording:
        if not torch.cuda.is_initialized():
            return recorder(work)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return recorder(work)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    return record


def _steps(pool: Pool, count: int) -> None:
    for _ in range(count):
        pool.step()


def _engine(on: TrainedDevice, said: str) -> Engine:
    name = on.names[0] if said.endswith("here") else "cpu"
    return engine_on(name) if said.startswith("fused") else PlainEngine(TASK, name)


def _others(on: TrainedDevice, device: torch.device, poison: float | None) -> Sequence[Tensor]:
    """All that belongs to a diverging trial's neighbours after some steps, and their scores."""
    starts = list(STARTS)
    by_hand = poison is not None and not poison < math.inf
    if poison is not None and not by_hand:
        config = dataclasses.replace(starts[SICK].config, learning_rate=poison)
        starts[SICK] = dataclasses.replace(starts[SICK], config=config)
    pool = fused_pool(starts, slots=5, capacity=9, device=device, recorder=on.recorder())
    if poison is not None and by_hand:
        for tensor in pool.program.state.tensors():
            if tensor.is_floating_point():
                tensor[SICK].fill_(poison)
    _steps(pool, 8)
    assert pool.why_unrecorded is None
    if poison is not None:
        assert not pool.program.state.weights_TP[SICK].isfinite().all()
    scores = score_rows(
        pool.program,
        pool._pictures,
        list(pool.members.values()),
        pool.capacity,
        pool._per_row,
        recorded=pool._recorded_scores,
    )
    idle = pool.program.state.idle
    assert not any(tensor[idle].any() for tensor in pool.program.state.tensors())
    state = [tensor[OTHERS].clone() for tensor in pool.program.state.tensors()]
    return [*state, *(scores[slot][0] for slot in OTHERS)]


@contextmanager
def failing_steps(patch: pytest.MonkeyPatch, at: int, times: int) -> Iterator[list[str]]:
    """Steps run out of memory after they have been done, from the one with that number on.

    Given: what such a step held, that was still there when slots were made anew.
    """
    step, resize = RecordedSteps.step, Pool.resize
    calls, held, kept = [0], [], []

    def short(steps: RecordedSteps, *given: object) -> None:
        activations = torch.zeros(3)
        step(steps, *given)  # type: ignore[arg-type]
        calls[0] += 1
        if at <= calls[0] < at + times:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")

    def noting(pool: Pool, slots: int) -> list[Member]:
        kept.extend("activations" for each in held if each() is not None)
        return resize(pool, slots)

    with patch.context() as inner:
        inner.setattr(RecordedSteps, "step", short)
        inner.setattr(Pool, "resize", noting)
        yield kept
    assert len(held) == times
