"""What it takes to hold a fused trial against the same trial in the plain trainer, in float32 and float64.

A trial's plain side is a `Training`, its fused side a `Member` of a `Pool`; both see the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import product

import pytest
import torch
from torch import Tensor

from objectives.base import Choice, DataSpec, Task, TrialConfig, TrialStart, derive_seed
from objectives.datasets import SearchData, load
from objectives.fused import pool as pool_module
from objectives.fused.layout import in_row_order
from objectives.fused.member import Member, member
from objectives.fused.pool import Pool
from objectives.fused.program import Program, template
from objectives.fused.update import Rows, Update, step_slots
from objectives.losses import LOSSES
from objectives.models import build
from objectives.optimizers import OPTIMIZERS, build_optimizer
from objectives.recording import Recorder
from objectives.training import Training

CPU = torch.device("cpu")
TASK = Task(data=DataSpec(name="digits", limit=200))
PAIRS = tuple(product(LOSSES, OPTIMIZERS))
"""Every loss with every optimizer."""

RATES = {"adam": 0.003, "adamw": 0.003, "rmsprop": 0.003, "adagrad": 0.01}
"""Learning rates at which the tiny model learns; 0.05 for those not named."""


class DoubleData(SearchData):
    """The same images; normalised in float32 and then in float64."""

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        return super().normalise(images_BCHW).double()


def data_of(split_seed: int, dtype: torch.dtype, device: torch.device = CPU) -> SearchData:
    data = load(TASK.data, split_seed, device)
    kind = DoubleData if dtype == torch.float64 else SearchData
    return kind(**{field.name: getattr(data, field.name) for field in fields(data)})


def plain_training(start: TrialStart, dtype: torch.dtype = torch.float32) -> Training:
    """The trial in the plain trainer."""
    training = Training(start.config, start.seed, data_of(start.split_seed, dtype))
    if dtype == torch.float64:
        training.model.double()
        parameters = list(training.model.parameters())
        training._optimizer = build_optimizer(start.config.optimizer, parameters, start.config.learning_rate)
    return training


def fused_pool(
    starts: Sequence[TrialStart],
    dtype: torch.dtype = torch.float32,
    *,
    slots: int | None = None,
    capacity: int = 16,
    per_row: int = 16,
    generic: bool = False,
    recorder: Recorder | None = None,
    device: torch.device = CPU,
) -> Pool:
    """A pool with these trials, all of one architecture, in the slots 0, 1, …"""
    pool = empty_pool(
        starts[0],
        dtype,
        slots=slots or len(starts),
        capacity=capacity,
        per_row=per_row,
        generic=generic,
        recorder=recorder,
        device=device,
    )
    for start in starts:
        pool.admit(new_member(pool, start, dtype))
    return pool


def empty_pool(
    start: TrialStart,
    dtype: torch.dtype = torch.float32,
    *,
    slots: int,
    capacity: int = 16,
    per_row: int = 16,
    generic: bool = False,
    recorder: Recorder | None = None,
    device: torch.device = CPU,
) -> Pool:
    """A pool for trials of the architecture of this one."""
    data = data_of(0, dtype, device)
    config, shape = start.config, data.input_shape
    blank = (
        build(config.model, shape, data.classes, 0)  # a user's own has no dropout of ours
        if generic
        else template(config, shape, data.classes, TASK)
    )
    program = Program(blank, data.input_shape, slots, device, dtype, generic=generic)
    return Pool(program, data.images, capacity, per_row, recorder=recorder)


def new_member(
    pool: Pool, start: TrialStart, dtype: torch.dtype = torch.float32, *, slot: int | None = None
) -> Member:
    """A trial for the pool's first free slot, or the given one, not yet admitted."""
    data = data_of(start.split_seed, dtype, pool.program.device)
    model = build(start.config.model, data.input_shape, data.classes, derive_seed(start.seed, "init"))
    place = pool.free[0] if slot is None else slot
    return member(start, place, data, model=model, program=pool.program, allow_imports=())


def row_of(training: Training, pool: Pool) -> Tensor:
    """The parameters of the plain side, as a row P of the fused one."""
    return pool.program.state.layout.row_of(training.model, pool.program.dtype)


def gradient_of(training: Training, pool: Pool) -> Tensor:
    """The gradient that the plain side's last step used, as a row P."""
    found = [p.grad for _, p in in_row_order(training.model)]
    assert all(gradient is not None for gradient in found)
    return pool.program.state.layout.row([g for g in found if g is not None], pool.program.dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    """The 2-norm of the difference, relative to that of what was expected; wherever they are."""
    got, expected = got.cpu(), expected.cpu()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def train_epoch(pool: Pool) -> list[Member]:
    """Train until every trial is at an epoch's end, which must be the same epoch for all."""
    ended: list[Member] = []
    while len(ended) < len(pool.members):
        waiting = [m for m in pool.members.values() if m not in ended]
        for finished in pool.step():
            assert isinstance(finished, Member)
            ended.append(finished)
            finished.ended = True  # the next epoch waits for the others
        assert waiting
    for each in ended:
        each.ended = False
    return ended


def contiguous(training: Training) -> Training:
    """The same trial with weights and images in the other memory layout: its numbers, rounded otherwise."""
    training.model.to(memory_format=torch.contiguous_format)
    # Not `contiguous()`: images of one channel are that in any layout, and would choose the layout of all.
    training.model.register_forward_pre_hook(
        lambda _, inputs: (torch.empty(inputs[0].shape).copy_(inputs[0]),)
    )
    return training


@contextmanager
def recorded_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Tensor]]:
    """Slot → the gradient, regulariser included, of its last optimizer step in the block."""
    seen: dict[int, Tensor] = {}

    def recording(update: Update, stack: Rows, slots: Sequence[int], *rest: object) -> None:
        seen.update({slot: stack.gradient[slot].clone() for slot in slots})
        step_slots(update, stack, slots, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(pool_module, "step_slots", recording)
        yield seen


def tiny(number: int, loss_name: str, optimizer_name: str, /, **changes: object) -> TrialStart:
    """A small trial that differs from its neighbours in much more than loss and optimizer.

    Batches of 16, 24 (more than a row), 48 and all images; of 160 images, so that last batches are partial.
    """
    smoothing = {"label_smoothing": 0.1 * (number % 2)}
    values = {
        "loss": Choice(loss_name, smoothing if loss_name == "cross_entropy" else {}),
        "optimizer": Choice(optimizer_name),
        "learning_rate": RATES.get(optimizer_name, 0.05),
        "batch_size": (16, 24, 48, None)[number % 4],
        "schedule": Choice(("constant", "cosine", "one_cycle")[number % 3]),
        "regulariser": Choice(("l2", "weight_decay", "none", "l1", "elastic_net")[number % 5]),
        "strength": 1e-3,
        "epochs": 3,
        "augment": {"rotation": 10.0, "translation": 0.1} if number % 3 == 0 else {},
        "class_weights": "balanced" if number % 7 == 0 else "none",
        "model": small_cnn(dropout=0.25 * (number % 3), batch_norm=True),
    } | changes
    config = TrialConfig(**values)  # type: ignore[arg-type]
    return TrialStart(trial_id=number, config=config, seed=100 + number, split_seed=number % 2)


def small_cnn(*, dropout: float = 0.0, batch_norm: bool = False) -> Choice:
    return Choice("cnn", {"depth": 2, "width": 4, "dense": 8, "dropout": dropout, "batch_norm": batch_norm})
