"""Forms of exported rows: what awkward values become."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas
import pytest
from pyarrow import parquet

from search.export import (
    COLUMNS,
    MissingLibraryError,
    columns_of,
    epoch_rows,
    frame,
    trial_rows,
    write_csv,
    write_json_lines,
    write_parquet,
)
from storage.database import Database
from tests.contracts.shoal_command import printed


def test_rows_may_lack_columns_that_others_have() -> None:
    target = io.StringIO()
    write_csv([{"a": 1, "params.b": 2}, {"a": 3, "params.c": None}], target)
    assert target.getvalue() == "a,params.b,params.c\n1,2,\n3,,\n"


@pytest.mark.parametrize("text", ['a,"b"\nc', "=1+1", "ü \u2028", "'"])
def test_text_comes_back_as_it_was(text: str) -> None:
    as_csv, as_json = io.StringIO(newline=""), io.StringIO()
    write_csv([{"reason": text}], as_csv)
    assert list(csv.DictReader(io.StringIO(as_csv.getvalue(), newline=""))) == [{"reason": text}]
    write_json_lines([{"reason": text}], as_json)
    assert json.loads(as_json.getvalue()) == {"reason": text}


def test_numbers_are_not_rounded() -> None:
    target = io.StringIO()
    write_csv([{"value": 0.1 + 0.2}], target)
    assert target.getvalue().splitlines()[1] == "0.30000000000000004"


def test_no_rows_are_an_empty_file_with_a_header_of_nothing() -> None:
    as_csv, as_json = io.StringIO(), io.StringIO()
    write_csv([], as_csv)
    write_json_lines([], as_json)
    assert as_csv.getvalue().strip() == as_json.getvalue() == ""


def row(**further: object) -> dict[str, object]:
    """A trial's row in which most is missing."""
    return {"experiment": "x", "trial": 0, "started_at": "2026-01-05T09:00:00.25+00:00", **further}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], "integer"),
        ([1, None], "integer"),
        ([1, 0.5], "float"),
        ([True, False], "boolean"),
        ([True, 1], "text"),
        ([1, "1"], "text"),
        ([2**63], "text"),
        ([-(2**63), 2**63 - 1], "integer"),
        ([None], "float"),
    ],
)
def test_a_dimension_has_the_type_of_its_values(values: list[object], expected: str) -> None:
    rows = [row(**{"params.p": value}) for value in values]
    assert columns_of(rows, "trials")["params.p"] == expected


def test_parquet_keeps_types_and_what_is_missing(tmp_path: Path) -> None:
    rows = [
        row(value=0.1 + 0.2, diverged=False, **{"params.n": 3, "params.mixed": 1, "params.loss": "mse"}),
        row(value=None, diverged=True, **{"params.mixed": "auto", "params.flag": True}),
    ]
    write_parquet(rows, "trials", tmp_path / "t.parquet")
    found = parquet.read_table(tmp_path / "t.parquet")
    types = {field.name: str(field.type) for field in found.schema}
    assert {name: types[name] for name in ("trial", "value", "diverged", "started_at", "reason")} == {
        "trial": "int64",
        "value": "double",
        "diverged": "bool",
        "started_at": "timestamp[us, tz=UTC]",
        "reason": "string",
    }
    first, second = found.to_pylist()
    assert first["value"] == 0.1 + 0.2
    assert first["started_at"] == datetime(2026, 1, 5, 9, 0, 0, 250_000, UTC)
    assert (first["params.n"], first["params.mixed"], first["params.flag"]) == (3, "1", None)
    assert (second["params.n"], second["params.mixed"], second["params.flag"]) == (None, "auto", True)
    assert second["value"] is None


def test_no_rows_are_a_file_with_columns(tmp_path: Path) -> None:
    write_parquet([], "epochs", tmp_path / "e.parquet")
    found = parquet.read_table(tmp_path / "e.parquet")
    assert (found.num_rows, found.column_names) == (0, list(COLUMNS["epochs"]))


def test_the_columns_are_those_of_every_row(stored: Database) -> None:
    trials, epochs = trial_rows(stored, "stored"), epoch_rows(stored, "stored")
    assert all(tuple(one)[: len(COLUMNS["trials"])] == tuple(COLUMNS["trials"]) for one in trials)
    assert all(tuple(one)[: len(COLUMNS["epochs"])] == tuple(COLUMNS["epochs"]) for one in epochs)


def test_a_frame_holds_what_was_measured(stored: Database) -> None:
    trials = frame(stored, "stored")
    assert len(trials) == 16
    assert (str(trials["trial"].dtype), str(trials["diverged"].dtype)) == ("Int64", "boolean")
    assert trials["params.learning_rate"].dtype == "float64"
    assert str(trials["started_at"].dt.tz) == "UTC"
    best = trials[trials["state"] == "complete"].groupby("method")["value"].max()
    assert best.to_dict() == {"random": 0.6, "tpe": 0.6}
    assert int(trials["value"].isna().sum()) == 4
    epochs = frame(stored, "stored", "epochs")
    assert len(epochs) == 20
    assert epochs["metrics.accuracy"].dtype == "float64"


def test_the_command_writes_parquet(
    stored: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export", "stored", "--format", "parquet")
    out, err = printed(capsys, *arguments, "--out", "t.parquet")
    assert (out, err) == ("", "wrote 16 trials to t.parquet\n")
    assert len(pandas.read_parquet("t.parquet")) == 16
    _, err = printed(capsys, *arguments, code=2)
    assert "--out FILE" in err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _, err = printed(capsys, *arguments, "--out", "u.parquet", code=1)
    assert "pip install 'shoal[parquet]'" in err
    assert not Path("u.parquet").exists()
    with pytest.raises(MissingLibraryError, match="pyarrow is not installed"):
        frame(stored, "stored")
