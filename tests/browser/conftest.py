"""A headless Chromium: the one of the machine, never a downloaded one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.contracts.processes import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome")

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A browser for the session; without one tests skip, but never in CI."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        assert os.environ.get("CI") != "true", f"CI needs a Chromium ({', '.join(NAMES)})"
        pytest.skip(f"no Chromium here ({', '.join(NAMES)})")
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield opened
        opened.close()


@dataclass
class Watched:
    """A page with everything that it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions."""
    asked: list[str] = field(default_factory=list)
    """URLs of all requests."""

    def note(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.said.append(message.text)

    def log(self, request: Request) -> None:
        self.asked.append(request.url)


def watch(page: Page) -> Watched:
    """Begin to listen to a page."""
    page.set_default_timeout(1000 * PATIENCE)
    watched = Watched(page)
    page.on("console", watched.note)
    page.on("pageerror", lambda error: watched.said.append(str(error)))
    page.on("request", watched.log)
    return watched


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A fresh page as wide as a desk's screen."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield watch(page)
    page.close()


@pytest.fixture
def narrow(browser: Browser) -> Iterator[Watched]:
    """A fresh page as wide as a phone, in the dark."""
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    yield watch(page)
    page.close()
