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

from search.dashboard import host_of, is_loopback
from storage.database import URL_VARIABLE
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
            page.get_by_text("shown/random/0").click()
            page.get_by_text(f"Best Trial (number={best['trial']})").wait_for()
            assert str(best["value"]) in page.inner_text("body")
            study = re.search(r"studies/(\d+)", page.url)
            assert study is not None
            page.screenshot(path=tmp_path / "dashboard.png", full_page=True)
            page.goto(f"{url}dashboard/studies/{study[1]}/trials")
            page.get_by_text(f"Trial {trials[-1]['trial']}", exact=True).first.wait_for()
            listed = set(re.findall(r"^Trial (\d+)", page.inner_text("body"), flags=re.MULTILINE))
            assert listed == {str(trial["trial"]) for trial in trials}
            refuse_foreign_host(url)
        finally:
            dashboard.send_signal(signal.SIGINT)
        assert dashboard.wait() == 130


def refuse_foreign_host(url: str) -> None:
    request = urllib.request.Request(url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
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
