"""What benchmarks need of a GPU: how much memory was held, and a service for processes that share it."""

from __future__ import annotations

import faulthandler
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import torch

CONTROL = "nvidia-cuda-mps-control"
"""Starts and ends NVIDIA's Multi-Process Service, as the user that calls it."""

CONTROL_SECONDS = 30.0
"""For the service to begin, or to end."""


SERVICE = "CUDA_MPS_PIPE_DIRECTORY"
"""The variable that makes a process a client of the service."""

FOLDER = "shoal-mps-"
"""How the names begin of folders in which services of ours live."""

MOST_SECONDS = 120.0
"""Of a trial in such a process. Clients of a service that is ill hang for ever."""


class NotHereError(Exception):
    """A way to train takes something that this machine hasn't; the message says what."""


def start_counting() -> int:
    """From now on, count what torch holds of the GPU at most; returns the bytes that it holds now."""
    if not torch.cuda.is_initialized():
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def held_by_torch(before: int = 0) -> int | None:
    """Bytes of the GPU that this process's torch held at most since `start_counting`, less those `before`.

    None: it used none. Raises what torch does for work that failed on the GPU: all of it is waited for.
    """
    if not torch.cuda.is_initialized():
        return None
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_reserved()
    return most - before if most else None


@contextmanager
def no_longer_than(seconds: float | None) -> Iterator[None]:
    """A block that ends the process, wherever it hangs, if it takes longer; None: it may."""
    if seconds is not None:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        if seconds is not None:
            faulthandler.cancel_dump_traceback_later()


def as_client() -> AbstractContextManager[None]:
    """A block in which a client of a service of ours hangs for `MOST_SECONDS` at most; in others it may."""
    return no_longer_than(MOST_SECONDS if FOLDER in os.environ.get(SERVICE, "") else None)


@contextmanager
def shared_by_processes() -> Iterator[dict[str, str]]:
    """The Multi-Process Service while the block lasts, and the variables that make a process its client.

    They have to be set before the process first uses the GPU. No setting of the GPU is changed. Raises
    `NotHereError` where there is no such service, or it doesn't start.
    """
    program = shutil.which(CONTROL)
    if program is None:
        raise NotHereError(f"MPS can't be started: {CONTROL} is not on this machine")
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder:
        places = {f"CUDA_MPS_{name}_DIRECTORY": str(Path(folder, name.lower())) for name in ("PIPE", "LOG")}
        for place in places.values():
            Path(place).mkdir()
        variables = {**os.environ, **places}
        _control([program, "-d"], "", variables)
        try:
            # What it can't do (a driver that is not its own) it says only when it is asked something.
            _control([program], "get_server_list\n", variables)
            yield places
        finally:
            with suppress(NotHereError):  # it is gone already
                _control([program], "quit\n", variables)


def _control(command: list[str], said: str, variables: dict[str, str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own arguments)
            command,
            input=said,
            env=variables,
            capture_output=True,
            text=True,
            timeout=CONTROL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHereError(f"MPS can't be started: {error}") from error
    if done.returncode:
        raise NotHereError(f"MPS can't be started: {(done.stderr or done.stdout).strip() or done.returncode}")
