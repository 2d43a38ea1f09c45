"""The report's files: what they say, and that nothing a user wrote can become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from search.compare.base import Comparison
from search.compare.document import SCHEMA, document
from search.compare.figures import best_so_far_figure
from search.compare.render import (
    embed_json,
    escape_markdown,
    flatten,
    render_html,
    render_json,
    render_markdown,
    strip,
    write_report,
)
from search.compare.summary import Spread, summarise
from tests.contracts.comparison_values import comparison, lifelike, study, trial

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
    return Elements(render_html(found, summarise(found)))


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
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert (
        "@import"
        not in render_html(lifelike(replicates=1), summarise(lifelike(replicates=1))).split("</style>")[0]
    )


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
        "digits/random/4",
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
    text = render_markdown(evil(), summarise(evil()))
    assert "<script" not in text
    assert "<img" not in text


def test_markdown_tables_keep_their_columns() -> None:
    for found in (lifelike(), evil()):
        lines = render_markdown(found, summarise(found)).splitlines()
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
    text = render_markdown(found, summarise(found))
    assert "| random | 0.6 | 0.6 ± 0.1 | 0.5 to 0.7 | 0.6 | 3 | 0 | 0 | 0 | 15 | 3.0 s |" in text


def test_json_has_the_documented_keys() -> None:
    found = lifelike()
    report = json.loads(render_json(found, summarise(found)))
    assert report["schema"] == SCHEMA
    assert set(report) == {
        "schema", "experiment", "state", "created_at", "collected_at", "metric", "replicates",
        "common_epochs", "notes", "methods", "studies", "test_readings", "spec", "environment",
    }  # fmt: skip
    method = report["methods"][0]
    assert set(method) == {
        "method", "settings", "replicates", "best", "at_common_epochs", "trials", "epochs", "device_seconds",
        "best_trial", "curve",
    }  # fmt: skip
    assert set(method["best"]) == {"n", "mean", "sd", "median", "min", "max", "values"}
    assert len(report["studies"]) == 15
    total = method["trials"]
    parts = ("complete", "pruned", "diverged", "failed", "running", "waiting")
    assert total["total"] == sum(total[part] for part in parts) == 100


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
    assert {path.name for path in files.json.parent.iterdir()} == {"report.json", "report.md", "report.html"}


def test_figure_has_a_line_and_a_band_per_method_and_replicates_hidden() -> None:
    found = lifelike()
    figure = best_so_far_figure(found, summarise(found))
    traces = figure.plot["data"]
    assert isinstance(traces, list)
    by_kind = [trace["meta"] for trace in traces]
    assert (by_kind.count("median"), by_kind.count("band"), by_kind.count("replicate")) == (3, 6, 15)
    assert all(trace["visible"] is False for trace in traces if trace["meta"] == "replicate")
    assert figure.has_replicates
    json.dumps(document(found, summarise(found)), allow_nan=False)


def test_figure_table_repeats_the_curves() -> None:
    found = comparison(
        [study("grid", r, [trial(n, 0.5 + r / 10 + n / 100, epochs=1) for n in range(8)]) for r in range(3)]
    )
    cuts = best_so_far_figure(found, summarise(found)).cuts
    assert [cut.epochs for cut in cuts] == [2, 4, 6, 8]
    (cell,) = cuts[1].cells
    assert cell is not None
    assert (cell.median, cell.low, cell.high, cell.n) == (pytest.approx(0.63), 0.53, 0.73, 3)


def test_axis_leaves_out_bad_beginnings_only() -> None:
    late = [trial(n, 0.1 if n < 2 else 0.9 + n / 1000, epochs=1) for n in range(20)]
    early_bad = comparison([study("grid", 0, late)])
    layout = best_so_far_figure(early_bad, summarise(early_bad)).plot["layout"]
    assert isinstance(layout, dict)
    low, high = layout["yaxis"]["range"]
    assert 0.85 < low < 0.91
    assert 0.919 < high < 0.93
    even = comparison([study("grid", 0, [trial(n, 0.5 + n / 100, epochs=1) for n in range(20)])])
    layout = best_so_far_figure(even, summarise(even)).plot["layout"]
    assert isinstance(layout, dict)
    assert "range" not in layout["yaxis"]


def test_strip_places_values_on_the_scale() -> None:
    assert strip(Spread((1.0, 2.0, 3.0)), 1.0, 3.0) == [0, 50, 100]
    assert strip(Spread((1.0,)), 1.0, 1.0) == [50]
    assert strip(None, 0, 1) == []


def test_flatten_names_nested_settings() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": True}}, "e": [1, 0.5], "f": None, "g": {}}) == [
        ("a.b", "1"), ("a.c.d", "true"), ("e", "1, 0.5"), ("f", "–"), ("g", "–"),
    ]  # fmt: skip


def test_the_revision_stands_in_the_header() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567+changes"
    environment = {"revision": commit, "cpu": "A CPU", "memory_gib": 23.5, "gpus": []}
    found = comparison([study("random", 0, [trial(0, 0.5)])], environment=environment)
    page, markdown = render_html(found, summarise(found)), render_markdown(found, summarise(found))
    header = page[page.index("<header>") : page.index("</header>")]
    assert "revision <code>0123456789ab+changes</code>" in header
    assert "revision 0123456789ab+changes" in markdown.splitlines()[2]
    for text in (page, markdown):
        assert commit in text, "the whole of it, in the protocol"
        assert "A CPU" in text
        assert "23.5" in text
    assert json.loads(render_json(found, summarise(found)))["environment"] == environment


@pytest.mark.parametrize("environment", [{}, {"revision": None}])
def test_without_a_revision_the_header_has_none(environment: dict[str, object]) -> None:
    found = comparison([study("random", 0, [trial(0, 0.5)])], environment=environment)
    page, markdown = render_html(found, summarise(found)), render_markdown(found, summarise(found))
    assert "revision" not in page[page.index("<header>") : page.index("</header>")]
    assert "revision" not in markdown.splitlines()[2]
