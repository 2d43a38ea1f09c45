"""`shoal serve` in a real browser: what is shown, that it stays fresh, and that nothing leaks or leaves."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from sqlalchemy import text

from search.serve.server import PASSWORD_VARIABLE
from storage import queries
from storage.database import URL_VARIABLE, Database
from tests.conftest import on_server
from tests.contracts.big_experiment import Size, store_big_experiment
from tests.contracts.evil_experiment import EVIL, store_evil_experiment
from tests.contracts.processes import PATIENCE
from tests.contracts.shoal_command import Shoal

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Watched

pytestmark = pytest.mark.browser

SIZE = Size(trials=240, replicates=2, epochs=4)


@pytest.fixture
def shoal(tmp_path: Path, database_url: str) -> Shoal:
    return Shoal(tmp_path, os.environ | {URL_VARIABLE: database_url})


@contextmanager
def serving(shoal: Shoal, *arguments: str) -> Iterator[str]:
    """The view in a process of its own; its address without the last slash."""
    with shoal.start("serve", "--port", "0", "--no-open", *arguments) as process:
        assert process.stderr is not None
        try:
            yield next(found[0] for line in process.stderr if (found := re.search(r"http://[\w.:]+", line)))
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait() == 130
        assert "Traceback" not in rest


@pytest.fixture
def address(shoal: Shoal) -> Iterator[str]:
    with serving(shoal) as url:
        yield url


def live(page: Page, url: str) -> None:
    """Open a page and wait until it has asked for news once."""
    page.goto(url)
    page.wait_for_selector(".live.on")


def test_the_way_from_all_experiments_to_a_trial(watched: Watched, address: str, database: Database) -> None:
    store_big_experiment(database, "big", SIZE)
    page = watched.page
    live(page, address)
    page.get_by_role("link", name="big", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("big")
    assert page.locator(".chart.wide path.line").count() == 3
    assert page.locator(".chart.wide path.band").count() == 3
    assert page.locator(".strands .all path").count() > 100
    page.get_by_role("link", name="big/tpe/1").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("big/tpe/1")
    page.get_by_label("Order").select_option("best value first")
    page.wait_for_url(re.compile(r"sort=value"))
    best = max(queries.trials(database, 1, method="tpe"), key=lambda r: (r.replicate == 1, r.value or 0))
    first = page.locator("table.trials tbody tr").first
    expect(first).to_contain_text(f"{best.value:.4g}")
    first.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Trial {best.number}")
    expect(page.locator("dd.big")).to_have_text(f"{best.value:.4g}")
    page.get_by_role("link", name="Workers").click()
    expect(page.locator("#slots-scroll tbody tr")).to_have_count(18)
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith(f"{address}/")] == []


def test_an_open_page_follows_what_happens(watched: Watched, address: str, database: Database) -> None:
    record = store_big_experiment(database, "big", SIZE)
    page = watched.page
    live(page, f"{address}/experiments/{record.id}")
    cell = page.locator('tr[data-method="random"] td[data-label="Complete"]')
    before = int(cell.inner_text())
    page.locator("#best-so-far-numbers summary").click()
    page.locator("#best-so-far-numbers summary").focus()
    with database.begin() as connection:
        connection.execute(text(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "SELECT trial_id, 0, 0.99, 'FINITE' FROM trials JOIN studies USING (study_id) "
            "WHERE study_name = 'big/random/1' AND state = 'RUNNING' LIMIT 1"
        ))  # fmt: skip
        connection.execute(text(
            "UPDATE trials SET state = 'COMPLETE', datetime_complete = now() WHERE state = 'RUNNING' "
            "AND trial_id = (SELECT trial_id FROM trial_values WHERE value = 0.99)"
        ))  # fmt: skip
    expect(cell).to_have_text(str(before + 1))
    expect(page.locator('tr[data-method="random"] td[data-label="Best"]')).to_have_text("0.99")
    # What the reader had opened and focused is as it was.
    expect(page.locator("#best-so-far-numbers")).to_have_attribute("open", "")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert watched.said == []


def test_nothing_is_loaded_while_nothing_happens(watched: Watched, address: str, database: Database) -> None:
    record = store_big_experiment(database, "big", SIZE)
    answers: list[int] = []
    watched.page.on(
        "response", lambda answer: answers.append(answer.status) if "/api/version" in answer.url else None
    )
    live(watched.page, f"{address}/experiments/{record.id}")
    asked = len([url for url in watched.asked if "/experiments/" in url])
    with watched.page.expect_response(re.compile("/api/version")):
        pass
    assert set(answers) == {304}
    assert len([url for url in watched.asked if "/experiments/" in url]) == asked == 1


def test_strings_of_users_are_text(watched: Watched, address: str, database: Database) -> None:
    record = store_evil_experiment(database)
    (study,) = {row.study_name for row in queries.trials(database, record.id)}
    failed = next(row for row in queries.trials(database, record.id) if row.state == "failed")
    for path in ("/", f"/experiments/{record.id}", "/studies/1", f"/trials/{failed.trial_id}", "/workers"):
        live(watched.page, f"{address}{path}")
        assert "taken" not in watched.page.title().replace(EVIL, "")
        assert watched.page.locator("main img").count() == 0
        assert EVIL in watched.page.inner_text("main"), path
    live(watched.page, f"{address}/studies/1")
    assert watched.page.locator("h1").inner_text() == study
    assert watched.said == []


def test_values_can_be_read_by_pointer_and_by_keyboard(
    watched: Watched, address: str, database: Database
) -> None:
    record = store_big_experiment(database, "big", SIZE)
    page = watched.page
    live(page, f"{address}/experiments/{record.id}")
    box = page.locator(".chart.wide").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    expect(page.locator(".readout")).to_contain_text(re.compile(r"epochs spent per study \d+: grid 0\.\d+"))
    page.locator(".lines .plot").focus()
    page.keyboard.press("Home")
    expect(page.locator(".readout")).to_contain_text("nothing yet")
    page.keyboard.press("End")
    ends = page.locator("#best-so-far-numbers tbody tr")
    tpe = ends.nth(2).locator("td").nth(1)
    page.locator("#best-so-far-numbers summary").click()
    expect(tpe).to_have_text(re.compile(r"0\.\d+"))
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "plot"


def test_landmarks_and_headings_are_there_for_screen_readers(
    watched: Watched, address: str, database: Database
) -> None:
    record = store_big_experiment(database, "big", SIZE)
    page = watched.page
    for path in ("/", f"/experiments/{record.id}", "/studies/1", "/trials/1", "/workers"):
        live(page, f"{address}{path}")
        for role in ("banner", "main", "contentinfo"):
            assert page.get_by_role(role).count() == 1, (path, role)  # type: ignore[arg-type]
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.locator("html[lang=en]").count() == 1
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("svg[role=img]:not([aria-label])").count() == 0
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"


def contrast(page: Page, selector: str) -> float:
    """The contrast of an element's text against the nearest background (WCAG 2, 1.4.3)."""
    return float(page.evaluate(
        """selector => {
            const light = (text) => {
                const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((part) => part / 255)
                    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const node = document.querySelector(selector);
            let behind = node;
            const colour = () => getComputedStyle(behind).backgroundColor;
            while (colour() === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            const [a, b] = [light(getComputedStyle(node).color), light(colour())];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        }""",
        selector,
    ))  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes(
    watched: Watched, address: str, database: Database, scheme: str
) -> None:
    record = store_big_experiment(database, "big", SIZE)
    page = watched.page
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    live(page, f"{address}/experiments/{record.id}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert (brightness < 150) is (scheme == "dark")
    for selector in (
        "h1",
        ".lede",
        ".state.interrupted",
        "td.bad",
        "caption",
        "a",
        ".top nav a",
        ".small .state",
    ):
        assert contrast(page, selector) >= 4.5, selector


def test_a_narrow_dark_screen_needs_no_sideways_scrolling(
    narrow: Watched, address: str, database: Database, tmp_path: Path
) -> None:
    record = store_big_experiment(database, "big", SIZE)
    for path in ("/", f"/experiments/{record.id}", "/studies/1", "/trials/1", "/workers"):
        live(narrow.page, f"{address}{path}")
        assert narrow.page.evaluate("document.documentElement.scrollWidth") == 400, path
    live(narrow.page, f"{address}/experiments/{record.id}")
    assert narrow.page.locator(".chart.narrow").first.is_visible()
    assert not narrow.page.locator(".chart.wide").first.is_visible()
    # What a table that scrolls is about can be read without scrolling it.
    captions = narrow.page.locator(".scroll caption")
    ends = captions.evaluate_all("found => found.map(one => one.getBoundingClientRect().right)")
    assert ends
    assert max(ends) <= 400
    narrow.page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    assert narrow.said == []


def test_without_script_the_pages_are_whole(address: str, database: Database, watched: Watched) -> None:
    record = store_big_experiment(database, "big", SIZE)
    browser = watched.page.context.browser
    assert browser is not None
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(1000 * PATIENCE)
    try:
        page = context.new_page()
        page.goto(f"{address}/experiments/{record.id}")
        page.get_by_label("State").select_option("failed")
        page.get_by_role("button", name="Show").click()
        assert "state=failed" in page.url
        assert page.locator("table.trials tbody tr").count() >= 1
        assert page.locator(".chart.wide path.line").count() == 3
    finally:
        context.close()


@pytest.mark.slow
def test_ten_thousand_trials_are_a_page_like_any_other(
    watched: Watched, address: str, database: Database
) -> None:
    """What is sent and drawn doesn't grow with the study; how long it takes is measured elsewhere."""
    record = store_big_experiment(database, "big", Size(methods=("tpe",), replicates=1))
    sizes: list[int] = []
    watched.page.on("response", lambda answer: sizes.append(len(answer.body())) if answer.ok else None)
    live(watched.page, f"{address}/studies/1")
    assert "of 10,000 trials" in watched.page.inner_text("#trials caption")
    assert watched.page.locator("table.trials tbody tr").count() == 50
    assert 200 < watched.page.locator(".strands .all path").count() < 300
    assert max(sizes) < 200_000
    assert sum("/static/" not in url for url in watched.asked) == 2  # the page, and whether it is fresh
    assert watched.said == []
    assert record.id == 1


@pytest.mark.slow
def test_elsewhere_a_password_is_asked_for(watched: Watched, shoal: Shoal, database: Database) -> None:
    store_big_experiment(database, "big", SIZE)
    password = "a long enough password"
    shoal.write("password", f"{password}\n")
    with serving(shoal, "--host", "0.0.0.0", "--password-file", "password") as url:
        local = url.replace("0.0.0.0", "127.0.0.1")
        for headers in ({}, {"Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(local, headers=headers), timeout=PATIENCE)
            assert refused.value.code == 401
            refused.value.close()
        browser = watched.page.context.browser
        assert browser is not None
        context = browser.new_context(http_credentials={"username": "", "password": password})
        context.set_default_timeout(1000 * PATIENCE)
        try:
            page = context.new_page()
            live(page, local)
            assert "big" in page.inner_text("main")
        finally:
            context.close()


@pytest.mark.slow
def test_what_is_refused_at_the_start(shoal: Shoal) -> None:
    refused = shoal("serve", "--host", "0.0.0.0", "--port", "0", "--no-open", code=2)
    assert "password is needed" in refused.stderr
    short = shoal("serve", "--host", "0.0.0.0", "--no-open", code=2, **{PASSWORD_VARIABLE: "short"})
    assert "too short" in short.stderr
    assert "short\n" not in short.stderr.replace("too short", "")
    assert "can't read" in shoal("serve", "--password-file", "nowhere", "--no-open", code=2).stderr
    assert "no web address" in shoal("serve", "--dashboard", "javascript:x", "--no-open", code=2).stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = shoal("serve", "--port", str(taken.getsockname()[1]), "--no-open", code=1)
    assert "can't listen" in busy.stderr


@pytest.mark.slow
def test_a_database_that_goes_away_is_told_and_comes_back(
    watched: Watched, address: str, database: Database, postgres_url: str
) -> None:
    record = store_big_experiment(database, "big", SIZE)
    page = watched.page
    live(page, f"{address}/experiments/{record.id}")
    name = str(database.scalar("SELECT current_database()"))
    database.close()
    on_server(postgres_url, "ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    on_server(
        postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    page.wait_for_selector(".live.off")
    # What was shown stays; the page says that it is old.
    expect(page.locator("#trials caption")).to_contain_text("of 240 trials")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/", timeout=PATIENCE)
    assert refused.value.code == 503
    assert name not in refused.value.read().decode()
    on_server(postgres_url, "ALTER DATABASE {} ALLOW_CONNECTIONS true", name)
    page.wait_for_selector(".live.on")
