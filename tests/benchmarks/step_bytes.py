"""What a recorded step of the fused engine asks of a GPU: kernels, bytes and FLOPs, counted without one.

    python -m tests.benchmarks.step_bytes [--slots 64] [--backends grouped triton] [--output FILE]

The default CNN on 3×32×32 images, batches of 32, 64 and 128 in turn, all losses and optimizers but the one of
full batches, all schedules and regularisers by turns; with and without augmentation (flips and crops) and
dropout, in float32 and bfloat16, with each of some backends for all convolutions, and with the other parts of
a step by our kernels or, with `--operations`, by operations of torch. Steps run on torch's meta device, where
tensors have shapes and no numbers: the mean over steps after the first ones. `launches.py` says what is
counted for an operation; a compiled update counts as one kernel, and so does each of ours in Triton's
language, by what it is given: a table's places that nobody has in a step count as if they were used.

Per case: kernels per step, bytes and FLOPs per image, by where in the program they come from, and the images
per second that `--terabytes` a second and `--teraflops` would allow if each kernel took the longer of its
bytes' and its FLOPs' time, and no kernel less than `--microseconds`. That is arithmetic on counts, no
measurement: a floor for the time of a step, not an estimate of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objectives.base import Choice, DataSpec, Precision, Task, TrialConfig, TrialStart, derive_seed
from objectives.bench import ROWS_PER_SLOT
from objectives.datasets import SearchData
from objectives.devices import reproducible
from objectives.fused import (
    recorded,
    triton_image_kernels,
    triton_kernels,
    triton_step_kernels,
    triton_tail_kernels,
    triton_tried,
)
from objectives.fused.convolutions import CONVOLUTIONS, shapes_of
from objectives.fused.member import member
from objectives.fused.memory import IMAGES_PER_ROW
from objectives.fused.pool import Pool
from objectives.fused.program import Program, template
from objectives.fused.triton_chance import words_by_triton
from objectives.fused.triton_trials import TRIALS
from objectives.fused.update import Rows, Update
from objectives.models import build
from objectives.recording import Recording, Work
from search.environment import environment
from tests.benchmarks import host_cost
from tests.benchmarks.launches import META, Counted, Launch, Launches, Places

MODEL = Choice("cnn")

CLASSES = 10

AUGMENT = {"flip": 0.5, "crop": 4.0}
"""As is usual for such images."""

OURS = (triton_kernels, triton_tail_kernels, triton_step_kernels, triton_image_kernels)
"""Modules of kernels in Triton's language."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

WARM_UP = 2
"""Steps that are not counted."""

STEPS = 12
"""That are: a few turns of batches of all sizes."""


def _kind(variables: Mapping[str, Any]) -> str:
    module: nn.Module = variables["module"]
    return "pooling" if "Pool" in type(module).__name__ else "activation"


PLACES = {
    ("layers.py", "_block.<locals>.forward"): lambda found: f"convolution {found['name']}",
    ("layers.py", "_conv.<locals>.forward"): lambda found: f"convolution {found['name']}",
    ("layers.py", "_linear.<locals>.forward"): lambda found: f"dense {found['name']}",
    ("layers.py", "_same.<locals>.forward"): _kind,
    ("layers.py", "_flatten.<locals>.forward"): "flatten",
    ("layers.py", "_dropout.<locals>.forward"): "dropout",
    ("layers.py", "_batch_norm.<locals>.forward"): "normalisation",
    ("layers.py", "_group_norm.<locals>.forward"): "normalisation",
    ("layers.py", "Pass.factor"): "weights cast",
    ("layout.py", "Layout.rows_of"): "weights gathered",
    ("layout.py", "Layout.pieces"): "gradients added up",
    ("state.py", "add_rows"): "gradients added up",
    ("augment.py", "augment"): "augmentation",
    ("staging.py", "each_apart"): "augmentation",
    ("staging.py", "by_row"): "augmentation",
    ("staging.py", "normalised"): "images",
    ("step_operations.py", "images_by_operations"): "images",
    ("step_operations.py", "places_by_operations"): "images",
    ("triton_images.py", "images_by_triton"): "images",
    ("triton_images.py", "places_by_triton"): "images",
    ("chance.py", "Columns.draw"): "random numbers",
    ("recorded.py", "RecordedSteps._masks"): "dropout",
    ("recorded.py", "RecordedSteps._losses"): "loss",
    ("recorded.py", "RecordedSteps._do_update"): "update",
    ("state.py", "add_counted_rows"): "gradients added up",
    ("recorded.py", "RecordedSteps._do_passes"): "images",
    ("program.py", "Program.track"): "normalisation",
    ("program.py", "Program.forward"): "copies and casts",
}
"""Where operations come from, by the innermost of these functions that they were asked for in."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is counted."""

    backend: str
    precision: Precision
    chance: bool
    """Whether images are augmented, and numbers dropped."""
    slots: int
    kernels: bool = True
    """Whether the other parts of a step are computed by kernels of ours."""

    @property
    def name(self) -> str:
        more = [", augmentation and dropout"] * self.chance + [", by operations"] * (not self.kernels)
        return "".join([f"{self.backend}, {self.precision}", *more])


