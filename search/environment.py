"""What a later reader wants to know of the code, the libraries and the machine of an experiment."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
CODE = (PACKAGE.name, "objectives", "storage", "pyproject.toml")
"""What of a checkout decides how an experiment goes."""
CHANGED = "+changes"
"""Follows a revision whose files were edited since."""
GIT_SECONDS = 10.0
"""After which git counts as missing: a checkout on a network may hang."""
CPU_INFO = Path("/proc/cpuinfo")
GPU_INFO = Path("/proc/driver/nvidia/gpus")


def environment() -> dict[str, Any]:
    """Versions and hardware as plain values; None for what can't be told."""
    import psutil

    return {
        "revision": revision(),
        "versions": {name: version_of(name) for name in ("shoal", "torch", "optuna", "ray", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpu_names(),
    }


def version_of(package: str) -> str | None:
    """Of an installed package; None if it isn't."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def revision(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that the package lies in, marked if the code was changed since.

    None where it is no checkout, or git is missing or refuses. An installed package that happens to
    lie inside somebody else's checkout has no revision: the package must lie at its top level.
    """
    try:
        top = _git(package.parent, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != package.parent.resolve():
            return None
        commit = _git(package.parent, "rev-parse", "--verify", "HEAD")
        changes = _git(package.parent, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + CHANGED * bool(changes)


def _git(folder: Path, *arguments: str) -> str:
    # A caller's GIT_DIR (we may run in one of its hooks) would point elsewhere.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(  # noqa: S603  our own arguments
        ["git", "--no-optional-locks", *arguments],  # noqa: S607  wherever the user has it
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS,
        check=True,
    )
    return done.stdout.strip()


def cpu_model(path: Path = CPU_INFO) -> str | None:
    """The processor's name, as Linux tells it, else as Python does."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, named), None) or platform.processor() or None


def gpu_names(folder: Path = GPU_INFO) -> list[str]:
    """The NVIDIA GPUs' names, in the order of their addresses; asks the driver's files, not torch."""
    names = []
    for path in sorted(folder.glob("*/information")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names
