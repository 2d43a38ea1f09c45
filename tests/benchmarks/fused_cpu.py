"""Trials trained fused against the same trials one after the other, on one CPU core.

    python -m tests.benchmarks.fused_cpu [--rounds 5] [--case 8x8 …] [--output results.json]

A round trains the same trials for an epoch, validation included, in every way, in a turning order; what
counts is CPU seconds, which others on the machine disturb least. `channels_last` is the plain trainer as it
is, `plain` the same with tensors in torch's default layout, `chosen` what users get: whichever way a short
measurement finds to be faster. That measurement, of about a second per kind of trial and experiment, is
done before the rounds; what it said is in the JSON, as is every round. `missed` lists what targets `chosen`
did not meet, by how much, and why, from a profile taken there and then.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from objectives.allocator import keep_freed_memory
from objectives.base import Choice, DataSpec, Task, TrialConfig, TrialStart, derive_seed
from objectives.bench import summary
from objectives.choices import Choices, ChoicesInMemory, ProgramChoice, ProgramKey
from objectives.datasets import load
from objectives.devices import reproducible
from objectives.fused import FusedEngine
from objectives.losses import LOSSES
from objectives.optimizers import OPTIMIZERS
from objectives.trainer import train_epoch
from objectives.training import Training
from search.environment import environment
from tests.benchmarks.gpu_fused import made_images
from tests.benchmarks.reasons import by_profile, missed

SEED = 1
CPU = torch.device("cpu")

# So many that a fifth less is whole batches: a partial one fills a row, which in so short an epoch would
# count for more than it does in one of thousands of images.
TINY = DataSpec(name="digits", limit=800)
GREY = DataSpec(name="digits", image_size=28, limit=400)
COLOUR = "3x32x32"
"""The size of images that are made for it: speed does not depend on what they show."""
COLOUR_IMAGES = 400

GAINS = {"plain": 1.5, "channels_last": 1.2}
"""What `chosen` is to be worth at least on 8×8 images at batches of 32 to 64 …"""
NO_LOSS = {"plain": 1.0, "channels_last": 1.0}
"""… and elsewhere."""


@dataclass(frozen=True)
class Case:
    """Trials to train."""

    name: str
    data: DataSpec
    batch_sizes: Sequence[int]
    trials: int
    mixed: bool = False
    """Every trial with another loss and optimizer; otherwise cross-entropy and momentum."""
    targets: Mapping[str, float] = field(default_factory=lambda: NO_LOSS)
    """Way → what `chosen` is to be worth against it at least."""

    def starts(self) -> list[TrialStart]:
        return [
            TrialStart(
                trial_id=number, config=self.config(number), seed=derive_seed(SEED, number), split_seed=SEED
            )
            for number in range(self.trials)
        ]

    def config(self, number: int) -> TrialConfig:
        losses = list(LOSSES) if self.mixed else ["cross_entropy"]
        optimizers = (
            [name for name in OPTIMIZERS if name != "gradient_descent"] if self.mixed else ["momentum"]
        )
        return TrialConfig(
            loss=Choice(losses[number % len(losses)]),
            optimizer=Choice(optimizers[number % len(optimizers)]),
            learning_rate=0.003,
            batch_size=self.batch_sizes[number % len(self.batch_sizes)],
            strength=1e-4,
            epochs=1,
        )

    def images(self) -> int:
        """Training images of a round."""
        return len(load(self.data, SEED, CPU).training_indices) * self.trials


CASES = (
    Case("8x8, batches of 32", TINY, (32,), 16, targets=GAINS),
    Case("8x8, batches of 64", TINY, (64,), 16, targets=GAINS),
    Case("8x8, batches of 32, 64 and 128, all losses and optimizers", TINY, (32, 64, 128), 16, mixed=True),
    Case("28x28, batches of 32", GREY, (32,), 8),
    Case("28x28, batches of 64", GREY, (64,), 8),
    Case(f"{COLOUR}, batches of 32", DataSpec(name=COLOUR), (32,), 4),
    Case(f"{COLOUR}, batches of 64", DataSpec(name=COLOUR), (64,), 4),
)


class Noted(ChoicesInMemory):
    """Choices that can be told afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[ProgramKey, ProgramChoice] = {}

    def put(self, key: ProgramKey, choice: ProgramChoice) -> ProgramChoice:
        """As `Choices.put`."""
        self.made[key] = super().put(key, choice)
        return self.made[key]

    def told(self) -> list[dict[str, Any]]:
        """Which way was chosen for each size of batch."""
        return [
            {"batch": key.batch, **{name: said for name, said in asdict(choice).items() if said is not None}}
            for key, choice in self.made.items()
            if choice.convolutions is None
        ]

    def convolutions(self) -> list[Sequence[str]]:
        """How the convolutions of each program are computed where it is fused."""
        return [choice.convolutions for choice in self.made.values() if choice.convolutions is not None]


