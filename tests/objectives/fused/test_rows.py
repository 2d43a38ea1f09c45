"""The row table: every batch has its rows, none is in two hands, shapes are few."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.fused.rows import FEWEST_ROWS, Want, buckets, pack, table

CPU = torch.device("cpu")

WANTS = st.lists(st.tuples(st.integers(1, 200), st.booleans()), min_size=1, max_size=12).map(
    lambda items: [Want(slot, images, whole) for slot, (images, whole) in enumerate(items)]
)


@given(WANTS, st.integers(2, 20), st.integers(1, 40))
def test_the_first_in_line_is_served_and_nobody_gets_more_than_it_wants(
    wants: list[Want], capacity: int, per_row: int
) -> None:
    shares = pack(wants, capacity, per_row)
    by_slot = {want.slot: want for want in wants}
    assert shares[0].slot == wants[0].slot
    for share in shares:
        want = by_slot.pop(share.slot)
        assert share.rows == -(-share.images // per_row)
        assert share.images == want.images if want.whole else 1 <= share.images <= want.images
        assert share.images == want.images or share.images % per_row == 0  # cut between rows only
    used = sum(share.rows for share in shares)
    assert used <= capacity or (len(shares) == 1 and wants[0].whole)
    assert [share.first for share in shares] == [sum(s.rows for s in shares[:n]) for n in range(len(shares))]


@given(WANTS, st.integers(2, 20), st.integers(1, 40))
def test_a_table_marks_exactly_the_images_of_its_shares(
    wants: list[Want], capacity: int, per_row: int
) -> None:
    rows = table(pack(wants, capacity, per_row), capacity, per_row, 12, CPU)
    assert int(rows.valid.sum()) == sum(share.images for share in rows.shares)
    for share in rows.shares:
        mine = slice(share.first, share.first + share.rows)
        assert (rows.slots[mine] == share.slot).all()
        assert (rows.images[mine] == share.images).all()
        assert int(rows.valid[mine].sum()) == share.images
        assert rows.valid.flatten()[rows.place(share)].all()
    idle = rows.slots == 12
    assert int(idle.sum()) == rows.rows - rows.used
    assert not rows.valid[idle].any()


@given(st.integers(2, 200))
def test_buckets_are_few_and_waste_little(capacity: int) -> None:
    sizes = buckets(capacity)
    assert sizes[0] == FEWEST_ROWS
    assert sizes[-1] == capacity
    assert len(sizes) <= 2 * capacity.bit_length()
    assert all(high <= 1.5 * low + 0.5 or high <= 3 for low, high in pairwise(sizes))


def test_sums_are_those_of_each_slot_and_keep_nan_to_it() -> None:
    rows = table(pack([Want(0, 5, True), Want(2, 2, True)], 4, 2), 4, 2, 3, CPU)
    assert rows.slots.tolist() == [0, 0, 0, 2]
    numbers = torch.tensor([[1.0], [2.0], [4.0], [torch.nan]], requires_grad=True)
    sums = rows.sum_slots(numbers)
    assert sums[:3].tolist() == [[7.0]] * 3
    assert sums[3].isnan().all()
    sums[0].sum().backward()
    assert numbers.grad is not None
    assert numbers.grad.tolist() == [[1.0], [1.0], [1.0], [0.0]]
