"""The CSV files beside the report."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from pyarrow import parquet

from search.compare.analysis import analyse
from search.compare.contents import contents_of
from search.compare.figures.base import Data
from search.compare.figures.files import FOLDER, contents_data, csv_text, trials_data, write_data
from search.compare.figures.parquet import write_parquet
from search.compare.render import write_report
from search.compare.report_tables import tables_of
from tests.contracts.comparison_values import comparison, drawn, study, trial
from tests.contracts.simulated_experiment import simulated


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_every_figure_table_and_trial_has_its_file(tmp_path: Path) -> None:
    found = simulated(replicates=3, trials=20, pruned=True, retrained=2)
    analysis = analyse(found, resamples=100)
    files = write_report(found, tmp_path, analysis)
    made = contents_of(found, analysis)
    names = {figure.key for figure in made.figures} | {f"table-{table.key}" for table in made.tables}
    wanted = {f"{name}.{kind}" for name in (*names, "trials") for kind in ("csv", "parquet")}
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == wanted
    assert {path.name for path in files.data} == wanted
    for figure in made.figures:
        rows = read(tmp_path / FOLDER / f"{figure.key}.csv")
        assert len(rows) == len(figure.data.rows)
        assert list(rows[0]) == list(figure.data.columns)
        table = parquet.read_table(tmp_path / FOLDER / f"{figure.key}.parquet")
        assert table.column_names == list(figure.data.columns)
        assert [tuple(row.values()) for row in table.to_pylist()] == [
            pytest.approx(row) if all(isinstance(v, float) for v in row) else row for row in figure.data.rows
        ]


def test_without_the_library_there_is_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = comparison([study("random", 0, [trial(0, 0.5)])])
    write_data(tmp_path, found, (), ())
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"trials.csv", "trials.parquet"}
    monkeypatch.setattr("search.compare.figures.files.is_installed", lambda: False)
    write_data(tmp_path, found, (), ())
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"trials.csv"}, "nor an old one"


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([1, None, 3], "int64", [1, None, 3]),
        ([1, 2.5, None], "double", [1.0, 2.5, None]),
        ([True, None], "bool", [True, None]),
        (["a", None, "=b"], "string", ["a", None, "=b"]),
        ([1, "full", 0.5], "string", ["1", "full", "0.5"]),
        ([True, 2], "string", ["true", "2"]),
        ([2**70, 1], "string", [str(2**70), "1"]),
        ([None], "string", [None]),
        ([], "string", []),
    ],
)
def test_parquet_columns_have_types(tmp_path: Path, values: list, kind: str, kept: list) -> None:
    write_parquet(Data(("a",), tuple((value,) for value in values)), tmp_path / "a.parquet")
    read = parquet.read_table(tmp_path / "a.parquet").column("a")
    assert (str(read.type), read.to_pylist()) == (kind, kept)


def test_what_a_cell_tells_beside_its_value_has_columns_of_its_own() -> None:
    found = drawn(replicates=12, trials=60, shift={"tpe": 0.5})
    analysis = analyse(found, resamples=200)
    data = contents_data((), tables_of(found, analysis))
    headline = data["table-headline"]
    row = dict(zip(headline.columns, headline.rows[1], strict=True))
    score = analysis.methods[1].score
    assert score is not None
    assert (row["mean"], row["mean_interval.low"]) == (score.mean.estimate, score.mean.low)
    assert (row["quartiles.low"], row["quartiles.high"]) == (score.low_quartile, score.high_quartile)
    assert row["interquartile_mean"] == score.interquartile_mean
    pairs = data["table-pairs"]
    difference = analysis.pairs[0].result.difference
    assert difference is not None
    assert dict(zip(pairs.columns, pairs.rows[0], strict=True))["difference_interval.high"] == difference.high


def test_levels_keep_their_intervals_in_the_data() -> None:
    contents = contents_of(
        found := simulated(replicates=3, trials=40, retrained=0), analyse(found, resamples=100)
    )
    levels = contents_data((), contents.tables)["table-levels"]
    rows = [dict(zip(levels.columns, row, strict=True)) for row in levels.rows]
    assert all(row["tuned_best.low"] <= row["tuned_best"] <= row["tuned_best.high"] for row in rows)
    behind = [row for row in rows if row["behind"]]
    assert behind
    assert all(row["behind.low"] <= row["behind.high"] for row in behind)


def test_numbers_are_in_full_and_nothing_is_empty(tmp_path: Path) -> None:
    found = comparison(
        [study("random", 0, [trial(0, 1 / 3, params={"rate": 0.1}), trial(1, None, state="failed")])]
    )
    write_data(tmp_path, found, (), ())
    first, second = read(tmp_path / FOLDER / "trials.csv")
    assert float(first["value"]) == 1 / 3
    assert (second["value"], second["state"], second["started_at"]) == ("", "failed", "")
    assert first["params.rate"] == "0.1"


def test_a_figure_that_is_no_longer_made_leaves_no_file(tmp_path: Path) -> None:
    write_report(simulated(replicates=2, trials=20, pruned=True, retrained=0), tmp_path)
    assert (tmp_path / FOLDER / "pruned.csv").exists()
    (tmp_path / FOLDER / "mine.txt").write_text("kept", encoding="utf-8")
    write_report(simulated(replicates=2, trials=20, retrained=0), tmp_path)
    assert not (tmp_path / FOLDER / "pruned.csv").exists()
    assert (tmp_path / FOLDER / "mine.txt").exists()


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2", "@x", "\tx"])
def test_spreadsheets_run_nothing(text: str) -> None:
    assert csv_text(["a"], [[text]]).splitlines()[1].strip('"').startswith("'")
    assert csv_text(["a"], [[-2.5]]) == "a\n-2.5\n", "numbers stay numbers"


def test_text_with_commas_quotes_and_lines_comes_back() -> None:
    text = 'a,"b"\nc'
    assert list(csv.reader(io.StringIO(csv_text(["k"], [[text]]), newline="")))[1] == [text]


def test_trials_have_a_column_per_dimension() -> None:
    found = comparison(
        [
            study("random", 0, [trial(0, 0.5, params={"a": 1})]),
            study("tpe", 0, [trial(0, 0.6, params={"b": "x"})]),
        ]
    )
    data = trials_data(found)
    assert data.columns[-2:] == ("params.a", "params.b")
    assert [row[-2:] for row in data.rows] == [(1, None), (None, "x")]
