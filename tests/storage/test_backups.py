"""Backups: whole or not there, restored whole or not at all, and nothing of before writes into them."""

from __future__ import annotations

import stat
import subprocess
import tempfile
from pathlib import Path

import optuna
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from storage.backups import back_up, restore
from storage.batched_ledger import BatchedLedger
from storage.binaries import BINARIES_VARIABLE
from storage.checker import check_history
from storage.client_programs import program_for, programs
from storage.database import Database, newest_revision, open_database
from storage.errors import DatabaseUnsuitable, FileUnsuitable, StorageError
from storage.experiments import Experiments
from storage.ledger import Lease
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.upgrading import MIGRATIONS
from tests.contracts.database_roles import roles_in
from tests.contracts.ledger_writes import draw_of, end, epoch_of

STUDY = "e/tpe/0"

TABLES = """
SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
WHERE schemaname IN ('shoal', 'public') ORDER BY 1
"""


@pytest.fixture
def ledger(database: Database) -> BatchedLedger:
    """A ledger with an experiment of one study, of which two trials have ended and two run."""
    storage = open_optuna_storage(database.url)
    Experiments(database).create("e", {"experiment": "e"}, "hash", {}, [("tpe", 0, STUDY)])
    optuna.create_study(storage=storage, study_name=STUDY)
    ledger = BatchedLedger(database)
    leases = claim(ledger, 4)
    ledger.write(
        draws=[draw_of(lease, attributes={"shoal:seed": lease.number}) for lease in leases],
        epochs=[epoch_of(lease, step) for lease in leases for step in (1, 2)],
        endings=[end(lease) for lease in leases[:2]],
    )
    close_optuna_storage(storage)
    return ledger


def claim(ledger: BatchedLedger, new: int, *, waiting: int = 0) -> list[Lease]:
    return ledger.claim(STUDY, ledger.register("w"), waiting=waiting, new=new)


def contents(database: Database) -> dict[str, int]:
    """How many rows each table has."""
    with database.begin() as connection:
        return {table: connection.scalar(text(f"SELECT count(*) FROM {table}"))
                for table in connection.scalars(text(TABLES)).all()}  # fmt: skip


def states(database: Database) -> list[str]:
    with database.begin() as connection:
        return list(connection.scalars(text("SELECT CAST(state AS text) FROM trials ORDER BY number")))


def test_everything_comes_back(ledger, database, empty_database_url, tmp_path):
    before = contents(database)
    made = back_up(database, tmp_path / "b")
    assert (made.revision, made.size) == (newest_revision(), (tmp_path / "b").stat().st_size)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with Database(empty_database_url) as other:
        done = restore(other, made.path)
        assert (done.fenced.released, done.fenced.workers) == (2, 1)
        after = contents(other)
        # What the fence adds: two leases are given back, one worker is over.
        assert after == before | {"shoal.events": before["shoal.events"] + 3}
        assert states(other) == ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]
        assert check_history(other, at_rest=True) == []
        assert all(result.ok for result in other.check())
        assert other.scalar("SELECT sum(epoch) FROM shoal.epochs") == 12


def test_trials_that_ran_go_on_where_they_were(ledger, database, empty_database_url, tmp_path):
    back_up(database, tmp_path / "b")
    with Database(empty_database_url) as other:
        restore(other, tmp_path / "b")
        again = BatchedLedger(other)
        leases = claim(again, 0, waiting=9)
        assert [(lease.number, lease.attempt, lease.last_step) for lease in leases] == [(2, 2, 2), (3, 2, 2)]
        again.write(epochs=[epoch_of(lease, 3) for lease in leases], endings=[end(lease) for lease in leases])
        assert states(other) == ["COMPLETE"] * 4
        assert check_history(other, at_rest=True) == []


