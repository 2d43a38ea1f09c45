"""An HTTP server of a thread per request for WSGI applications that bring none, at any kind of address."""

from __future__ import annotations

import logging
import socket
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

logger = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    """One slow request (a large study) must not hold up the others."""

    daemon_threads = True


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    """Requests are nothing to tell a user."""

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def bound(host: str, port: int, application: WSGIApplication) -> WSGIServer:
    """A server that accepts connections; it answers once somebody calls its `serve_forever`.

    Port 0 takes a free one. Raises `OSError` where the address can't be had.
    """
    # As a name it would be two addresses, of which clients may try the other.
    host = "127.0.0.1" if host == "localhost" else host
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    kind = _ServerOfIPv6 if family == socket.AF_INET6 else _Server
    return make_server(str(address[0]), port, application, server_class=kind, handler_class=_QuietHandler)
