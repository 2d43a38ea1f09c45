"""Which process this is, so that others on the same host can tell whether it lives."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process, named for good: no other has all of these."""

    host: str
    boot: str | None
    """Which start of which machine; None where the system doesn't say."""
    process_space: str | None
    """The namespace in which `process` is a number: containers have their own."""
    process: int
    process_birth: str | None
    """When it began, by the machine's own count; numbers of processes are used again."""

    def as_values(self) -> dict[str, str | int | None]:
        """For a statement."""
        return asdict(self)


def this_process() -> Process:
    """The process that asks."""
    return Process(platform.node(), boot(), process_space(), os.getpid(), birth(os.getpid()))


def boot() -> str | None:
    """What names this start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    import psutil

    # To the minute: elsewhere it is computed from the clock, which is corrected now and then.
    return f"{platform.node()} {psutil.boot_time() // 60:.0f}"


def process_space() -> str | None:
    """The namespace of this process' number; systems without namespaces have one."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def birth(process: int) -> str | None:
    """When a process of this machine began; None if there is none (a zombie counts as none)."""
    import psutil

    try:
        # In clock ticks since boot, from behind the name, which may hold anything.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        found = psutil.Process(process)
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.2f}"
    except psutil.Error:
        return None
