"""Which of `CONVOLUTIONS` is fastest for a convolution on this device, by trying each of them.

Shapes: R rows, M images of a row, C, O channels in and out of a row, H, W height and width.

No rule says it for a GPU: it depends on the library's versions as much as on the sizes. So every backend that
is offered takes turns with the usual one, forward and backward, on a GPU recorded as steps are. One that
raises, can't be recorded, or gives other numbers, is left out, with a line in the log; one that isn't clearly
faster isn't taken, so that noise decides nothing. What was found holds for the process; `choose.py` makes it
hold for an experiment.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from objectives.devices import generator, kind_of_device
from objectives.fused.convolutions import CONVOLUTIONS, Backend, Setting, Shape, usual
from objectives.fused.memory import Sizes
from objectives.fused.tails import by_operations
from objectives.recording import Recorder, RecordingError, recorder_for
from objectives.shortage import is_out_of_memory

logger = logging.getLogger(__name__)

ROUNDS = 7
"""Turns of each backend; the median of its gains over the usual one counts."""

SECONDS = 0.005
"""Of one backend in one turn, at least."""

LEAST_GAIN = 1.05
"""How much faster than the usual one a backend must be."""

HOPELESS = 2.0
"""A backend that takes so many times as long as the usual one when it is first timed gets no turns."""

CLOSE: Mapping[torch.dtype, float] = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far apart two backends' results may be, by the 2-norm of their difference, relative."""

CLOSE_TF32 = 1e-2

Clock = Callable[[], float]

Way = Callable[[], Sequence[Tensor]]
"""Runs a backend once: the map out, and the gradients."""

_found: dict[tuple[Shape, Setting], str] = {}
"""What was measured in this process."""


class UnsoundError(Exception):
    """A backend's numbers are not those of a convolution."""


def setting_of(device: torch.device, sizes: Sizes, dtype: torch.dtype, precision: str) -> Setting:
    """Where the convolutions of a program run."""
    gpu = device.type == "cuda"
    return Setting(
        device=kind_of_device(device),
        type=device.type,
        capability=torch.cuda.get_device_capability(device) if gpu else (0, 0),
        rows=sizes.rows,
        images=sizes.images_per_row,
        dtype=dtype,
        precision=precision,
    )


def fastest(shape: Shape, setting: Setting, device: torch.device, clock: Clock) -> str:
    """The name of the backend to take, measured at its first call; in the caller's `reproducible` settings.

    `clock` gives seconds, and on a GPU waits for it. Raises what the usual backend raises.
    """
    if (shape, setting) not in _found:
        _found[shape, setting] = _measured(shape, setting, device, clock)
    return _found[shape, setting]


def _measured(shape: Shape, setting: Setting, device: torch.device, clock: Clock) -> str:
    default = usual(shape, setting.type, setting.dtype)
    others = [name for name, one in CONVOLUTIONS.items() if name != default and one.offered(shape, setting)]
    if not others:
        return default
    trial = _Trial(shape, setting, device)
    expected = trial.run(CONVOLUTIONS[default])
    recorder = recorder_for(device)
    try:
        runs = {default: _as_in_steps(trial, default, recorder)}
    except RecordingError as error:
        logger.warning("convolutions are measured as they are, for they can't be recorded: %s", error)
        recorder, runs = None, {default: _as_in_steps(trial, default, None)}
    patience = HOPELESS * _seconds(runs[default], clock)
    for name in others:
        if run := _sound(trial, name, recorder, expected):
            runs[name] = run
    hopeful = [name for name in others if name in runs and _seconds(runs[name], clock) <= patience]
    gains: dict[str, list[float]] = {name: [] for name in hopeful}
    for _ in range(ROUNDS if hopeful else 0):
        reference = _seconds(runs[default], clock)
        for name in hopeful:
            gains[name].append(reference / _seconds(runs[name], clock))
    medians = {name: statistics.median(found) for name, found in gains.items()}
    best = max(medians, key=lambda name: medians[name], default=default)
    if medians.get(best, 0.0) < LEAST_GAIN:
        return default
    logger.info("%s: %s is %.2f× as fast as %s", shape, best, medians[best], default)
    return best