@dataclass(frozen=True, slots=True)
class Machine:
    """What a kernel is held against."""

    bytes_per_second: float
    flops_per_second: Mapping[str, float]
    """By precision."""
    least: float
    """Seconds of a kernel."""

    def seconds(self, launch: Launch, precision: str) -> float:
        """Of a kernel, at least."""
        moving = (launch.read + launch.written) / self.bytes_per_second
        return max(moving, launch.flops / self.flops_per_second[precision], self.least)


class Compiled:
    """In the place of `CompiledUpdates`: an update is one kernel."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def step(self, update: Update, rows: Rows, decayed: int, numbers_HS1: Tensor) -> None:
        mode = self._recorder.mode
        with mode.fused("compiled update") if mode else contextlib.nullcontext():
            update.apply(rows, decayed, *numbers_HS1)


class Recorder:
    """Counts work when it is recorded; a replay adds that up."""

    def __init__(self) -> None:
        self.mode: Launches | None = None
        self.replayed: list[Launch] = []

    def __call__(self, work: Work) -> Recording:
        with Launches(Places(PLACES)) as mode:
            self.mode = mode
            results = work()
        self.mode = None
        return Recording(lambda: self.replayed.extend(mode.seen), results)


def data_there(images: int, side: int) -> SearchData:
    """So many images to train on, without a number in them."""
    return SearchData(
        images=torch.empty((images, 3, side, side), dtype=torch.uint8, device=META),
        labels=torch.empty(images, dtype=torch.long, device=META),
        training_indices=torch.arange(images, device=META),
        validation_indices=torch.arange(0, device=META),
        mean=torch.empty(3, device=META),
        std=torch.empty(3, device=META),
        classes=CLASSES,
        class_counts=(images // CLASSES,) * CLASSES,
    )


def config_of(number: int, *, chance: bool, model: Choice) -> TrialConfig:
    """Of the trials of the host's cost, on this model, with augmentation and dropout or without."""
    if chance:
        model = replace(model, options={**model.options, "dropout": 0.25})
    return replace(host_cost.config_of(number), augment=AUGMENT if chance else {}, model=model)


