"""Trials trained fused against the same trials one after the other, on one CPU core.

    python -m tests.benchmarks.fused_cpu [--rounds 5] [--output results.json]

A round trains the same trials for an epoch, validation included, in every way, in a turning order; what
counts is CPU seconds, which others on the machine disturb least. `channels_last` is the plain trainer as it
is, `plain` the same with tensors in torch's default layout, `chosen` is whichever way the engine measures to
be faster. The JSON has every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from objectives.base import Choice, DataSpec, Task, TrialConfig, TrialStart, derive_seed
from objectives.choices import Choices, ChoicesInMemory
from objectives.datasets import load
from objectives.devices import reproducible
from objectives.fused import FusedEngine
from objectives.losses import LOSSES
from objectives.optimizers import OPTIMIZERS
from objectives.trainer import train_epoch
from objectives.training import Training

SEED = 1
CHOICES = ChoicesInMemory()
CPU = torch.device("cpu")

ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(10**9),
}
"""glibc keeps freed memory instead of page-faulting every step's activations anew: good for all ways."""

DIGITS = DataSpec(name="digits")
LARGE = DataSpec(name="digits", image_size=28, limit=600)


@dataclass(frozen=True)
class Case:
    """Trials to train."""

    name: str
    data: DataSpec
    batch_sizes: Sequence[int]
    trials: int
    mixed: bool = False
    """Every trial with another loss and optimizer; otherwise cross-entropy and momentum."""

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


CASES = (
    Case("8x8, batches of 32", DIGITS, (32,), 16),
    Case("8x8, batches of 64", DIGITS, (64,), 16),
    Case("8x8, batches of 32, 64 and 128, all losses and optimizers", DIGITS, (32, 64, 128), 16, mixed=True),
    Case("28x28, batches of 32", LARGE, (32,), 8),
    Case("28x28, batches of 64", LARGE, (64,), 8),
)


def fused(case: Case, choices: Choices | None = None) -> float:
    engine = FusedEngine(Task(data=case.data), "cpu", slots=case.trials, choices=choices)
    for start in case.starts():
        engine.admit(start)
    ended = 0
    while ended < case.trials:
        ended += len(engine.advance())
    return engine.occupancy


def chosen(case: Case) -> None:
    """Fused or one by one, whichever was found faster."""
    fused(case, CHOICES)


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


WAYS: dict[str, Callable[[Case], object]] = {
    "plain": lambda case: one_by_one(case, channels_last=False),
    "channels_last": lambda case: one_by_one(case, channels_last=True),
    "fused": fused,
    "chosen": chosen,
}


def measured(case: Case, rounds: int) -> dict[str, object]:
    """Images per CPU second of every way and round, and what fused is worth, pair by pair."""
    images = len(load(case.data, SEED, CPU).training_indices) * case.trials
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS.values():
        way(case)  # loads, builds kernels, and measures for the choice
    for number in range(rounds):
        names = list(WAYS)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            WAYS[name](case)
            rates[name].append(images / (time.process_time() - started))
    ratios = {
        f"{way}/{base}": summary([one / other for one, other in zip(rates[way], rates[base], strict=True)])
        for way in ("fused", "chosen")
        for base in ("plain", "channels_last")
    }
    return {
        "case": {**asdict(case), "data": str(case.data)},
        "images_per_cpu_second": {way: {**summary(found), "rounds": found} for way, found in rates.items()},
        "ratios": ratios,
        "occupancy": fused(case),
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def circumstances() -> dict[str, object]:
    code = ["--", "objectives", "tests/benchmarks"]
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "revision": git("rev-parse", "HEAD"),
        "changed_since": git("status", "--porcelain", *code).splitlines(),
        "seed": SEED,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load_before": os.getloadavg(),
        "allocator": ALLOCATOR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        command = [sys.executable, "-m", "tests.benchmarks.fused_cpu", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
    torch.set_num_threads(1)
    results = {**circumstances(), "rounds": arguments.rounds, "cases": []}
    for case in CASES:
        found = measured(case, arguments.rounds)
        results["cases"].append(found)
        print(case.name, json.dumps(found["ratios"]), flush=True)
    results["load_after"] = os.getloadavg()
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
