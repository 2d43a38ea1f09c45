"""The proxy before the pages: who gets in, what may be asked, what reaches those behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.proxies import DASHBOARD, PASSWORD, PROXY, VIEW, Proxy, caddy, nginx


@dataclass
class Behind:
    """A server behind the proxy that notes what it was asked."""

    name: str
    statuses: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def serving(self) -> Iterator[Behind]:
        behind = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                behind.asked.append((self.command, self.path, headers))
                body = f"<script>document.title='{behind.name}'</script>".encode()
                path = self.path.partition("?")[0]
                status = behind.statuses.get(headers.get("cookie", ""), behind.statuses.get(path, 200))
                self.send_response(status)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Disposition", "inline")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = answer  # noqa: N815 (the library's names)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass(frozen=True)
class Site:
    """A proxy and what is behind it."""

    proxy: Proxy
    view: Behind
    dashboard: Behind


MAKERS: dict[str, Callable[[Path, int, int], AbstractContextManager[Proxy]]] = {
    "caddy": caddy,
    "nginx": nginx,
}


@pytest.fixture(scope="module", params=MAKERS)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        Behind("view").serving() as view,
        Behind("dashboard").serving() as dashboard,
        MAKERS[request.param](folder, view.port, dashboard.port) as proxy,
    ):
        yield Site(proxy, view, dashboard)


@pytest.fixture
def site(started: Site) -> Site:
    """One proxy for all tests, with nothing asked yet."""
    started.view.asked.clear()
    started.dashboard.asked.clear()
    return started


@pytest.mark.parametrize("password", [None, "", "wrong horse", f"{PASSWORD} "])
@pytest.mark.parametrize("name", [VIEW, DASHBOARD])
@pytest.mark.parametrize("path", ["/", "/artifacts/1/2/3", "/api/studies", "/oauth2/auth"])
def test_nobody_gets_in_without_the_login(site: Site, name: str, password: str | None, path: str) -> None:
    answer = site.proxy.ask(path, site=name, password=password)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert b"document" not in answer.body
    assert site.view.asked == site.dashboard.asked == []


def test_with_it_each_name_leads_to_its_own(site: Site) -> None:
    assert b"view" in site.proxy.ask("/", site=VIEW).body
    assert b"dashboard" in site.proxy.ask("/", site=DASHBOARD).body
    assert (len(site.view.asked), len(site.dashboard.asked)) == (1, 1)
    assert site.proxy.ask("/", method="HEAD").status == 200


@pytest.mark.parametrize("method", ["DELETE", "POST", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("name", [VIEW, DASHBOARD])
def test_nothing_is_changed_through_it(site: Site, name: str, method: str) -> None:
    assert site.proxy.ask("/api/studies/1", site=name, method=method).status == 405
    assert site.view.asked == site.dashboard.asked == []


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1", "other.localhost"])
@pytest.mark.parametrize("name", [VIEW, DASHBOARD])
def test_a_foreign_name_leads_nowhere(site: Site, name: str, host: str) -> None:
    answer = site.proxy.ask("/", site=name, host=host)
    assert answer.status == 421
    assert b"document" not in answer.body
    assert site.view.asked == site.dashboard.asked == []


def test_artifacts_are_saved_and_run_nothing(site: Site) -> None:
    answer = site.proxy.ask("/artifacts/1/2/3", site=DASHBOARD)
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = site.proxy.ask("/dashboard", site=DASHBOARD)
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "attachment" not in page.headers.get("content-disposition", "")


@pytest.mark.parametrize("path", ["//artifacts/1", "/./artifacts/1", "/x/../artifacts/1", "/%61rtifacts/1"])
def test_other_spellings_of_an_artifact_get_no_further(site: Site, path: str) -> None:
    """Whatever the server behind would take for an artifact has been taken for one before."""
    answer = site.proxy.ask(path, site=DASHBOARD)
    taken = [asked for _, asked, _ in site.dashboard.asked]
    assert answer.headers["content-security-policy"] == "sandbox" or not any(
        asked.startswith(("/artifacts/", "/%61rtifacts/")) for asked in taken
    )


def test_the_login_stays_at_the_door(site: Site) -> None:
    site.proxy.ask("/", site=DASHBOARD, cookie="session=1")
    ((_, _, headers),) = site.dashboard.asked
    assert headers["host"] == f"127.0.0.1:{site.dashboard.port}"
    assert not {"authorization", "cookie"} & {name for name, value in headers.items() if value}


def test_every_page_says_how_it_may_be_used(site: Site) -> None:
    for name in (VIEW, DASHBOARD):
        headers = site.proxy.ask("/", site=name).headers
        assert headers["strict-transport-security"] == "max-age=31536000"
        assert "BaseHTTP" not in headers.get("server", "")


def test_a_login_elsewhere(tmp_path: Path) -> None:
    """The overlay for OpenID Connect, before a stand-in for oauth2-proxy that knows one cookie."""
    asked = Behind("oauth2", {"session=1": 202, "session=2": 403, "/oauth2/auth": 401})
    with Behind("view").serving() as view, asked.serving():
        there = {"SHOAL_OAUTH2_PROXY": f"127.0.0.1:{asked.port}"}
        with caddy(tmp_path, view.port, 9, login="oidc", **there) as proxy:
            stranger = proxy.ask("/studies/1", password=None)
            assert stranger.status == 302
            assert stranger.headers["location"] == (
                f"/oauth2/sign_in?rd=https://{VIEW}:{proxy.port}/studies/1"
            )
            assert proxy.ask("/oauth2/sign_in", password=None).body.startswith(
                b"<script>document.title='oauth2"
            )
            assert view.asked == []
            assert b"view" in proxy.ask("/studies/1", password=None, cookie="session=1").body
            ((method, path, headers),) = view.asked
            assert (method, path) == ("GET", "/studies/1")
            assert "cookie" not in headers
            assert proxy.ask("/studies/1", password=None, cookie="session=2").status == 403
            assert proxy.ask("/", method="DELETE", password=None, cookie="session=1").status == 405
            assert proxy.ask("/", host="evil.example", password=None, cookie="session=1").status == 421
            assert len(view.asked) == 1
            methods = [(method, path.partition("?")[0]) for method, path, _ in asked.asked]
            assert methods.count(("GET", "/oauth2/auth")) == 4


def test_no_secret_is_in_the_files() -> None:
    for path in PROXY.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "$2a$" not in text
            assert "secret =" not in text
