"""Optuna Dashboard on our database.

The dashboard has no login and can delete studies, so it listens on this machine alone unless told
otherwise, and answers only requests that were addressed to it by name: a page elsewhere that points
its own host name at 127.0.0.1 (DNS rebinding) gets a 403.

It asks for a whole study again and again. Over our storage, which reads what is new, that is two
milliseconds where stock Optuna reads everything.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from search.failures import CommandError, ExitCode, Failure

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The name in a Host header, without its port: ``[::1]:8080`` → ``::1``."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def only_for(hosts: Iterable[str], application: WSGIApplication) -> WSGIApplication:
    """The application, refusing requests whose Host header names none of `hosts`."""
    known = frozenset(hosts)

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if host_of(environ.get("HTTP_HOST", "")) in known:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"This dashboard answers to the address that `shoal dashboard` printed.\n"]

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    """One slow request (a large study) must not hold up the others."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """Requests are nothing to tell a user."""

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def serve(database_url: str, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `on_ready` gets the URL once connections are accepted.

    Port 0 takes a free one. Raises `CommandError` where the address can't be bound.
    """
    from optuna_dashboard import wsgi

    from storage.optuna_storage import close_optuna_storage, open_optuna_storage

    storage = open_optuna_storage(database_url)
    try:
        application = wsgi(storage)
        if is_loopback(host):
            application = only_for(LOCAL_NAMES | {host}, application)
        try:
            server = make_server(host, port, application, server_class=_Server, handler_class=_QuietHandler)
        except OSError as error:
            raise CommandError(
                Failure(
                    ExitCode.FAILED,
                    "address",
                    f"can't listen on {host}:{port}",
                    why=error.strerror or str(error),
                    next="shoal dashboard --port 0 takes a free port",
                )
            ) from None
        with server:
            on_ready(f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/")
            server.serve_forever()
    finally:
        close_optuna_storage(storage)
