"""Cursors: each trial goes through its epoch image by image, batch by batch, whoever is beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.fused.cursors import Cursors, Sums, Turn, progress

CPU = torch.device("cpu")


class Sizes(NamedTuple):
    images: int
    batch_size: int
    piece: int
    whole: bool


class Part(NamedTuple):
    """A trial's part of a step."""

    start: int
    images: int
    batch: int
    number: int
    fresh: bool
    complete: bool


SIZES = st.builds(Sizes, st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.booleans()).map(
    lambda s: s._replace(batch_size=min(s.images, s.batch_size), piece=min(s.piece, s.batch_size, s.images))
)


def pieces(sizes: Sizes) -> Iterator[tuple[int, int, int, int]]:
    """Of an epoch, one after the other: number of the batch, its first image, its end, the piece's end."""
    for number, start in enumerate(range(0, sizes.images, sizes.batch_size)):
        end = min(start + sizes.batch_size, sizes.images)
        for first in range(start, end, sizes.piece):
            yield number, start, end, min(first + sizes.piece, end)


@given(SIZES)
def test_the_place_in_an_epoch_says_all_of_its_batch(sizes: Sizes) -> None:
    at = np.arange(sizes.images)
    found = progress(at, *(np.full_like(at, size) for size in sizes[:3]))
    done = 0
    for number, start, end, until in pieces(sizes):
        for place in range(done, until):
            of_place = (number, place - start, end - start, until - place)
            assert tuple(int(each[place]) for each in found) == of_place
        done = until
    assert done == sizes.images


def parts_of(turn: Turn) -> dict[int, Part]:
    columns = (turn.starts, turn.rows.columns[3], turn.batches, turn.numbers, turn.fresh, turn.complete)
    return {
        slot: Part(*(each[place].item() for each in columns))
        for place, slot in enumerate(turn.slots.tolist())
    }


def epochs_of(trials: list[Sizes], capacity: int, per_row: int, most_rows: int | None) -> list[list[Part]]:
    """The parts of each trial in its steps, until all epochs are through."""
    cursors, found = Cursors(len(trials)), [[] for _ in trials]  # type: list[list[Part]]
    for slot, sizes in enumerate(trials):
        cursors.admit(slot, *sizes)
        cursors.begin(slot)
    through: list[int] = []
    while len(through) < len(trials):
        turn = cursors.turn(capacity, per_row, most_rows, idle=len(trials), device=CPU)
        assert len(turn.slots)
        for slot, part in parts_of(turn).items():
            found[slot].append(part)
        ended = cursors.take(turn, 1.0).tolist()
        for slot in ended:
            assert cursors.sums(slot).images == trials[slot].images
            assert cursors.sums(slot).steps == -(-trials[slot].images // trials[slot].batch_size)
            cursors.rest(slot)
        through += ended
    assert sorted(through) == list(range(len(trials)))
    return found


@given(
    st.lists(SIZES, min_size=1, max_size=6),
    st.integers(2, 9),
    st.integers(1, 16),
    st.none() | st.integers(1, 4),
)
def test_each_trial_goes_through_its_whole_epoch(
    trials: list[Sizes], capacity: int, per_row: int, most_rows: int | None
) -> None:
    for sizes, parts in zip(trials, epochs_of(trials, capacity, per_row, most_rows), strict=True):
        at = 0
        bounds = list(pieces(sizes))
        for part in parts:
            number, start, end, until = next(each for each in bounds if each[3] > at)
            assert part.start == at
            assert 1 <= part.images <= until - at
            if sizes.whole:
                assert part.images == until - at
            assert (part.batch, part.number) == (end - start, number)
            assert part.fresh == (at == start)
            at += part.images
            assert part.complete == (at == end)
        assert at == sizes.images


def waiting(*images: int) -> Cursors:
    """Trials with epochs of so many images, in batches of 4."""
    cursors = Cursors(len(images))
    for slot, count in enumerate(images):
        cursors.admit(slot, count, 4, 4, whole=True)
        cursors.begin(slot)
    return cursors


def turn_of(cursors: Cursors, capacity: int) -> Turn:
    return cursors.turn(capacity, 4, None, idle=9, device=CPU)


def test_who_was_served_waits_behind_those_who_were_not() -> None:
    cursors = waiting(8, 8, 8)
    served = []
    for _ in range(3):
        turn = turn_of(cursors, 2)
        served.append(turn.slots.tolist())
        for slot in cursors.take(turn, 1.0).tolist():
            cursors.rest(slot)
    assert served == [[0, 1], [2, 0], [1, 2]]


def test_only_trials_that_are_in_an_epoch_take_part() -> None:
    cursors = waiting(8, 8, 8, 8)
    cursors.rest(1)
    cursors.retire(2)
    assert turn_of(cursors, 4).slots.tolist() == [0, 3]
    cursors.admit(2, 4, 4, 4, whole=False)
    assert turn_of(cursors, 4).slots.tolist() == [0, 3]
    cursors.begin(2)
    cursors.begin(1)
    assert turn_of(cursors, 4).slots.tolist() == [1, 2, 0, 3]


def test_a_trial_that_has_diverged_leaves_at_the_end_of_its_batch() -> None:
    cursors = waiting(8, 8)
    turn = turn_of(cursors, 2)
    slots = np.arange(2)
    cursors.add(slots, np.array([0.5, np.inf]), np.array([1.0, 2.0]), np.array([4, 4]))
    assert cursors.take(turn, 1.0).tolist() == [1]
    assert cursors.sums(0) == Sums(steps=1, images=4, loss=2.0, norm=1.0, finite=True, seconds=0.5)
    assert not cursors.sums(1).finite
    cursors.rest(1)
    cursors.begin(1)
    assert cursors.sums(1) == Sums()


def test_what_was_seen_counts_for_the_epoch_in_which_it_was_asked() -> None:
    cursors = waiting(8, 8)
    asked = cursors.run_T.copy()
    cursors.begin(0)
    cursors.seen(np.array([False, False]), asked)
    assert cursors.finite_T.tolist() == [True, False]
    cursors.seen(np.array([True, True]), cursors.run_T)
    assert cursors.finite_T.tolist() == [True, False]


def test_a_part_that_failed_completes_nothing() -> None:
    cursors = waiting(4, 4)
    turn = turn_of(cursors, 2)
    assert cursors.take(turn, 1.0, lost={0}).tolist() == [1]


def test_time_is_shared_by_rows() -> None:
    cursors = Cursors(2)
    cursors.admit(0, 12, 12, 12, whole=True)
    cursors.admit(1, 4, 4, 4, whole=True)
    for slot in range(2):
        cursors.begin(slot)
    cursors.take(turn_of(cursors, 4), 2.0)
    assert [cursors.sums(slot).seconds for slot in range(2)] == pytest.approx([1.5, 0.5])
