"""Seeds: which parts give the same one, and which another. What else `base` holds are values."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

from objectives.base import SeedStem, derive_seed


def test_a_seed_is_a_function_of_its_parts_for_good() -> None:
    """Stored studies depend on these numbers."""
    assert derive_seed(1, 0, 7) == 7878112544970916149
    assert derive_seed(1, "order", 3) == 8845415149995099193


def test_other_parts_give_other_seeds() -> None:
    parts = [
        (),
        (1,),
        (1, 1),
        (11,),
        ("1",),
        (-1,),
        (2**70,),
        ("a", "b"),
        ("b", "a"),
        ("ab",),
        ("a", "", "b"),
    ]
    parts += [("a\x1fstr:b",), ("a\x1f", "b"), ("a", "\x1fb"), ("a\x1f\x1f", "b"), ("é",)]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbours_do_not_collide() -> None:
    seeds = {derive_seed(*each) for each in itertools.product(range(20), range(20), range(20))}
    assert len(seeds) == 20**3


def test_numbers_of_numpy_are_numbers() -> None:
    assert derive_seed(np.int64(3), "order", np.int32(4)) == derive_seed(3, "order", 4)


def test_fractions_are_refused() -> None:
    with pytest.raises(TypeError):
        derive_seed(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [(), (1,), ("a\x1fb", -3), (1, 0, "sampler")])
@pytest.mark.parametrize("rest", [(7,), (7, "lr"), ("\x1f",)])
def test_a_stem_gives_the_seeds_that_begin_with_it(given, rest) -> None:
    stem = SeedStem(*given)
    for one in (stem, pickle.loads(pickle.dumps(stem)), copy.deepcopy(stem)):
        assert [one.derive(*rest), one.derive(*rest)] == [derive_seed(*given, *rest)] * 2
