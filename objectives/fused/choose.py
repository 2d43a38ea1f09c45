"""How fast trials of an architecture train fused and alone on this device, by trying; for engines and plans.

Fusing pays where a model is too small to fill a device. On a CPU it is often a draw, and the faster way
differs from machine to machine: so it is measured, once per architecture and process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from objectives.base import Choice, Task, TrialConfig, TrialStart, derive_seed
from objectives.datasets import SearchData
from objectives.fused.fusable import fusing, why_not
from objectives.fused.member import Member, member
from objectives.fused.pool import Pool
from objectives.fused.program import Program, architecture, template
from objectives.measure import MOST_IMAGES, images_per_second
from objectives.models import build
from objectives.optimizers import OPTIMIZERS, effective_batch_size

ROUNDS = 3
"""Each way is tried so often, in turns, and its best counts: what disturbs one try disturbs the next less."""

WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True)
class Speed:
    """Training images per second of all trials together, and what a trial takes."""

    fused: float
    """0 where the trial can't be fused."""
    alone: float
    bytes_per_slot: int
    """As `SlotState.bytes_per_slot`; the activations of a step's images come on top."""
    reason: str | None
    """Why trials had better train alone; None if fused."""


def speed(
    task: Task,
    config: TrialConfig,
    data: SearchData,
    *,
    slots: int,
    rows: int,
    images_per_row: int,
    seconds: float = 0.6,
    threads: int | None = 1,
) -> Speed:
    """Try `slots` trials like this one fused, and one alone, for about so many seconds each.

    Raises `TrialError` where the trial would.
    """
    config = _affordable(config, data)
    device = data.images.device
    model = build(config.model, data.input_shape, data.classes, 0, task.allow_imports)
    found = fusing(model, data.input_shape)
    reason = why_not(config, device) or found.reason
    pool = None
    if not reason:
        blank = template(config, data.input_shape, data.classes, task)
        program = Program(blank, data.input_shape, slots, device, generic=found.form == "vmapped")
        pool = Pool(program, data.images, rows, images_per_row)
        _fill(pool, config, data, task)
    fused = alone = 0.0
    for _ in range(ROUNDS):
        if pool:
            fused = max(fused, _fused_rate(pool, seconds / ROUNDS))
        alone = max(alone, images_per_second(task, config, seconds / ROUNDS, str(device), threads=threads))
    if pool and fused < alone:
        reason = f"faster alone: {alone:.0f} images/s, fused {fused:.0f}"
    return Speed(fused, alone, pool.program.state.bytes_per_slot if pool else 0, reason)


_REMEMBERED: dict[object, str | None] = {}


def why_not_faster(
    task: Task, config: TrialConfig, data: SearchData, *, slots: int, rows: int, images_per_row: int
) -> str | None:
    """Why trials of this architecture had better train alone; None if not. Remembered by the process."""
    key = (
        architecture(config, data.input_shape, data.classes),
        (task.allow_imports, data.images.device, slots, rows, images_per_row),
    )
    if key not in _REMEMBERED:
        found = speed(task, config, data, slots=slots, rows=rows, images_per_row=images_per_row)
        _REMEMBERED[key] = found.reason
    return _REMEMBERED[key]


def _affordable(config: TrialConfig, data: SearchData) -> TrialConfig:
    """The same with a batch that is not too large to be tried often."""
    config = replace(config, epochs=1_000_000)
    if effective_batch_size(config, len(data.training_indices)) <= MOST_IMAGES:
        return config
    full = OPTIMIZERS[config.optimizer.name].full_batch
    return replace(config, batch_size=MOST_IMAGES, optimizer=Choice("sgd") if full else config.optimizer)


def _fill(pool: Pool, config: TrialConfig, data: SearchData, task: Task) -> None:
    for slot in pool.free:
        seed = derive_seed(0, "init")
        model = build(config.model, data.input_shape, data.classes, seed, task.allow_imports)
        start = TrialStart(trial_id=slot, config=config, seed=slot, split_seed=0)
        pool.admit(
            member(start, slot, data, model=model, program=pool.program, allow_imports=task.allow_imports)
        )


def _fused_rate(pool: Pool, seconds: float) -> float:
    for _ in range(WARM_UP_STEPS):
        _step(pool)
    images, started = pool.images, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds or pool.images == images:
        _step(pool)
    return (pool.images - images) / passed


def _step(pool: Pool) -> None:
    """A step after which every trial goes on, whatever its numbers are: this is about time."""
    for item in pool.step():
        assert isinstance(item, Member), "what raises has raised before"
        item.piece = None
