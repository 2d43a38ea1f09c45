"""`shoal compare` on stored experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy

from search.commands.comparing import compare_folder
from storage.database import Database
from tests.contracts.shoal_command import document, printed
from tests.contracts.stored_experiment import store_experiment


@pytest.fixture
def two(stored: Database) -> Database:
    """A second experiment beside `stored`."""
    store_experiment(stored, name="other")
    return stored


def test_it_writes_files_and_prints_tables(two: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "compare", "stored", "other")
    assert out.startswith("Lowest average rank over 2 experiments: random, tpe, 1.50.")
    for words in ("Several experiments together", "The experiments", "Declared pairs in each experiment"):
        assert words in out
    assert out.rstrip().endswith("reports/compare/other+stored/compare.html")
    assert "wrote reports/compare/other+stored/compare.json" in err
    held = json.loads(Path("reports/compare/other+stored/compare.json").read_text(encoding="utf-8"))
    assert [one["experiment"] for one in held["experiments"]] == ["stored", "other"]


def test_json_writes_files_only_where_told(two: Database, capsys: pytest.CaptureFixture[str]) -> None:
    held = document(capsys, "compare", "stored", "other")
    assert (held["schema"], held["methods"]) == ("shoal.compare/1", ["random", "tpe"])
    assert not Path("reports").exists()
    again = document(capsys, "compare", "stored", "other", "--out", "there")
    assert json.loads(Path("there/compare.json").read_text(encoding="utf-8"))["ranks"] == again["ranks"]


def test_a_comparison_of_others_is_never_overwritten_silently(
    two: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    store_experiment(two, name="third")
    document(capsys, "compare", "stored", "other", "--out", "there")
    before = Path("there/compare.json").read_bytes()
    out, err = printed(capsys, "compare", "stored", "third", "--out", "there", code=2)
    assert out == ""
    assert "there holds a comparison of stored, other" in err
    assert "--overwrite" in err
    assert Path("there/compare.json").read_bytes() == before
    document(capsys, "compare", "other", "stored", "--out", "there")
    assert Path("there/compare.json").read_bytes() != before, "the same experiments are compared anew"
    document(capsys, "compare", "stored", "third", "--out", "there", "--overwrite")
    held = json.loads(Path("there/compare.json").read_text(encoding="utf-8"))
    assert [one["experiment"] for one in held["experiments"]] == ["stored", "third"]


def test_a_foreign_file_of_that_name_is_left_alone(
    two: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "compare.json").write_text("[1]", encoding="utf-8")
    _, err = printed(capsys, "compare", "stored", "other", "--out", str(tmp_path), code=2)
    assert "something else" in err
    assert (tmp_path / "compare.json").read_text(encoding="utf-8") == "[1]"


def test_each_set_of_experiments_has_a_folder_of_its_own() -> None:
    assert compare_folder(["b", "a"]) == compare_folder(["a", "b"]) == Path("reports/compare/a+b")
    long = [f"{letter}" * 100 for letter in "abc"]
    names = {compare_folder([*long, last]).name for last in ("x", "y")}
    assert len(names) == 2
    assert max(map(len, names)) <= 120


def test_tables_fit_eighty_columns(
    two: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = printed(capsys, "compare", "stored", "other")
    lines = [line for line in out.splitlines() if not line.startswith("report: ")]
    said = [line for line in lines if not line.startswith(("Lowest", "test of", "winner", "Experiments"))]
    assert max(map(len, said)) <= 80
    assert "…" not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "two experiments or more"),
        (("stored",), "shoal report stored shows a single one"),
        (("stored", "stored"), "named twice: stored"),
        (("stored", "other", "--methods", "tpe"), "--methods names two or more"),
        (("stored", "other", "--methods", "tpe,gp"), "stored: didn't run gp"),
    ],
)
def test_what_can_not_be_compared_is_bad_input(
    two: Database, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = printed(capsys, "compare", *arguments, code=2)
    assert out == ""
    assert words in err
    assert not Path("reports").exists()


def test_other_methods_are_refused_with_the_way_out(
    two: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    change = "UPDATE shoal.experiment_studies SET method = 'gp' WHERE name LIKE 'other/random/%'"
    with two.begin() as connection:
        connection.execute(sqlalchemy.text(change))
    _, err = printed(capsys, "compare", "stored", "other", code=2)
    assert "stored: didn't run gp" in err
    assert "other: didn't run random" in err
    assert "--methods" not in err, "one method in common can't be compared"
    error = document(capsys, "compare", "stored", "other", code=2)["error"]
    assert (error["kind"], len(error["problems"])) == ("not_comparable", 2)


def test_an_unknown_experiment_is_not_found(two: Database, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = printed(capsys, "compare", "stored", "missing", code=3)
    assert "missing" in err
