"""No step of a pool on a GPU waits for it, or mixes its tensors with the host's; shown without a GPU."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import cache

import pytest
import torch
from torch import Tensor

from objectives.base import TrialStart
from objectives.datasets import SearchData
from objectives.devices import reproducible
from objectives.fused.member import Member, member
from objectives.fused.pool import Pool
from objectives.fused.program import Program, template
from objectives.fused.scoring import Failed, score_rows
from objectives.graphed import RecordedTraining
from objectives.models import build
from objectives.recording import Recorder, Recording, RecordingError, Work
from tests.contracts.far_device import FAR, FarDevice
from tests.contracts.parity_contract import PAIRS, TASK, data_of, tiny


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def plainly(work: Work) -> Recording:
    """Does the work when it is recorded, and again at each replay."""
    results = work()

    def replay() -> None:
        work()

    return Recording(replay, results)


def refusing(work: Work) -> Recording:
    raise RecordingError("not here")


@cache
def far_data(split_seed: int) -> SearchData:
    data = data_of(split_seed, torch.float32)
    there = {each.name: getattr(data, each.name) for each in dataclasses.fields(data)}
    return SearchData(
        **{name: value.to(FAR) if isinstance(value, Tensor) else value for name, value in there.items()}
    )


def starts(count: int, **changes: object) -> list[TrialStart]:
    """All losses, optimizers and batch sizes, with batch normalisation, dropout, and augmented images."""
    return [tiny(number, *PAIRS[number * 9 % len(PAIRS)], **changes) for number in range(count)]


def far_pool(start: TrialStart, recorder: Recorder, slots: int) -> Pool:
    """Empty; for trials like this one."""
    data, _ = far_data(0), far_data(1)
    blank = template(start.config, data.input_shape, data.classes, TASK)
    program = Program(blank, data.input_shape, slots, FAR)
    return Pool(program, data.images, 2 * slots, 16, recorder=recorder)


def admit(pool: Pool, start: TrialStart) -> Member:
    data = far_data(start.split_seed)
    model = build(start.config.model, data.input_shape, data.classes, 1)
    made = member(start, pool.free[0], data, model=model, program=pool.program, allow_imports=())
    pool.admit(made)
    return made


@pytest.mark.parametrize("recorder", [plainly, refusing])
def test_no_step_waits_or_mixes_devices(recorder: Recorder) -> None:
    """Nor what lies between steps: epochs that begin, trials that come, are kept, and go."""
    first, late = starts(8)[:6], starts(8)[6:]
    pool = far_pool(first[0], recorder, 7)
    with FarDevice() as seen:
        for start in first:
            admit(pool, start)
        for number in range(8):
            for due in pool.step():
                assert isinstance(due, Member)
                pool.save(due)
            if number < len(late):
                pool.retire(pool.members[number])
                admit(pool, late[number])
        pool.rewind()
        assert not any(isinstance(due, Failed) for due in pool.step())
    assert seen.mixed == []
    assert seen.waited == []
    assert (pool.why_unrecorded is None) == (recorder is plainly)


def test_a_replayed_step_is_one_copy_besides_its_replays() -> None:
    """However many trials, of whatever kinds, take part in it."""
    replays = []

    def counting(_: Work) -> Recording:
        return Recording(lambda: replays.append(1), ())

    given = starts(8, batch_size=16)[1:]  # gradient descent's epochs end with each step
    pool = far_pool(given[0], counting, 8)
    for start in given:
        admit(pool, start)
    pool.step()
    replays.clear()
    with FarDevice() as seen:
        for _ in range(3):
            assert pool.step() == []
    assert seen.operations == ["copy_"] * 3
    assert seen.sent == 3
    assert len(replays) == 3 * (1 + len({start.config.optimizer.name for start in given}))


def test_scores_are_waited_for_once_they_are_complete() -> None:
    pool = far_pool(starts(1)[0], plainly, 4)
    with FarDevice() as seen:
        for start in starts(3):
            admit(pool, start)
        members = list(pool.members.values())
        score_rows(pool.program, pool._pictures, members, 4, 16, recorded=pool._recorded_scores)
        assert seen.waited == []
        assert len(pool.score(members)) == 3
    assert seen.mixed == []
    where = {line.partition(", ")[2].partition(":")[0] for line in seen.waited}
    assert where <= {"sums.py", "pool.py", "scoring.py", "metrics.py"}


def test_pools_that_get_smaller_mix_nothing() -> None:
    first = starts(4)
    pool = far_pool(first[0], plainly, 4)
    for start in first:
        admit(pool, start)
    with FarDevice() as seen:
        pool.step()
        for slot, one in enumerate(pool.resize(4)):
            one.slot = slot
            pool.admit(one)
        pool.step()
    assert seen.mixed == []


@pytest.mark.parametrize("number", range(8))
def test_a_trial_alone_neither_waits_nor_mixes_devices(number: int) -> None:
    """In its recorded steps; its first ones, before anything is recorded, are among them."""
    start = starts(8, epochs=1)[number]
    training = RecordedTraining(start.config, start.seed, far_data(start.split_seed), recorder=plainly)
    with FarDevice() as seen:
        steps = list(training.steps(1))
    assert steps
    assert training.why_unrecorded is None
    assert seen.mixed == []
    assert seen.waited == []


def test_what_a_gpu_would_wait_for_is_noted() -> None:
    far, near = torch.zeros(3, device=FAR), torch.zeros(3)
    for mixes in (lambda: far + near, lambda: far[near.long()], lambda: torch.where(far > 0, near, far)):
        with FarDevice() as seen, suppress(RuntimeError):
            mixes()
        assert len(seen.mixed) == 1
    for work in (
        lambda: far.sum().item(),
        lambda: bool(far.any()),
        far.tolist,
        lambda: far[far > 0],
        lambda: far.copy_(near),
        lambda: near.to(FAR),
        lambda: torch.tensor([1.0], device=FAR),
        lambda: near.copy_(far),
    ):
        with FarDevice() as seen, suppress(NotImplementedError):  # a shape that depends on what nobody knows
            work()
        assert len(seen.waited) == 1
    with FarDevice() as seen:
        far.copy_(near, non_blocking=True)
        near.to(FAR, non_blocking=True)
        far.add(1)
        far.add(torch.tensor(1.0))
    assert (seen.waited, seen.mixed, seen.sent) == ([], [], 2)
    assert seen.operations == ["copy_", "_to_copy", "add", "add"]
