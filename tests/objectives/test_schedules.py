"""Schedules: what every entry keeps, and agreement with those of PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from objectives.base import Choice, Scalar
from objectives.schedules import SCHEDULES, factor_at, factors_of

EVERY = pytest.mark.parametrize("name", SCHEDULES)


def factors(name: str, steps_per_epoch: int, epochs: int, **options: Scalar) -> list[float]:
    """One factor per step of a trial."""
    choice = Choice(name, options)
    return [factor_at(choice, step, steps_per_epoch, epochs) for step in range(steps_per_epoch * epochs)]


@settings(derandomize=True, max_examples=100)
@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    steps_per_epoch=st.integers(1, 50),
    epochs=st.integers(1, 12),
    warmup=st.floats(0, 20),
)
def test_factors_lie_between_zero_and_one(
    name: str, steps_per_epoch: int, epochs: int, warmup: float
) -> None:
    for factor in factors(name, steps_per_epoch, epochs, warmup=warmup):
        assert isinstance(factor, float)
        assert 0 < factor <= 1


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    steps_per_epoch=st.integers(1, 50),
    epochs=st.integers(1, 6),
    warmup=st.floats(0, 8),
)
def test_an_epoch_at_once_is_its_steps_one_by_one(
    name: str, steps_per_epoch: int, epochs: int, warmup: float
) -> None:
    choice = Choice(name, {"warmup": warmup})
    found = [factors_of(choice, epoch, steps_per_epoch, epochs) for epoch in range(epochs)]
    assert all(len(factors_S) == steps_per_epoch for factors_S in found)
    expected = factors(name, steps_per_epoch, epochs, warmup=warmup)
    assert [f for factors_S in found for f in factors_S.tolist()] == pytest.approx(expected, rel=1e-14)


@EVERY
def test_the_first_step_learns_and_a_trial_of_one_step_too(name: str) -> None:
    assert factors(name, 1, 1)[0] > 0
    assert factors(name, 10, 5, warmup=2.0)[0] > 0


@EVERY
def test_warmup_multiplies_by_a_line_and_then_leaves_alone(name: str) -> None:
    cold, plain = factors(name, 10, 5, warmup=1.5), factors(name, 10, 5)
    line = [min(1.0, (step + 1) / 15) for step in range(50)]
    assert cold == pytest.approx([ramp * factor for ramp, factor in zip(line, plain, strict=True)])
    assert cold[14:] == plain[14:]


@EVERY
def test_every_schedule_takes_a_warmup_and_says_what_it_is(name: str) -> None:
    assert inspect.signature(SCHEDULES[name]).parameters["warmup"].default == 0
    assert SCHEDULES[name].__doc__


def test_constant() -> None:
    assert factors("constant", 3, 2) == [1.0] * 6


def torch_factors(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int
) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def test_step_is_that_of_torch_at_every_epoch() -> None:
    expected = torch_factors(lambda o: lr_scheduler.StepLR(o, 3, gamma=0.3), 10)
    found = factors("step", 7, 10, factor=0.3, every=3)
    assert found == pytest.approx([factor for factor in expected for _ in range(7)])


def test_exponential_is_that_of_torch_at_the_start_of_an_epoch() -> None:
    expected = torch_factors(lambda o: lr_scheduler.ExponentialLR(o, gamma=0.8), 10)
    found = factors("exponential", 7, 10, gamma=0.8)
    assert found[::7] == pytest.approx(expected)
    assert found[1] == pytest.approx(0.8 ** (1 / 7))


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_that_of_torch(final: float) -> None:
    expected = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, 70, eta_min=final), 70)
    assert factors("cosine", 7, 10, final=final) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_rises_to_its_peak_and_falls_to_its_end() -> None:
    found = factors("one_cycle", 10, 10, peak=0.3, start=0.1, final=0.01)
    assert found[0] == pytest.approx(0.1)
    assert found[15] == pytest.approx((0.1 + 1) / 2)
    assert max(found) == found[30] == 1
    assert found[65] == pytest.approx((1 + 0.01) / 2)
    assert found == sorted(found[:30]) + sorted(found[30:], reverse=True)
    assert 0.01 < found[-1] < 0.011


def test_one_cycle_has_the_defaults_of_torch() -> None:
    expected = torch_factors(
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=1001, cycle_momentum=False), 1001
    )
    found = factors("one_cycle", 100, 10)
    assert found == pytest.approx(expected[:1000], abs=0.01)  # theirs counts from peak − 1 steps
    assert found[0] == pytest.approx(expected[0])
    assert expected[-1] == pytest.approx(4e-6)


def test_a_factor_depends_on_the_step_alone() -> None:
    """Asked for out of order, as a resumed trial does."""
    inorder = factors("one_cycle", 10, 10, warmup=1.0)
    choice = Choice("one_cycle", {"warmup": 1.0})
    assert [factor_at(choice, step, 10, 10) for step in reversed(range(100))] == inorder[::-1]
