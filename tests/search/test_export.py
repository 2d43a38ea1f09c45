"""Forms of exported rows: what awkward values become."""

from __future__ import annotations

import csv
import io
import json

import pytest

from search.export import write_csv, write_json_lines


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
