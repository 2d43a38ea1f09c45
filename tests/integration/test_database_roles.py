"""A whole experiment on the worker's role, what reads on the reader's, and no secret told anywhere."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from storage.checker import check_history
from storage.database import Database
from storage.embedded import HOME_VARIABLE
from storage.urls import FILE_VARIABLE
from tests.contracts.database_roles import RoleUrls, roles_in
from tests.contracts.held_training import IN_FILE
from tests.contracts.hold import Hold
from tests.contracts.processes import ROOT, until
from tests.contracts.shoal_command import ONE_METHOD, Shoal, tiny

PLAINLY = ("--in-process", "--trainer", "plain")


@pytest.fixture
def urls(database_url: str, tmp_path: Path) -> RoleUrls:
    return roles_in(database_url, tmp_path / "secrets")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands run: everything in it was written by them."""
    made = tmp_path / "work"
    made.mkdir()
    return made


def shoal_as(url: str, name: str, folder: Path) -> Shoal:
    """The command with its database's URL in a file, and a home of its own."""
    file = folder.parent / f"{name}.url"
    file.write_text(url)
    home = folder.parent / "home"
    return Shoal(folder, os.environ | {FILE_VARIABLE: str(file), HOME_VARIABLE: str(home)})


@contextmanager
def watched_processes() -> Iterator[set[str]]:
    """The command lines of all processes that are seen until the block ends, again and again."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for process in psutil.process_iter(["cmdline"]):
                seen.add(" ".join(process.info["cmdline"] or ()))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def written_under(*folders: Path) -> str:
    """All that lies in files there, as text."""
    return "".join(
        path.read_text(errors="replace") for folder in folders for path in folder.rglob("*") if path.is_file()
    )


def rows_of(url: str) -> str:
    """Everything that is in the database, as text."""
    with Database(url) as database, database.begin() as connection:
        tables = connection.execute(
            text("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                 "WHERE schemaname IN ('shoal', 'public')")
        ).scalars()  # fmt: skip
        return "".join(
            str(connection.scalar(text(f"SELECT json_agg(found) FROM {table} AS found")))
            for table in tables.all()
        )


@pytest.mark.slow
def test_an_experiment_and_all_that_reads_it(urls: RoleUrls, folder: Path) -> None:
    secrets = {str(make_url(url).password) for url in (urls.worker, urls.reader)}
    worker, reader = shoal_as(urls.worker, "worker", folder), shoal_as(urls.reader, "reader", folder)
    said = []
    with watched_processes() as processes:
        file = worker.write("tiny.yaml", tiny("tiny", *ONE_METHOD))
        said += [worker("run", file, "--in-process")]
        for command in (
            ("status", "tiny", "--json"),
            ("trials", "tiny"),
            ("report", "tiny", "--out", "read"),
            ("export", "tiny", "--out", "tiny.csv"),
            ("db", "check"),
            ("db", "backup", "--out", "backup"),
        ):
            said += [reader(*command)]
        # What changes something is refused in words.
        for refused in (("retry", "tiny", "--failed"), ("db", "restore", "backup", "--force")):
            done = reader(*refused, code=4)
            assert "shoal_worker" in done.stderr or "role" in done.stderr
            said += [done]
        with reader.start("serve", "--no-open", "--port", "0") as serving:
            assert serving.stderr is not None
            line = serving.stderr.readline()
            with urlopen(line.split()[1], timeout=240) as page:
                assert b"tiny" in page.read()
            serving.send_signal(signal.SIGINT)
    with Database(urls.reader) as database:
        assert check_history(database, at_rest=True) == []
        found = json.loads(said[1].stdout)
        assert [(m["method"], m["complete"] + m["pruned"]) for m in found["methods"]] == [("random", 4)]
    everything = "".join(done.stdout + done.stderr for done in said) + rows_of(urls.owner)
    everything += "".join(processes) + written_under(folder)
    assert "tiny.yaml" in everything, "the run itself was seen"
    for secret in secrets:
        assert secret not in everything


@pytest.mark.slow
def test_restored_in_the_middle_it_ends_with_its_exact_budget(urls: RoleUrls, folder: Path) -> None:
    """Backed up while it runs, run on, killed, dropped, restored, resumed."""
    owner, worker = shoal_as(urls.owner, "owner", folder), shoal_as(urls.worker, "worker", folder)
    hold = Hold(folder / "hold")
    worker = Shoal(folder, {**worker.environment, **hold.environment(), "PYTHONPATH": str(ROOT)})
    sizes = (("trials: 4", "trials: 12"), ("epochs: 3", "epochs: 3, batch_size: 64"))
    file = worker.write("tiny.yaml", tiny("tiny", *sizes, *ONE_METHOD[:1], IN_FILE))
    hold.at(40)  # steps, of which an epoch has four: three trials are over, and twenty to come
    with Database(urls.reader) as database, worker.start("run", file, *PLAINLY) as running:
        assert running.stderr is not None
        threading.Thread(target=running.stderr.read, daemon=True).start()
        ended = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
        until(lambda: database.scalar(ended) >= 3)
        worker("db", "backup", "--out", "backup")
        at_backup = database.scalar(ended)
        hold.at(76)
        until(lambda: database.scalar(ended) >= at_backup + 3)
        running.kill()
    hold.release()
    with Database(urls.owner) as database:
        had = database.scalar("SELECT count(*) FROM shoal.attempts")
        lines = owner("db", "restore", "backup", "--force").stdout
        assert "trials that ran wait again" in lines
        assert 0 < database.scalar("SELECT count(*) FROM shoal.attempts") < had
        worker("resume", "tiny", *PLAINLY)
        assert check_history(database, at_rest=True) == []
        states = "SELECT string_agg(DISTINCT CAST(state AS text), ',') FROM trials"
        assert set(database.scalar(states).split(",")) <= {"COMPLETE", "PRUNED"}
        with database.begin() as connection:
            counts = connection.execute(
                text("SELECT study.role, count(*) FROM shoal.experiment_studies AS study "
                     "JOIN studies ON study_name = study.name JOIN trials USING (study_id) GROUP BY 1")
            ).all()  # fmt: skip
        assert dict(map(tuple, counts)) == {"search": 24, "retraining": 4}
        readings = "SELECT count(*) FROM shoal.test_readings"
        assert database.scalar(readings) == 4
