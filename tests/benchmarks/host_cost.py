"""What a recorded step costs the host: how fast a device might be before it waits for the host.

    python -m tests.benchmarks.host_cost [--rounds 5] [--slots 16 64 256] [--output FILE]

A pool whose recorder records nothing and replays nothing: what is left of a step is what the host does for
it, from packing rows to writing the tables that a replay would read. Batches of 32, 64 and 128 images in
turn, all losses, all optimizers but the one of full batches, all schedules, no augmentation, as many rows of
a step as a batch of 64 needs, times the slots. An epoch's beginning is part of it, the scoring at its end is
not. Every round takes the sizes in a turning order.

Per number of slots: CPU seconds of the process's main thread, in microseconds, for a step and for each trial
that has a part in one; the steps per second that they allow, and the images. Tensors lie in the host's
memory: what a copy to a GPU or the launch of a graph costs is not in it (`operations_per_step`
says how many there are, counted over steps that lie apart from those that are timed).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from objectives.base import Choice, DataSpec, Task, TrialConfig, TrialStart, derive_seed
from objectives.bench import ROWS_PER_SLOT, summary
from objectives.datasets import SearchData
from objectives.devices import reproducible
from objectives.fused.member import Member, member
from objectives.fused.memory import IMAGES_PER_ROW
from objectives.fused.pool import Pool
from objectives.fused.program import Program, template
from objectives.losses import LOSSES
from objectives.models import build
from objectives.optimizers import OPTIMIZERS
from objectives.recording import Recording, Work
from objectives.schedules import SCHEDULES
from objectives.training import Scores
from search.environment import environment

BATCH_SIZES = (32, 64, 128)

CLASSES = 10

SIDE = 8
"""Of an image, in pixels; nobody looks at them."""

EPOCHS = 1000
"""Of a trial: none ends."""

MODEL = Choice("cnn", {"depth": 2, "width": 2, "dense": 8})
"""The host's work knows nothing of the size of a model."""

TARGET = 5.0
"""Microseconds for a trial in a step, at most."""


def nothing(_: Work) -> Recording:
    """A recorder of no work."""
    return Recording(lambda: None, ())