@dataclass(frozen=True, slots=True)
class _Tensors:
    """What a convolution and its gradients are computed from."""

    x: Tensor
    kernel: Tensor
    """ROHWC."""
    bias: Tensor | None
    """RO."""

    @property
    def leaves(self) -> list[Tensor]:
        """Those of which the gradient is asked for."""
        given = [self.x, self.kernel, self.bias]
        return [tensor for tensor in given if tensor is not None and tensor.requires_grad]


class _Trial:
    """A step's convolution of random numbers, with what follows it, forward and backward."""

    def __init__(self, shape: Shape, setting: Setting, device: torch.device) -> None:
        self._chance = generator(0, device)
        self._dtype, self._tail = setting.dtype, shape.tail
        rows, high, wide = setting.rows, *shape.kernel
        x = self._random(setting.images, shape.height, shape.width, rows * shape.channels)
        kernel_ROHWC = self._random(rows, shape.out, high, wide, shape.channels).requires_grad_()
        bias_RO = self._random(rows, shape.out).requires_grad_() if shape.bias else None
        self._tensors = _Tensors(x.permute(0, 3, 1, 2).requires_grad_(shape.inner), kernel_ROHWC, bias_RO)
        self._module = nn.Conv2d(
            shape.channels,
            shape.out,
            (high, wide),
            shape.stride,  # type: ignore[arg-type]  # a pair: so it was read from such a module
            shape.padding,  # type: ignore[arg-type]  # likewise
            shape.dilation,  # type: ignore[arg-type]  # likewise
            device="meta",
        )
        self._dy: Tensor | None = None
        self.tolerance = CLOSE_TF32 if setting.precision == "tf32" else CLOSE[setting.dtype]

    def run(self, way: Backend) -> list[Tensor]:
        """The map out, and the gradients."""
        tensors = self._tensors
        given = tensors.x, tensors.kernel, tensors.bias, self._module
        y = way.block(*given, self._tail) if way.block else by_operations(way.run(*given), self._tail)
        if self._dy is None:
            self._dy = self._random(*(y.shape[place] for place in (0, 2, 3, 1))).permute(0, 3, 1, 2)
        return [y.detach(), *torch.autograd.grad(y, tensors.leaves, self._dy)]

    def _random(self, *sizes: int) -> Tensor:
        drawn = torch.randn(sizes, generator=self._chance, device=self._chance.device, dtype=torch.float32)
        return drawn.to(self._dtype)


def _as_in_steps(trial: _Trial, name: str, recorder: Recorder | None) -> Way:
    """A backend's run as steps have it: on a GPU recorded, since asking for operations may take longer than
    they do, and takes a step no time.
    """
    work = partial(trial.run, CONVOLUTIONS[name])
    if recorder is None:
        return work
    recording = recorder(work)

    def replayed() -> Sequence[Tensor]:
        recording.replay()
        return recording.results

    return replayed


def _sound(trial: _Trial, name: str, recorder: Recorder | None, expected: Sequence[Tensor]) -> Way | None:
    """A backend's run, if it runs here and gives what the usual one gives; if not, the log says why."""
    try:
        run = _as_in_steps(trial, name, recorder)
        _check(run(), expected, trial.tolerance)
    except Exception as error:  # noqa: BLE001 (whatever a library raises, there is another backend)
        why = "too little memory" if is_out_of_memory(error) else (str(error) or repr(error)).splitlines()[0]
        logger.warning("convolutions are not computed by %s here: %s", name, why)
        return None
    return run


def _check(got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Raises `UnsoundError`."""
    for mine, wanted in zip(got, expected, strict=True):
        difference = (mine.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30)
        # Not `>`, which lets NaN pass.
        if not float(difference) <= tolerance:
            raise UnsoundError(f"its numbers are off by {float(difference):.1e}")


def _seconds(run: Way, clock: Clock) -> float:
    """Of one run, from as many as fit into a turn."""
    runs, started = 0, clock()
    until = time.perf_counter() + SECONDS
    while not runs or time.perf_counter() < until:
        run()
        runs += 1
    return max(clock() - started, 1e-9) / runs
