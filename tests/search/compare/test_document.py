"""`report.json`: its keys, its schema, and that only numbers get into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from search.compare import report_form
from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.contents import contents_of
from search.compare.document import SCHEMA, document, plain, to_json
from search.compare.report_form import report_schema
from search.compare.report_tables import tables_of
from search.compare.tables import Cell, Column, Table
from tests.contracts.comparison_values import comparison, drawn, lifelike, retraining, study, trial

SHIPPED = Path(report_form.__file__).with_name("report.schema.json")


def document_of(found: Comparison) -> dict[str, object]:
    analysis = analyse(found, resamples=100)
    return json.loads(to_json(document(found, analysis, tables_of(found, analysis))))


def test_the_shipped_schema_is_that_of_the_form() -> None:
    """Made again by: json.dumps(report_schema(), indent=2, ensure_ascii=False)."""
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == report_schema()


def retrained() -> Comparison:
    found = drawn(replicates=2, retrain={"seeds": 2})
    readings = []
    for one in found.studies:
        best = max(one.trials, key=lambda t: t.value or 0)
        readings += retraining(one, best.number, [0.5, 0.6])
    return replace(found, readings=tuple(readings))


@pytest.mark.parametrize(
    "found",
    [
        lifelike(replicates=12, trials=6),
        retrained(),
        comparison([], state="created"),
        comparison([study("grid", 0, [trial(0, None, state="failed")])]),
        comparison([study("random", 0, [trial(0, 0.4)])], direction="minimize", metric="error"),
        replace(lifelike(replicates=2, trials=3), state="running"),
    ],
    ids=["lifelike", "retrained", "no studies", "only failures", "one trial", "unfinished"],
)
def test_documents_follow_the_shipped_schema(found: Comparison) -> None:
    schema = json.loads(SHIPPED.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    body = document_of(found)
    assert [error.message for error in validator.iter_errors(body)] == []


@pytest.mark.parametrize(
    ("key", "value"), [("schema", "shoal.report/1"), ("studies", {}), ("verdict", None), ("more", 1)]
)
def test_the_schema_refuses_other_documents(key: str, value: object) -> None:
    body = document_of(drawn(replicates=1, trials=1)) | {key: value}
    assert list(jsonschema.Draft202012Validator(report_schema()).iter_errors(body))


def test_the_document_holds_the_analysis() -> None:
    found = drawn(["random", "tpe"], replicates=12, trials=3, shift={"tpe": 0.5})
    analysis = analyse(found, resamples=100)
    body = document_of(found)
    assert body["schema"] == SCHEMA == "shoal.report/2"
    assert body["verdict"]["claims"] is True  # type: ignore[index]
    (pair,) = body["pairs"]  # type: ignore[misc]
    assert (pair["first"], pair["better"], pair["verdict"]) == ("tpe", "tpe", "meaningful")
    assert pair["holm_p"] == analysis.pairs[0].result.holm_p
    assert pair["text"] == analysis.pairs[0].text
    assert [a["axis"] for a in body["anytime"]] == ["trials", "epochs", "seconds"]  # type: ignore[attr-defined]
    curve = body["anytime"][0]["methods"][0]["curves"][0]  # type: ignore[index]
    expected = analysis.anytime[0].methods[0].curves[0]
    assert (curve["positions"], curve["values"], curve["end"]) == (
        expected.positions.tolist(),
        expected.values.tolist(),
        expected.end,
    )
    assert len(body["studies"]) == 24  # type: ignore[arg-type]
    counts = body["methods"][0]["trials"]  # type: ignore[index]
    parts = ("complete", "pruned", "diverged", "failed", "running", "waiting")
    assert counts["total"] == sum(counts[part] for part in parts) == 36
    assert [t["key"] for t in body["tables"]][:2] == ["headline", "pairs"]  # type: ignore[attr-defined]


def test_what_was_learned_is_among_the_tables() -> None:
    found = lifelike(["random"], replicates=2, trials=30)
    analysis = analyse(found, resamples=100)
    body = document(found, analysis, contents_of(found, analysis).tables)
    own = {table.key for table in tables_of(found, analysis)}
    assert {table["key"] for table in body["tables"]} > own  # type: ignore[attr-defined]


def test_plain_turns_what_json_has_not_into_what_it_has() -> None:
    assert plain({1: (1.5, float("nan"), float("inf"), True, None), "p": Path("a")}) == {
        "1": [1.5, None, None, True, None],
        "p": "a",
    }


def test_a_reading_that_is_no_number_is_null() -> None:
    found = retrained()
    odd = replace(found.readings[0], metrics={"accuracy": float("nan")}, purpose="score")
    body = document_of(replace(found, readings=(odd,)))
    assert body["test_readings"][0]["metrics"] == {"accuracy": None}  # type: ignore[index]


def test_a_tables_value_that_is_no_number_is_null() -> None:
    found = drawn(replicates=1, trials=1)
    odd = Table(
        key="t", title="T", caption="", columns=(Column("a", "a"),), rows=((Cell(float("nan"), "–"),),)
    )
    body = document(found, analyse(found, resamples=100), (odd,))
    assert body["tables"][0]["values"] == [[None]]  # type: ignore[index]


def test_text_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"a": float("nan")})
