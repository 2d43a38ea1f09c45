"""Steps of optimizers as compiled kernels: one pass over memory for all operations of an update, on a GPU.

Shapes: S slots that take a step, P parameters of a trial, H numbers that a step depends on.

An update is a few element-wise operations on rows SP, each of which reads and writes all of them; compiled
by Inductor they are one kernel. Shapes of a recorded step are fixed, so an update is compiled once for each
of its sizes, on numbers made up for that, and taken if it then gives what the operations give one by one.
This happens where a recorder does the work before it records: never while a CUDA graph is captured, into
which nothing but the kernel itself goes (Inductor's own CUDA graphs stay off). Where anything is missing for
it (Triton, a C compiler, room for its files) updates run operation by operation, and the log says so once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

import torch
from torch import Tensor

from objectives.fused.update import Apply, Rows, Update

logger = logging.getLogger(__name__)

MOST_COMPILED = 256
"""Forms that a process compiles; each takes seconds, and stays. What comes later runs as it is."""

OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    "triton.cudagraphs": False,  # the step is captured as a whole
    "compile_threads": 1,  # there is one kernel: no processes that would outlive it
}
"""Of Inductor."""

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
"""By which a row may differ from that of the operations one by one, relative to its largest number."""

Form: TypeAlias = tuple[Update, int, torch.Size, int, torch.dtype, torch.device]
"""What a compiled update is fixed to: kind, H, SP, parameters that decay, dtype and device."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Made-up rows to try an update on; any of them can be had again, so that no second copy is kept."""

    base: Rows
    """The first row, 1P each."""
    scale: Tensor
    """S1; what the others are multiples of it by."""
    numbers: Tensor
    """HS1."""

    @classmethod
    def like(cls, rows: Rows, numbers_HS1: Tensor) -> _Sample:
        """Of the shapes of these."""
        device, dtype = rows.weights.device, rows.weights.dtype
        chance = torch.Generator(device).manual_seed(0)
        shape = (1, rows.weights.shape[1])
        weights, gradient, first, second = (
            torch.randn(shape, generator=chance, device=device, dtype=dtype) for _ in range(4)
        )
        base = Rows(weights, gradient, first, second.abs())
        scale_S1 = torch.linspace(1.0, 2.0, len(rows.weights), device=device, dtype=dtype)[:, None]
        # What is compiled is fixed to its strides too, even those along which there is but one number.
        drawn_HS1 = numbers_HS1.new_empty_strided(numbers_HS1.shape, numbers_HS1.stride())
        return cls(base, scale_S1, drawn_HS1.uniform_(0.25, 0.75, generator=chance))

    def rows(self, like: Rows, part: slice = slice(None)) -> Rows:
        """All of them or some; none where there is none in `like`."""
        pairs = zip(_of(self.base), _of(like), strict=True)
        return Rows(*(base * self.scale[: len(old)][part] for base, old in pairs))


class CompiledUpdates:
    """The updates of a process in compiled form, as far as they can be had.

    `backend` is one of `torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._run: Callable[..., None] | None = None
        self._compiled: set[Form] = set()
        self._alone = Lock()
        """Whether torch compiles is a setting of the process, not of a thread."""
        self.why_not: str | None = None
        """Why updates are no longer compiled, nor run in compiled form."""

    def step(self, update: Update, rows: Rows, decayed: int, numbers_HS1: Tensor) -> None:
        """As `update.apply`; in compiled form if there is one, or if it can be made now."""
        with self._alone, _full_precision():
            if self._ready(update, rows, decayed, numbers_HS1):
                assert self._run is not None, "it is ready"
                # Other settings of the process would have it compiled anew: then operation by operation.
                with torch.compiler.set_stance("eager_on_recompile"):
                    self._run(update.apply, decayed, _of(rows), numbers_HS1)
                return
        update.apply(rows, decayed, *numbers_HS1)

    def _ready(self, update: Update, rows: Rows, decayed: int, numbers_HS1: Tensor) -> bool:
        weights = rows.weights
        form = (update, len(numbers_HS1), weights.shape, decayed, weights.dtype, weights.device)
        if self.why_not is not None:
            return False
        if form in self._compiled:
            return True
        if len(self._compiled) >= MOST_COMPILED or _capturing(weights.device):
            return False
        try:
            self.why_not = self._try(update, rows, decayed, numbers_HS1)
        except (torch.OutOfMemoryError, MemoryError):
            raise  # the step itself needs as much
        except Exception as error:  # noqa: BLE001 (compilers fail in many ways; the step can do without)
            self.why_not = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:2]])
        if self.why_not is not None:
            logger.warning("updates are not compiled, and take longer: %s", self.why_not)
            return False
        self._compiled.add(form)
        return True

    def _try(self, update: Update, rows: Rows, decayed: int, numbers_HS1: Tensor) -> str | None:
        """Compile it and run it on a sample; says what is wrong with what it gives."""
        import torch._dynamo  # takes a second

        if self._run is None:
            # torch 2.12 takes what "eager_on_recompile" runs as it is for a mistake of ours.
            warnings.filterwarnings("ignore", "torch.compile with fullgraph=True found no compiled frames")
            # In an update there is nothing for them to compute.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores for float32 matrix multiplication")
            options = OPTIONS if self._backend == "inductor" else None
            self._run = torch.compile(
                _apply, dynamic=False, fullgraph=True, backend=self._backend, options=options
            )
        sample = _Sample.like(rows, numbers_HS1)
        found = sample.rows(rows)
        limits = {"recompile_limit": MOST_COMPILED + 1, "accumulated_recompile_limit": MOST_COMPILED + 1}
        with torch._dynamo.config.patch(limits):
            self._run(update.apply, decayed, _of(found), sample.numbers)
        sound = torch.ones((), dtype=torch.bool, device=rows.weights.device)
        for slot in range(len(rows.weights)):
            expected = sample.rows(rows, slice(slot, slot + 1))
            update.apply(expected, decayed, *sample.numbers[:, slot : slot + 1])
            for mine, theirs in zip(_of(found), _of(expected), strict=True):
                if len(mine):
                    sound &= _close(mine[slot], theirs[0])
        return None if sound.item() else "the compiled update gave other numbers"


@contextmanager
def _full_precision() -> Iterator[None]:
    """In an update there are no products, but what is compiled while those are in TF32, or not, runs only so.

    With this it is compiled once, and never silently not run.
    """
    matmul = torch.backends.cuda.matmul
    used = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = used


def _apply(apply: Apply, decayed: int, rows: tuple[Tensor, ...], numbers_HS1: Tensor) -> None:
    """What is compiled: an update, of plain tensors."""
    apply(Rows(*rows), decayed, *numbers_HS1)


def _of(rows: Rows) -> tuple[Tensor, ...]:
    return rows.weights, rows.gradient, rows.first, rows.second


def _close(found_P: Tensor, expected_P: Tensor) -> Tensor:
    """Whether two rows agree; on the device, and not if either has a NaN."""
    return (found_P - expected_P).abs().max() <= TOLERANCE[found_P.dtype] * expected_P.abs().max()


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def compiled_for(device: torch.device) -> CompiledUpdates | None:
    """What compiles the updates of recorded steps on a device; None: nothing, they run as they are."""
    return PROCESS if device.type == "cuda" else None


PROCESS = CompiledUpdates()
"""What compilers are there does not change while a process runs: tried once for all its programs."""
