"""The report's files: what they say, and that nothing a user wrote can become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.page import embed_json, render_html
from search.compare.render import escape_markdown, markdown_table, render_json, render_markdown, write_report
from search.compare.tables import Cell, Column, Table
from tests.contracts.comparison_values import comparison, drawn, lifelike, study, trial

EVIL = """<script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7*7 }}`|*_\u2028</script>"""


def evil() -> Comparison:
    """Every place into which a user's text can come holds an attack."""
    params: dict[str, object] = {EVIL: EVIL, "loss": EVIL}
    return comparison(
        [study(EVIL, 0, [trial(0, 0.5, params=params), trial(1, None, state="failed", reason=EVIL)])],
        experiment=EVIL,
        metric=EVIL,
        spec={"space": {EVIL: {"values": [EVIL]}}, "methods": {EVIL: {EVIL: EVIL}}, EVIL: EVIL},
        environment={EVIL: {EVIL: [EVIL]}},
    )


def test_many_pairs_are_folded_up() -> None:
    few = drawn(["a", "b", "c", "d"], replicates=2, trials=1)
    many = drawn(["a", "b", "c", "d", "e"], replicates=2, trials=1)
    folded = "<summary>Each declared pair, with its numbers</summary>\n\n- Too few replicates"
    assert folded not in render_markdown(few, analyse(few, resamples=200))
    assert folded in render_markdown(many, analyse(many, resamples=200))


class Elements(HTMLParser):
    """The elements of a page, with the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._script = False


def page_of(found: Comparison) -> Elements:
    return Elements(html_of(found))


def html_of(found: Comparison) -> str:
    return render_html(found, analyse(found, resamples=100))


def markdown_of(found: Comparison) -> str:
    return render_markdown(found, analyse(found, resamples=100))


def test_page_has_no_element_that_a_user_wrote() -> None:
    page, plain = page_of(evil()), page_of(comparison([study("random", 0, [trial(0, 0.5)])]))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [attrs for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert len(page.scripts) == len(plain.scripts) == 3
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text


def test_policy_allows_exactly_the_two_scripts() -> None:
    page = page_of(evil())
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    assert allowed == hashes


def test_page_needs_no_network() -> None:
    page = page_of(lifelike())
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:", "report-data/")), (tag, value)
    assert "@import" not in html_of(lifelike(replicates=1)).split("</style>")[0]


def test_page_can_be_walked_without_seeing_it() -> None:
    page = page_of(lifelike())
    names = [tag for tag, _ in page.tags]
    assert names.count("main") == names.count("header") == names.count("h1") == 1
    assert names.count("table") == names.count("caption")
    assert next(attributes for tag, attributes in page.tags if tag == "html")["lang"] == "en"
    identifiers = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        for name in ("aria-labelledby",):
            assert attributes.get(name) is None or attributes[name] in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in identifiers


def test_page_says_what_matters() -> None:
    text = page_of(lifelike()).text
    for expected in (
        "grid",
        "tpe",
        "learning_rate",
        "0123abc",
        "n_startup_trials: 10",
        "Too few",
    ):
        assert expected in text


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028\u2029", "]]>&amp;", "\ud83d\ude00"])
def test_embedded_json_stays_inside_its_element(text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    embedded = str(embed_json({"a": text}))
    assert json.loads(embedded) == {"a": text}
    assert embedded.isascii()
    assert not set(embedded) & set("<>&")


def test_embedded_json_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embed_json({"a": float("nan")})


def test_markdown_escapes_what_would_be_markup() -> None:
    assert escape_markdown("a|b\n<b>*x*</b> `c`") == "a\\|b &lt;b&gt;\\*x\\*&lt;/b&gt; \\`c\\`"
    assert escape_markdown(0.25) == 0.25
    text = markdown_of(evil())
    assert "<script" not in text
    assert "<img" not in text


def test_markdown_tables_keep_their_columns() -> None:
    for found in (lifelike(), evil()):
        lines = markdown_of(found).splitlines()
        for place, line in enumerate(lines):
            if not set(line) <= set("|-: ") or "--" not in line:
                continue
            width = columns(lines[place - 1])
            following = lines[place + 1 :]
            rows = following[: next((n for n, row in enumerate(following) if not row.startswith("|")), None)]
            assert rows, line
            assert {columns(row) for row in (line, *rows)} == {width}


def columns(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row))


def test_markdown_holds_the_numbers() -> None:
    found = comparison([study("random", r, [trial(0, 0.5 + r / 10)]) for r in range(3)])
    text = markdown_of(found)
    assert "| random | 3 | 0.6 | 0.55 to 0.65 | 0.6 | " in text
    assert "| random | 3 | 3 | 0 | 0 | 0 | 0 | 0 | 0 | 15 | 3.0 s | 0.0 s | – |" in text


def test_markdown_begins_with_the_verdict() -> None:
    found = drawn(replicates=12, trials=50, shift={"tpe": 0.5})
    lines = markdown_of(found).splitlines()
    assert lines[4].startswith("**tpe is better than random over 12 replicates")
    assert "## What this does not show" in lines
    assert any(line.startswith("- tpe is better than random at this budget") for line in lines)


def test_markdown_is_short_enough_for_a_pull_request() -> None:
    text = markdown_of(lifelike([f"m{n}" for n in range(8)], replicates=30, trials=3))
    assert len(text) < 65_536, "what GitHub takes as a comment"


def test_a_table_in_markdown() -> None:
    table = Table(
        key="t",
        title="T",
        caption="",
        columns=(Column("a", "a|b"), Column("n", "n", "right")),
        rows=((Cell("x", "x|<b>"), Cell(None, "–")),),
    )
    assert str(markdown_table(table)) == "| a\\|b | n |\n| --- | --: |\n| x\\|&lt;b&gt; | – |"


@pytest.mark.parametrize(
    "found",
    [
        comparison([], state="created"),
        comparison([study("grid", 0, [])]),
        comparison([study("grid", 0, [trial(0, None, state="failed")])]),
        comparison([study("grid", 0, [trial(0, 0.4)])], direction="minimize", metric="error"),
        lifelike([f"m{n}" for n in range(8)], replicates=2, trials=3),
    ],
    ids=["no studies", "no trials", "only failures", "one trial", "eight methods"],
)
def test_every_kind_of_experiment_has_a_report(found: Comparison, tmp_path: Path) -> None:
    files = write_report(found, tmp_path / "deep" / "down")
    assert json.loads(files.json.read_text(encoding="utf-8"))["experiment"] == "digits"
    assert files.markdown.read_text(encoding="utf-8").startswith("# digits")
    assert "</html>" in files.html.read_text(encoding="utf-8")
    assert {path.name for path in files.json.parent.iterdir()} == {
        "report.json", "report.md", "report.html", "report-data",
    }  # fmt: skip


def test_the_revision_stands_in_the_header() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567+changes"
    environment = {"revision": commit, "cpu": "A CPU", "memory_gib": 23.5, "gpus": []}
    found = comparison([study("random", 0, [trial(0, 0.5)])], environment=environment)
    page, markdown = html_of(found), markdown_of(found)
    header = page[page.index("<header>") : page.index("</header>")]
    assert "revision <code>0123456789ab+changes</code>" in header
    assert "revision 0123456789ab+changes" in markdown.splitlines()[2]
    for text in (page, markdown):
        assert commit in text, "the whole of it, in the protocol"
        assert "A CPU" in text
        assert "23.5" in text
    assert json.loads(render_json(found, analyse(found), ()))["environment"] == environment


@pytest.mark.parametrize("environment", [{}, {"revision": None}])
def test_without_a_revision_the_header_has_none(environment: dict[str, object]) -> None:
    found = comparison([study("random", 0, [trial(0, 0.5)])], environment=environment)
    page, markdown = html_of(found), markdown_of(found)
    assert "revision" not in page[page.index("<header>") : page.index("</header>")]
    assert "revision" not in markdown.splitlines()[2]