def fused(case: Case, choices: Choices | None = None) -> float:
    engine = FusedEngine(Task(data=case.data), "cpu", slots=case.trials, choices=choices)
    for start in case.starts():
        engine.admit(start)
    ended = 0
    while ended < case.trials:
        ended += len(engine.advance())
    return engine.occupancy


def one_by_one(case: Case, *, channels_last: bool) -> None:
    data = load(case.data, SEED, CPU)
    with reproducible(1):
        for start in case.starts():
            training = Training(start.config, start.seed, data)
            if not channels_last:
                training.model.to(memory_format=torch.contiguous_format)
                training.model.register_forward_pre_hook(_in_default_layout)
            train_epoch(training)


def _in_default_layout(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    # Not `contiguous()`: images of one channel are that in any layout, and would choose the layout of all.
    images = torch.empty(inputs[0].shape)
    return (images.copy_(inputs[0]),)


def ways_of(case: Case, choices: Choices) -> dict[str, Callable[[], object]]:
    """Name → trains the case once."""
    return {
        "plain": lambda: one_by_one(case, channels_last=False),
        "channels_last": lambda: one_by_one(case, channels_last=True),
        "fused": lambda: fused(case),
        "chosen": lambda: fused(case, choices),
    }


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """Images per CPU second of every way and round, and what fused is worth, pair by pair."""
    images, noted = case.images(), Noted()
    ways = ways_of(case, noted)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()  # loads, builds kernels, and measures for the choice
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            ways[name]()
            rates[name].append(images / (time.process_time() - started))
    ratios = {
        f"{way}/{base}": summary([one / other for one, other in zip(rates[way], rates[base], strict=True)])
        for way in ("fused", "chosen")
        for base in ("plain", "channels_last")
    }
    return {
        "case": {"name": case.name, "batch_sizes": case.batch_sizes, "trials": case.trials, "images": images},
        "images_per_cpu_second": {way: {**summary(found), "rounds": found} for way, found in rates.items()},
        "ratios": ratios,
        "chosen": noted.told(),
        "convolutions": noted.convolutions(),
        "occupancy": fused(case),
        "missed": [
            entry
            for base, least in case.targets.items()
            for entry in missed(
                f"{case.name}: chosen/{base}",
                ratios[f"chosen/{base}"]["median"],
                least,
                partial(reason, case, ways, base, noted.told()),
            )
        ],
    }


def reason(
    case: Case, ways: Mapping[str, Callable[[], object]], base: str, chosen: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Why a case is no faster as chosen than it is in the way `base`."""
    if not any(choice["fused"] for choice in chosen):
        said = "; ".join(f"batches of {choice['batch']}: {choice['reason']}" for choice in chosen)
        return {"why": f"trained one by one, in the plain trainer's own code, so it is noise: {said}"}
    images = case.images()
    return by_profile([("as chosen", ways["chosen"], images), (f"one by one ({base})", ways[base], images)])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", nargs="+", default=[""], help="only those whose names begin so")
    parser.add_argument("--limit", type=int, help="images; default: the case's own")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    keep_freed_memory()  # as every engine lets its process do: good for all ways
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.fused_cpu", *sys.argv[1:]]),
        "rounds": given.rounds,
        "seed": SEED,
        "threads": 1,
        "load_before": os.getloadavg(),
        **environment(),
        "missed": [],
        "cases": [],
    }
    cases = [case for case in CASES if any(case.name.startswith(said) for said in given.case)]
    with ExitStack() as held:
        for case in cases:
            if case.data.name == COLOUR:
                data = held.enter_context(made_images(given.limit or COLOUR_IMAGES, 32))
            else:
                data = replace(case.data, limit=given.limit or case.data.limit)
            found = measured(replace(case, data=data), given.rounds)
            results["missed"] += found.pop("missed")
            results["cases"].append(found)
            print(case.name, json.dumps(found["ratios"]), json.dumps(found["chosen"]), flush=True)
    print("missed:", json.dumps(results["missed"], indent=1))
    results["load_after"] = os.getloadavg()
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