def test_no_write_of_the_old_database_is_taken(ledger, database, tmp_path):
    """In place, seconds after the backup: the leases have not run out, and numbers were given meanwhile."""
    early = claim(ledger, 1)
    back_up(database, tmp_path / "b")
    zombie = ledger.register("zombie")
    later = ledger.claim(STUDY, zombie, waiting=0, new=3)
    old = early + later
    ledger.write(epochs=[epoch_of(lease, 1) for lease in old])
    restore(database, tmp_path / "b", replace=True)

    fresh = ledger.register("fresh")
    assert fresh > zombie + 10_000
    given = ledger.claim(STUDY, fresh, waiting=9, new=3)
    assert len(given) == 6
    assert not {lease.token for lease in given} & {lease.token for lease in old}
    assert not {lease.trial_id for lease in given} & {lease.trial_id for lease in later}
    # What the zombies of that time and of later still have to say.
    written = ledger.write(
        epochs=[epoch_of(lease, 2, 0.99) for lease in old], endings=[end(lease, value=0.99) for lease in old]
    )
    assert set(written.refused) == {lease.token for lease in old}
    ledger.retire(zombie)
    assert states(database) == ["COMPLETE", "COMPLETE"] + ["RUNNING"] * 6
    assert database.scalar("SELECT count(*) FROM shoal.epochs") == 8
    ledger.write(endings=[end(lease) for lease in given])
    assert states(database) == ["COMPLETE"] * 8
    assert check_history(database, at_rest=True) == []


def test_two_restores_of_one_backup_give_different_numbers(ledger, database, tmp_path):
    back_up(database, tmp_path / "b")
    seen: set[int] = set()
    for _ in range(2):
        restore(database, tmp_path / "b", replace=True)
        tokens = {lease.token for lease in claim(ledger, 2, waiting=2)}
        assert not tokens & seen
        assert max(tokens) < 2**53
        seen |= tokens


def test_a_database_that_holds_something_is_left_alone(ledger, database, tmp_path):
    back_up(database, tmp_path / "b")
    before = contents(database)
    with pytest.raises(DatabaseUnsuitable, match="is not empty; --force"):
        restore(database, tmp_path / "b")
    assert contents(database) == before
    assert states(database) == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]


def test_a_reader_backs_up_and_the_owner_restores_for_the_roles(
    ledger, database, empty_database_url, tmp_path
):
    urls = roles_in(database.url, tmp_path / "roles")
    with Database(urls.reader) as reader:
        back_up(reader, tmp_path / "b")
    with Database(urls.worker) as worker, pytest.raises(StorageError):
        restore(worker, tmp_path / "b", replace=True)
    assert states(database) == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    into = roles_in(empty_database_url, tmp_path / "roles")
    with Database(into.owner) as owner:
        restore(owner, tmp_path / "b")
    with open_database(into.worker) as worker:
        again = BatchedLedger(worker)
        again.write(endings=[end(lease) for lease in claim(again, 1, waiting=2)])
        assert states(worker) == ["COMPLETE"] * 5
        with pytest.raises(DatabaseUnsuitable), worker.begin() as connection:
            connection.execute(text("UPDATE shoal.schema_version SET version_num = '0001'"))
    with open_database(into.reader) as reader:
        assert check_history(reader, at_rest=True) == []


def test_a_backup_of_an_older_version_is_brought_to_this_one(
    empty_database_url, database, tmp_path, monkeypatch
):
    from alembic import command

    true_upgrade = command.upgrade
    with Database(empty_database_url) as older:
        close_optuna_storage(open_optuna_storage(older.url))
        with monkeypatch.context() as patch:
            patch.setattr(command, "upgrade", lambda config, _revision: true_upgrade(config, "0004"))
            patch.setattr("storage.database.newest_revision", lambda: "0004")
            older.migrate()
            made = back_up(older, tmp_path / "b")
        assert made.revision == "0004"
    done = restore(database, tmp_path / "b", replace=True)
    assert done.revision == "0004"
    assert database.revision() == newest_revision()


def test_a_backup_of_a_newer_version_changes_nothing(ledger, database, tmp_path, monkeypatch):
    back_up(database, tmp_path / "b")
    before = contents(database)
    monkeypatch.setattr("storage.backups.newest_revision", lambda: "0001")
    with pytest.raises(DatabaseUnsuitable, match="made by a newer version"):
        restore(database, tmp_path / "b", replace=True)
    assert contents(database) == before


