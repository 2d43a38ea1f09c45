"""Ports for servers that tests start, given once each.

A port that is asked of the system (`bind` to port 0) is free at that moment alone: every connection that any
process opens takes one of the same range, and a server that needs seconds to start finds it taken. So the
ports here are from outside that range, where the system gives none by itself, and processes of tests share
it in blocks: who has a block holds a lock on a file, which ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_RANGE = (32768, 60999)
LOWEST, HIGHEST = 20_000, 65_000
"""Of all ports that are given: below are Ray's own and other servers' usual ones."""
BLOCK = 100
"""Ports of a block."""
LOCKS = Path(tempfile.gettempdir()) / f"shoal-test-ports-{os.getuid()}"


def system_range() -> tuple[int, int]:
    """The first and the last port that the system gives by itself."""
    with suppress(OSError, ValueError):
        first, last = map(int, RANGE.read_text().split())
        return first, last
    return USUAL_RANGE


def blocks(first: int, last: int) -> list[range]:
    """Blocks without any port from `first` to `last`; all there are, where that leaves none."""
    every = [range(start, start + BLOCK) for start in range(LOWEST, HIGHEST, BLOCK)]
    return [block for block in every if block[-1] < first or block[0] > last] or every


class Ports:
    """Ports of this process's own. May be shared by threads."""

    def __init__(self, folder: Path = LOCKS) -> None:
        """`folder`: of the locks; the same for all that are not to get the same ports."""
        self._folder = folder
        self._turn = threading.Lock()
        self._left = self._given()

    def take(self, wanted: int, host: str = "127.0.0.1") -> list[int]:
        """So many that nobody else gets while this process lives, and that nobody listens on."""
        with self._turn:
            return [next(port for port in self._left if is_free(port, host)) for _ in range(wanted)]

    def _given(self) -> Iterator[int]:
        for number in count():
            block = self._block()
            assert block is not None, f"all ports are taken, {number} blocks by this process"
            yield from block

    def _block(self) -> range | None:
        """A block that nobody has, from now on ours."""
        self._folder.mkdir(exist_ok=True, parents=True)
        for block in blocks(*system_range()):
            # A bare descriptor, which nothing closes before the process's end.
            lock = os.open(self._folder / str(block[0]), os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            return block
        return None


def is_free(port: int, host: str) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            tried.bind((host, port))
            return True
    return False


_ours = Ports()


def free_ports(wanted: int, host: str = "127.0.0.1") -> list[int]:
    """So many ports of this process's own; see the module."""
    return _ours.take(wanted, host)
