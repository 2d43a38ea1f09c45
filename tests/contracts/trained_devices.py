"""The devices that contracts of devices are kept on: a GPU as it is, and a CPU with stand-ins for one.

A GPU's steps are recorded as CUDA graphs, its updates are compiled, and whoever waits for it is told. On a
CPU a recorder stands in that refuses what a graph could not hold, a compiler that leaves operations as they
are, and modes that note what would be waited for: so every line of a contract runs without a GPU as well.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest
import torch
from torch._dynamo.utils import counters

from objectives import graphed
from objectives.fused import pool, recorded
from objectives.fused.compiled import CompiledUpdates, compiled_for
from objectives.fused.state import SlotState
from objectives.recording import Recorder, Recording, Work, recorder_for
from tests.contracts.recorders import Strict, Waits

ROOM = 256 << 20
"""Bytes that are left of a GPU's memory where it is to be short."""


class TrainedDevice(Protocol):
    """A device, and what a contract has to know of it."""

    names: tuple[str, ...]
    """All that it can be called; the first is the usual one."""
    exact: bool
    """Whether the same work gives the same bits beside any others, and at any size of step."""
    precisions: tuple[str, ...]
    """Those beside fp32 that change numbers."""
    many_slots: int
    """More than there is room for in `short_of_memory`."""

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        """Let trainers do on it what they do on a GPU, but for compiling."""

    def compile(self, patch: pytest.MonkeyPatch) -> None:
        """Let updates be compiled as well."""

    def recorder(self) -> Recorder:
        """What records steps on it."""

    def compiled(self) -> CompiledUpdates:
        """What compiles updates on it."""

    def backends(self, precision: str) -> set[str]:
        """Of convolutions, that some shape or other is offered in a precision."""

    def kernels(self) -> int:
        """Forms that have been compiled so far, of updates and of kernels of our own."""

    @contextmanager
    def nobody_waits(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Where whoever waits for the device fails."""

    @contextmanager
    def short_of_memory(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Where there is room for a few slots."""


class AsOnGpu(Strict):
    """Does the work before it records it, and watches no replay: under watch torch runs nothing compiled."""

    def __init__(self) -> None:
        super().__init__(watched=0)

    def __call__(self, work: Work) -> Recording:
        work()
        return super().__call__(work)


@dataclass(slots=True)
class Counting:
    """A recorder that counts what it records."""

    recorder: Recorder
    made: int = 0

    def __call__(self, work: Work) -> Recording:
        self.made += 1
        return self.recorder(work)


class CpuDevice:
    """A CPU as if it were a GPU."""

    names = ("cpu",)
    exact = True
    precisions = ("bf16",)
    many_slots = 16

    def __init__(self) -> None:
        self._compiled = CompiledUpdates("aot_eager")

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(pool, "recorder_for", lambda _: AsOnGpu())
        patch.setattr(graphed, "recorder_for", lambda _: AsOnGpu())

    def compile(self, patch: pytest.MonkeyPatch) -> None:
        torch._dynamo.reset()
        counters.clear()
        patch.setattr(recorded, "compiled_for", lambda _: self._compiled)

    def recorder(self) -> Recorder:
        return AsOnGpu()

    def compiled(self) -> CompiledUpdates:
        return self._compiled

    def backends(self, precision: str) -> set[str]:
        return {"grouped", "hybrid", "im2col"}

    def kernels(self) -> int:
        return int(counters["stats"]["unique_graphs"])

    @contextmanager
    def nobody_waits(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        with Waits(patch) as waits:
            yield
        assert waits.seen == []

    @contextmanager
    def short_of_memory(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        allocate = SlotState._allocate

        def short(state: SlotState, slots: int) -> None:
            if slots > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            allocate(state, slots)

        with patch.context() as inner:
            inner.setattr(SlotState, "_allocate", short)
            yield


class CudaDevice:
    """The GPU that there is."""

    names = ("cuda", "cuda:0")
    exact = False
    precisions = ("bf16", "tf32")
    many_slots = 1 << 15

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        """It does."""

    def compile(self, patch: pytest.MonkeyPatch) -> None:
        """It does; what it has compiled it keeps from test to test, for each form takes seconds."""

    def recorder(self) -> Recorder:
        found = recorder_for(torch.device("cuda"))
        assert found is not None
        return found

    def compiled(self) -> CompiledUpdates:
        found = compiled_for(torch.device("cuda"))
        assert found is not None
        return found

    def backends(self, precision: str) -> set[str]:
        own = {"triton", "grouped_mm"} if precision == "bf16" else {"triton"}
        return {"grouped", "hybrid", "im2col", *own}

    def kernels(self) -> int:
        kernels = [
            kernel
            for name, module in sys.modules.items()
            if name.startswith("objectives.fused.triton_")
            for kernel in vars(module).values()
            if hasattr(kernel, "device_caches")
        ]
        forms = sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())
        return int(counters["stats"]["unique_graphs"]) + forms

    @contextmanager
    def nobody_waits(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def short_of_memory(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties("cuda").total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
