"""The door of the web view: host names, methods, password, headers; without a socket."""

from __future__ import annotations

import base64
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from search.serve.guard import HEADERS, Admission, admission, guarded

PASSWORD = "correct horse battery: stäple"


def inside(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"inside"]


def failing(environ: Any, start_response: Any) -> list[bytes]:
    raise RuntimeError("postgresql://u:secret@h/d does not answer")


def ask(
    who: Admission, application: Any = inside, method: str = "GET", **headers: str
) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"REQUEST_METHOD": method, "HTTP_HOST": "localhost:80"}
    environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    said: list[Any] = []
    served = guarded(application, who, lambda error: ("500 Internal Server Error", "it failed"))
    body = b"".join(served(environ, lambda *told: said.append(told)))  # type: ignore[arg-type, func-returns-value]
    (status, given), *_ = [one[:2] for one in said]
    return status, dict(given), body


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8090", "[::1]:80"])
def test_on_loopback_its_own_names_are_answered(host: str) -> None:
    assert ask(admission("127.0.0.1", None), host=host)[0] == "200 OK"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8090", "", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io"],
)
def test_a_name_that_was_bent_to_loopback_is_refused(host: str) -> None:
    status, _, body = ask(admission("127.0.0.1", None), host=host)
    assert status == "403 Forbidden"
    assert b"inside" not in body


def test_elsewhere_addresses_and_given_names_are_answered() -> None:
    who = admission("0.0.0.0", PASSWORD, ["Shoal.Example"])
    login = {"authorization": basic(f"me:{PASSWORD}")}
    for host in ("192.168.1.5:8090", "[fe80::1]:8090", "shoal.example", "localhost"):
        assert ask(who, host=host, **login)[0] == "200 OK", host
    assert ask(who, host="evil.example", **login)[0] == "403 Forbidden"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_only_reading_is_served(method: str) -> None:
    status, headers, body = ask(admission("localhost", None), method=method)
    assert (status, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    assert b"inside" not in body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_password_under_any_user_name(method: str) -> None:
    who = admission("0.0.0.0", PASSWORD)
    for user in ("", "anybody"):
        assert ask(who, method=method, authorization=basic(f"{user}:{PASSWORD}"))[0] == "200 OK"


@pytest.mark.parametrize(
    "given",
    ["", "Basic", "Basic !!!", basic("me"), basic("me:"), basic("me:wrong"), basic(f"me:{PASSWORD} "),
     basic(f"{PASSWORD}:"), f"Bearer {PASSWORD}", "Basic " + base64.b64encode(b"me:\xff").decode()],
)  # fmt: skip
def test_without_the_password_nobody_enters(given: str) -> None:
    status, headers, body = ask(admission("127.0.0.1", PASSWORD), authorization=given)
    assert status == "401 Unauthorized"
    assert headers["WWW-Authenticate"].startswith("Basic realm=")
    assert b"inside" not in body


def test_every_answer_has_the_headers() -> None:
    who = admission("localhost", PASSWORD)
    login = basic(f"me:{PASSWORD}")
    answers = [
        ask(who, authorization=login),
        ask(who),
        ask(who, method="POST"),
        ask(who, host="evil.example"),
        ask(who, failing, authorization=login),
    ]
    assert [status[:3] for status, _, _ in answers] == ["200", "401", "405", "403", "500"]
    for _, headers, _ in answers:
        assert set(HEADERS) <= set(headers.items())
        assert "unsafe" not in headers["Content-Security-Policy"]


def test_an_error_tells_no_details() -> None:
    status, headers, body = ask(admission("localhost", None), failing)
    assert status == "500 Internal Server Error"
    assert body == b"it failed\n"
    assert "secret" not in str(headers)


def test_refusals_of_head_have_no_body() -> None:
    assert ask(admission("localhost", PASSWORD), method="HEAD")[2] == b""
