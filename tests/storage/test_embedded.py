"""The embedded server: starting, sharing, surviving, and keeping its password to itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
from sqlalchemy.engine import make_url

from storage import embedded
from storage.binaries import BINARIES_VARIABLE
from storage.embedded import EmbeddedPostgres
from storage.embedded_access import OWNER, Access
from storage.errors import EmbeddedError
from tests.storage.plain_connections import ask, connect

REPOSITORY = Path(__file__).parents[2]


def test_first_start_gives_a_working_url_and_private_files(tmp_path: Path):
    server = EmbeddedPostgres(tmp_path / "deep" / "postgres")
    assert not server.status().running
    try:
        url = server.start()
        assert url.startswith("postgresql+psycopg2://shoal_owner:")
        assert ask(url, "SELECT 1") == 1
        assert server.start() == url
        for name in ("url", "credentials", "running.lock", "starting.lock"):
            assert stat.S_IMODE((server.directory / name).stat().st_mode) == 0o600
        for path in (server.directory, server.directory / "data"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (server.directory / "url").read_text().strip() == url
        status = server.status()
        assert status.running
        assert status.pid is not None
        assert status.version
        assert make_url(url).password not in str(status)
    finally:
        server.stop()
    assert not server.status().running
    server.stop()  # nothing happens


def test_settings_of_the_server(tmp_path: Path, initialised: Path):
    shutil.copytree(initialised, tmp_path / "postgres")
    server = EmbeddedPostgres(tmp_path / "postgres")
    expected = {
        "listen_addresses": "127.0.0.1",
        "timezone": "UTC",
        "default_transaction_isolation": "read committed",
        "max_connections": "300",
        "fsync": "on",
        "synchronous_commit": "on",
        "password_encryption": "scram-sha-256",
        "server_encoding": "UTF8",
        "data_checksums": "on",
    }
    url = server.start()
    try:
        assert {name: ask(url, f"SHOW {name}") for name in expected} == expected
        assert ask(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
    finally:
        server.stop()


def test_a_wrong_password_or_none_is_refused(postgres_url: str):
    for password in ("wrong", ""):
        with pytest.raises(psycopg2.OperationalError):
            connect(postgres_url, password=password)


def test_password_is_in_no_process_and_no_log(server: EmbeddedPostgres):
    url = server.start()
    passwords = [make_url(url).password, server._access.password("postgres")]
    postmaster = psutil.Process(server.status().pid)
    for process in [postmaster, *postmaster.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a backend that ended meanwhile
            told = " ".join(process.cmdline()) + " ".join(process.environ().values())
            assert not any(password in told for password in passwords)
    log = (server.directory / "data" / "server.log").read_text()
    assert not any(password in log for password in passwords)


def test_restart_keeps_port_and_rows(server: EmbeddedPostgres):
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert server.start() == url
    assert ask(url, "SELECT answer FROM kept") == 42


def test_another_port_is_taken_if_the_old_one_is_in_use(server: EmbeddedPostgres):
    old = server.start()
    server.stop()
    with socket.create_server(("127.0.0.1", make_url(old).port)) as intruder:

        def hang_up() -> None:
            with suppress(OSError):  # until the socket is closed
                while True:
                    intruder.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        new = server.start()
        intruder.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert make_url(new).port != make_url(old).port
    assert ask(new, "SELECT 1") == 1


def test_the_server_outlives_its_starter_and_holds_none_of_its_pipes(server: EmbeddedPostgres):
    code = "import sys; from storage.embedded import EmbeddedPostgres as E; from pathlib import Path; "
    code += f"print(E(Path({str(server.directory)!r})).start()); sys.stdout.flush(); sys.stdin.read()"
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    url = starter.stdout.readline().strip()
    os.killpg(starter.pid, signal.SIGINT)  # what Ctrl-C in a terminal sends to the whole group
    os.killpg(starter.pid, signal.SIGKILL)
    rest, _ = starter.communicate(timeout=240)  # would wait for ever if the server held stdout
    assert rest == ""
    assert ask(url, "SELECT 1") == 1
    assert os.getsid(server.status().pid) != starter.pid


def test_processes_that_start_together_share_one_server(tmp_path: Path):
    directory = tmp_path / "postgres"
    code = "from storage.embedded import EmbeddedPostgres as E; from pathlib import Path; "
    code += f"e = E(Path({str(directory)!r})); print(e.start(), e.status().pid)"
    starters = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        answers = {starter.communicate(timeout=240)[0] for starter in starters}
        assert len(answers) == 1
        assert "postgresql" in answers.pop()
    finally:
        EmbeddedPostgres(directory).stop()


def test_recovers_from_a_killed_postmaster(server: EmbeddedPostgres):
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with closing(connect(url)):  # a client whose backend has to notice
        os.kill(server.status().pid, signal.SIGKILL)
        assert server.start() == url
    assert ask(url, "SELECT answer FROM kept") == 42


def test_what_is_left_of_a_killed_server_is_waited_for(server: EmbeddedPostgres, monkeypatch):
    """A second server over the same files while a process of the first still writes would ruin them."""
    url = server.start()
    with closing(connect(url)) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        backend.suspend()
        os.kill(server.status().pid, signal.SIGKILL)
        monkeypatch.setattr(embedded, "PATIENCE", 0.5)
        with pytest.raises(EmbeddedError, match="did not answer") as caught:
            server.start()
        assert caught.value.retryable
        monkeypatch.undo()
        backend.resume()
        assert server.start() == url


def test_a_process_id_that_somebody_else_has_now_does_not_confuse(server: EmbeddedPostgres):
    """Neither a program that got the number since, nor a killed server that nobody has reaped."""
    url = server.start()
    os.kill(server.status().pid, signal.SIGKILL)
    lock_file = server.directory / "data" / "postmaster.pid"
    lines = lock_file.read_text().splitlines()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as somebody:
        lock_file.write_text("\n".join([str(somebody.pid), *lines[1:]]) + "\n")
        assert server.start() == url
        somebody.kill()


def test_survives_a_killed_client(server: EmbeddedPostgres):
    url = server.start()
    code = "import psycopg2, sys, time; c = psycopg2.connect(sys.argv[1]); print('in', flush=True); "
    code += "sys.stdin.read()"
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    client = subprocess.Popen(
        [sys.executable, "-c", code, plain], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    client.stdout.readline()
    client.kill()
    client.communicate()
    assert server.start() == url
    assert ask(url, "SELECT 1") == 1


def test_a_start_that_was_killed_midway_is_finished(server: EmbeddedPostgres):
    (server.directory / "data.new").mkdir()
    (server.directory / "data.new" / "half").write_text("of an initdb")
    access = Access(server.directory)
    url = server.start()
    superuser = make_url(url).set(
        username="postgres", password=access.password("postgres"), database="postgres"
    )
    plain = superuser.render_as_string(hide_password=False)
    ask(plain, "DROP DATABASE shoal")
    ask(plain, f"DROP ROLE {OWNER}")
    assert server.start() == url
    assert ask(url, "SELECT 1") == 1


def test_full_server_counts_as_running(server: EmbeddedPostgres):
    url = server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "CONFIGURATION", embedded.CONFIGURATION.replace("300", "4"))
        server.stop()
        server.start()
    held = []
    try:
        with pytest.raises(psycopg2.OperationalError):  # noqa: PT012 (which of them, is all the same)
            for _ in range(5):
                held.append(connect(url))  # noqa: PERF401 (those before the error count)
        assert server.start() == url
        assert server.status().running
    finally:
        for connection in held:
            connection.close()


def test_uses_the_named_binaries_and_keeps_to_their_version(tmp_path, wheel_binaries, monkeypatch):
    monkeypatch.setenv(BINARIES_VARIABLE, str(wheel_binaries))
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    try:
        assert ask(server.start(), "SHOW server_version").startswith("18")
    finally:
        server.stop()
    (server.directory / "data" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match="Postgres 12, which wrote the embedded database"):
        server.start()


def test_a_start_that_fails_says_what_postgres_said(server: EmbeddedPostgres):
    (server.directory / "data" / "pg_hba.conf").write_text("nonsense\n")
    with pytest.raises(EmbeddedError, match=r"pg_hba\.conf"):
        server.start()
