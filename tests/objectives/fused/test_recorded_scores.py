"""Recorded scoring is the scoring: the same scores to the bit, whoever comes and goes, and nobody waits."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from objectives.base import Choice, TrialStart
from objectives.devices import reproducible
from objectives.fused.member import Member
from objectives.fused.pool import Pool
from objectives.fused.scoring import Scored, score_rows
from objectives.recording import Recorder, Recording, RecordingError, Work
from tests.contracts.parity_contract import PAIRS, fused_pool, new_member, small_cnn, tiny, train_epoch
from tests.contracts.recorders import Strict, Waits


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def starts(count: int, first: int = 0, **changes: object) -> list[TrialStart]:
    """Trials of two splits, with batch normalisation and dropout, which evaluation treats otherwise.

    Without a regulariser: recorded steps add L2 with one rounding less.
    """
    given = {"regulariser": Choice("none")} | changes
    return [tiny(n, *PAIRS[n % len(PAIRS)], **given) for n in range(first, first + count)]


def pools(given: Sequence[TrialStart], *recorders: Recorder | None, **how: int) -> list[Pool]:
    """Pools whose trials have trained an epoch, each with its recorder."""
    made = [fused_pool(given, recorder=recorder, **how) for recorder in recorders]  # type: ignore[arg-type]
    for pool in made:
        train_epoch(pool)
    return made


def scores(pool: Pool, members: Sequence[Member]) -> list[Scored]:
    """Without the time that it took."""
    found = pool.score(members)
    assert all(isinstance(one, Scored) for one in found)
    return [dataclasses.replace(one, seconds=0.0) for one in found if isinstance(one, Scored)]


def told(pool: Pool, members: Sequence[Member]) -> list[object]:
    return [one.scores for one in scores(pool, members)]


def logits(pool: Pool, *, recorded: bool) -> dict[int, Tensor]:
    given = pool.program, pool._pictures, list(pool.members.values()), pool.capacity, pool._per_row
    found = score_rows(*given, recorded=pool._recorded_scores if recorded else None)
    return {slot: values for slot, (values, _) in found.items()}


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("capacity", [5, 16])
def test_recorded_scores_are_the_eager_ones_to_the_bit(capacity: int, generic: bool) -> None:
    """Passes of several sizes, in which trials' images are cut at other places, of two splits of the data."""
    model = {"model": small_cnn()} if generic else {}
    pool = fused_pool(starts(6, **model), capacity=capacity, recorder=Strict(), generic=generic)
    train_epoch(pool)
    recorded, eager = logits(pool, recorded=True), logits(pool, recorded=False)
    assert recorded.keys() == eager.keys() == set(range(6))
    for slot, values in eager.items():
        assert len(values) == len(pool.members[slot].data.validation_indices)
        assert torch.equal(recorded[slot], values)
    assert pool._recorded_scores is not None


def test_a_pool_scores_by_replays() -> None:
    strict = Strict(watched=3)
    recorded, eager = pools(starts(5), strict, None, capacity=8)
    before = strict.replays
    found = told(recorded, list(recorded.members.values()))
    passes = sum(-(-len(m.data.validation_indices) // 16) for m in recorded.members.values()) / 8
    assert strict.replays - before >= passes
    assert None not in found
    assert found == told(eager, list(eager.members.values()))
    # One that is due alone has what it has with others; replayed again, it has it again.
    for number, member in enumerate(recorded.members.values()):
        assert told(recorded, [member]) == told(recorded, [member]) == [found[number]]


def test_trials_that_come_and_go_need_no_new_recording() -> None:
    strict = Strict(watched=2)
    (pool,) = pools(starts(4), strict, capacity=8)
    told(pool, list(pool.members.values()))
    for member in list(pool.members.values()):
        told(pool, [member])
    known = strict.recordings
    for start in starts(4, first=7):
        pool.retire(next(iter(pool.members.values())))
        made = new_member(pool, start)
        pool.admit(made)
    fresh = list(pool.members.values())
    assert told(pool, fresh) == [Fresh(one.start).scores for one in fresh]
    assert strict.recordings == known


class Fresh:
    """What a trial that nobody has trained says of its validation images, in a pool of its own."""

    def __init__(self, start: TrialStart) -> None:
        pool = fused_pool([start], slots=4, capacity=8)
        (one,) = scores(pool, list(pool.members.values()))
        self.scores = one.scores


def test_tables_and_numbers_of_other_slots_are_not_read() -> None:
    clean, dirty = pools(starts(3), Strict(), Strict(), slots=5)
    recorded = dirty._recorded_scores
    assert recorded is not None
    recorded._mean_TC[3:5].fill_(torch.nan)
    recorded._held_out_TA[3:5].fill_(7)
    for tensor in dirty.program.state.tensors():
        if tensor.is_floating_point():
            tensor[1].fill_(torch.nan)
            tensor[3:5].fill_(torch.nan)
    mine, theirs = logits(clean, recorded=True), logits(dirty, recorded=True)
    assert theirs[1].isnan().all()
    for slot in (0, 2):
        assert torch.equal(mine[slot], theirs[slot])


def test_no_pass_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded or replayed; the scores themselves are waited for once they are complete."""
    (pool,) = pools(starts(6), Strict(watched=0), capacity=3)
    with Waits(monkeypatch) as waits:
        for _ in range(2):
            logits(pool, recorded=True)
    assert waits.seen == []


def refusing_scores(strict: Strict) -> Recorder:
    """Records steps; of what is returned, as scores are, it records nothing."""

    def record(work: Work) -> Recording:
        if len(work()):
            raise RecordingError("the model decides by what it sees")
        return strict(work)

    return record


def test_where_scoring_can_not_be_recorded_steps_are(caplog: pytest.LogCaptureFixture) -> None:
    strict = Strict()
    recorded, eager = pools(starts(4), refusing_scores(strict), None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = told(recorded, list(recorded.members.values()))
            assert found == told(eager, list(eager.members.values()))
    assert recorded.why_scores_unrecorded == "the model decides by what it sees"
    assert recorded.why_unrecorded is None
    assert [record.message for record in caplog.records] == [
        "scoring can't be recorded, and takes longer: the model decides by what it sees"
    ]
    before = strict.replays
    train_epoch(recorded)
    assert strict.replays > before
    recorded.resize(4)
    assert recorded._recorded_scores is None, "it is not tried again"


def test_going_back_lets_go_of_recordings_and_trials_are_scored_again() -> None:
    strict = Strict()
    (pool,) = pools(starts(3), strict)
    members = list(pool.members.values())
    for member in members:
        pool.save(member)
    expected = told(pool, members)
    assert pool._recorded_scores is not None
    pool.rewind()
    assert not pool._recorded_scores._passes
    assert told(pool, members) == expected
    for place, member in enumerate(reversed(pool.resize(3))):
        member.slot = place
        pool.admit(member)
    known = strict.recordings
    assert told(pool, members) == expected
    assert strict.recordings > known
