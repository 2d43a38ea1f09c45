"""The pages as others reach them: through the proxy, on the database's reading role, in a browser."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from playwright.sync_api import Browser, BrowserContext, expect
from playwright.sync_api import Error as PlaywrightError

from storage.database import Database
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.urls import FILE_VARIABLE
from tests.contracts.database_roles import roles_in
from tests.contracts.evil_experiment import EVIL, store_evil_experiment
from tests.contracts.processes import PATIENCE
from tests.contracts.proxies import DASHBOARD, PASSWORD, USER, VIEW, Proxy, caddy
from tests.contracts.shoal_command import Shoal

PAGE = """<!doctype html><title>mine</title><p>planted</p>
<script>document.title = 'taken'; fetch('/api/studies/1', {method: 'DELETE'})</script>"""
"""What somebody uploads as an artifact."""


@dataclass(frozen=True)
class Pages:
    """The proxy, and what was planted behind it."""

    proxy: Proxy
    study: str
    artifact: str
    """Its path on the dashboard."""
    shoal: Shoal


@contextmanager
def listening(shoal: Shoal, *arguments: str) -> Iterator[int]:
    """The port of a command of ours that serves."""
    with shoal.start(*arguments, "--port", "0") as process:
        assert process.stderr is not None
        said = (re.search(r"http://127\.0\.0\.1:(\d+)/", line) for line in process.stderr)
        try:
            yield int(next(found[1] for found in said if found))
        finally:
            process.send_signal(signal.SIGINT)
        process.stderr.read()


@pytest.fixture
def pages(database: Database, tmp_path: Path) -> Iterator[Pages]:
    """An experiment with hostile names, an artifact, both servers on the reading role, Caddy before them."""
    store_evil_experiment(database)
    kept = tmp_path / "artifacts"
    kept.mkdir()
    (tmp_path / "page.html").write_text(PAGE)
    storage = open_optuna_storage(database.url)
    study = optuna.load_study(
        study_name=storage.get_all_studies()[0].study_name,
        storage=storage,
        sampler=optuna.samplers.RandomSampler(),
    )
    place = upload_artifact(
        artifact_store=FileSystemArtifactStore(kept),
        file_path=str(tmp_path / "page.html"),
        study_or_trial=study,
    )
    path, name = f"/artifacts/{study._study_id}/{place}", study.study_name
    close_optuna_storage(storage)
    (tmp_path / "reader").write_text(roles_in(database.url, tmp_path / "roles").reader)
    (tmp_path / "proxy").mkdir()
    shoal = Shoal(tmp_path, os.environ | {FILE_VARIABLE: str(tmp_path / "reader")})
    with ExitStack() as stack:
        view = stack.enter_context(listening(shoal, "serve", "--no-open"))
        dashboard = stack.enter_context(listening(shoal, "dashboard", "--artifacts", str(kept)))
        yield Pages(stack.enter_context(caddy(tmp_path / "proxy", view, dashboard)), name, path, shoal)


@pytest.fixture
def inside(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that has the login and takes the proxy's own certificate."""
    context = browser.new_context(
        ignore_https_errors=True,
        accept_downloads=True,
        http_credentials={"username": USER, "password": PASSWORD},
    )
    context.set_default_timeout(1000 * PATIENCE)
    yield context
    context.close()


@pytest.mark.slow
@pytest.mark.browser
def test_through_the_proxy(pages: Pages, inside: BrowserContext, browser: Browser, tmp_path: Path) -> None:
    """One start of everything for all that is promised of it: it takes ten seconds."""
    refuses(pages.proxy)
    without_login(pages.proxy, browser)
    shows_names_as_text(pages, inside)
    artifact_runs_nothing(pages, inside, tmp_path)
    assert pages.proxy.ask("/api/studies", site=DASHBOARD).body.count(b"study_id") == 1


def refuses(proxy: Proxy) -> None:
    assert proxy.ask("/", password=None).status == 401
    assert proxy.ask("/dashboard", site=DASHBOARD, password=None).status == 401
    assert proxy.ask("/api/studies/1", site=DASHBOARD).status == 200
    assert proxy.ask("/api/studies/1", site=DASHBOARD, method="DELETE").status == 405
    assert proxy.ask("/api/studies/1", site=DASHBOARD, host="evil.example").status == 421


def without_login(proxy: Proxy, browser: Browser) -> None:
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    with pytest.raises(PlaywrightError, match="INVALID_AUTH_CREDENTIALS"):
        page.goto(f"https://{VIEW}:{proxy.port}/")
    # Chromium may still be about to show its own page of the failure.
    page.wait_for_load_state()
    assert "shoal" not in page.inner_text("body")
    context.close()


def shows_names_as_text(pages: Pages, inside: BrowserContext) -> None:
    said: list[str] = []
    page = inside.new_page()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(f"https://{DASHBOARD}:{pages.proxy.port}/")
    expect(page.get_by_text(pages.study).first).to_be_visible()
    assert page.title() != "taken"
    assert page.locator("img[src='x']").count() == 0
    page.goto(f"https://{DASHBOARD}:{pages.proxy.port}/dashboard/studies/1/trials")
    expect(page.get_by_text("Trial 0", exact=True).first).to_be_visible()
    assert page.title() != "taken"
    page.goto(f"https://{VIEW}:{pages.proxy.port}/experiments/1")
    expect(page.get_by_text(EVIL).first).to_be_visible()
    assert page.title() != "taken"
    assert [line for line in said if "Content Security Policy" in line or "taken" in line] == []


def artifact_runs_nothing(pages: Pages, inside: BrowserContext, folder: Path) -> None:
    url = f"https://{DASHBOARD}:{pages.proxy.port}{pages.artifact}"
    page = inside.new_page()
    page.goto(f"https://{DASHBOARD}:{pages.proxy.port}/")
    with page.expect_download() as saved:
        page.evaluate("url => { location.href = url }", url)
    saved.value.save_as(folder / "saved.html")
    assert (folder / "saved.html").read_text() == PAGE
    assert page.title() != "taken"
    # As a page of another kind of browser, or in a frame, it is still no page of ours.
    answer = pages.proxy.ask(pages.artifact, site=DASHBOARD)
    assert answer.headers["content-security-policy"] == "sandbox"
    shown = inside.new_page()
    shown.route(
        "**/artifacts/**",
        lambda route: route.fulfill(
            status=200, content_type="text/html", headers={"Content-Security-Policy": "sandbox"}, body=PAGE
        ),
    )
    shown.goto(url)
    expect(shown.get_by_text("planted")).to_be_visible()
    assert shown.title() == "mine"
