"""The small HTTP server of the dashboard and of metrics: at any kind of address, a thread per request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer

import pytest

from search.serve.listening import bound
from tests.contracts.networks import has_ipv6


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@contextmanager
def serving(host: str, application: Any = hello) -> Iterator[WSGIServer]:
    server = bound(host, 0, application)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def got(server: WSGIServer, host: str, path: str = "/") -> bytes:
    with urlopen(f"http://{host}:{server.server_port}{path}", timeout=30) as answer:
        found: bytes = answer.read()
    return found


@pytest.mark.parametrize(("host", "asked"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_both_kinds_of_address(host: str, asked: str) -> None:
    try:
        with serving(host) as server:
            assert got(server, asked) == b"hello"
    except OSError:
        if host == "::1" and not has_ipv6():
            pytest.skip("no IPv6 here")
        raise


def test_localhost_is_where_clients_look_first_and_last() -> None:
    with serving("localhost") as server:
        assert got(server, "127.0.0.1") == b"hello"


def test_a_slow_request_holds_up_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            begun.set()
            over.wait(60)
        return hello(environ, start_response)

    with serving("127.0.0.1", slow) as server:
        waiting = threading.Thread(target=got, args=(server, "127.0.0.1", "/slow"))
        waiting.start()
        assert begun.wait(60)
        assert got(server, "127.0.0.1") == b"hello"
        over.set()
        waiting.join()
    assert "GET" not in capfd.readouterr().err, "requests are nothing to tell a user"


def test_a_port_that_is_taken_is_refused() -> None:
    with serving("127.0.0.1") as server, pytest.raises(OSError, match="in use"):
        bound("127.0.0.1", server.server_port, hello)
