"""The row table: every batch has its rows, none is in two hands, shapes are few."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.fused.rows import FEWEST_ROWS, Share, Wants, buckets, pack, stacked, table

CPU = torch.device("cpu")

ITEMS = st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=12)
"""Images that slots want, and whether all at once."""


def wants_of(items: Sequence[tuple[int, bool]]) -> Wants:
    """Of slots in reverse order."""
    images, whole = zip(*items, strict=True)
    return Wants(np.arange(len(items))[::-1], np.array(images), np.array(whole))


def one_by_one(wants: Wants, capacity: int, per_row: int, most_rows: int | None) -> list[Share]:
    """What `pack` is to find, slot after slot."""
    shares: list[Share] = []
    free = capacity
    for slot, images, whole in zip(*(each.tolist() for each in wants), strict=True):
        rows = -(-images // per_row)
        if whole and rows > free:
            if not shares:
                return [Share(slot, 0, rows, images)]
            continue
        if not whole:
            rows = min(rows, free, most_rows or free)
        if rows:
            shares.append(Share(slot, capacity - free, rows, min(images, rows * per_row)))
            free -= rows
    return shares


@given(ITEMS, st.integers(2, 20), st.integers(1, 40), st.none() | st.integers(1, 6))
def test_slots_are_served_in_their_order(
    items: list[tuple[int, bool]], capacity: int, per_row: int, most_rows: int | None
) -> None:
    wants = wants_of(items)
    expected = one_by_one(wants, capacity, per_row, most_rows)
    found = pack(wants, capacity, per_row, most_rows)
    assert found.tolist() == stacked(expected).tolist()


@given(ITEMS, st.integers(2, 20), st.integers(1, 40))
def test_the_first_in_line_is_served_and_nobody_gets_more_than_it_wants(
    items: list[tuple[int, bool]], capacity: int, per_row: int
) -> None:
    wants = wants_of(items)
    shares = table(pack(wants, capacity, per_row), capacity, per_row, 12, CPU).shares
    by_slot = dict(zip(wants.slots.tolist(), items, strict=True))
    assert shares[0].slot == wants.slots[0]
    for share in shares:
        images, whole = by_slot.pop(share.slot)
        assert share.rows == -(-share.images // per_row)
        assert share.images == images if whole else 1 <= share.images <= images
        assert share.images == images or share.images % per_row == 0  # cut between rows only
    used = sum(share.rows for share in shares)
    assert used <= capacity or (len(shares) == 1 and items[0][1])
    assert [share.first for share in shares] == [sum(s.rows for s in shares[:n]) for n in range(len(shares))]


@given(ITEMS, st.integers(2, 20), st.integers(1, 40))
def test_a_table_marks_exactly_the_images_of_its_shares(
    items: list[tuple[int, bool]], capacity: int, per_row: int
) -> None:
    rows = table(pack(wants_of(items), capacity, per_row), capacity, per_row, 12, CPU)
    assert int(rows.valid.sum()) == sum(share.images for share in rows.shares)
    for share in rows.shares:
        mine = slice(share.first, share.first + share.rows)
        assert (rows.slots[mine] == share.slot).all()
        assert (rows.images[mine] == share.images).all()
        assert (rows.table[1:3, mine] == torch.tensor([[share.first], [share.rows]])).all()
        assert int(rows.valid[mine].sum()) == share.images
        assert rows.valid.flatten()[rows.place(share)].all()
    idle = rows.slots == 12
    assert int(idle.sum()) == rows.rows - rows.used
    assert not rows.valid[idle].any()
    assert rows.most_rows == max(share.rows for share in rows.shares)
    assert [rows.shares[place].slot for place in rows.used_rows.shares] == rows.slots[~idle].tolist()


@given(st.integers(2, 200))
def test_buckets_are_few_and_waste_little(capacity: int) -> None:
    sizes = buckets(capacity)
    assert sizes[0] == FEWEST_ROWS
    assert sizes[-1] == capacity
    assert len(sizes) <= 2 * capacity.bit_length()
    assert all(high <= 1.5 * low + 0.5 or high <= 3 for low, high in pairwise(sizes))


def test_sums_are_those_of_each_slot_and_keep_nan_to_it() -> None:
    rows = table(stacked([Share(0, 0, 3, 5), Share(2, 3, 1, 2)]), 4, 2, 3, CPU)
    assert rows.slots.tolist() == [0, 0, 0, 2]
    numbers = torch.tensor([[1.0], [2.0], [4.0], [torch.nan]], requires_grad=True)
    sums = rows.sum_slots(numbers)
    assert sums[:3].tolist() == [[7.0]] * 3
    assert sums[3].isnan().all()
    sums[0].sum().backward()
    assert numbers.grad is not None
    assert numbers.grad.tolist() == [[1.0], [1.0], [1.0], [0.0]]
