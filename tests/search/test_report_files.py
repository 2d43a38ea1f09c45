"""The CSV files beside the report."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from search.compare.analysis import analyse
from search.compare.contents import contents_of
from search.compare.figures.files import FOLDER, csv_text, trials_data, write_data
from search.compare.render import write_report
from tests.contracts.comparison_values import comparison, study, trial
from tests.contracts.simulated_experiment import simulated


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_every_figure_table_and_trial_has_its_file(tmp_path: Path) -> None:
    found = simulated(replicates=3, trials=20, pruned=True, retrained=2)
    analysis = analyse(found, resamples=100)
    files = write_report(found, tmp_path, analysis)
    made = contents_of(found, analysis)
    wanted = {f"{figure.key}.csv" for figure in made.figures}
    wanted |= {f"table-{table.key}.csv" for table in made.tables} | {"trials.csv"}
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == wanted
    assert {path.name for path in files.data} == wanted
    for figure in made.figures:
        rows = read(tmp_path / FOLDER / f"{figure.key}.csv")
        assert len(rows) == len(figure.data.rows)
        assert list(rows[0]) == list(figure.data.columns)


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
