"""compare.html in a real browser, opened from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from search.compare.analysis import analyse
from search.compare.compare_files import write_compare
from search.compare.together import together
from tests.contracts.comparison_values import lifelike

if TYPE_CHECKING:
    from tests.browser.conftest import Watched

pytestmark = pytest.mark.browser


def written(folder: Path, names: tuple[str, ...]) -> Path:
    """The page of experiments with these names, each on data of its own."""
    found = []
    for seed, name in enumerate(names):
        one = lifelike(replicates=12, trials=12, seed=seed)
        one = replace(one, experiment=name, spec={**one.spec, "data": {"name": f"data-{seed}"}})
        found.append((one, analyse(one, resamples=200)))
    return write_compare(together(found), folder).html


@pytest.mark.parametrize("scheme", ["watched", "narrow"])
def test_six_experiments_have_ranks_drawn(
    scheme: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    watched: Watched = request.getfixturevalue(scheme)
    page = watched.page
    names = ("digits", "mnist", "fashion-mnist", "cifar10-a-very-long-name-of-an-experiment", "e5", "e6")
    page.goto(written(tmp_path, names).as_uri())
    plots = page.locator("[data-plot]")
    assert [plots.nth(k).get_attribute("data-plot") for k in range(plots.count())] == ["ranks-0", "regrets-0"]
    for k in range(plots.count()):
        plots.nth(k).scroll_into_view_if_needed()
        expect(plots.nth(k)).to_have_attribute("data-drawn", "yes")
    expect(page.locator("#table-across tbody tr")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "compare.png", full_page=True)


def test_names_are_text(watched: Watched, tmp_path: Path) -> None:
    evil = """<img src=x onerror="document.title='taken'">"""
    watched.page.goto(written(tmp_path, (evil, f"{evil}2")).as_uri())
    watched.page.wait_for_selector("html[data-drawn]")
    assert evil in watched.page.inner_text("#table-experiments")
    assert watched.page.title() == "Experiments compared · shoal"
    assert watched.page.locator("img").count() == 0
    assert watched.said == []
