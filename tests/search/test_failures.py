"""Every error that a user can meet has an exit code and a remedy; here those of the database's roles."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.commands.options import COMMAND_PATIENCE
from search.experiment.spec import load_spec
from search.failures import ExitCode
from storage.backups import back_up
from storage.database import Database
from storage.experiments import Experiments
from storage.schedules import Schedules
from storage.urls import FILE_VARIABLE, URL_VARIABLE
from tests.contracts.database_roles import RoleUrls, roles_in
from tests.contracts.schedules import settings
from tests.contracts.shoal_command import ONE_METHOD, document, printed, tiny

WRITING = {
    "run": ("run", "tiny.yaml", "--in-process"),
    "resume": ("resume", "tiny", "--in-process"),
    "retry": ("retry", "tiny", "--failed"),
    "stop": ("stop", "tiny"),
    "schedule": ("schedule", "tiny.yaml", "--cron", "0 2 * * *", "--name", "other"),
    "pause": ("schedule", "pause", "nightly"),
    "remove": ("schedule", "remove", "nightly"),
    "fire": ("schedule", "fire", "nightly"),
    "restore": ("db", "restore", "backup", "--force"),
    "roles": ("db", "roles", "--passwords-from", "passwords"),
}
"""Commands that change something, in a database with an experiment that runs and a schedule."""


@pytest.fixture
def urls(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoleUrls:
    """Each role's URL to that database; the commands run in a folder with all files that they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    Path("tiny.yaml").write_text(tiny("tiny", *ONE_METHOD), encoding="utf-8")
    spec = load_spec(Path("tiny.yaml"))
    experiments = Experiments(database)
    made = experiments.create(spec.experiment, spec.to_json(), spec.space_hash(), {}, spec.studies())
    experiments.set_state(made.id, "running")
    Schedules(database).declare("nightly", settings(cron="0 0 29 2 *"))
    found = roles_in(database.url, tmp_path / "roles")
    for role in ("owner", "worker", "reader"):
        Path(f"{role}.url").write_text(getattr(found, role), encoding="utf-8")
    return found


@pytest.mark.parametrize("what", WRITING)
def test_who_only_reads_is_refused_and_told_who_may(
    urls: RoleUrls, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "restore":
        with Database(urls.reader, patience=COMMAND_PATIENCE) as database:
            back_up(database, Path("backup"))
    monkeypatch.setenv(FILE_VARIABLE, "reader.url")
    _, said = printed(capsys, *WRITING[what], code=ExitCode.CONFLICT)
    assert "next: come with the URL of a role that may" in said
    assert "shoal_worker" in said
    assert "mistake in shoal" not in said


def test_programs_are_told_by_a_word(
    urls: RoleUrls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, "reader.url")
    assert document(capsys, *WRITING["stop"], code=ExitCode.CONFLICT)["error"]["kind"] == "refused"
    monkeypatch.setenv(FILE_VARIABLE, "worker.url")
    assert document(capsys, *WRITING["stop"])["stop_requested"] is True


def test_a_worker_may_not_restore(
    urls: RoleUrls,
    empty_database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither over tables, which it may not drop, nor into an empty database, where it may make none."""
    with Database(urls.reader, patience=COMMAND_PATIENCE) as database:
        back_up(database, Path("backup"))
    empty = roles_in(empty_database_url, tmp_path / "roles")
    for into, force in ((urls.worker, ("--force",)), (empty.worker, ())):
        _, said = printed(capsys, "db", "restore", "backup", "--into", into, *force, code=ExitCode.CONFLICT)
        assert "shoal_owner migrates and restores" in said
