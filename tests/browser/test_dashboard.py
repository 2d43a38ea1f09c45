"""Optuna Dashboard on our database, as `shoal dashboard` serves it."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from search.compare.analysis import analyse
from search.compare.collect import collect
from search.compare.contents import contents_of
from search.dashboard_notes import publish
from search.formats import format_number
from search.serve.guard import host_of, is_loopback
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from tests.contracts.evil_experiment import EVIL, store_evil_experiment
from tests.contracts.processes import PATIENCE
from tests.contracts.shoal_command import ONE_METHOD, Shoal, tiny

if TYPE_CHECKING:
    from tests.browser.conftest import Watched


@pytest.mark.slow
@pytest.mark.browser
def test_it_shows_a_finished_study(watched: Watched, database_url: str, tmp_path: Path) -> None:
    shoal = Shoal(tmp_path, os.environ | {URL_VARIABLE: database_url})
    shoal("run", shoal.write("tiny.yaml", tiny("shown", *ONE_METHOD)), "--in-process")
    best = json.loads(shoal("best", "shown", "--json").stdout)["methods"][0]
    trials = json.loads(shoal("trials", "shown", "--json").stdout)["trials"]
    page = watched.page
    with shoal.start("dashboard", "--port", "0") as dashboard:
        assert dashboard.stderr is not None
        url = next(
            found[0] for line in dashboard.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))
        )
        try:
            page.goto(url)
            page.get_by_text(re.compile(r"shown/random/0$")).click()
            page.get_by_text(f"Best Trial (number={best['trial']})").wait_for()
            assert str(best["value"]) in page.inner_text("body")
            study = re.search(r"studies/(\d+)", page.url)
            assert study is not None
            page.screenshot(path=tmp_path / "dashboard.png", full_page=True)
            sees_figures_and_note(watched, page.url, format_number(best["value"]), tmp_path)
            page.goto(f"{url}dashboard/studies/{study[1]}/trials")
            page.get_by_text(f"Trial {trials[-1]['trial']}", exact=True).first.wait_for()
            listed = set(re.findall(r"^Trial (\d+)", page.inner_text("body"), flags=re.MULTILINE))
            assert listed == {str(trial["trial"]) for trial in trials}
            refuse_foreign_host(url)
        finally:
            dashboard.send_signal(signal.SIGINT)
        assert dashboard.wait() == 130


def sees_figures_and_note(watched: Watched, study: str, best: str, folder: Path) -> None:
    """The key figures on the study's own page, and the note on its page of notes."""
    page = watched.page
    for name, title in (
        ("best-so-far-epochs-0", "Best so far against epochs"),
        ("scores-0", "Scores of the winners"),
    ):
        plot = page.locator(f"[id='user-defined-plot:shoal-{name}']")
        plot.scroll_into_view_if_needed()
        expect(plot.locator(".gtitle")).to_contain_text(title)
        expect(plot.locator(".main-svg").first).to_have_css("background-color", "rgb(255, 255, 255)")
    expect(page.locator("[id='user-defined-plot:shoal-best-so-far-epochs-0'] .js-line").last).to_have_css(
        "stroke", "rgb(11, 107, 203)"
    )
    page.screenshot(path=folder / "figures.png", full_page=True)
    page.goto(f"{study}/note")
    expect(page.get_by_role("heading", name="shown: random, replicate 0")).to_be_visible()
    expect(page.get_by_text("Only random was run: nothing is compared.")).to_be_visible()
    said = page.inner_text("body")
    assert f"Best validation accuracy: {best}" in said
    assert "reports/shown/report.html" in said
    assert "shoal writes from here" not in said
    page.screenshot(path=folder / "note.png", full_page=True)
    page.goto(study)


@pytest.mark.slow
@pytest.mark.browser
def test_names_in_notes_and_figures_are_text(watched: Watched, database: Database, tmp_path: Path) -> None:
    store_evil_experiment(database)
    found = collect(database, Experiments(database).list()[0].name)
    analysis = analyse(found, resamples=100)
    published = publish(database.url, found, analysis, contents_of(found, analysis), tmp_path / "report.html")
    assert published.notes == 1
    assert published.plots > 0
    shoal = Shoal(tmp_path, os.environ | {URL_VARIABLE: database.url})
    page = watched.page
    with shoal.start("dashboard", "--port", "0") as dashboard:
        assert dashboard.stderr is not None
        url = next(
            found[0] for line in dashboard.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))
        )
        try:
            page.goto(f"{url}dashboard/studies/1/note")
            expect(page.get_by_text(EVIL).first).to_be_visible()
            page.goto(f"{url}dashboard/studies/1")
            expect(page.locator("[id^='user-defined-plot:'] .gtitle").first).to_be_visible()
            assert page.locator("img[src='x']").count() == 0
            assert page.title() != "taken"
        finally:
            dashboard.send_signal(signal.SIGINT)


def refuse_foreign_host(url: str) -> None:
    request = urllib.request.Request(url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    assert refused.value.code == 403
    refused.value.close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:8080", "localhost"),
        ("LOCALHOST", "localhost"),
        ("[::1]:80", "::1"),
        ("", ""),
        ("evil.example", "evil.example"),
    ],
)
def test_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host
