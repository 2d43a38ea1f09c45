"""report.html in a real browser, opened from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Page, expect

from search.compare.render import write_report
from tests.contracts.comparison_values import comparison, lifelike, study, trial
from tests.contracts.simulated_experiment import simulated

if TYPE_CHECKING:
    from tests.browser.conftest import Watched

pytestmark = pytest.mark.browser

DRAWN = "html[data-drawn]"
LONG_NAMES = (
    "cross_entropy",
    "binary_cross_entropy",
    "mse",
    "hinge",
    "multiclass_hinge",
    "squared_multiclass_hinge",
)
EVIL = """<script>document.title="taken"</script>"><img src=x onerror="document.title='taken'">"""


@pytest.fixture(scope="module")
def realistic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three methods × 30 replicates, winners retrained."""
    return write_report(simulated(pruned=True), tmp_path_factory.mktemp("realistic")).html


def opened(watched: Watched, page: Path) -> None:
    watched.page.goto(page.as_uri())
    watched.page.wait_for_selector(DRAWN)


def all_drawn(page: Page) -> int:
    """Scroll each figure into view and wait until it is drawn; how many drawings there are."""
    plots = page.locator("[data-plot]")
    for k in range(plots.count()):
        plots.nth(k).scroll_into_view_if_needed()
        expect(plots.nth(k)).to_have_attribute("data-drawn", "yes")
    return plots.count()


def hovered(page: Page, plot: str) -> str:
    """What the hover label says over the middle of a drawing."""
    drag = page.locator(f'[data-plot="{plot}"] .nsewdrag').first
    drag.scroll_into_view_if_needed()
    box = drag.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f'[data-plot="{plot}"] .hoverlayer text')
    return " ".join(page.locator(f'[data-plot="{plot}"] .hoverlayer text').all_text_contents())


def test_every_figure_is_drawn_without_error_or_request(
    watched: Watched, realistic: Path, tmp_path: Path
) -> None:
    opened(watched, realistic)
    assert watched.page.locator("[data-drawn]").count() < 12, "figures wait until they come near"
    count = all_drawn(watched.page)
    assert count > 30
    assert watched.page.locator("[data-plot] .main-svg").count() >= 2 * count
    assert watched.page.locator("[data-plot] .xaxislayer-above, [data-plot] .plot").count() >= count
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    watched.page.evaluate("scrollTo(0, 0)")
    watched.page.screenshot(path=tmp_path / "report.png", full_page=True)


def test_methods_are_named_at_their_lines(watched: Watched, realistic: Path) -> None:
    opened(watched, realistic)
    all_drawn(watched.page)
    names = watched.page.locator('[data-plot="best-so-far-epochs-0"] .annotation-text').all_text_contents()
    assert {"grid", "random", "tpe"} <= set(names)


def test_views_are_chosen_by_keyboard(watched: Watched, realistic: Path) -> None:
    opened(watched, realistic)
    plot = watched.page.locator('[data-plot="best-so-far-epochs-0"]')
    plot.scroll_into_view_if_needed()
    expect(plot).to_have_attribute("data-drawn", "yes")
    expect(plot.locator(".fills path.js-fill")).to_have_count(3)
    watched.page.locator('input[name="view-best-so-far-epochs"]').first.focus()
    watched.page.keyboard.press("ArrowRight")
    watched.page.keyboard.press("ArrowRight")
    expect(plot.locator(".fills path.js-fill")).to_have_count(0)
    expect(plot.locator(".scatterlayer path.js-line")).to_have_count(90 + 3)
    assert watched.said == []


def test_hover_tells_the_values(watched: Watched, realistic: Path) -> None:
    opened(watched, realistic)
    all_drawn(watched.page)
    said = hovered(watched.page, "best-so-far-epochs-0")
    assert "tpe" in said
    assert "0.9" in said
    assert "trials" in hovered(watched.page, "loss-optimizer-0")


def test_figures_are_unfolded_into_tables_by_keyboard(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    fold = watched.page.locator("#figure-scores details")
    fold.locator("summary").focus()
    watched.page.keyboard.press("Enter")
    expect(fold.get_by_role("table")).to_be_visible()
    assert fold.get_by_role("rowheader").all_text_contents() == ["grid", "random", "tpe"]
    assert fold.get_by_role("link").get_attribute("href") == "report-data/scores.csv"
    assert (tmp_path / "report-data" / "scores.csv").exists()


def test_levels_with_long_names_are_all_named(watched: Watched, tmp_path: Path) -> None:
    """Plotly leaves out labels that would cross the drawing's border."""
    losses = list(LONG_NAMES)
    studies = [
        study(
            method,
            replicate,
            [trial(n, n / 60, params={"loss": losses[n % 6], "lambda": n / 60}) for n in range(60)],
        )
        for method in ("random", "tpe")
        for replicate in range(2)
    ]
    space = {"loss": {"values": losses}, "lambda": {"low": 0.0, "high": 1.0}}
    found = comparison(studies, spec={"methods": {"random": {}, "tpe": {}}, "space": space})
    opened(watched, write_report(found, tmp_path).html)
    all_drawn(watched.page)
    plot = watched.page.locator('[data-plot^="dependence"]', has=watched.page.get_by_text("squared_multi"))
    expect(plot.locator(".xtick text").filter(visible=True)).to_have_count(6)


