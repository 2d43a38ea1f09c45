"""The device that trials are trained on, and settings under which the same trial gives the same curve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from objectives.allocator import keep_freed_memory
from objectives.base import ObjectiveError


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


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Settings of this process that decide about rounding, for the time of the block.

    On the CPU sums are divided among threads, so that their number shows in the last bits; `threads` None
    leaves it as it is. On a GPU cuDNN takes the deterministic algorithms, and float32 means float32.
    """
    before = torch.get_num_threads()
    if threads is not None and threads != before:
        torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        if threads is not None and threads != before:
            torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The process's random numbers start at `seed` in the block, and go on after it as if it had not been.

    For what draws from them without asking for a generator: a user's own module or loss.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # Not `torch.manual_seed`, which would seed other devices as well, and those are not restored.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of our own on the device, at the start of `seed`'s numbers."""
    return torch.Generator(device).manual_seed(seed)
