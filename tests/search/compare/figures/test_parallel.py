"""Which trials parallel coordinates draw."""

from __future__ import annotations

import pytest

from search.compare.figures.parallel import BEST, REST, OfMethod, divided
from tests.contracts.comparison_values import trial


def ranked(count: int) -> list[OfMethod]:
    return [("random", trial(number, 1 - number / count)) for number in range(count)]


@pytest.mark.parametrize(("count", "best"), [(2, 1), (30, 2), (100, 5), (5_000, BEST)])
def test_the_best_are_a_twentieth_up_to_as_many_as_there_is_room_for(count: int, best: int) -> None:
    trials = ranked(count)
    first, others = divided(trials)
    assert [one for _, one in first] == [one for _, one in trials[:best]]
    assert len(others) == min(count - best, REST)


def test_of_many_others_the_same_few_are_drawn_each_time_in_their_order() -> None:
    trials = ranked(1_000)
    numbers = [one.number for _, one in divided(trials)[1]]
    assert numbers == [one.number for _, one in divided(trials)[1]]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(50, 50 + REST)), "not only those that come next"
