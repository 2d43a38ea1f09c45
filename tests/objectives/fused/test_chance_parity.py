"""Augmentation and dropout of fused trials are those of the plain trainer, and cost no call per trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from objectives.augment import AUGMENTATIONS
from objectives.base import Choice, Scalar, TrialStart
from objectives.devices import reproducible
from objectives.fused.pool import Pool
from objectives.recording import Recording, Work
from tests.contracts.parity_contract import (
    fused_pool,
    new_member,
    plain_training,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)
from tests.contracts.recorders import Strict

AMOUNTS: dict[str, Scalar] = {"flip": 0.5, "rotation": 15.0, "translation": 0.2, "crop": 1, "cutout": 3}

KINDS: list[tuple[dict[str, Scalar], float]] = [
    ({}, 0.0),
    ({}, 0.3),
    *(({name: amount}, 0.0) for name, amount in AMOUNTS.items()),
    (AMOUNTS, 0.5),
    ({"flip": 1.0, "crop": 2}, 0.2),
    ({"flip": 0, "rotation": 0.0}, 0.0),
]
"""What trials beside each other augment by, and drop."""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


def mixed(kinds: Sequence[tuple[dict[str, Scalar], float]] = KINDS, **changes: object) -> list[TrialStart]:
    return [
        tiny(
            number,
            "cross_entropy",
            "momentum",
            augment=augment,
            model=small_cnn(dropout=share),
            regulariser=Choice("none"),
            **changes,
        )
        for number, (augment, share) in enumerate(kinds)
    ]


def weights(pool: Pool) -> list[Tensor]:
    """Of each trial, by slot, after an epoch."""
    train_epoch(pool)
    assert pool.why_unrecorded is None
    return [pool.program.state.weights_TP[slot].clone() for slot in sorted(pool.members)]


def test_every_augmentation_is_among_them() -> None:
    assert AMOUNTS.keys() == AUGMENTATIONS.keys()


def test_an_epoch_gives_the_same_weights_plain_fused_and_recorded() -> None:
    starts = mixed()
    recorded = fused_pool(starts, torch.float64, recorder=Strict(watched=1))
    unrecorded = fused_pool(starts, torch.float64)
    for start, mine, theirs in zip(starts, weights(recorded), weights(unrecorded), strict=True):
        assert torch.equal(mine, theirs)
        training = plain_training(start, torch.float64)
        training.train_epoch()
        assert relative(mine, row_of(training, recorded)) <= 1e-9


def test_amounts_and_shares_change_the_weights() -> None:
    """The test above could fail: none of them is without effect."""
    found = weights(fused_pool(mixed(batch_size=48), recorder=Strict(watched=0)))
    alike = weights(fused_pool(mixed([({}, 0.0)] * len(KINDS), batch_size=48)))
    unchanged = [number for number in range(len(KINDS)) if torch.equal(found[number], alike[number])]
    assert unchanged == [0, len(KINDS) - 1]


def test_neighbours_order_and_size_of_a_pool_change_nothing() -> None:
    starts = mixed()
    watched = starts[-3]
    expected = weights(fused_pool([watched], recorder=Strict(watched=0)))[0]
    for others, place in ((starts[:1], 1), (starts[:6], 2), ([*starts[:-3], *starts[-2:]], 0)):
        together = [*others[:place], watched, *others[place:]]
        pool = fused_pool(together, slots=len(together) + 2, capacity=len(together) + 7, recorder=Strict(0))
        assert torch.equal(weights(pool)[place], expected)


@pytest.mark.parametrize("brings", [({}, 0.0), ({"cutout": 3}, 0.0), ({}, 0.2), (AMOUNTS, 0.5)])
@pytest.mark.parametrize("before", [({}, 0.0), (AMOUNTS, 0.5)])
def test_a_trial_finds_nothing_of_the_one_before_and_brings_what_it_needs(
    before: tuple[dict[str, Scalar], float], brings: tuple[dict[str, Scalar], float]
) -> None:
    first, second = mixed([before, brings], batch_size=48)
    alone = weights(fused_pool([second], recorder=Strict(0)))
    pool = fused_pool([first], recorder=Strict(0))
    train_epoch(pool)
    pool.retire(pool.members[0])
    pool.admit(new_member(pool, second))
    assert torch.equal(weights(pool)[0], alone[0])


# What it costs


class Counting(TorchDispatchMode):
    """Counts operations, those of recorded work apart."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()
        self.replaying = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        (self.inside if self.replaying else self.outside)[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def recorder(self, work: Work) -> Recording:
        """Does the work again, which a device is asked for in one call."""

        def replay() -> None:
            self.replaying = True
            work()
            self.replaying = False

        replay()
        return Recording(replay, ())


def counted(kinds: Sequence[tuple[dict[str, Scalar], float]]) -> Counting:
    """Of a step in the middle of an epoch, of as many trials, once all is recorded."""
    counting = Counting()
    starts = mixed(kinds, batch_size=16)
    pool = fused_pool(starts, capacity=len(starts), recorder=counting.recorder)
    for _ in range(3):
        pool.step()
    with counting:
        pool.step()
    return counting


def test_no_call_is_left_for_each_trial() -> None:
    few, many = (counted([(AMOUNTS, 0.5)] * slots) for slots in (8, 32))
    assert few.outside == many.outside
    assert few.inside == many.inside
    plain = counted([({}, 0.0)] * 8)
    assert few.outside == plain.outside


def test_chance_that_nobody_needs_is_not_drawn() -> None:
    none, flips, drops = (counted([kind] * 8).inside for kind in (({}, 0.0), ({"flip": 0.5}, 0.0), ({}, 0.5)))
    shifts = "aten.__rshift__.Scalar"
    assert none[shifts] == 0
    assert flips[shifts] > 0
    assert drops[shifts] > 0
    assert none.total() < min(flips.total(), drops.total())
