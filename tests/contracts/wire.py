"""A Postgres server seen through a wire that counts what clients send, and can be cut at a chosen moment."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy.engine import make_url

SSL_REQUEST, GSS_REQUEST = 80877103, 80877104


class Wire:
    """Forwards connections to a server. `queries` are messages of the simple protocol: each is one trip."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.server = (parsed.host, parsed.port)
        """Where new connections go to."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.url = parsed.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self.queries: list[str] = []
        self.rows = 0
        """That the server has answered with, but for what opens a connection."""
        self.cut_before: Callable[[str], bool] | None = None
        """Whether to cut instead of forwarding a query. Cutting happens once."""
        self.cut_after: Callable[[str], bool] | None = None
        """Whether to cut when the server has answered a query, keeping the answer."""
        self._sockets: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Cut everything."""
        self._closed = True
        self._listener.close()
        self._hang_up_all()

    def taken(self) -> tuple[int, int]:
        """Queries and rows since this was asked last, but for what opens a connection."""
        queries = [query for query in self.queries if not _opens(query)]
        rows, self.queries, self.rows = self.rows, [], 0
        return len(queries), rows

    def _hang_up_all(self) -> None:
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self.server)
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                if self._closed:
                    self._hang_up_all()
                ends = client, server, threading.Event(), threading.Event()
                for target in (self._to_server, self._to_client):
                    threading.Thread(target=target, args=ends, daemon=True).start()

    def _to_server(
        self, client: socket.socket, server: socket.socket, swallow: threading.Event, counts: threading.Event
    ) -> None:
        with suppress(OSError, _Ended):
            size = _exactly(client, 4)
            server.sendall(size + _exactly(client, struct.unpack("!i", size)[0] - 4))
            while True:
                kind, rest = _message(client)
                if kind == b"Q":
                    query = rest[4:-1].decode()
                    self.queries.append(query)
                    counts.clear() if _opens(query) else counts.set()
                    if self.cut_before and self.cut_before(query):
                        self.cut_before = None
                        break
                    if self.cut_after and self.cut_after(query):
                        self.cut_after = None
                        swallow.set()
                server.sendall(kind + rest)
        _hang_up(client, server)

    def _to_client(
        self, client: socket.socket, server: socket.socket, swallow: threading.Event, counts: threading.Event
    ) -> None:
        with suppress(OSError, _Ended):
            while True:
                kind, rest = _message(server)
                self.rows += kind == b"D" and counts.is_set()
                if swallow.is_set():
                    if kind == b"Z":
                        break
                    continue
                client.sendall(kind + rest)
        _hang_up(client, server)


@contextmanager
def wired(url: str) -> Iterator[Wire]:
    """A wire to a server, cut at the end."""
    wire = Wire(url)
    try:
        yield wire
    finally:
        wire.close()


def _opens(query: str) -> bool:
    """Whether it is what a client sends first on a connection."""
    return "set_config('TimeZone'" in query


class _Ended(Exception):  # noqa: N818 (an event, no fault)
    """The other side hung up."""


def _exactly(end: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = end.recv(count - len(got))
        if not part:
            raise _Ended
        got += part
    return got


def _message(end: socket.socket) -> tuple[bytes, bytes]:
    kind = _exactly(end, 1)
    size = _exactly(end, 4)
    return kind, size + _exactly(end, struct.unpack("!i", size)[0] - 4)


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
