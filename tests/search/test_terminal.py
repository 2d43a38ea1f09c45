"""Strings from the database never reach a terminal raw: whoever writes a study's name paints no screen."""

from __future__ import annotations

import json
import re

import pytest

from search import output
from search.cli import run_command
from storage.database import Database
from storage.experiments import Experiments
from tests.contracts.evil_experiment import store_evil_experiment

ESCAPES = "\x1b]0;taken\x07\x1b[2J\x1b[31m\x9b31m\x85\x7f\u202egnp\u2066\u2028\r\x08x"
"""Sets the title, clears the screen, colours (in 7 and 8 bits), turns letters round, goes back in a line."""

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Every control character but tab and line feed."""

COMMANDS = (
    ("status",),
    ("status", "{name}"),
    ("status", "{name}", "--studies"),
    ("trials", "{name}"),
    ("trials", "{name}", "--state", "failed"),
    ("best", "{name}"),
    ("db", "check"),
)


@pytest.fixture
def name(database: Database) -> str:
    store_evil_experiment(database, ESCAPES)
    return Experiments(database).list()[0].name


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_prints_control_characters(
    name: str, database: Database, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], as_json: bool
) -> None:
    arguments = [part.format(name=name) for part in command]
    run_command([*arguments, "--database", database.url, *(["--json"] if as_json else [])])
    said = capsys.readouterr()
    assert len(said.out + said.err) > 100
    assert RAW.findall(said.out + said.err) == []
    if as_json:
        assert json.loads(said.out)


def test_json_says_what_the_string_was(
    name: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["status", "--json", "--database", database.url]) == 0
    (found,) = json.loads(capsys.readouterr().out)["experiments"]
    assert found["experiment"] == ESCAPES


def test_an_error_that_quotes_what_was_typed(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["status", ESCAPES], [ESCAPES], ["status", "--json", ESCAPES], ["run", ESCAPES]):
        assert run_command([*arguments, "--database", database.url]) in {2, 3}
        said = capsys.readouterr()
        assert RAW.findall(said.out + said.err) == []


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_keeps_its_data_in_a_file_and_paints_no_terminal(
    name: str,
    database: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    command = ["export", name, "--format", form, "--database", database.url]
    assert run_command(command) == 0
    piped = capsys.readouterr().out
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    assert RAW.findall(shown.replace("\r\n", "\n")) == []
    if form == "csv":
        assert "\x1b[2J" in piped
    else:
        assert json.loads(piped.split("\n")[0])["experiment"] == ESCAPES


@pytest.mark.parametrize(
    "name", ["\x00", "a\x00b", "\ud800", "x" * 600, "", " ", "../../etc/passwd", "a'; DROP TABLE x --"]
)
def test_names_that_nobody_can_have_are_not_found(
    database: Database, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for command in ("status", "trials", "best", "stop", "report", "export", "resume", "watch"):
        code = run_command([command, name, "--database", database.url])
        said = capsys.readouterr()
        assert code == 3, (command, said.err)
        assert "this is a mistake in shoal" not in said.err
