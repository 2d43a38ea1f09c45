"""The device that trials are trained on, and settings under which the same trial gives the same curve."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch

from objectives.allocator import keep_freed_memory
from objectives.base import ObjectiveError, Precision


def resolve_device(name: str) -> torch.device:
    """`auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:1`. Raises `ObjectiveError` for others."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ObjectiveError(f"there is no device {name!r}; use auto, cpu or cuda") from error
    if device.type not in {"cpu", "cuda"}:
        raise ObjectiveError(f"device {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ObjectiveError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    return device


def prepare(name: str) -> torch.device:
    """`resolve_device`, and the process made ready to train on it."""
    device = resolve_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


class DeviceLostError(ObjectiveError):
    """A GPU does no more work for this process: whoever trains on it has to end, and begin as another one."""


def check_works(device: torch.device) -> None:
    """After something has failed on a device: raises `DeviceLostError` if all that comes would fail as well.

    A fault in a GPU's work (a place in memory that isn't there, say) ends the GPU's work for the process. No
    trial is to blame but the one whose work it was, and nobody knows which that is.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLostError(f"the GPU does no more work for this process: {error}") from error


def kind_of_device(device: torch.device) -> str:
    """The name of the GPU or the processor: trials train alike, and equally fast, on devices of a kind."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return processor()


@cache
def processor() -> str:
    """The name of this machine's processor, as well as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def memory_of(device: torch.device) -> Mapping[str, int]:
    """A GPU's memory in bytes: `allocated` to tensors, `reserved` by torch, `total`; empty for a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": int(torch.cuda.get_device_properties(device).total_memory),
    }


@contextmanager
def reproducible(threads: int | None, precision: Precision = "fp32") -> Iterator[None]:
    """Settings of this process that decide about numbers, for the time of the block; afterwards as before.

    On the CPU sums are divided among threads, so that their number shows in the last bits; `threads` None
    leaves it as it is. On a GPU cuDNN takes the deterministic algorithms. Everywhere numbers are float32,
    computed as such (but for products in TF32, if that is the `precision`), and gradients are kept: whatever
    other code of the process has made the default.
    """
    before = torch.get_num_threads()
    tf32 = precision == "tf32"
    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch lacks it
    precisions = [matmul.fp32_precision for matmul in matmuls]
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as settings:
        if threads is not None:
            settings.callback(_set_threads, before)
            _set_threads(threads)
        settings.callback(_set_deterministic, *_deterministic())
        if device.type != "cpu":
            settings.callback(torch.set_default_device, device)
            torch.set_default_device(None)
        settings.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        for matmul, used in zip(matmuls, precisions, strict=True):
            settings.callback(setattr, matmul, "fp32_precision", used)
            matmul.fp32_precision = "tf32" if tf32 and matmul is matmuls[0] else "ieee"
        for kind in ("cpu", "cuda"):
            settings.enter_context(torch.autocast(kind, enabled=False))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        settings.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
        )
        yield


def _deterministic() -> tuple[bool, bool]:
    """Whether all algorithms have to be, and whether others only warn."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(enabled: bool, warn_only: bool) -> None:
    """Not where it is so already: torch imports its compiler for that, which takes a second or two."""
    if (enabled, warn_only) != _deterministic():
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _set_threads(threads: int) -> None:
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """The process's random numbers (torch's, NumPy's, Python's) start at `seed` in the block, and go on after
    it as if it had not been. Those of `device` as well, if that is a GPU.

    For what draws from them without asking for a generator: a user's own module or loss.
    """
    cuda = device is not None and device.type == "cuda"
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not `torch.manual_seed`, which would seed other devices as well, and those are not restored.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, without waiting: by memory that a GPU can fetch by itself."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def sent_to(target: torch.Tensor, values: torch.Tensor) -> None:
    """Write into a tensor of the device what the host has, or the device itself, without waiting."""
    if target.device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    target.copy_(values, non_blocking=True)


class Arriving:
    """A copy of a tensor of the device, on its way to the host; nobody waits before it is asked for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        gpu = tensor.device.type == "cuda"
        self._there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=gpu)
        self._there.copy_(tensor, non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if gpu:
            with torch.cuda.device(tensor.device):
                self._event = torch.cuda.Event()
                self._event.record()

    def here(self) -> torch.Tensor:
        """The copy; waits for it if it was asked for only just now."""
        if self._event is not None:
            self._event.synchronize()
        return self._there


def generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of our own on the device, at the start of `seed`'s numbers."""
    return torch.Generator(device).manual_seed(seed)
