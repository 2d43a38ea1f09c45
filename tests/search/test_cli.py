"""The command line on a stored experiment: what each command prints, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import search.cli
from search.cli import COMMANDS
from storage.database import URL_VARIABLE, Database
from storage.experiments import Experiments
from storage.urls import mask
from tests.contracts.shoal_command import document, printed, tiny

HEAVY = (
    "torch",
    "torchvision",
    "ray",
    "optuna",
    "optuna_dashboard",
    "plotly",
    "pandas",
    "sklearn",
    "alembic",
    "jinja2",
)

ALL = (
    "init",
    "plan",
    "run",
    "submit",
    "resume",
    "retry",
    "stop",
    "worker",
    "schedule",
    "status",
    "watch",
    "logs",
    "trials",
    "best",
    "report",
    "compare",
    "export",
    "score",
    "drain",
    "serve",
    "dashboard",
    "metrics",
    "doctor",
    "bench",
    "schema",
    "db",
)


def test_the_commands_are_these() -> None:
    assert tuple(command for commands in COMMANDS.values() for command in commands) == ALL


@pytest.mark.parametrize(
    "command", [*([name] for name in ALL), *(["db", name] for name in ("up", "down", "url", "check"))]
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, *command, "--help")
    assert f"Usage: shoal {' '.join(command)}" in out
    assert err == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "--help")
    for name in ALL:
        assert f"│ {name} " in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["status", "--nope"],
        ["run"],
        ["watch", "stored", "--interval", "0"],
        ["run", "x", "--workers", "0"],
        ["trials", "stored", "--state", "odd"],
        ["export", "stored", "--format", "xls"],
        ["dashboard", "--port", "x"],
    ],
)
def test_wrong_usage_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, *arguments, code=2)
    assert out == ""
    assert "error: " in err
    assert "--help" in err
    assert "Traceback" not in err


def test_errors_are_json_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    error = document(capsys, "status", "--nope", code=2)
    assert error["schema"] == "shoal.error/1"
    assert error["error"]["code"] == 2


def test_list_of_experiments(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "status")
    assert "stored" in out
    assert "random, tpe" in out
    assert err == ""
    (found,) = document(capsys, "status")["experiments"]
    assert (found["experiment"], found["state"], found["methods"]) == (
        "stored",
        "finished",
        ["random", "tpe"],
    )


def test_status(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "status", "stored", "--studies")
    assert "stored/tpe/1" in out
    found = document(capsys, "status", "stored")
    assert found["schema"] == "shoal.status/1"
    by_name = {method["method"]: method for method in found["methods"]}
    assert (by_name["tpe"]["finished"], by_name["tpe"]["planned"], by_name["tpe"]["best"]) == (8, 8, 0.6)
    assert (by_name["tpe"]["pruned"], by_name["tpe"]["failed"]) == (2, 2)
    assert len(found["studies"]) == 4


def test_watch_ends_with_the_experiment(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "watch", "stored")
    assert "finished" in out
    assert "16/16 trials" in err
    assert json.loads(printed(capsys, "watch", "stored", "--json")[0])["state"] == "finished"


def test_trials(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "trials", "stored", "--method", "tpe")
    assert len(out.splitlines()) == 9
    assert "diverged" in out
    assert "the model raised <ValueError>" in out
    assert len(document(capsys, "trials", "stored")["trials"]) == 16
    (row, *rest) = document(capsys, "trials", "stored", "--state", "pruned", "--limit", "3")["trials"]
    assert len(rest) == 2
    assert row["state"] == "pruned"
    assert row["params"]["loss"] == "mse"


def test_best(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "best", "stored")
    assert "replicate 1, trial 0" in out
    found = document(capsys, "best", "stored")
    assert [(row["method"], row["replicate"], row["value"]) for row in found["methods"]] == [
        ("random", 1, 0.6), ("tpe", 1, 0.6),
    ]  # fmt: skip
    assert len(found["studies"]) == 4


def test_best_of_nothing_is_not_found(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Experiments(database).create("empty", {"methods": {"tpe": {}}, "metric": "accuracy"}, "0" * 64, {}, [])
    monkeypatch.setenv(URL_VARIABLE, database.url)
    _, err = printed(capsys, "best", "empty", code=3)
    assert "no trial of empty" in err


def test_report(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "report", "stored")
    assert out.rstrip().endswith("reports/stored/report.html")
    assert "Too few replicates" in err
    assert sorted(path.name for path in Path("reports/stored").iterdir()) == [
        "report-data",
        "report.html",
        "report.json",
        "report.md",
    ]
    found = document(capsys, "report", "stored", "--out", "elsewhere")
    assert found["schema"] == "shoal.report/2"
    assert (
        json.loads(Path("elsewhere/report.json").read_text(encoding="utf-8"))["methods"] == found["methods"]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "stored", "--studies"],
        ["trials", "stored"],
        ["best", "stored"],
        ["report", "stored"],
    ],
)
def test_tables_fit_a_terminal_of_80_columns(
    arguments: list[str],
    stored: Database,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = printed(capsys, *arguments)[0]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = printed(capsys, *arguments)[0]
    lines = [line for line in narrow.splitlines() if not line.startswith("report: ")]
    assert max(map(len, lines)) <= 80
    assert "…" not in narrow
    for word in ("random", "tpe", *re.findall(r"\b0\.\d+\b", wide)):
        assert word in narrow


def test_a_report_that_is_only_printed_writes_nothing(
    stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    document(capsys, "report", "stored")
    assert not Path("reports").exists()


def test_export(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "export", "stored")
    assert len(list(csv.DictReader(io.StringIO(out)))) == 16
    assert err == ""
    out, err = printed(
        capsys, "export", "stored", "--what", "epochs", "--format", "jsonl", "--out", "e.jsonl"
    )
    assert out == ""
    assert "20 epochs" in err
    assert len(Path("e.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_stop(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    experiments = Experiments(stored)
    identifier = experiments.get("stored").id
    out, err = printed(capsys, "stop", "stored")
    assert (out, "nothing to stop" in err, experiments.stop_requested(identifier)) == ("", True, False)
    experiments.set_state(identifier, "running")
    assert document(capsys, "stop", "stored")["stop_requested"] is True
    assert experiments.stop_requested(identifier)


@pytest.mark.parametrize(
    "command", ["status", "watch", "trials", "best", "report", "export", "score", "stop", "resume"]
)
def test_unknown_experiments_are_not_found_and_near_names_are_told(
    command: str, stored: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = printed(capsys, command, "storde", code=3)
    assert out == ""
    assert "'stored'" in err


def test_unknown_methods_are_not_found(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("trials", "best", "score"):
        assert "random, tpe" in printed(capsys, command, "stored", "--method", "gp", code=3)[1]


def test_an_unreachable_database_is_told_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    url = "postgresql://me:sesame@127.0.0.1:1/none"
    for command in (["status"], ["db", "check"], ["export", "x"], ["report", "x"]):
        out, err = printed(capsys, *command, "--database", url, code=5)
        assert "sesame" not in out + err
        assert "***" in out + err


def test_an_unreachable_ray_cluster_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny("tiny"), encoding="utf-8")
    err = printed(capsys, "run", str(file), "--ray-address", "127.0.0.1:1", code=5)[1]
    assert "can't reach Ray at 127.0.0.1:1" in err
    for address in ("127.0.0.1:many", "127.0.0.1:99999"):
        assert "no Ray address" in printed(capsys, "run", str(file), "--ray-address", address, code=2)[1]


def test_database_commands(stored: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "db", "url")[0] == f"{mask(stored.url)}\n"
    assert "***" in mask(stored.url)
    assert printed(capsys, "db", "url", "--show-password")[0] == f"{stored.url}\n"
    assert all(check["ok"] for check in document(capsys, "db", "check")["checks"])


def test_init_writes_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new.yaml"
    out, err = printed(capsys, "init", str(target))
    assert (out, "shoal plan" in err) == ("", True)
    first = target.read_text(encoding="utf-8")
    target.write_text("mine", encoding="utf-8")
    assert "--force" in printed(capsys, "init", str(target), code=4)[1]
    assert target.read_text(encoding="utf-8") == "mine"
    printed(capsys, "init", str(target), "--force")
    assert target.read_text(encoding="utf-8") == first == printed(capsys, "init", "--stdout")[0]


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "schema")[0])
    assert "space" in found["properties"]


@pytest.mark.parametrize("arguments", [["trials", "stored"], ["status", "--json"], ["plan", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(stored: Database, arguments: list[str]) -> None:
    gone, end = os.pipe()
    os.close(gone)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "search.cli", *arguments],
            stdout=end,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(end)
    assert (done.returncode, done.stderr) == (0, "")


def test_mistakes_of_ours_show_a_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(search.cli, "app", broken)
    _, err = printed(capsys, "status", code=1)
    assert "Traceback" not in err
    assert "--debug" in err
    assert "Traceback" in printed(capsys, "status", "--debug", code=1)[1]
    secret = "postgresql://u:hun ter2@h/d"
    for arguments in (("--database", secret), (f"--database={secret}",)):
        _, err = printed(capsys, "status", *arguments, code=1)
        assert "hun" not in err
        assert "ter2" not in err
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    assert "Traceback" in printed(capsys, "status", code=1)[1]


def test_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search.cli, "app", interrupted)
    assert printed(capsys, "watch", "x", code=130)[1] == "interrupted\n"


PROBE = """
import sys
from search.cli import run_command
code = run_command(sys.argv[1:])
heavy = [name for name in {heavy!r} if name in sys.modules]
print("HEAVY", code, heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status"], ["status", "stored"], ["trials", "stored"], ["best", "stored"]]
)
def test_looking_imports_nothing_heavy(arguments: list[str], stored: Database) -> None:
    root = Path(search.cli.__file__).parents[1]
    heavy = (*HEAVY, "sqlalchemy", "pydantic", "numpy", "scipy", "yaml", "asyncio", "importlib.metadata")
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=heavy), *arguments],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "HEAVY 0 []"


@pytest.mark.parametrize("arguments", [["status", "stored"], ["trials", "stored"], ["best", "stored"]])
def test_looking_imports_no_other_command(arguments: list[str], stored: Database) -> None:
    modules = {f"search.commands.{module}" for commands in COMMANDS.values() for module in commands.values()}
    others = sorted(modules - {"search.commands.reading"})
    assert len(others) > 10
    root = Path(search.cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=others), *arguments],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "HEAVY 0 []"


def test_help_imports_no_database_and_no_metadata() -> None:
    slow = ("sqlalchemy", "psycopg2", "pydantic", "importlib.metadata", "objectives.base")
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=slow), "--help"],
        capture_output=True, text=True, check=True, cwd=Path(search.cli.__file__).parents[1],
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "HEAVY 0 []"
