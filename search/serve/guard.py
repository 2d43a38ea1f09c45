"""Who may ask, and how: stands before every page, whatever it is; `only_for` before what has its own ways.

The view listens on this machine alone unless told otherwise, and there it answers only requests
addressed to it by name, so that a page elsewhere which points its own host name at 127.0.0.1 (DNS
rebinding) gets a 403. Elsewhere it wants a password as well. Nothing but GET and HEAD is served. The
headers let a browser run our own script and style sheet and nothing else, wherever a name or a
reason with markup in it may have come from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

METHODS = ("GET", "HEAD")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""On every answer, errors too."""

CHALLENGE = ("WWW-Authenticate", 'Basic realm="shoal", charset="UTF-8"')


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


def only_for(knows: Callable[[str], bool], application: WSGIApplication, refusal: str) -> WSGIApplication:
    """The application, refusing requests whose Host header `knows` doesn't, with a line that says so."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if knows(environ.get("HTTP_HOST", "")):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{refusal}\n".encode()]

    return guarded


@dataclass(frozen=True, slots=True)
class Admission:
    """Whom the view answers."""

    hosts: frozenset[str]
    """Names that a request may be addressed to."""
    addresses: bool
    """Whether any IP address will do as well: rebinding needs a name."""
    password: str | None
    """None: nobody is asked for one."""

    def knows(self, header: str) -> bool:
        """Whether a Host header is one of ours."""
        host = host_of(header)
        if host in self.hosts:
            return True
        if not self.addresses:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header brings the password, under whatever user name."""
        if self.password is None:
            return True
        kind, _, encoded = authorization.partition(" ")
        given = ""
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        return hmac.compare_digest(_digest(given.partition(":")[2]), _digest(self.password))


def admission(host: str, password: str | None, names: Iterable[str] = ()) -> Admission:
    """Who is answered by a view that listens on `host`; `names`: others that lead to it."""
    hosts = LOCAL_NAMES | {host.lower()} | {name.lower() for name in names}
    if is_loopback(host):
        return Admission(hosts, addresses=False, password=password)
    return Admission(hosts | _own_names(), addresses=True, password=password)


def guarded(
    application: WSGIApplication, admission: Admission, failed: Callable[[Exception], tuple[str, str]]
) -> WSGIApplication:
    """The application behind the door; `failed` says status and text of an exception that left it."""

    def guard(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def with_headers(status: str, headers: list[tuple[str, str]], *rest: object) -> object:
            return start_response(status, [*headers, *HEADERS], *rest)  # type: ignore[arg-type]  # WSGI's own types are stricter

        def refuse(status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
            body = f"{text}\n".encode()
            kept = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
            with_headers(status, [*kept, ("Cache-Control", "no-store"), *headers])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

        if not admission.knows(environ.get("HTTP_HOST", "")):
            return refuse("403 Forbidden", "This view answers to the address that `shoal serve` printed.")
        if environ["REQUEST_METHOD"] not in METHODS:
            return refuse("405 Method Not Allowed", "This view only reads.", ("Allow", ", ".join(METHODS)))
        if not admission.admits(environ.get("HTTP_AUTHORIZATION", "")):
            if environ.get("HTTP_AUTHORIZATION"):
                logger.warning("a wrong password came from %s", environ.get("REMOTE_ADDR", "somewhere"))
            return refuse("401 Unauthorized", "The password, please.", CHALLENGE)
        try:
            return application(environ, with_headers)  # type: ignore[arg-type]  # WSGI's own types are stricter
        except Exception as error:  # noqa: BLE001  whatever it is, a browser gets an answer without its text
            return refuse(*failed(error))

    return guard


def _digest(text: str) -> bytes:
    """Equally long for all texts, so that comparing tells nothing of the length."""
    return hashlib.sha256(text.encode()).digest()


def _own_names() -> frozenset[str]:
    """What other machines may call this one."""
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0]})
