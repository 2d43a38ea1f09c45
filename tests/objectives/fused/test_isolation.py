"""A trial's numbers are its own, to the bit, whatever its neighbours, slot, pool and admission are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from objectives.base import Choice, EpochEnd, EpochReport, TrialConfig, TrialFailure, TrialStart
from objectives.fused import FusedEngine
from objectives.fused.member import Member
from objectives.losses import LOSSES
from objectives.metrics import worst_metrics
from objectives.optimizers import OPTIMIZERS
from objectives.regularisers import REGULARISERS
from objectives.schedules import SCHEDULES
from tests.contracts.engine_contract import run
from tests.contracts.parity_contract import (
    PAIRS,
    TASK,
    fused_pool,
    new_member,
    plain_training,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)

Curves = dict[int, list[EpochReport | TrialFailure]]


def curves(starts: Sequence[TrialStart], *, slots: int = 16, rows: int = 8) -> Curves:
    return run(FusedEngine(TASK, "cpu", slots=slots, rows=rows, images_per_row=16), starts)


def alone(start: TrialStart) -> list[EpochReport | TrialFailure]:
    return curves([start], slots=1)[start.trial_id]


def weights_after(engine: FusedEngine, starts: Sequence[TrialStart], path: Path) -> dict[str, Tensor]:
    """All that the first of these trials' checkpoint holds after its first epoch."""
    for start in starts:
        engine.admit(start)
    while True:
        for event in engine.advance():
            if event.trial_id == starts[0].trial_id:
                assert isinstance(event, EpochEnd)
                engine.save(event.trial_id, path)
                return flat(torch.load(path, weights_only=True)["state"])
            engine.retire(event.trial_id)


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """Every tensor of nested dictionaries, by its path."""
    if isinstance(value, Tensor):
        return {name: value}
    found: dict[str, Tensor] = {}
    for key, inner in value.items() if isinstance(value, dict) else ():
        found |= flat(inner, f"{name}/{key}")
    return found


WATCHED = tiny(0, "cross_entropy", "adam", model=small_cnn(dropout=0.3, batch_norm=True))


@pytest.mark.parametrize("rows", [2, 3, 8, 13])
def test_the_size_of_steps_shows_nowhere(rows: int) -> None:
    assert curves([WATCHED], slots=1, rows=rows)[0] == alone(WATCHED)


@pytest.mark.parametrize("before", [0, 1, 6])
def test_slot_and_neighbours_show_nowhere(before: int, tmp_path: Path) -> None:
    neighbours = [tiny(number, *PAIRS[5 * number]) for number in range(1, 10)]
    starts = [*neighbours[:before], WATCHED, *neighbours[before:]]
    assert curves(starts, slots=10)[0] == alone(WATCHED)
    expected = weights_after(FusedEngine(TASK, "cpu", slots=1), [WATCHED], tmp_path / "one")
    got = weights_after(FusedEngine(TASK, "cpu", slots=10), [WATCHED, *neighbours], tmp_path / "ten")
    assert len(expected) > 20
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