@pytest.mark.parametrize("content", [b"", b"SELECT 1;\n", b"PGDMP" + b"\x00" * 100])
def test_what_is_no_backup_changes_nothing(ledger, database, tmp_path, content):
    (tmp_path / "b").write_bytes(content)
    before = contents(database)
    with pytest.raises(FileUnsuitable, match="can't be read"):
        restore(database, tmp_path / "b", replace=True)
    assert contents(database) == before


def test_a_damaged_backup_changes_nothing(ledger, database, tmp_path):
    whole = back_up(database, tmp_path / "b").path.read_bytes()
    (tmp_path / "b").write_bytes(whole[: len(whole) * 9 // 10])
    before = contents(database)
    with pytest.raises(StorageError):
        restore(database, tmp_path / "b", replace=True)
    assert contents(database) == before


def test_a_backup_of_something_else_is_refused(database, empty_database_url, tmp_path):
    with Database(empty_database_url) as other, other.begin() as connection:
        connection.execute(text("CREATE TABLE things (id integer)"))
        connection.execute(text("CREATE SCHEMA shoal"))
    with Database(empty_database_url) as other, pytest.raises(DatabaseUnsuitable, match="none of our tables"):
        back_up(other, tmp_path / "b")
    program = program_for("pg_dump", 13)
    plain = make_url(empty_database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run([program.path, "-Fc", "-f", tmp_path / "b", plain], check=True)
    with pytest.raises(FileUnsuitable, match="is no backup of shoal"):
        restore(database, tmp_path / "b", replace=True)


def test_a_file_that_is_there_is_kept(ledger, database, tmp_path):
    (tmp_path / "b").write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        back_up(database, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "mine"
    assert back_up(database, tmp_path / "b", overwrite=True).size > 1000


def test_files_that_are_not_there_are_named(ledger, database, tmp_path):
    with pytest.raises(FileUnsuitable, match=f"no folder {tmp_path}/nowhere: make it"):
        back_up(database, tmp_path / "nowhere" / "b")
    with pytest.raises(FileUnsuitable, match="there is no backup"):
        restore(database, tmp_path / "b", replace=True)


def test_a_dump_that_fails_leaves_no_file(ledger, database, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    script = """#!/bin/sh
case "$*" in *--version*) echo "pg_dump (PostgreSQL) 18.1" ;; *) echo full >&2; exit 1 ;; esac
"""
    (folder / "pg_dump").write_text(script)
    (folder / "pg_dump").chmod(0o755)
    monkeypatch.setenv(BINARIES_VARIABLE, str(folder))
    with pytest.raises(StorageError, match="could not be backed up: full"):
        back_up(database, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_program_that_is_too_old_is_named(monkeypatch, tmp_path):
    with pytest.raises(
        DatabaseUnsuitable, match="pg_dump of Postgres 99 or newer is needed, there is only of"
    ):
        program_for("pg_dump", 99)
    monkeypatch.setenv(BINARIES_VARIABLE, str(tmp_path))
    with pytest.raises(DatabaseUnsuitable, match="there is none here: install postgresql-client-15"):
        program_for("pg_dump", 15)


def test_the_password_is_no_argument_and_no_variable(ledger, database, tmp_path, monkeypatch):
    """A program that notes how it was started, before it does its work."""
    real = program_for("pg_dump", int(database.scalar("SHOW server_version_num")) // 10000).path
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        script = f'#!/bin/sh\n(echo "$@"; env) >> {tmp_path}/said\nexec {real.with_name(name)} "$@"\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv(BINARIES_VARIABLE, str(folder))
    monkeypatch.setenv("PGPASSWORD", "somebody else's")
    back_up(database, tmp_path / "b")
    restore(database, tmp_path / "b", replace=True)
    said = (tmp_path / "said").read_text()
    assert "--format=custom" in said
    assert "--list" in said
    assert str(database.engine.url.password) not in said
    assert not list(Path(tempfile.gettempdir()).glob("shoal-*/service"))


def test_programs_are_those_of_the_machine():
    there = programs("pg_dump")
    assert there
    assert [program.major for program in there] == sorted({program.major for program in there})
    assert MIGRATIONS.is_dir()