def made_data(images: int) -> SearchData:
    """So many training images, and a quarter as many to validate on."""
    chance = torch.Generator().manual_seed(0)
    count = images + images // 4
    return SearchData(
        images=torch.randint(256, (count, 3, SIDE, SIDE), generator=chance, dtype=torch.uint8),
        labels=torch.randint(CLASSES, (count,), generator=chance),
        training_indices=torch.arange(images),
        validation_indices=torch.arange(images, count),
        mean=torch.zeros(3),
        std=torch.ones(3),
        classes=CLASSES,
        class_counts=(images // CLASSES,) * CLASSES,
    )


def config_of(number: int) -> TrialConfig:
    """Of the trials that differ in all that a step has to know."""
    kinds = [name for name, one in OPTIMIZERS.items() if not one.full_batch]
    losses, schedules = list(LOSSES), list(SCHEDULES)
    return TrialConfig(
        loss=Choice(losses[number % len(losses)]),
        optimizer=Choice(kinds[number % len(kinds)]),
        schedule=Choice(schedules[number % len(schedules)]),
        regulariser=Choice(("l2", "l1", "weight_decay", "none")[number % 4]),
        strength=1e-4,
        learning_rate=0.003,
        batch_size=BATCH_SIZES[number % len(BATCH_SIZES)],
        epochs=EPOCHS,
        model=MODEL,
    )


class Operations(TorchDispatchMode):
    """Counts operations but those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class Steps:
    """A full pool, whose trials go on and on."""

    def __init__(self, slots: int, data: SearchData) -> None:
        blank = template(config_of(0), data.input_shape, CLASSES, Task(data=DataSpec(name="digits")))
        program = Program(blank, data.input_shape, slots, torch.device("cpu"))
        self.pool = Pool(program, data.images, ROWS_PER_SLOT * slots, IMAGES_PER_ROW, recorder=nothing)
        for slot in range(slots):
            config, seed = config_of(slot), derive_seed(0, slot)
            model = build(config.model, data.input_shape, CLASSES, seed)
            start = TrialStart(trial_id=slot, config=config, seed=seed, split_seed=0)
            self.pool.admit(member(start, slot, data, model=model, program=program, allow_imports=()))

    @property
    def taken(self) -> int:
        """Optimizer's steps of all trials."""
        at_T, batch_T = self.pool.cursors.at_T, self.pool.cursors.sizes_3T[1]
        began = sum(one.epoch * one.feed.steps_per_epoch for one in self.pool.members.values())
        return began + int((-(-at_T.clip(0) // batch_T)).sum())

    def take(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            for item in self.pool.step():
                if not isinstance(item, Member):
                    raise item.error
                item.end(Scores(loss=0.0, metrics={}, finite_logits=True), 0.0)

    def timed(self, count: int) -> dict[str, float]:
        """What so many steps cost."""
        images, steps, started = self.pool.images, self.taken, time.thread_time()
        self.take(count)
        seconds = time.thread_time() - started
        return {
            "microseconds_per_step": 1e6 * seconds / count,
            "microseconds_per_trial_and_step": 1e6 * seconds / (self.taken - steps),
            "steps_per_second": count / seconds,
            "images_per_second": (self.pool.images - images) / seconds,
            "trials_per_step": (self.taken - steps) / count,
            "images_per_step": (self.pool.images - images) / count,
        }

    def operations(self, count: int) -> float:
        """Of a step, on average."""
        with Operations() as seen:
            self.take(count)
        return seen.count / count


def measured(slots: Sequence[int], images: int, steps: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Every size in every round, after a round that is not counted."""
    data = made_data(images)
    found = {count: Steps(count, data) for count in slots}
    ran: dict[int, list[dict[str, float]]] = {count: [] for count in slots}
    for one in found.values():
        one.take(steps)
    for number in range(rounds):
        turn = number % len(slots)
        for count in [*slots[turn:], *slots[:turn]]:
            ran[count].append(found[count].timed(steps))
            print(f"round {number + 1}: {count} slots", json.dumps(ran[count][-1]), file=sys.stderr)
    return {
        count: {
            **{name: summary([one[name] for one in timed]) for name in timed[0]},
            "operations_per_step": found[count].operations(steps),
            "n": len(timed),
            "rounds": timed,
        }
        for count, timed in ran.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--images", type=int, default=20_000, help="of an epoch")
    parser.add_argument("--steps", type=int, default=500, help="of a round")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()
    with reproducible(1):
        found = measured(given.slots, given.images, given.steps, given.rounds)
    body = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.host_cost", *sys.argv[1:]]),
        "batch_sizes": list(BATCH_SIZES),
        "images": given.images,
        "steps": given.steps,
        "rows_per_slot": ROWS_PER_SLOT,
        "images_per_row": IMAGES_PER_ROW,
        "load_before": load,
        **environment(),
        "definitions": __doc__.partition("\n\n")[2].partition("\n\n")[2],
        "slots": found,
        "target": {
            "microseconds_per_trial_and_step, at most": TARGET,
            "over_by": {
                count: round(over, 3)
                for count, one in found.items()
                if (over := one["microseconds_per_trial_and_step"]["median"] / TARGET - 1) > 0
            },
        },
    }
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    for count, one in found.items():
        each, step = one["microseconds_per_trial_and_step"], one["microseconds_per_step"]
        print(
            f"{count:4} slots: {step['median']:8,.0f} us a step, {each['median']:6.2f} us a trial and step"
            f" ({each['least']:.2f}-{each['most']:.2f}, n={one['n']}),"
            f" {one['images_per_second']['median']:12,.0f} images/s,"
            f" {one['operations_per_step']:.1f} operations"
        )


if __name__ == "__main__":
    main()
