"""The inbox: whole tables in one copy, sizes that are few, and idle slots that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.fused.inbox import FEWEST_UPDATED, Inbox, bucket, columns_of
from objectives.fused.member import NUMBERS, Member
from objectives.fused.pool import Pool
from objectives.fused.recorded import MOST_ROWS
from objectives.fused.rows import Want, pack, table
from objectives.fused.update import HYPER, MOST_NUMBERS, UPDATES
from tests.contracts.parity_contract import PAIRS, fused_pool, tiny

CPU = torch.device("cpu")


@given(st.integers(1, 600), st.integers(1, 600))
def test_sizes_of_updates_are_few_and_hold_all(count: int, most: int) -> None:
    size = bucket(count, most)
    assert size >= count
    assert size <= max(2 * count, FEWEST_UPDATED)
    assert size <= max(most, count, 2)
    assert len({bucket(number, 512) for number in range(1, 513)}) == 8


def begun(count: int) -> tuple[Pool, list[Member]]:
    """Trials at the beginning of an epoch, of which no step has been taken."""
    pool = fused_pool([tiny(number, *PAIRS[9 * number + 1], augment={}) for number in range(count)])
    for member in pool.members.values():
        member.begin()
    return pool, list(pool.members.values())


def test_what_a_step_is_told_arrives_in_one_copy() -> None:
    pool, members = begun(4)
    wants = [Want(m.slot, m.piece.left, whole=True) for m in members if m.piece is not None]
    shares = pack(wants[:3], 20, 16)
    rows = table(shares, 20, 16, pool.program.state.idle, CPU)
    inbox = Inbox(pool.program.state.idle, 20, MOST_ROWS, CPU)
    step, update = inbox.step_table(rows.rows, 16, 16), inbox.update_table(3, 4, 2, torch.float32)
    members[1].fresh = False
    step.write(rows, members[:3])
    update.write(columns_of(members[2:]))
    assert not step.there.any()
    inbox.send()
    assert torch.equal(step.row_table().table, rows.table)
    for member, share in zip(members, shares, strict=False):
        mine = slice(share.first, share.first + share.rows)
        assert step.firsts[mine].tolist() == [16 * number for number in range(share.rows)]
        assert member.piece is not None
        assert (step.batches[mine] == member.piece.batch).all()
    turns = [dict(zip(*(part.tolist() for part in step.turn(n)), strict=True)) for n in range(16)]
    idle = pool.program.state.idle
    for share in shares:
        found = [turn[share.slot] for turn in turns if share.slot in turn]
        assert found == list(range(share.first, share.first + share.rows))
    assert all(set(turn) <= {idle, *(share.slot for share in shares)} for turn in turns)
    fresh = dict(zip(step.turn(0)[0].tolist(), step.fresh.tolist(), strict=True))
    assert [fresh[share.slot] for share in shares] == [True, False, True]
    assert update.slots.tolist() == [2, 3, idle, idle]
    assert update.images[2:].tolist() == [0, 0]
    numbers = torch.from_numpy(np.array([m.numbers()[:5] for m in members[2:]])).float()
    assert torch.equal(update.numbers[:, :2].T, numbers)
    assert update.numbers[:, 2].tolist() == [0, 0, 1, 1, 1]


def test_parts_of_different_kinds_of_optimizer_do_not_overlap() -> None:
    inbox = Inbox(9, 12, MOST_ROWS, CPU)
    kinds = len(set(UPDATES.values()))
    tables = [inbox.update_table(place, 9, MOST_NUMBERS, torch.float64) for place in range(kinds)]
    step = inbox.step_table(12, 16, MOST_ROWS)
    for number, one in enumerate(tables):
        one.here[:] = number + 1
    step.here[:] = 99
    inbox.send()
    assert all((one.there == number + 1).all() for number, one in enumerate(tables))
    assert (step.there == 99).all()


def test_there_is_room_for_what_was_asked_for() -> None:
    inbox = Inbox(4, 24, MOST_ROWS, CPU)
    assert inbox.holds(24, MOST_ROWS)
    assert inbox.holds(2, 2)
    assert not inbox.holds(25, MOST_ROWS)


@pytest.mark.parametrize("name", UPDATES)
def test_a_members_numbers_are_those_of_its_optimizer_at_each_step(name: str) -> None:
    member = fused_pool([tiny(1, "mse", name)]).members[0]
    member.begin()
    update = UPDATES[name]
    for step in range(member.feed.steps_per_epoch):
        member.sums.steps = step
        found = member.numbers()
        given = member.options, np.array([member.learning_rate]), np.array([step + 1.0])
        expected = [float(np.ravel(number)[0]) for number in update.numbers(*given)]
        assert found[3 : 3 + HYPER[update]].tolist() == pytest.approx(expected, rel=1e-14)
        assert found[2] == pytest.approx(1 - member.learning_rate * member.config.strength, rel=1e-14)
        assert len(found) == NUMBERS