CONVOLUTIONS = [
    Choice(
        "cnn",
        {"depth": 2, "width": width, "growth": growth, "kernel": kernel, "dense": 7, "batch_norm": norm},
    )
    for width, growth, kernel, norm in [
        (4, 2.0, 3, True),
        (5, 1.5, 2, False),
        (16, 1.0, 3, True),
        (1, 1.0, 3, False),
    ]
]
NETWORKS = [
    *CONVOLUTIONS,
    Choice("cnn", {"depth": 1, "width": 32, "padding": "same", "activation": "gelu", "dense": 0}),
    Choice("resnet", {"width": 4}),
    Choice("resnet", {"width": 8, "norm": "group"}),
]


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize(
    "model", NETWORKS, ids=lambda m: f"{m.name} {' '.join(map(str, m.options.values()))}"
)
def test_no_kernel_depends_on_how_many_rows_there_are(model: Choice, generic: bool) -> None:
    if generic and (model.options.get("batch_norm") or model.name == "resnet"):
        pytest.skip("torch.func can't run normalisations; such models take another way")
    starts = [tiny(4 * number, "cross_entropy", "momentum", model=model) for number in range(17)]
    found = []
    for others in (0, 1, 2, 4, 7, 15, 16):
        mixed = [*starts[1 : 1 + others // 2], starts[0], *starts[1 + others // 2 : 1 + others]]
        pool = fused_pool(mixed, capacity=len(mixed), generic=generic)
        for _ in range(3):
            pool.step()
        found.append(pool.program.state.take(others // 2))
    for row in found[1:]:
        assert torch.equal(row.weights, found[0].weights)
        assert all(torch.equal(row.buffers[name], found[0].buffers[name]) for name in row.buffers)


@pytest.mark.parametrize("number", range(0, 64, 9))
def test_every_kind_of_trial_is_the_same_among_all_the_others(number: int) -> None:
    starts = [tiny(each, *pair) for each, pair in enumerate(PAIRS)]
    mixed = [*starts[number:], *starts[:number]]
    assert curves(mixed[:12], slots=7, rows=6)[number] == alone(starts[number])


POISONS = {
    "a rate at which everything overflows": {"learning_rate": 1e30, "optimizer": Choice("sgd")},
    "infinite from the second step on": {"learning_rate": 3e38, "optimizer": Choice("momentum")},
    "a penalty that overflows": {"strength": 1e38, "regulariser": Choice("l2")},
}


@pytest.mark.parametrize("poison", POISONS)
def test_a_diverging_trial_touches_nobody(poison: str) -> None:
    sound = [tiny(number, *PAIRS[7 * number]) for number in range(5)]
    poisoned = tiny(99, "cross_entropy", "sgd", **POISONS[poison])
    without = curves(sound, slots=6)
    found = curves([sound[0], poisoned, *sound[1:]], slots=6)
    (end,) = found.pop(99)
    assert isinstance(end, EpochReport)
    assert end.diverged
    assert end.metrics == worst_metrics()
    assert found == without


def test_nan_in_a_slot_stays_in_it() -> None:
    """Everything of a slot is set to NaN by hand: its neighbours' numbers are those of a sound pool."""
    starts = [tiny(number, *PAIRS[9 * number]) for number in range(4)]
    sound, sick = fused_pool(starts), fused_pool(starts)
    for tensor in sick.program.state.tensors():
        if tensor.is_floating_point():
            tensor[2].fill_(torch.nan)
    others = [0, 1, 3]
    for _ in range(6):
        sound.step()
        sick.step()
    for mine, theirs in zip(sound.program.state.tensors(), sick.program.state.tensors(), strict=True):
        assert torch.equal(mine[others], theirs[others])
    assert sick.program.state.weights_TP[2].isnan().all()
    assert not sick.program.state.weights_TP[sick.program.state.idle].any()


def test_nothing_changes_shape_or_place_over_many_admissions() -> None:
    pool = fused_pool([tiny(0, "cross_entropy", "adam", epochs=1)], slots=4, capacity=8)
    places = [(tensor.data_ptr(), tensor.shape) for tensor in pool.program.state.tensors()]
    admitted = 1
    while admitted < 100 or pool.members:
        while pool.free and admitted < 100:
            loss, optimizer = PAIRS[admitted % len(PAIRS)]
            start = tiny(admitted, loss, optimizer, epochs=1, batch_size=16 * (1 + admitted % 3))
            pool.admit(new_member(pool, start))
            admitted += 1
        for ended in pool.step():
            assert isinstance(ended, Member)
            pool.retire(ended)
    assert [(tensor.data_ptr(), tensor.shape) for tensor in pool.program.state.tensors()] == places
    assert pool.shapes <= {2, 3, 4, 6, 8, 10}  # 10: a full batch that must be whole
    assert not any(tensor.any() for tensor in pool.program.state.tensors())


def test_an_unselected_loss_leaks_nothing() -> None:
    """Focal loss has an infinite slope where another trial's scores are certain: it must not see them."""
    certain = tiny(0, "mse", "sgd", learning_rate=0.05, strength=0.0)
    focal = tiny(1, "focal", "sgd", loss=Choice("focal", {"gamma": 0.5}))
    pool = fused_pool([certain, focal])
    with torch.no_grad():
        pool.program.state.weights_TP[0, -10:] = torch.tensor([80.0] + 9 * [-80.0])
    pool.step()
    assert pool.program.state.weights_TP.isfinite().all()


@st.composite
def mixes(draw: st.DrawFn) -> list[TrialStart]:
    """A handful of trials that have nothing in common but the widths of their layers."""
    norm = draw(st.booleans())
    return [
        TrialStart(
            trial_id=number, config=draw(configs(norm)), seed=draw(st.integers(0, 99)), split_seed=number % 2
        )
        for number in range(draw(st.integers(2, 5)))
    ]


@st.composite
def configs(draw: st.DrawFn, norm: bool) -> TrialConfig:
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    return TrialConfig(
        loss=Choice(draw(st.sampled_from(sorted(LOSSES)))),
        regulariser=Choice(draw(st.sampled_from(sorted(REGULARISERS)))),
        strength=draw(st.sampled_from([0.0, 1e-4, 1e-2])),
        optimizer=Choice(optimizer),
        learning_rate=draw(st.sampled_from([1e-3, 1e-2])),
        batch_size=draw(st.one_of(st.none(), st.integers(5, 160))),
        schedule=Choice(
            draw(st.sampled_from(sorted(SCHEDULES))), {"warmup": draw(st.sampled_from([0.0, 0.5]))}
        ),
        epochs=draw(st.integers(1, 2)),
        augment=draw(st.sampled_from([{}, {"flip": 0.5}, {"rotation": 20.0, "cutout": 2}])),
        model=small_cnn(dropout=draw(st.sampled_from([0.0, 0.2, 0.5])), batch_norm=norm),
        class_weights=draw(st.sampled_from(["none", "balanced"])),
    )


@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mixes(), st.integers(1, 4), st.integers(2, 9))
def test_any_mix_gives_each_trial_the_curve_it_has_alone(
    starts: list[TrialStart], slots: int, rows: int
) -> None:
    found = curves(starts, slots=slots, rows=rows)
    assert found == {start.trial_id: alone(start) for start in starts}


@settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mixes(), st.integers(2, 9))
def test_any_mix_trains_like_the_plain_trainer(starts: list[TrialStart], capacity: int) -> None:
    smooth = [
        dataclasses.replace(start, config=dataclasses.replace(start.config, regulariser=Choice("l2")))
        for start in starts
        if start.config.optimizer.name != "rmsprop"
    ]
    if not smooth:
        return
    pool = fused_pool(smooth, torch.float64, capacity=capacity)
    train_epoch(pool)
    for slot, start in enumerate(smooth):
        training = plain_training(start, torch.float64)
        training.train_epoch()
        assert relative(pool.program.state.weights_TP[slot], row_of(training, pool)) <= 1e-6
