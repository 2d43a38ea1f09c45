"""How much of the host's memory a process may still take: the machine's, or less, its container's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
NAMES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of the two versions of control groups: the folder of those of memory; the files that hold a group's limit
and its use; what in `memory.stat` counts as used, and is given back when wanted (files' cached contents)."""


def free_memory(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Bytes. `groups`: where control groups are mounted; `own`: a file that names the process's."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_by_groups(groups, own)])


def _left_by_groups(groups: Path, own: Path) -> Iterator[int]:
    """What each control group that the process is in leaves, as far as that can be read."""
    with suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            version = 1 if "memory" in controllers.split(",") else 0
            if controllers and not version:
                continue
            folder, *files = NAMES[version]
            path = PurePosixPath(name.lstrip("/"))
            # In a container the name may be the host's, while the process's group is mounted as the root.
            for group in (path, *path.parents):
                with suppress(OSError, ValueError, KeyError):
                    yield _left_by(groups / folder / group, *files)


def _left_by(group: Path, limit: str, used: str, cached: str) -> int:
    most, now = (int((group / name).read_text(encoding="utf-8")) for name in (limit, used))
    lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    parts = dict(line.split() for line in lines)
    return max(0, most - now + int(parts[cached]))
