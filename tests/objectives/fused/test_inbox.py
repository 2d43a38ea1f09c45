"""The inbox: whole tables in one copy, sizes that are few, and idle slots that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.base import Choice
from objectives.fused.inbox import FEWEST_UPDATED, MADE_AT_ONCE, Inbox, Lines, bucket
from objectives.fused.member import NUMBERS, Member
from objectives.fused.pool import Pool
from objectives.fused.recorded import MOST_ROWS
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
        pool._begin(member)
    return pool, list(pool.members.values())


def test_what_a_step_is_told_arrives_in_one_copy() -> None:
    pool, members = begun(4)
    idle = pool.program.state.idle
    pool.cursors.rest(3)
    turn = pool.cursors.turn(20, 16, MOST_ROWS, idle=idle, device=CPU)
    turn = turn._replace(fresh=np.array([True, False, False]), starts=turn.starts + np.array([0, 5, 7]))
    inbox, lines = Inbox(idle, 20, MOST_ROWS, CPU), Lines(idle)
    step, update = inbox.step_table(turn.rows.rows, 16, 16), inbox.update_table(3, 4, 2, torch.float32)
    for member in members:
        lines.begin(member)
    step.write(turn)
    inbox.write_updates(np.array([3, 0, 3]), lines.of(np.array([2, 0, 3]), np.array([0, 1, 0])))
    assert not step.there.any()
    inbox.send()
    assert torch.equal(step.row_table().table, turn.rows.table)
    shares = turn.rows.shares
    assert [share.slot for share in shares] == [0, 1, 2]
    for member, share, start in zip(members, shares, (0, 5, 7), strict=False):
        mine = slice(share.first, share.first + share.rows)
        assert step.firsts[mine].tolist() == [start + 16 * number for number in range(share.rows)]
        assert (step.batches[mine] == member.feed.batch_size).all()
    assert step.firsts[turn.rows.used :].tolist() == [0] * (turn.rows.rows - turn.rows.used)
    assert (step.batches[turn.rows.used :] == 1).all()
    turns = [dict(zip(*(part.tolist() for part in step.turn(n)), strict=True)) for n in range(16)]
    for share in shares:
        found = [turn[share.slot] for turn in turns if share.slot in turn]
        assert found == list(range(share.first, share.first + share.rows))
    assert all(set(turn) <= {idle, *(share.slot for share in shares)} for turn in turns)
    fresh = dict(zip(step.turn(0)[0].tolist(), step.fresh.tolist(), strict=True))
    assert [fresh[share.slot] for share in shares] == [True, False, False]
    assert update.slots.tolist() == [2, 3, idle, idle]
    assert update.images.tolist() == [members[2].feed.batch_size, members[3].feed.batch_size, 0, 0]
    numbers = torch.from_numpy(np.array([m.numbers()[0, :5] for m in members[2:]])).float()
    assert torch.equal(update.numbers[:, :2].T, numbers)
    assert update.numbers[:, 2].tolist() == [0, 0, 1, 1, 1]
    other = inbox.update_table(0, 4, 2, torch.float64)
    assert other.slots.tolist() == [0, idle, idle, idle]
    assert other.numbers[:, 0].tolist() == members[0].numbers()[1, :5].tolist()


def test_a_step_leaves_nothing_of_the_one_before() -> None:
    pool, members = begun(4)
    idle = pool.program.state.idle
    inbox, lines = Inbox(idle, 20, MOST_ROWS, CPU), Lines(idle)
    turn = pool.cursors.turn(20, 16, MOST_ROWS, idle=idle, device=CPU)
    step = inbox.step_table(turn.rows.rows, 16, MOST_ROWS)
    update = inbox.update_table(1, idle, 2, torch.float32)
    step.clear()
    blank = inbox._here.copy()
    for member in members:
        lines.begin(member)
    slots = np.arange(3)
    step.write(turn)
    inbox.write_updates(np.ones(3, dtype=np.int64), lines.of(slots, np.zeros_like(slots)))
    inbox.send()
    assert update.slots.tolist() == [0, 1, 2, *[idle] * (idle - 3)]
    one = np.array([1])
    inbox.write_updates(one, lines.of(one, one))
    inbox.send()
    assert update.slots.tolist() == [1, *[idle] * (idle - 1)]
    step.clear()
    inbox.clear_updates()
    assert (inbox._here == blank).all()


@pytest.mark.parametrize("number", [0, 1, MADE_AT_ONCE - 1, MADE_AT_ONCE, 2 * MADE_AT_ONCE + 1, 159])
def test_lines_are_those_of_the_steps_that_are_asked_for(number: int) -> None:
    """However many are made at once: of one trial the next block, of the other still the first."""
    starts = [tiny(trial, "mse", "adam", batch_size=1, schedule=Choice("cosine")) for trial in range(2)]
    first, second = fused_pool(starts).members.values()
    lines = Lines(2)
    for member in (first, second):
        member.begin()
        lines.begin(member)
    for asked in range(0, number, 40):
        lines.of(np.array([0, 1]), np.array([asked, asked // 4]))
    found = lines.of(np.array([1, 0]), np.array([3, number]))
    assert found[:, 0].tolist() == [1, 0]
    assert found[:, 1].tolist() == [1, 1]
    assert found[0, 2:].view(np.float64).tolist() == second.numbers()[3].tolist()
    assert found[1, 2:].view(np.float64).tolist() == first.numbers()[number].tolist()


def test_lines_know_how_large_the_last_batch_is_and_when_an_epoch_begins() -> None:
    (member,) = fused_pool(
        [tiny(0, "mse", "adam", batch_size=33, schedule=Choice("cosine"))]
    ).members.values()
    lines, steps = Lines(1), np.arange(5)
    member.begin()
    lines.begin(member)
    before = lines.of(np.zeros_like(steps), steps)
    assert before[:, 1].tolist() == [33, 33, 33, 33, 160 - 4 * 33]
    member.epoch = 1
    member.begin()
    lines.begin(member)
    after = lines.of(np.zeros_like(steps), steps)
    assert after[:, 2:].view(np.float64).tolist() == member.numbers().tolist()
    assert after.tolist() != before.tolist()


def test_parts_of_different_kinds_of_optimizer_do_not_overlap() -> None:
    inbox = Inbox(9, 12, MOST_ROWS, CPU)
    kinds = len(set(UPDATES.values()))
    tables = [inbox.update_table(place, 9, MOST_NUMBERS, torch.float64) for place in range(kinds)]
    step = inbox.step_table(12, 16, MOST_ROWS)
    for number in range(kinds):
        inbox._of_updates[number] = number + 1
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
        found, rate = member.numbers()[step], member.learning_rate(step)
        given = member.options, np.array([rate]), np.array([step + 1.0])
        expected = [float(np.ravel(number)[0]) for number in update.numbers(*given)]
        assert found[3 : 3 + HYPER[update]].tolist() == pytest.approx(expected, rel=1e-14)
        assert found[2] == pytest.approx(1 - rate * member.config.strength, rel=1e-14)
        assert len(found) == NUMBERS
