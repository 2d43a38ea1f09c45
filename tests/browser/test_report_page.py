"""report.html in a real browser, opened from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from search.compare.render import write_report
from tests.contracts.comparison_values import comparison, lifelike, study, trial

if TYPE_CHECKING:
    from tests.browser.conftest import Watched

pytestmark = pytest.mark.browser

DRAWN = "html[data-drawn]"
EVIL = """<script>document.title="taken"</script>"><img src=x onerror="document.title='taken'">"""


def opened(watched: Watched, page: Path) -> None:
    watched.page.goto(page.as_uri())
    watched.page.wait_for_selector(DRAWN)


def test_it_opens_without_error_or_request_and_draws(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith(("file:", "data:"))] == []
    lines = watched.page.locator(".scatterlayer path.js-line")
    assert lines.count() == 9  # per method a median and the two edges of its band
    box = watched.page.locator(".plot .main-svg").first.bounding_box()
    assert box is not None
    assert box["width"] > 600
    assert watched.page.locator(".legendtext").all_text_contents() == ["grid", "random", "tpe"]
    watched.page.screenshot(path=tmp_path / "report.png", full_page=True)


def test_replicates_are_shown_by_keyboard(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    box = watched.page.get_by_label("Show a line for each replicate")
    box.focus()
    watched.page.keyboard.press("Space")
    expect(watched.page.locator(".scatterlayer path.js-line")).to_have_count(18)
    assert watched.said == []


def test_hover_tells_the_values(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    drag = watched.page.locator(".plot .nsewdrag").first
    drag.scroll_into_view_if_needed()
    box = drag.bounding_box()
    assert box is not None
    watched.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    watched.page.wait_for_selector(".hoverlayer .legendtext")
    assert "tpe" in " ".join(watched.page.locator(".hoverlayer .legendtext").all_text_contents())


def test_strings_of_users_are_text(watched: Watched, tmp_path: Path) -> None:
    params: dict[str, object] = {EVIL: EVIL}
    found = comparison(
        [study(EVIL, 0, [trial(0, 0.5, params=params), trial(1, None, state="failed", reason=EVIL)])],
        experiment=EVIL,
        metric=EVIL,
        spec={"methods": {EVIL: {}}, "space": {EVIL: {"values": [EVIL]}}},
        environment={EVIL: EVIL},
    )
    opened(watched, write_report(found, tmp_path).html)
    assert watched.page.title() == f"{EVIL} · shoal"
    assert watched.page.locator("img").count() == 0
    assert watched.page.locator("h1").inner_text() == EVIL
    assert watched.said == []


def test_a_narrow_dark_screen_needs_no_sideways_scrolling(narrow: Watched, tmp_path: Path) -> None:
    opened(narrow, write_report(lifelike(), tmp_path).html)
    assert narrow.page.evaluate("document.documentElement.scrollWidth") == 400
    background = narrow.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in background[4:-1].split(",")) < 150
    narrow.page.screenshot(path=tmp_path / "narrow.png", full_page=True)


def test_figures_follow_the_colour_scheme(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    line = watched.page.locator(".scatterlayer path.js-line").last
    light = line.evaluate("line => getComputedStyle(line).stroke")
    watched.page.emulate_media(color_scheme="dark")
    expect(line).not_to_have_css("stroke", light)


def test_an_experiment_without_results_opens_too(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(comparison([study("grid", 0, [])], state="created"), tmp_path).html)
    assert "provisional" in watched.page.inner_text("main")
    assert watched.said == []


def test_landmarks_are_there_for_screen_readers(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    for role in ("banner", "main", "contentinfo", "navigation", "complementary"):
        assert watched.page.get_by_role(role).count() == 1, role  # type: ignore[arg-type]
    assert watched.page.get_by_role("table").count() >= 4
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.textContent") == "Skip to the results"
