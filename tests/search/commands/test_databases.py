"""`shoal db migrate`, `roles`, `backup`, `restore` as commands; what they do is tested with the storage."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from optuna.study import StudyDirection
from sqlalchemy.engine import make_url

from search.dashboard import SANDBOX, sandboxed
from search.failures import ExitCode
from search.trials.orphans import orphans
from search.work.saving import checkpoint_folder
from storage.batched_ledger import BatchedLedger
from storage.database import Database, newest_revision
from storage.embedded import HOME_VARIABLE
from storage.experiments import Experiments
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.roles import READER, WORKER
from storage.urls import FILE_VARIABLE
from tests.contracts.database_roles import administrator_url
from tests.contracts.shoal_command import document, printed


def test_migrate_makes_everything_and_then_nothing(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--database", empty_database_url]
    first = document(capsys, "db", "migrate", *url)["schemas"]
    assert first["shoal"] == {"before": None, "after": newest_revision()}
    assert first["Optuna"]["before"] is None
    again = document(capsys, "db", "migrate", *url)["schemas"]
    assert again["shoal"]["before"] == again["shoal"]["after"] == newest_revision()
    out, _ = printed(capsys, "db", "migrate", *url)
    assert newest_revision() in out


def test_roles_in_a_new_database(
    empty_database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an operator does it: roles, tables as the owner, then each role by the file of its URL."""
    administrator = administrator_url(empty_database_url)
    url = make_url(empty_database_url)
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "shoal_owner").write_text(str(url.password))  # the tests' server goes on with it
    command = ["db", "roles", "--database", administrator, "--passwords-from", str(folder)]
    found = document(capsys, *command)["roles"]
    assert [entry["role"] for entry in found] == ["shoal_owner", "shoal_worker", "shoal_reader"]
    secrets = {path.read_text().strip() for path in folder.glob("shoal_*") if path.suffix != ".url"}
    assert len(secrets) == 3
    for path in folder.iterdir():
        assert path.name == "shoal_owner" or stat.S_IMODE(path.stat().st_mode) == 0o600
    said = "".join(printed(capsys, *command))
    assert not [secret for secret in secrets if secret in said or secret in json.dumps(found)]

    monkeypatch.setenv(FILE_VARIABLE, str(folder / "shoal_worker.url"))
    _, refused = printed(capsys, "status", code=ExitCode.UNREACHABLE)
    assert "shoal db migrate" in refused
    monkeypatch.setenv(FILE_VARIABLE, str(folder / "shoal_owner.url"))
    printed(capsys, "db", "migrate")
    for role in (WORKER, READER):
        monkeypatch.setenv(FILE_VARIABLE, str(folder / f"{role}.url"))
        printed(capsys, "status")
        printed(capsys, "db", "check")
        printed(capsys, "db", "migrate")


def test_who_may_not_make_roles_is_told(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["db", "roles", "--database", database_url, "--passwords-from", str(tmp_path)]
    _, said = printed(capsys, *command, code=ExitCode.CONFLICT)
    assert "denies a right" in said
    assert "the server's administrator makes roles" in said
    assert "mistake in shoal" not in said


def test_the_sql_for_who_runs_the_server(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator_of_it = administrator_url(database_url)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    out, told = printed(capsys, "db", "roles", "--print-sql", "--database", database_url)
    assert "\\password" in told
    assert "PASSWORD" not in out
    assert list(tmp_path.iterdir()) == []
    with Database(administrator_of_it) as administrator, administrator.begin() as connection:
        connection.exec_driver_sql(out.replace("%", "%%"), ())


def test_backup_and_restore(
    database_url: str,
    empty_database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = str(tmp_path / "b")
    made = document(capsys, "db", "backup", "--out", file, "--database", database_url)
    assert (made["file"], made["schema"]) == (file, newest_revision())
    assert made["bytes"] == (tmp_path / "b").stat().st_size
    _, said = printed(capsys, "db", "backup", "--out", file, "--database", database_url, code=1)
    assert "exists" in said
    printed(capsys, "db", "backup", "--out", file, "--force", "--database", database_url)
    done = document(capsys, "db", "restore", file, "--into", empty_database_url)
    assert (done["released_trials"], done["orphan_checkpoints"]) == (0, [])
    _, said = printed(capsys, "db", "restore", file, "--into", empty_database_url, code=ExitCode.CONFLICT)
    assert "is not empty" in said
    assert "next: --force" in said
    full = ("db", "restore", file, "--into", empty_database_url)
    assert document(capsys, *full, code=ExitCode.CONFLICT)["error"]["kind"] == "occupied"
    _, said = printed(
        capsys, "db", "restore", str(tmp_path / "none"), "--into", empty_database_url, code=ExitCode.BAD_INPUT
    )
    assert "there is no backup" in said


def test_orphans_are_folders_of_no_open_trial(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    experiment = Experiments(database).create("e", {}, "hash", {}, [("tpe", 0, "e/tpe/0")])
    storage = open_optuna_storage(database.url)
    storage.create_new_study([StudyDirection.MINIMIZE], "e/tpe/0")
    close_optuna_storage(storage)
    ledger = BatchedLedger(database)
    ledger.claim("e/tpe/0", ledger.register("w"), waiting=0, new=2)
    root = checkpoint_folder(experiment)
    for name in ("tpe/0/0", "tpe/0/1", "tpe/0/2", "tpe/0/retrained-0", "random/0/0"):
        (root / name).mkdir(parents=True)
    (root.parent / "of another database" / "tpe" / "0" / "0").mkdir(parents=True)
    assert orphans(database) == [root / "random/0/0", root / "tpe/0/2", root / "tpe/0/retrained-0"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "example.org", "::"])
def test_the_dashboard_listens_elsewhere_behind_a_proxy_alone(
    database_url: str, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    _, said = printed(
        capsys, "dashboard", "--host", host, "--database", database_url, code=ExitCode.BAD_INPUT
    )
    assert "has no login" in said
    assert "--behind-proxy" in said


def test_a_folder_of_artifacts_that_is_not_there(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dashboard", "--artifacts", "/nowhere", "--database", database_url]
    assert "there is no folder /nowhere" in printed(capsys, *command, code=ExitCode.BAD_INPUT)[1]


@pytest.mark.parametrize("path", ["/artifacts/1/2", "/artifacts/"])
def test_artifacts_are_sandboxed_without_a_proxy_as_well(path: str) -> None:
    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/html"), ("content-disposition", "inline")])
        return [b"page"]

    said: list[list[tuple[str, str]]] = []
    body = sandboxed(page)({"PATH_INFO": path}, lambda _status, headers: said.append(headers))  # type: ignore[arg-type]
    assert list(body) == [b"page"]
    assert said[0] == [("Content-Type", "text/html"), *SANDBOX]
    list(sandboxed(page)({"PATH_INFO": "/"}, lambda _status, headers: said.append(headers)))  # type: ignore[arg-type]
    assert ("Content-Security-Policy", "sandbox") not in said[1]