def test_strings_of_users_are_text(watched: Watched, tmp_path: Path) -> None:
    studies = [
        study(
            method,
            replicate,
            [
                trial(n, n / 40, params={EVIL: f"{EVIL}{n % 2}", f"{EVIL}2": n, "loss": EVIL[: 9 + n % 3]})
                for n in range(40)
            ]
            + [trial(40, None, state="failed", reason=EVIL)],
        )
        for method in (EVIL, "random")
        for replicate in range(2)
    ]
    found = comparison(
        studies,
        experiment=EVIL,
        metric=EVIL,
        spec={"methods": {EVIL: {}}, "space": {EVIL: {"values": [EVIL]}}},
        environment={EVIL: EVIL},
    )
    opened(watched, write_report(found, tmp_path).html)
    all_drawn(watched.page)
    assert watched.page.title() == f"{EVIL} · shoal"
    assert watched.page.locator("img").count() == 0
    assert watched.page.locator("h1").inner_text() == EVIL
    assert watched.said == []


def test_a_narrow_dark_screen_needs_no_sideways_scrolling(
    narrow: Watched, realistic: Path, tmp_path: Path
) -> None:
    opened(narrow, realistic)
    all_drawn(narrow.page)
    assert narrow.page.evaluate("document.documentElement.scrollWidth") == 400
    background = narrow.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in background[4:-1].split(",")) < 150
    beyond = narrow.page.evaluate(
        "[...document.querySelectorAll('.panel')].filter(p => p.getBoundingClientRect().right > 400).length"
    )
    assert beyond == 0
    narrow.page.evaluate("scrollTo(0, 0)")
    narrow.page.screenshot(path=tmp_path / "narrow.png", full_page=True)


def test_figures_follow_the_colour_scheme(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    plot = watched.page.locator('[data-plot="best-so-far-epochs-0"]')
    plot.scroll_into_view_if_needed()
    expect(plot).to_have_attribute("data-drawn", "yes")
    line = plot.locator(".scatterlayer path.js-line").last
    light = line.evaluate("line => getComputedStyle(line).stroke")
    watched.page.emulate_media(color_scheme="dark")
    expect(line).not_to_have_css("stroke", light)


def test_paper_is_light_and_has_every_figure(watched: Watched, tmp_path: Path) -> None:
    watched.page.emulate_media(color_scheme="dark")
    opened(watched, write_report(lifelike(), tmp_path).html)
    watched.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    undrawn = watched.page.locator("[data-plot]:not([data-drawn])")
    expect(undrawn).to_have_count(0)
    line = watched.page.locator('[data-plot="best-so-far-epochs-0"] .scatterlayer path.js-line').last
    on_paper = line.evaluate("line => getComputedStyle(line).stroke")
    watched.page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(line).not_to_have_css("stroke", on_paper)


def test_an_experiment_without_results_opens_too(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(comparison([study("grid", 0, [])], state="created"), tmp_path).html)
    assert "provisional" in watched.page.inner_text("main")
    assert "Figures left out" in watched.page.inner_text("main")
    assert watched.said == []


def test_one_replicate_opens_and_names_no_winner(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(simulated(replicates=1, trials=20, retrained=0), tmp_path).html)
    all_drawn(watched.page)
    assert "no method is named the winner" in watched.page.inner_text("#verdict")
    assert watched.said == []


def test_ten_thousand_trials_open_with_one_figure_drawn(watched: Watched, tmp_path: Path) -> None:
    """What must be done before the page can be read stays the same, however many trials there are."""
    found = simulated(replicates=30, trials=112, retrained=0)
    assert sum(len(one.trials) for one in found.studies) > 10_000
    opened(watched, write_report(found, tmp_path).html)
    assert watched.page.locator("[data-drawn]").count() < 12
    marks = watched.page.evaluate("performance.getEntriesByType('mark').map(mark => mark.name)")
    assert marks == ["shoal:begin", "shoal:first-figure"]
    all_drawn(watched.page)
    assert watched.page.locator(".plot svg .point, .plot svg path").count() < 12_000
    assert watched.said == []


def test_landmarks_are_there_for_screen_readers(watched: Watched, tmp_path: Path) -> None:
    opened(watched, write_report(lifelike(), tmp_path).html)
    for role in ("banner", "main", "contentinfo", "navigation", "complementary"):
        assert watched.page.get_by_role(role).count() == 1, role  # type: ignore[arg-type]
    assert watched.page.get_by_role("table").count() >= 4
    assert watched.page.get_by_role("figure").count() >= 8
    pictures = watched.page.locator('[role="img"]')
    assert pictures.count() >= 10
    assert all(pictures.nth(k).get_attribute("aria-label") for k in range(pictures.count()))
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.textContent") == "Skip to the results"
    watched.page.keyboard.press("Enter")
    assert watched.page.evaluate("document.activeElement.id") == "main"
