"""report.html as text: what stands where, and that it can be walked without seeing it."""

from __future__ import annotations

import json
import re
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.contents import contents_of
from search.compare.figures.registry import FIGURES
from search.compare.page import SECTIONS, breakable, render_html, sections_of, tied
from search.compare.report_tables import TABLES
from tests.contracts.comparison_values import comparison, study, trial
from tests.contracts.simulated_experiment import simulated

LEARNED_TABLES = {"importances", "levels"}


class Outline(HTMLParser):
    """Headings, identifiers, references and tables of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[tuple[int, str]] = []
        self.identifiers: list[str] = []
        self.references: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.unnamed: list[str] = []
        self._heading = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self._heading = int(tag[1])
            self.headings.append((self._heading, ""))
        if "id" in given:
            self.identifiers.append(given["id"])
        self.references += given.get("aria-labelledby", "").split()
        if tag == "a":
            self.links.append(given["href"])
        if given.get("role") in {"img", "region"} and not given.get("aria-label"):
            self.unnamed.append(tag)
        if tag == "th" and given.get("scope") not in {"row", "col"}:
            self.unnamed.append(tag)

    def handle_data(self, data: str) -> None:
        if self._heading:
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    def handle_endtag(self, tag: str) -> None:
        if tag == f"h{self._heading}":
            self._heading = 0


@cache
def page(replicates: int = 12) -> str:
    found = simulated(replicates=replicates, trials=52, pruned=True, retrained=3)
    return page_of(found)


def page_of(found: Comparison) -> str:
    return render_html(found, analyse(found, resamples=100))


def test_the_verdict_comes_first_then_the_headline() -> None:
    titles = [text.strip() for level, text in Outline(page()).headings if level <= 3]
    assert titles[:2] == ["simulated", "Verdict"]
    assert titles[2:5] == ["Before you believe the numbers", "Result", "Test accuracy of retrained winners"]


def test_headings_skip_no_level() -> None:
    for text in (page(), page_of(comparison([], state="created"))):
        levels = [level for level, _ in Outline(text).headings]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))


def test_identifiers_are_unique_and_references_lead_somewhere() -> None:
    outline = Outline(page())
    assert len(set(outline.identifiers)) == len(outline.identifiers)
    assert set(outline.references) <= set(outline.identifiers)
    inside = [link[1:] for link in outline.links if link.startswith("#")]
    assert set(inside) <= set(outline.identifiers)
    assert all(link.startswith(("#", "report-data/")) for link in outline.links)


def test_tables_and_pictures_have_names() -> None:
    outline = Outline(page())
    assert outline.names.count("table") == outline.names.count("caption") > 20
    assert outline.unnamed == []
    assert outline.names.count("figure") == outline.names.count("figcaption") == len(FIGURES)


def test_every_table_and_figure_has_its_place() -> None:
    named = {key for _, _, keys in SECTIONS for key in keys}
    assert {f"figure:{key}" for key in FIGURES} <= named
    assert {f"table:{key}" for key in (*TABLES, *LEARNED_TABLES)} - named == {"table:importances"}


def test_the_declared_budget_is_the_first_curve() -> None:
    found = simulated(replicates=2, trials=12)
    for axis in ("trials", "epochs", "seconds"):
        declared = dict(found.spec) | {"comparison": {"axis": axis}}
        other = Comparison(**{name: getattr(found, name) for name in found.__slots__} | {"spec": declared})
        analysis = analyse(other, resamples=100)
        course = next(s for s in sections_of(contents_of(other, analysis), analysis) if s.key == "course")
        assert course.blocks[0].key == f"best-so-far-{axis}"


def test_what_is_left_out_says_why() -> None:
    text = page_of(comparison([study("random", 0, [trial(0, 0.5)])]))
    assert "Figures left out" in text
    assert "No trial was pruned." in text
    assert "A single experiment has one dataset" in text


def test_plots_are_embedded_once_for_each_drawing() -> None:
    match = re.search(r'<script type="application/json" id="plots">(.*?)</script>', page())
    assert match is not None
    plots = json.loads(match[1])
    assert sorted(plots) == sorted(re.findall(r'data-plot="([^"]+)"', page()))
    assert len(match[1]) < 1_500_000
    assert len(page()) < 8_000_000


def test_exploratory_parts_are_marked_and_declared_ones_are_not() -> None:
    blocks = re.findall(
        r'<(?:figure|div) class="block" id="([\w-]+)".*?<h3[^>]*>(.*?)</h3>', page(), re.DOTALL
    )
    marked = {key for key, heading in blocks if "exploratory" in heading}
    assert {"figure-importances", "figure-dependence", "table-pairs-exploratory"} <= marked
    assert not marked & {"figure-scores", "table-headline", "table-pairs", "figure-best-so-far-epochs"}


def test_long_tables_are_folded() -> None:
    readings = page().split('id="table-test-readings"')[1]
    assert readings.index("<details>") < readings.index("<table>")
    headline = page().split('id="table-headline"')[1]
    assert "<details>" not in headline[: headline.index("<table>")]


def test_numbers_stay_with_their_signs() -> None:
    assert tied("95 % of n = 3") == "95\u00a0% of n\u00a0=\u00a03"


def test_what_is_not_shown_is_unfolded_beside_the_verdict() -> None:
    verdict = page().split('id="verdict"')[1].split("</section>")[0]
    assert "<details open><summary>What this doesn't show</summary>" in verdict


def test_a_name_breaks_after_its_underscores() -> None:
    assert breakable("a_b<c") == "a_<wbr>b&lt;c"
    found = comparison([study("a", 0, [trial(0, 0.5)])], experiment="of_two")
    assert Outline(page_of(found)).headings[0] == (1, "of_two")
