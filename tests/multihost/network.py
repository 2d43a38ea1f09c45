"""Machines that are network namespaces: a bridge, a cable and an address for each, and edges that can be cut.

Nothing of the host's own network is touched: the bridge has a namespace as well. Each machine has a host name
of its own, so that processes on two of them don't take themselves for neighbours; files they share, as hosts
share a mounted volume. Needs root, and `ip`, `nft` and `unshare`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PREFIX = "shoallab"
SUBNET = "10.77.0"
SWITCH = "switch"
PLACES = Path("/run/netns")
NET = 0x40000000
"""CLONE_NEWNET: what `setns` is to change."""

CUT = """
table inet cut {{
    chain sent {{
        type filter hook output priority 0; policy accept;
        ip daddr {{ {others} }} drop
    }}
    chain received {{
        type filter hook input priority 0; policy accept;
        ip saddr {{ {others} }} drop
    }}
}}
"""


def missing() -> str:
    """Why there can be no such machines here; empty if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    absent = [program for program in ("ip", "nft", "unshare") if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("-n", probe, "link", "add", "bridge", "type", "bridge")
        subprocess.run(
            ["ip", "netns", "exec", probe, "nft", "-f", "-"],
            input=CUT.format(others="192.0.2.1"), text=True, capture_output=True, check=True,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        return f"no namespaces, bridges or filters here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return ""


@dataclass(frozen=True)
class Machine:
    """A namespace with an address."""

    name: str
    space: str
    address: str

    @property
    def wrap(self) -> tuple[str, ...]:
        """Before a command, to have it run there. Each program becomes the next: it stays one process."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        return ("ip", "netns", "exec", self.space, *named)

    def on_own_disk(self, private: Path, seen_at: Path) -> tuple[str, ...]:
        """As `wrap`, and where others see the folder `seen_at`, the command sees `private`."""
        mounted = ("sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(private), str(seen_at))
        return (*self.wrap, *mounted)

    def cut_from(self, *others: Machine) -> None:
        """Drop, without a word, what goes to these machines and comes from them; all else passes."""
        rules = CUT.format(others=", ".join(other.address for other in others))
        subprocess.run(
            ["ip", "netns", "exec", self.space, "nft", "-f", "-"], input=rules, text=True, check=True
        )

    def heal(self) -> None:
        """Undo `cut_from`."""
        _ip("netns", "exec", self.space, "nft", "delete", "table", "inet", "cut")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Meanwhile this thread, and what it starts, is on that machine's network."""
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            _set_network(PLACES / self.space)
            try:
                yield
            finally:
                _enter(home.fileno())


@dataclass(frozen=True)
class Network:
    """The machines, by name."""

    machines: dict[str, Machine]

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]


@contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """Machines of these names on one bridge; all that runs on them is killed at the end."""
    _sweep()
    mark = f"{PREFIX}-{os.getpid()}"
    switch = f"{mark}-{SWITCH}"
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        machines = {
            name: _plug(Machine(name, f"{mark}-{name}", f"{SUBNET}.{place}"), switch)
            for place, name in enumerate(names, 2)
        }
        yield Network(machines)
    finally:
        _clear(mark)


def _plug(machine: Machine, switch: str) -> Machine:
    _ip("netns", "add", machine.space)
    port = machine.name[:15]
    _ip("link", "add", "name", "eth0", "netns", machine.space, "type", "veth",
        "peer", "name", port, "netns", switch)  # fmt: skip
    _ip("-n", switch, "link", "set", "dev", port, "master", "bridge", "up")
    _ip("-n", machine.space, "addr", "add", f"{machine.address}/24", "dev", "eth0")
    _ip("-n", machine.space, "link", "set", "lo", "up")
    _ip("-n", machine.space, "link", "set", "eth0", "up")
    return machine


def folder_of_a_lab() -> Path:
    """A new one, which is cleared away by the next lab at the latest. Short: Ray makes sockets in it."""
    for left in Path(tempfile.gettempdir()).glob("slab-*-*"):
        if not _lives(left.name):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"slab-{os.getpid()}-"))
    folder.chmod(0o755)  # Postgres' user comes through
    return folder


def spaces(mark: str) -> list[str]:
    """Namespaces whose names begin so."""
    return sorted(path.name for path in PLACES.glob(f"{mark}-*"))


def _sweep() -> None:
    """Clear away what a process that was killed left behind."""
    for space in spaces(PREFIX):
        if not _lives(space):
            _clear("-".join(space.split("-")[:2]))


def _lives(name: str) -> bool:
    """Whether the process lives whose lab that is, by the number in the name."""
    number = name.split("-")[1]
    return not number.isdigit() or psutil.pid_exists(int(number))


def _clear(mark: str) -> None:
    for space in spaces(mark):
        inside = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        for pid in map(int, inside.stdout.split()):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for space in spaces(mark):
        _ip("netns", "del", space)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


def _set_network(place: Path) -> None:
    with place.open("rb") as there:
        _enter(there.fileno())


def _enter(descriptor: int) -> None:
    """`os.setns` is there from Python 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, NET) != 0:
        raise OSError(ctypes.get_errno(), "the network namespace can't be entered")
