"""Recorded steps are the steps: the same numbers, whoever comes and goes, with nothing baked into them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from objectives.base import Choice, EpochEnd, EpochReport, TrialFailure, TrialStart
from objectives.datasets import SearchData
from objectives.devices import reproducible
from objectives.fused.lanes import PoolLane
from objectives.fused.member import Member, member
from objectives.fused.memory import Sizes
from objectives.fused.pool import Pool
from objectives.fused.program import Program, template
from objectives.fused.recorded import MOST_ROWS, RecordedSteps
from objectives.metrics import worst_metrics
from objectives.models import build
from objectives.recording import Recorder, Recording, RecordingError, Work
from objectives.training import STEPS_BETWEEN_CHECKS
from tests.contracts.engine_contract import what_counts
from tests.contracts.parity_contract import (
    PAIRS,
    TASK,
    data_of,
    empty_pool,
    fused_pool,
    new_member,
    plain_training,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)
from tests.contracts.recorders import Strict, Waits

EXACT = ("weight_decay", "none", "l1")
"""Regularisers that are the same to the bit as operation by operation; L2 is added with one rounding less."""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def refusing(work: Work) -> Recording:
    """A recorder that can record nothing: steps as on a GPU, operation by operation."""
    raise RecordingError("not here")


def plainly(work: Work) -> Recording:
    """Records nothing, and does the work again; where there is nothing to compare."""

    def replay() -> None:
        work()

    replay()
    return Recording(replay, ())


class Curves(dict[int, list[EpochReport | TrialFailure]]):
    """What trials report that share so many slots; those without one wait for the next that is free."""

    def __init__(self, starts: Sequence[TrialStart], recorder: Recorder | None, slots: int = 6) -> None:
        super().__init__({start.trial_id: [] for start in starts})

        def make(sizes: Sizes) -> Pool:
            return empty_pool(starts[0], slots=sizes.slots, capacity=sizes.rows, recorder=recorder)

        self.lane = PoolLane(make, Sizes(slots, 12, 16), TASK)
        for start in starts:
            self.lane.admit(new_member(self.lane.pool, start, slot=0))
        while self.lane.members:
            for event in self.lane.run():
                ended = not isinstance(event, EpochEnd) or event.last
                report = event.report if isinstance(event, EpochEnd) else None
                self[event.trial_id].append(what_counts(report) if report else event)  # type: ignore[arg-type]
                if ended and report:
                    self.lane.retire(event.trial_id)


def mixed(count: int, first: int = 0, **changes: object) -> list[TrialStart]:
    starts = []
    for number in range(first, first + count):
        regulariser = Choice(EXACT[number % len(EXACT)])
        given = {"regulariser": regulariser, "epochs": 2 if number % 5 == 0 else 1} | changes
        starts.append(tiny(number, *PAIRS[number % len(PAIRS)], **given))
    return starts


def assert_same(found: Curves, expected: Curves) -> None:
    """To the bit, but for the mean of the losses, which are added in another order."""
    assert found.keys() == expected.keys()
    for trial_id, said in expected.items():
        for mine, theirs in zip(found[trial_id], said, strict=True):
            assert isinstance(mine, EpochReport)
            assert isinstance(theirs, EpochReport)
            assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)
            assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-6)
            assert (
                dataclasses.replace(mine, train_loss=theirs.train_loss, gradient_norm=theirs.gradient_norm)
                == theirs
            )


def test_replayed_curves_are_the_eager_ones_for_every_loss_and_optimizer_with_refills() -> None:
    recorder = Strict()
    found = Curves(mixed(len(PAIRS)), recorder)
    assert found.lane.pool.why_unrecorded is None
    assert recorder.replays > 10 * recorder.recordings / 3
    assert_same(found, Curves(mixed(len(PAIRS)), None))


@pytest.mark.parametrize("regulariser", ["l2", "elastic_net"])
def test_an_epoch_in_double_precision_gives_the_plain_trainers_weights(regulariser: str) -> None:
    starts = [
        tiny(number, *pair, regulariser=Choice(regulariser), strength=1e-2)
        for number, pair in enumerate(PAIRS)
        if pair[1] != "rmsprop" and number % 5 == 0
    ]
    pool = fused_pool(starts, torch.float64, recorder=Strict())
    train_epoch(pool)
    assert pool.why_unrecorded is None
    for slot, start in enumerate(starts):
        training = plain_training(start, torch.float64)
        training.train_epoch()
        assert relative(pool.program.state.weights_TP[slot], row_of(training, pool)) <= 1e-6


def test_models_that_run_by_torch_func_are_recorded_too() -> None:
    starts = [
        tiny(number, "focal", "adam", model=small_cnn(), regulariser=Choice("l1")) for number in range(2)
    ]
    pools = [fused_pool(starts, generic=True, recorder=recorder) for recorder in (Strict(), None)]
    for pool in pools:
        train_epoch(pool)
    assert pools[0].why_unrecorded is None
    assert torch.equal(*(pool.program.state.weights_TP for pool in pools))


def test_trials_that_come_and_go_need_no_new_recording() -> None:
    recorder = Strict(watched=0)
    pool = empty_pool(tiny(0, *PAIRS[0]), slots=4, capacity=8, recorder=recorder)
    # Losses, optimizers and sizes are known when every pair has been there, and steps of all sizes.
    kinds = mixed(64, epochs=1)[::3]
    for start in [*kinds, *kinds]:
        admit(pool, start)
    known = recorder.recordings
    for start in kinds:
        admit(pool, start)
    assert recorder.recordings <= known + 1
    assert recorder.recordings < 80


def admit(pool: Pool, start: TrialStart) -> None:
    """Let a trial in, after training until there is room."""
    while not pool.free:
        for ended in pool.step():
            assert isinstance(ended, Member)
            pool.retire(ended)
    pool.admit(new_member(pool, start))


@pytest.mark.parametrize("records", [0, 3])
def test_what_can_not_be_recorded_is_done_as_it_is(records: int, caplog: pytest.LogCaptureFixture) -> None:
    """From the start, or from a moment on: in the middle of trials, and of their batches."""
    strict = Strict()

    def failing(work: Work) -> Recording:
        if strict.recordings >= records:
            raise RecordingError("operation not permitted")
        return strict(work)

    with caplog.at_level(logging.WARNING):
        found = Curves(mixed(5), failing)
    assert found.lane.pool.why_unrecorded == "operation not permitted"
    assert len([record for record in caplog.records if "not recorded" in record.message]) == 1
    assert_same(found, Curves(mixed(5), None))


def test_too_little_memory_for_a_recording_makes_steps_smaller() -> None:
    strict, at = Strict(), {3, 5}

    def short(work: Work) -> Recording:
        if strict.recordings in at:
            at.remove(strict.recordings)
            raise torch.OutOfMemoryError("out of memory")
        return strict(work)

    found = Curves(mixed(5), short)
    assert found.lane.pool.why_unrecorded is None
    assert found.lane.pool.capacity == 3
    assert_same(found, Curves(mixed(5), None))


def test_going_back_lets_go_of_recordings_and_their_memory() -> None:
    recorder = Strict()
    pool = fused_pool(mixed(2), recorder=recorder)
    pool.step()
    before = recorder.recordings
    assert pool._recorded is not None
    pool.rewind()
    assert not pool._recorded._passes
    assert not pool._recorded._updates
    pool.step()
    assert recorder.recordings == 2 * before


def test_batches_of_many_rows_are_cut_or_done_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without batch normalisation 160 images are cut into parts of `MOST_ROWS`; with it they can't be."""
    for norm in (False, True):
        start = tiny(3, "mse", "adam", model=small_cnn(batch_norm=norm), regulariser=Choice("none"))
        other = tiny(0, "mse", "adam", model=small_cnn(batch_norm=norm), regulariser=Choice("none"))
        pools = [
            fused_pool([start, other], recorder=recorder, per_row=4, capacity=50)
            for recorder in (Strict(), None)
        ]
        recorded = pools[0]._recorded
        assert recorded is not None
        taken: list[bool] = []

        def noted(*step: Any, takes: Any = recorded.takes, taken: list[bool] = taken) -> bool:
            taken.append(takes(*step))
            return taken[-1]

        monkeypatch.setattr(recorded, "takes", noted)
        for pool in pools:
            train_epoch(pool)
        assert MOST_ROWS < 160 / 4
        assert all(taken) is not norm
        assert torch.equal(*(pool.program.state.weights_TP for pool in pools))


