"""A proxy before Postgres that counts what goes through, and breaks connections at a chosen moment.

The number of messages that a client sends is the number of round trips that it pays for, whatever
library made them. Needs a URL without encryption.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal

from sqlalchemy.engine import make_url

Break = Literal["before", "after"]
"""Before a query reaches the server; after the server has answered, without passing the answer on."""


class PostgresProxy:
    """Listens on a free port of this machine until it is closed."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._guard = threading.Lock()
        self._queries: list[str] = []
        self._break: tuple[str, Break] | None = None
        self.broken = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> PostgresProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()

    def taken(self) -> list[str]:
        """The queries since the last call, without those that open a connection."""
        with self._guard:
            taken, self._queries = self._queries, []
        return [query for query in taken if "tcp_keepalives_idle" not in query]

    def break_at(self, part: str, when: Break) -> None:
        """Break the connection on which the next query that contains `part` is sent."""
        with self._guard:
            self._break = (part, when)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((self._target.host, self._target.port))
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                drop = threading.Event()
                for work in (self._upwards, self._downwards):
                    threading.Thread(target=work, args=(client, server, drop), daemon=True).start()

    def _upwards(self, client: socket.socket, server: socket.socket, drop: threading.Event) -> None:
        with contextlib.suppress(OSError, struct.error):
            server.sendall(_frame(client, kinds=False)[1])  # the startup message has no kind
            while True:
                kind, message = _frame(client)
                if kind == b"Q" and self._breaks(message, drop):
                    self._cut(client, server)
                    return
                server.sendall(message)
        self._cut(client, server)

    def _breaks(self, message: bytes, drop: threading.Event) -> bool:
        query = message[5:-1].decode()
        with self._guard:
            self._queries.append(query)
            if self._break is None or self._break[0] not in query:
                return False
            when, self._break = self._break[1], None
            self.broken += 1
            if when == "after":
                drop.set()
            return when == "before"

    def _downwards(self, client: socket.socket, server: socket.socket, drop: threading.Event) -> None:
        with contextlib.suppress(OSError, struct.error):
            while True:
                kind, message = _frame(server)
                if drop.is_set():
                    # Ready for query: the transaction is over, one way or the other.
                    if kind == b"Z":
                        break
                    continue
                client.sendall(message)
        self._cut(client, server)

    def _cut(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _frame(source: socket.socket, *, kinds: bool = True) -> tuple[bytes, bytes]:
    """One message of Postgres' protocol: its kind, and all of it."""
    kind = _exactly(source, 1) if kinds else b""
    length = _exactly(source, 4)
    return kind, kind + length + _exactly(source, struct.unpack("!I", length)[0] - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = source.recv(size - len(parts))
        if not part:
            raise OSError("the connection was closed")
        parts += part
    return parts