@contextlib.contextmanager
def as_on_a_gpu(recorder: Recorder, *, kernels: bool) -> Iterator[None]:
    """Kernels in Triton's language are taken, and noted instead of started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "words_for", lambda _: words_by_triton)
        # Seen by name: no kernel could be tried on such a device.
        patch.setattr(triton_tried, "_taken", {(name, META): kernels for name in TRIALS})
        for module in OURS:
            for name, one in list(vars(module).items()):
                if hasattr(one, "arg_names") and not name.startswith("_"):
                    patch.setattr(module, name, Counted(one, lambda: recorder.mode))
        yield


def counted(
    case: Case, model: Choice = MODEL, images: int = 50_000, side: int = 32
) -> tuple[list[Launch], int, int]:
    """The kernels of `STEPS` steps, how many steps these were, and the images that were trained on."""
    recorder = Recorder()
    data = data_there(images, side)
    task = Task(data=DataSpec(name="digits"), precision=case.precision)
    with reproducible(1, case.precision), as_on_a_gpu(recorder, kernels=case.kernels):
        blank = template(config_of(0, chance=case.chance, model=model), data.input_shape, CLASSES, task)
        shapes = shapes_of(blank, data.input_shape)
        program = Program(
            blank,
            data.input_shape,
            case.slots,
            META,
            precision=case.precision,
            convolutions=[case.backend for _ in shapes],
        )
        pool = Pool(program, data.images, ROWS_PER_SLOT * case.slots, IMAGES_PER_ROW, recorder=recorder)
        assert pool._recorded is not None, "it has a recorder"
        pool._recorded._compiled = Compiled(recorder)  # type: ignore[assignment]  # stands for it
        for slot in range(case.slots):
            config, seed = config_of(slot, chance=case.chance, model=model), derive_seed(0, slot)
            built = build(config.model, data.input_shape, CLASSES, seed)
            start = TrialStart(trial_id=slot, config=config, seed=seed, split_seed=0)
            pool.admit(member(start, slot, data, model=built, program=program, allow_imports=()))
        for _ in range(WARM_UP):
            pool.step()
        assert pool.why_unrecorded is None, pool.why_unrecorded
        recorder.replayed.clear()
        before = pool.images
        for _ in range(STEPS):
            pool.step()
    return recorder.replayed, STEPS, pool.images - before


def said(case: Case, machine: Machine, model: Choice = MODEL) -> dict[str, Any]:
    """What the file says of a case."""
    launches, steps, images = counted(case, model)
    seconds = sum(machine.seconds(launch, case.precision) for launch in launches)
    return {
        **{each.name: getattr(case, each.name) for each in fields(case)},
        "steps": steps,
        "images_per_step": images / steps,
        "kernels_per_step": len(launches) / steps,
        **_per_image(launches, images),
        "seconds_per_step_at_least": seconds / steps,
        "images_per_second_at_most": images / seconds,
        "places": _by(launches, images, steps, "place"),
        "operations": _by(launches, images, steps, "name"),
    }


def _by(launches: Sequence[Launch], images: int, steps: int, what: str) -> dict[str, dict[str, float]]:
    """What there is of each kind, most bytes first."""
    kinds: dict[str, list[Launch]] = {}
    for launch in launches:
        kinds.setdefault(getattr(launch, what), []).append(launch)
    found = {
        kind: {"kernels_per_step": len(ones) / steps, **_per_image(ones, images)}
        for kind, ones in kinds.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes_per_image"]))


def _per_image(launches: Sequence[Launch], images: int) -> dict[str, float]:
    read, written, flops = (
        sum(getattr(launch, name) for launch in launches) / images for name in ("read", "written", "flops")
    )
    return {
        "bytes_per_image": read + written,
        "read_per_image": read,
        "written_per_image": written,
        "flops_per_image": flops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["grouped", "grouped_tail", "triton_block"],
        choices=list(CONVOLUTIONS),
    )
    parser.add_argument(
        "--operations", action="store_true", help="the rest of a step by operations of torch alone"
    )
    parser.add_argument("--terabytes", type=float, default=4.3, help="a second, of an H200 as it was seen")
    parser.add_argument("--teraflops", type=float, default=790.0, help="a second in bf16, likewise")
    parser.add_argument("--teraflops-fp32", type=float, default=67.0, help="a second, by its data sheet")
    parser.add_argument("--microseconds", type=float, default=2.0, help="of a kernel, at least")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    machine = Machine(
        given.terabytes * 1e12,
        {"bf16": given.teraflops * 1e12, "fp32": given.teraflops_fp32 * 1e12},
        given.microseconds * 1e-6,
    )
    cases = [
        Case(backend, precision, chance, given.slots, kernels=not given.operations)
        for backend in given.backends
        for precision in PRECISIONS
        for chance in (False, True)
    ]
    found = [said(case, machine) for case in cases]
    body = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.step_bytes", *sys.argv[1:]]),
        "image": [3, 32, 32],
        "batch_sizes": list(host_cost.BATCH_SIZES),
        "rows_per_slot": ROWS_PER_SLOT,
        "images_per_row": IMAGES_PER_ROW,
        **environment(),
        "definitions": __doc__.partition("\n\n")[2].partition("\n\n")[2],
        "held_against": {
            "terabytes_per_second": given.terabytes,
            "teraflops": {"bf16": given.teraflops, "fp32": given.teraflops_fp32},
            "microseconds_per_kernel": given.microseconds,
        },
        "cases": found,
    }
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    for case, one in zip(cases, found, strict=True):
        show(case, one)


def show(case: Case, one: Mapping[str, Any]) -> None:
    """A line, and where its bytes come from."""
    print(
        f"{case.name}: {one['kernels_per_step']:.1f} kernels a step of {one['images_per_step']:,.0f} images,"
        f" {one['bytes_per_image'] / 1e3:,.1f} kB and {one['flops_per_image'] / 1e6:.1f} MFLOP an image;"
        f" at most {one['images_per_second_at_most'] / 1e6:.1f} M images/s, by these counts"
    )
    for place, each in one["places"].items():
        print(f"  {each['bytes_per_image'] / 1e3:9,.1f} kB {each['kernels_per_step']:7.1f} kernels  {place}")


if __name__ == "__main__":
    main()