# What diverges


BATCH_NORM = small_cnn(batch_norm=True)
POISONED = {"learning_rate": 1e30, "epochs": 2, "batch_size": 16, "model": small_cnn()}


def test_a_diverging_trial_touches_nobody() -> None:
    sound = mixed(4, model=small_cnn())
    poisoned = tiny(99, "cross_entropy", "sgd", **POISONED)
    found = Curves([sound[0], poisoned, *sound[1:]], Strict())
    (end,) = found.pop(99)
    assert isinstance(end, EpochReport)
    assert end.diverged
    assert end.metrics == worst_metrics()
    assert found == Curves(sound, Strict())


def test_nan_in_a_slot_stays_in_it_and_the_idle_slot_stays_zero() -> None:
    starts = [*mixed(2), *mixed(4, first=4)]
    sound, sick = (fused_pool(starts, recorder=Strict(), capacity=9) for _ in range(2))
    for tensor in sick.program.state.tensors():
        if tensor.is_floating_point():
            tensor[2].fill_(torch.nan)
    others = [0, 1, 3, 4, 5]
    for _ in range(6):
        sound.step()
        sick.step()
    for mine, theirs in zip(sound.program.state.tensors(), sick.program.state.tensors(), strict=True):
        assert torch.equal(mine[others], theirs[others])
        assert not theirs[-1].any()
    assert sick.program.state.weights_TP[2].isnan().all()


