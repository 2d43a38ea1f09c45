"""Whichever backend computes the convolutions, a fused trial is the trial, and its numbers are its own.

What is tested of the usual backends in `test_parity.py` and `test_isolation.py`, here for each in turn.
"""

from __future__ import annotations

import pytest
import torch

from objectives.base import Choice
from objectives.devices import reproducible
from objectives.fused import program
from objectives.fused.convolutions import CONVOLUTIONS, Shape
from tests.contracts.parity_contract import (
    PAIRS,
    fused_pool,
    plain_training,
    relative,
    row_of,
    small_cnn,
    tiny,
    train_epoch,
)
from tests.objectives.fused.test_convolutions import ON_CPU
from tests.objectives.fused.test_parity import lockstep

NETWORKS = [
    Choice("cnn", {"depth": 2, "width": 5, "growth": 1.5, "kernel": 2, "dense": 7}),
    Choice("cnn", {"depth": 3, "width": 3, "kernel": 3, "dense": 0, "batch_norm": True}),
    Choice("cnn", {"depth": 1, "width": 32, "padding": "same", "dense": 6}),
    Choice("resnet", {"depth": 1, "width": 4, "norm": "group"}),
    Choice("cnn", {"depth": 3, "width": 16, "dense": 8}),
]


@pytest.fixture(autouse=True)
def one_thread() -> object:
    with reproducible(1):
        yield


ON_GPUS = {"grouped_mm", "grouped_tail", "triton", "triton_block"}
"""Alone; all other backends take turns here."""


@pytest.fixture(params=[name for name in CONVOLUTIONS if name not in ON_GPUS], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Computes all convolutions that it is offered for."""
    name: str = request.param

    def always(shape: Shape, *_: object) -> str:
        return name if CONVOLUTIONS[name].offered(shape, ON_CPU) else "grouped"

    monkeypatch.setattr(program, "usual", always)
    return name


def test_it_computes_the_convolutions(backend: str) -> None:
    starts = {"winograd": tiny(0, "mse", "sgd", model=NETWORKS[4])}  # of many channels, but in the first map
    found = fused_pool([starts.get(backend, tiny(0, "mse", "sgd"))]).program.convolutions.values()
    assert set(found) == ({backend, "grouped"} if backend in starts else {backend})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "model", [small_cnn(dropout=0.3, batch_norm=True), *NETWORKS[3:]], ids=lambda m: m.name
)
def test_one_step_has_the_same_gradient(
    model: Choice, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [tiny(number, *PAIRS[11 * number], model=model) for number in range(5)]
    assert lockstep(starts, dtype, monkeypatch) <= tolerance


def test_an_epoch_in_double_precision_gives_the_same_weights() -> None:
    starts = [tiny(number, "cross_entropy", "momentum", regulariser=Choice("l2")) for number in range(4)]
    pool = fused_pool(starts, torch.float64, capacity=3)  # a batch of 160 takes four steps
    train_epoch(pool)
    for slot, start in enumerate(starts):
        training = plain_training(start, torch.float64)
        training.train_epoch()
        assert relative(pool.program.state.weights_TP[slot], row_of(training, pool)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_row", [16, 32])
@pytest.mark.parametrize(
    "model", NETWORKS, ids=lambda m: f"{m.name} {' '.join(map(str, m.options.values()))}"
)
def test_neighbours_slot_and_size_of_the_pool_show_nowhere(
    model: Choice, per_row: int, dtype: torch.dtype
) -> None:
    starts = [
        tiny(4 * number, "cross_entropy", "momentum", model=model, batch_size=64) for number in range(9)
    ]
    found = []
    for others in (0, 1, 2, 5, 8):
        mixed = [*starts[1 : 1 + others // 2], starts[0], *starts[1 + others // 2 : 1 + others]]
        pool = fused_pool(
            mixed, dtype, slots=others + 3, capacity=64 // per_row * len(mixed), per_row=per_row
        )
        for _ in range(3):
            pool.step()
        found.append(pool.program.state.take(others // 2))
    for row in found[1:]:
        assert torch.equal(row.weights, found[0].weights)
        assert all(torch.equal(row.buffers[name], found[0].buffers[name]) for name in row.buffers)


def test_nan_in_a_slot_stays_in_it() -> None:
    starts = [tiny(number, *PAIRS[9 * number]) for number in range(4)]
    sound, sick = fused_pool(starts), fused_pool(starts)
    for tensor in sick.program.state.tensors():
        if tensor.is_floating_point():
            tensor[2].fill_(torch.nan)
    for _ in range(3):
        sound.step()
        sick.step()
    for mine, theirs in zip(sound.program.state.tensors(), sick.program.state.tensors(), strict=True):
        assert torch.equal(mine[[0, 1, 3]], theirs[[0, 1, 3]])
