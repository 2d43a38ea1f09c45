"""What of this machine and installation works, for `shoal doctor`.

Each check looks at one thing and says what to do about it; none changes anything. Torch and Ray are
tried in a process of their own: an installation that crashes on import is found, not died of.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from search.formats import format_count

State: TypeAlias = Literal["ok", "warn", "fail"]

LEAST_PYTHON = (3, 11)
LEAST_MEMORY = 2 * 2**30
"""Bytes that should be available: torch, Ray and Postgres together."""
LEAST_DISK = 2 * 2**30
LEAST_SHARED_MEMORY = 128 * 2**20
"""Ray's object store lies in /dev/shm; containers often give it 64 MiB."""
PATIENCE = 120
"""Seconds for a library's import on a cold disk."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(database_url: str | None, folders: Sequence[Path] = ()) -> Iterator[Finding]:
    """All findings, each as soon as it is known; `folders` are data folders to look into as well."""
    yield python()
    yield from torch(_probe(TORCH_PROBE), gpu_present())
    yield ray(_probe(RAY_PROBE))
    yield from database(database_url)
    yield memory()
    yield shared_memory()
    yield from disk_and_data(folders)


def python() -> Finding:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < LEAST_PYTHON:
        return Finding("python", "fail", found, "use Python 3.11 or newer")
    return Finding("python", "ok", f"{found} ({sys.executable})")


TORCH_PROBE = """
import json, torch
found = {"torch": torch.__version__, "build": torch.version.cuda or torch.version.hip,
         "devices": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
         "threads": torch.get_num_threads()}
try:
    from objectives.torchvision_ops import torchvision_datasets
    torchvision_datasets()
    import torchvision
    found["torchvision"] = torchvision.__version__
except Exception as error:
    found["torchvision_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""

RAY_PROBE = """
import json, ray
print(json.dumps({"ray": ray.__version__}))
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a library's probe printed, or why it failed."""

    found: dict[str, object]
    error: str = ""


def _probe(code: str) -> Probe:
    try:
        done = subprocess.run(  # noqa: S603  our own code in our own interpreter
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except subprocess.TimeoutExpired:
        return Probe({}, f"no answer within {PATIENCE} s")
    try:
        return Probe(dict(json.loads(done.stdout.splitlines()[-1])))
    except (IndexError, ValueError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it said nothing"]
        return Probe({}, f"{last[0].strip()} (exit code {done.returncode})")


def torch(probe: Probe, gpu: str | None) -> Iterator[Finding]:
    """Torch, its build against the hardware, and torchvision."""
    if not probe.found:
        yield Finding(
            "torch", "fail", f"can't be imported: {probe.error}", "install shoal again: make install"
        )
        return
    build, devices = probe.found["build"], probe.found["devices"]
    name = f"{probe.found['torch']}, {'CUDA ' + str(build) if build else 'CPU build'}"
    if gpu and not build:
        yield Finding("torch", "warn", f"{name}, but this machine has a GPU ({gpu})", CUDA_REMEDY)
    elif gpu and not devices:
        yield Finding("torch", "warn", f"{name}, but it sees no device ({gpu} is there)", DRIVER_REMEDY)
    else:
        where = (
            ", ".join(map(str, devices)) if isinstance(devices, list) and devices else "trains on CPU cores"
        )
        yield Finding("torch", "ok", f"{name}, {where}")
    if "torchvision" in probe.found:
        yield Finding("torchvision", "ok", str(probe.found["torchvision"]))
    else:
        yield Finding(
            "torchvision",
            "fail",
            str(probe.found.get("torchvision_error")),
            "install the release that fits torch",
        )


CUDA_REMEDY = "install a CUDA build of torch: https://pytorch.org/get-started/locally/"
DRIVER_REMEDY = "check the driver with nvidia-smi: it must be new enough for that CUDA"


def gpu_present() -> str | None:
    """How a GPU shows itself without torch; None if there seems to be none."""
    if (devices := sorted(Path("/dev").glob("nvidia[0-9]*"))) or Path("/dev/dxg").exists():
        return str(devices[0]) if devices else "/dev/dxg"
    return "/dev/kfd" if Path("/dev/kfd").exists() else None


def ray(probe: Probe) -> Finding:
    """Ray, which only `--in-process` can do without."""
    if probe.found:
        return Finding("ray", "ok", str(probe.found["ray"]))
    return Finding("ray", "fail", f"can't be imported: {probe.error}", "install it, or run with --in-process")


def database(url: str | None) -> Iterator[Finding]:
    """The database that a command would use; an embedded one that doesn't run is not started."""
    from storage.database import Database
    from storage.embedded import EmbeddedPostgres
    from storage.errors import StorageError
    from storage.urls import url_of_environment

    try:
        given = url or url_of_environment()
        if not given:
            server = EmbeddedPostgres()
            status = server.status()
            if not status.running:
                detail = f"embedded Postgres in {status.directory}, not running; commands start it"
                yield Finding("database", "ok", detail)
                return
            given = server.start()
        with Database(given) as connection:
            for result in connection.check():
                remedy = "" if result.ok else "shoal db check says more; shoal db up starts the embedded one"
                yield Finding(f"database {result.name}", "ok" if result.ok else "fail", result.detail, remedy)
    except StorageError as error:
        yield Finding("database", "fail", str(error), "correct the URL, or shoal db up")


def memory() -> Finding:
    """Memory that is free now."""
    import psutil

    found = psutil.virtual_memory()
    detail = f"{size(found.available)} of {size(found.total)} available"
    if found.available < LEAST_MEMORY:
        return Finding("memory", "warn", detail, "use fewer workers (--workers), or a smaller batch_size")
    return Finding("memory", "ok", detail)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:  # noqa: S108  it is only looked at
    """Room for Ray's object store."""
    if not path.is_dir():
        return Finding("shared memory", "ok", f"no {path} here")
    free = shutil.disk_usage(path).free
    if free < LEAST_SHARED_MEMORY:
        return Finding("shared memory", "warn", f"{size(free)} in {path}", "give the container --shm-size=1g")
    return Finding("shared memory", "ok", f"{size(free)} in {path}")


def disk_and_data(folders: Sequence[Path]) -> Iterator[Finding]:
    """Where data are kept or sought."""
    from storage.embedded import default_directory

    yield disk("disk", default_directory())
    for folder in folders:
        if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
            entries = sum(1 for _ in folder.iterdir())
            yield Finding("data", "ok", f"{folder}: {format_count(entries)} entries")
        else:
            yield Finding("data", "fail", f"{folder} is no readable folder", "set data.root in the file")


def disk(name: str, folder: Path) -> Finding:
    """Whether a folder, or the one in which it will be made, can be written and has room."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding(name, "fail", f"{there} can't be written", "set SHOAL_HOME to a folder of yours")
    if free < LEAST_DISK:
        return Finding(
            name, "warn", f"{size(free)} free in {there}", "make room, or set SHOAL_HOME elsewhere"
        )
    return Finding(name, "ok", f"{size(free)} free in {there}")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