@pytest.mark.parametrize("recorder", [Strict(watched=0), refusing])
def test_a_diverged_trial_is_seen_before_its_epoch_ends(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some steps after it happened, without anybody having waited for the device."""
    poisoned = tiny(9, "cross_entropy", "sgd", **(POISONED | {"batch_size": 1}))
    pool = fused_pool([poisoned], recorder=recorder)
    with Waits(monkeypatch) as waits:
        steps = 1
        while not pool.step():
            steps += 1
    assert waits.seen == []
    assert STEPS_BETWEEN_CHECKS < steps <= 2 * STEPS_BETWEEN_CHECKS < 160


# What the device is never waited for


@pytest.mark.parametrize("recorder", [Strict(watched=0), refusing])
@pytest.mark.parametrize("number", [0, 32])
def test_no_step_waits_for_the_device(
    recorder: Recorder, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where epochs begin, batches end, and trials come in; only scores are waited for."""
    pool = fused_pool(mixed(16, number, epochs=2), slots=20, capacity=30, recorder=recorder)
    pool.step()
    late = [new_member(pool, start) for start in mixed(2, 40)]
    late[1].slot = pool.free[1]
    with Waits(monkeypatch) as waits:
        for each in late:
            pool.admit(each)
        for _ in range(8):
            pool.step()
    assert waits.seen == []


@pytest.mark.parametrize("recorded", [False, True])
def test_steps_run_on_a_device_that_can_not_be_asked(recorded: bool) -> None:
    """Tensors of torch's meta device hold nothing: whoever looks into one fails, whatever the call."""
    meta = torch.device("meta")
    data = data_of(0, torch.float32)
    there = {each.name: getattr(data, each.name) for each in dataclasses.fields(data)}
    there |= {name: value.to(meta) for name, value in there.items() if isinstance(value, Tensor)}
    data = SearchData(**there)
    starts = [tiny(n, *PAIRS[7 * n], class_weights="none") for n in range(8)]
    blank = template(starts[0].config, data.input_shape, data.classes, TASK)
    program = Program(blank, data.input_shape, len(starts), meta)
    pool = Pool(program, data.images, 16, 16, recorder=plainly if recorded else refusing)
    for start in starts:
        model = build(start.config.model, data.input_shape, data.classes, 1)
        place = pool.free[0]
        pool.admit(member(start, place, data, model=model, program=program, allow_imports=()))
    steps = [pool.step() for _ in range(5)]
    assert sum(len(ended) for ended in steps) == 5  # those of one step per epoch, which train on
    assert (pool.why_unrecorded is None) == recorded


# Keeping the recorder honest


def test_the_tables_of_a_retired_trial_are_not_read() -> None:
    """A step's tables name every slot: those of others may hold anything."""
    starts = mixed(3)
    pools = [fused_pool(starts, slots=5, recorder=Strict()) for _ in range(2)]
    dirty = pools[1]._recorded
    assert isinstance(dirty, RecordedSteps)
    trials = dirty._trials
    assert trials is not None
    trials.mean_TC[3:5].fill_(torch.nan)
    trials.class_weights_TK[3:5].fill_(torch.nan)
    dirty._loss_T[3:5].fill_(torch.nan)
    for pool in pools:
        train_epoch(pool)
    assert torch.equal(*(pool.program.state.weights_TP for pool in pools))


def test_what_a_graph_would_keep_is_refused() -> None:
    kept = torch.zeros(3)
    numbers = iter([1.0, 1.0, 1.0, 2.0])

    def by_number() -> tuple[Tensor]:
        return (kept + next(numbers),)

    recording = Strict()(by_number)
    recording.replay()
    with pytest.raises(AssertionError, match="not as it was recorded"):
        recording.replay()
    places = iter([kept, kept, kept, torch.zeros(3)])
    recording = Strict()(lambda: (next(places) + 1.0,))
    recording.replay()
    with pytest.raises(AssertionError, match="not as it was recorded"):
        recording.replay()


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda kept: kept[kept > 0], "waits"),
        (lambda kept: kept + kept.sum().item(), "waits"),
        (lambda kept: kept.nonzero(), "waits"),
        (lambda kept: kept + torch.rand(3), "random"),
        (lambda kept: torch.empty(3).bernoulli_(0.5, generator=torch.Generator()) + kept, "random"),
    ],
)
def test_what_a_graph_can_not_hold_is_refused(work: object, says: str) -> None:
    kept = torch.ones(3)
    with pytest.raises(RecordingError, match=says):
        Strict()(lambda: (work(kept),))  # type: ignore[operator]
