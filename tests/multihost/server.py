"""A Postgres on a machine of its own, that listens on the network; and the record of all that is written."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2

from storage.binaries import find_binaries
from storage.database import Database
from storage.embedded import SHARED_PLACE
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from storage.privileges import ENTER_NAMESPACE, KEPT_VARIABLES, choose_runner
from tests.contracts.processes import until
from tests.multihost.network import SUBNET, Machine

PORT = 5432
STOP_SECONDS = 60
SETTINGS = """
listen_addresses = '{address}'
unix_socket_directories = ''
timezone = 'UTC'
max_connections = 100
password_encryption = 'scram-sha-256'
"""
RECORDS = """
CREATE SCHEMA lab;
CREATE TABLE lab.writes (trial_id integer, attempt integer, epoch integer, at timestamptz, by xid8);
CREATE FUNCTION lab.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO lab.writes
    VALUES (NEW.trial_id, NEW.attempt, NEW.epoch, clock_timestamp(), pg_current_xact_id());
    RETURN NULL;
END $$;
CREATE TRIGGER lab_notes AFTER INSERT OR UPDATE ON shoal.epochs FOR EACH ROW EXECUTE FUNCTION lab.note();
"""
"""Our tables have one row per epoch, which a later attempt replaces: this keeps every one that ever was, with
the transaction that wrote it."""


class Server:
    """One data folder and, most of the time, one server on it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self._folder = folder / "postgres"
        self._data = self._folder / "data"
        self._runner = choose_runner(None)
        self._binaries = find_binaries(self._runner, major=None, copies=SHARED_PLACE / "binaries")
        self._password = secrets.token_hex(12)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How all machines reach it."""
        return f"postgresql://postgres:{self._password}@{self._machine.address}:{PORT}/postgres"

    def initialise(self) -> None:
        """Make an empty server with all tables."""
        self._data.mkdir(parents=True)
        for path in (self._folder, self._data):
            self._runner.own(path)
        password = self._folder / "password"
        password.write_text(self._password, encoding="utf-8")
        self._runner.own(password)
        options = ["--username", "postgres", "--pwfile", str(password), "--auth", "scram-sha-256"]
        made = self._runner.run(
            [self._binaries.program("initdb"), "-D", str(self._data), *options, "--no-sync"],
            cwd=self._folder, timeout=300,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout
        with (self._data / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(SETTINGS.format(address=self._machine.address))
        with (self._data / "pg_hba.conf").open("a", encoding="utf-8") as file:
            file.write(f"host all all {SUBNET}.0/24 scram-sha-256\n")
        self.start()
        with Database(self.url) as database:
            database.migrate()
        close_optuna_storage(open_optuna_storage(self.url))
        connection = psycopg2.connect(self.url)
        with connection, connection.cursor() as cursor:
            cursor.execute(RECORDS)
        connection.close()

    def start(self) -> None:
        """Start it, and wait until it answers. From a machine that reaches it."""
        command = [self._binaries.program("postgres"), "-D", str(self._data)]
        if self._runner.namespace:
            command = [sys.executable, "-I", "-S", "-c", ENTER_NAMESPACE, *command]
        elif self._runner.switches:
            who = (f"--reuid={self._runner.uid}", f"--regid={self._runner.gid}", "--clear-groups")
            command = ["setpriv", *who, *command]
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._machine.wrap, *command], cwd=self._data, env=kept | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text(encoding="utf-8")
        with suppress(psycopg2.OperationalError):
            psycopg2.connect(self.url, connect_timeout=5).close()
            return True
        time.sleep(0.1)
        return False

    def stop(self) -> None:
        """Postgres' fast stop: it breaks off what runs and ends in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL to each of its processes, so that nothing is written out."""
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        family = [parent, *parent.children()]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_SECONDS)
        psutil.wait_procs(family[1:], timeout=STOP_SECONDS)

    def close(self) -> None:
        """End it for good, with all its data."""
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
