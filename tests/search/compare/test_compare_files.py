"""The files of `shoal compare`: one page, one text, one document, and the numbers behind them."""

from __future__ import annotations

import csv
import html
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from search.compare import compare_form
from search.compare.analysis import analyse
from search.compare.compare_files import compare_html, compare_markdown, experiments_in, write_compare
from search.compare.compare_form import CompareForm, compare_document, compare_json, compare_schema
from search.compare.together import Together, together
from tests.contracts.comparison_values import drawn

SHIPPED = Path(compare_form.__file__).with_name("compare.schema.json")

EVIL = "<script>document.title='taken'</script>|*x*`"


def found(names: tuple[str, ...] = ("first", "second"), data: str = "digits") -> Together:
    comparisons = []
    for seed, name in enumerate(names):
        one = drawn(("random", "tpe"), replicates=12, trials=6, seed=seed, shift={"tpe": 0.5})
        spec = {**one.spec, "data": {"name": f"{data}{seed}"}, "seed": seed}
        comparisons.append(replace(one, experiment=name, spec=spec))
    return together([(one, analyse(one, resamples=100)) for one in comparisons])


def test_all_files_are_written_and_stale_ones_removed(tmp_path: Path) -> None:
    (tmp_path / "compare-data").mkdir()
    (tmp_path / "compare-data" / "old.csv").touch()
    files = write_compare(found(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare-data", "compare.html", "compare.json", "compare.md",
    ]  # fmt: skip
    names = {path.name for path in (tmp_path / "compare-data").iterdir()}
    assert names == {path.name for path in files.data} >= {"regrets.csv", "table-across.csv"}
    assert "old.csv" not in names
    with (tmp_path / "compare-data" / "regrets.csv").open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 4
    assert float(rows[0]["normalised_regret"]) > 0


def test_the_document_holds_ranks_and_scores_in_full() -> None:
    result = found()
    held = json.loads(compare_json(result))
    assert held["schema"] == "shoal.compare/1"
    assert held == compare_document(result)
    assert held["ranks"] == {
        "average": {"random": 2.0, "tpe": 1.0},
        "friedman_p": None,
        "critical_difference": None,
        "alpha": 0.05,
        "not_told_apart": [],
    }
    assert [one["experiment"] for one in held["experiments"]] == ["first", "second"]
    assert held["experiments"][0]["scores"] == dict(result.across.blocks[0].scores)
    assert [table["key"] for table in held["tables"]] == [table.key for table in result.tables]
    assert CompareForm.model_validate_json(compare_json(result)).methods == ("random", "tpe")


def test_the_shipped_schema_is_that_of_the_form() -> None:
    """Made again by: json.dumps(compare_schema(), indent=2, ensure_ascii=False)."""
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == compare_schema()


@pytest.mark.parametrize("names", [("first", "second"), tuple(f"e{n}" for n in range(6))])
def test_documents_follow_the_shipped_schema(names: tuple[str, ...]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SHIPPED.read_text(encoding="utf-8")))
    validator.check_schema(compare_schema())
    body = json.loads(compare_json(found(names)))
    assert [error.message for error in validator.iter_errors(body)] == []
    for key, value in (("schema", "shoal.compare/0"), ("ranks", None), ("more", 1)):
        assert list(validator.iter_errors({**body, key: value}))


def test_a_folder_says_whose_comparison_it_holds(tmp_path: Path) -> None:
    assert experiments_in(tmp_path) is None
    write_compare(found(), tmp_path)
    assert experiments_in(tmp_path) == ("first", "second")
    for text in ("", "[]", '{"experiments": 3}', '{"experiments": [{}]}'):
        (tmp_path / "compare.json").write_text(text, encoding="utf-8")
        assert experiments_in(tmp_path) == ()


def test_the_page_is_whole_and_asks_nobody() -> None:
    page = compare_html(found())
    assert "default-src 'none'; script-src 'sha256-" in html.unescape(page)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    for words in (
        "What may be said",
        "Several experiments together",
        "Each experiment&#39;s headline",
        'data-plot="regrets-0"',
        "Average ranks over datasets",
        "compare-data/regrets.csv",
    ):
        assert words in page


def test_the_text_has_the_table_of_ranks_first() -> None:
    text = compare_markdown(found())
    assert text.startswith("# Experiments compared\n\nrandom, tpe · 2 experiments · ")
    assert text.index("## Several experiments together") < text.index("## The experiments")
    assert "| tpe | 1 |" in text
    assert "<details><summary>Each experiment's headline</summary>" in text


def test_names_can_not_write_markup() -> None:
    result = found((EVIL, "second"), data=EVIL)
    page = compare_html(result)
    assert "<script>document.title" not in page
    assert "<script>document.title" not in compare_markdown(result)
    assert r"\|\*x\*\`" in compare_markdown(result)
    assert json.loads(compare_json(result))["experiments"][0]["experiment"] == EVIL
