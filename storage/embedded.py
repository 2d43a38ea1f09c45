"""A Postgres of our own, for those who have no server: started on demand, shared by the host.

One folder holds one server:

- `data/`          Postgres' own files (elsewhere if the server's user can't get here: see `place`)
- `credentials`    the passwords of the superuser and of `shoal_owner`, mode 0600
- `url`            how to connect, mode 0600
- `starting.lock`  held by whoever starts or stops the server
- `running.lock`   held by the server's processes themselves, for as long as one of them lives

Decisions. Access is by loopback TCP with a random SCRAM password rather than by a Unix socket with
trust: it works for a server that runs as another user and across containers that share a network,
and nobody else on the host gets in. Whether the server lives is decided by a connection that
answers, and whether anything of it is left by `running.lock`, which its processes inherit: unlike
a process id it can't be a zombie's, be reused after a reboot, or mean another container's process.
The server outlives the process that started it and is left running until `stop`.
Why and how root's rights are dropped is in `storage.privileges`.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.binaries import find_binaries
from storage.embedded_access import SUPERUSER, Access, Probe, write_private
from storage.errors import EmbeddedError
from storage.privileges import Runner, choose_runner, reachable

HOME_VARIABLE = "SHOAL_HOME"
PATIENCE = 60.0
"""Seconds to wait for a server to start (recovery after a kill included), to stop, or for another
process that is starting it."""
PAUSE = 0.02
SHARED_PLACE = Path("/var/lib/shoal")
"""Where root keeps data and binaries for an unprivileged server whose folder would be out of reach."""
SYNCFS = sys.platform.startswith("linux")
LONGEST_LOG = 10 * 2**20

CONFIGURATION = """\
# Written by shoal at every start; changes here are lost.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 300
password_encryption = 'scram-sha-256'
timezone = 'UTC'
log_timezone = 'UTC'
datestyle = 'iso, mdy'
default_transaction_isolation = 'read committed'
dynamic_shared_memory_type = posix
shared_buffers = '128MB'
max_wal_size = '512MB'
wal_level = minimal
max_wal_senders = 0
jit = off
fsync = {fsync}
log_min_messages = warning
log_min_error_statement = panic
"""
"""`log_min_error_statement`: a statement that fails is not written to the log, it may hold data."""


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """What is known of an embedded server without starting it."""

    running: bool
    url_masked: str | None
    directory: Path
    version: str | None
    pid: int | None


def default_directory() -> Path:
    """`$SHOAL_HOME/postgres`, or `shoal/postgres` in the user's data folder."""
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().absolute() / "postgres"
    import platformdirs

    return Path(platformdirs.user_data_dir("shoal")) / "postgres"


class EmbeddedPostgres:
    """The server of one folder. Any number of processes and threads may hold one of these."""

    def __init__(self, directory: Path | None = None, *, durable: bool = True) -> None:
        """`durable=False` makes a quicker server for throw-away data, lost if the machine goes down."""
        self.durable = durable
        self.directory = (directory or default_directory()).absolute()
        self._access = Access(self.directory)

    def start(self) -> str:
        """Make the server run if it doesn't and return its URL, password included.

        Raises `EmbeddedError`.
        """
        with self._explained():
            if self._access.probe() not in (Probe.ANSWERS, Probe.FULL):
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                with self._starting():
                    if not self._await_ready():
                        self._launch()
            return self._access.url()

    def administrator_url(self) -> str:
        """Its URL as the superuser, once it was started; for `shoal db roles` alone."""
        with self._explained():
            return self._access.administrator_url()

    def stop(self) -> None:
        """Stop the server, ending its connections; nothing happens if it doesn't run.

        Raises `EmbeddedError` if it doesn't end.
        """
        with self._explained():
            if not self.directory.exists():
                return
            with self._starting():
                for order in (signal.SIGINT, signal.SIGQUIT):  # Postgres' fast and immediate shutdown
                    pid = self._postmaster()
                    if pid is not None:
                        os.kill(pid, order)
                    if self._await_gone():
                        return
        raise EmbeddedError(f"the embedded database in {self.directory} does not stop")

    def status(self) -> EmbeddedStatus:
        """Look without starting anything."""
        version: list[str] = []
        with self._explained():
            running = self._access.probe(version) in (Probe.ANSWERS, Probe.FULL)
            return EmbeddedStatus(
                running=running,
                url_masked=self._access.url(masked=True) if running else None,
                directory=self.directory,
                version=version[0] if version else None,
                pid=self._postmaster() if running else None,
            )

    # Starting.

    def _launch(self) -> None:
        """Start the server; no process of it is left. Called with `starting.lock` held."""
        data = self._data()
        runner = choose_runner(_owner_of(data))
        if data is None:
            data = self._choose_place(runner)
        major = _major_of(data)
        binaries = find_binaries(runner, major=major, copies=SHARED_PLACE / "binaries")
        self._access.make_passwords()
        if major is None:
            self._initialise(data, runner, binaries.program("initdb"))
        (data / "postmaster.pid").unlink(missing_ok=True)  # of a dead server: `running.lock` is free
        log = data / "server.log"
        if log.exists() and log.stat().st_size > LONGEST_LOG:
            log.unlink()
        for port in self._ports():
            position = log.stat().st_size if log.exists() else 0
            self._configure(data, runner, port, binaries.major)
            command = [binaries.program("pg_ctl"), "start", "-w", "-t", f"{PATIENCE:.0f}"]
            command += ["-D", str(data), "-l", str(log)]
            with self._running_lock() as lock:
                if lock is None:
                    raise EmbeddedError(f"a server is still running in {self.directory}", retryable=True)
                started = runner.run(command, cwd=data, timeout=PATIENCE + 30, pass_fds=(lock,))
            if started.returncode == 0:
                if not self._await_ready():
                    raise EmbeddedError(f"the embedded database ended at once; its log is {log}")
                return
            said = log.read_text(errors="replace")[position:] if log.exists() else started.stdout
            if "could not create any TCP/IP sockets" not in said:
                break
        raise EmbeddedError(f"Postgres {binaries.version} does not start: {_last_lines(said)} (log: {log})")

    def _choose_place(self, runner: Runner) -> Path:
        """Where new data go: in our folder, or outside if the server's user can't come here."""
        if not runner.switches:
            return self.directory / "data"
        if reachable(self.directory):
            self.directory.chmod(0o711)  # our own folder; its files are private one by one
            return self.directory / "data"
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:12]
        place = SHARED_PLACE / f"postgres-{digest}"
        place.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_private(self.directory / "place", str(place / "data"))
        return place / "data"

    def _initialise(self, data: Path, runner: Runner, initdb: str) -> None:
        """Make an empty server, aside and then renamed: there is a whole one or none."""
        aside = data.with_name("data.new")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        runner.own(aside)
        password_file = data.with_name("password.new")
        write_private(password_file, self._access.password(SUPERUSER))
        runner.own(password_file)
        command = [initdb, "-D", str(aside), "--username", SUPERUSER, "--pwfile", str(password_file)]
        command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--data-checksums"]
        command += ["--no-sync"] if SYNCFS or not self.durable else []
        try:
            made = runner.run(command, cwd=aside, timeout=5 * PATIENCE)
        finally:
            password_file.unlink()
        if made.returncode != 0:
            raise EmbeddedError(f"initdb failed: {_last_lines(made.stdout)}")
        if SYNCFS and self.durable:
            _sync_file_system(aside)
        aside.rename(data)

    def _configure(self, data: Path, runner: Runner, port: int, major: int) -> None:
        """Write the server's settings and the file that tells clients where it is."""
        settings = CONFIGURATION.format(port=port, fsync="on" if self.durable else "off")
        if major >= 14 and sys.platform.startswith("linux"):
            settings += "recovery_init_sync_method = syncfs\n"  # one call instead of one per file
        write_private(data / "postgresql.conf", settings)
        runner.own(data / "postgresql.conf")
        self._access.publish(port)

    def _ports(self) -> Iterator[int]:
        """Ports to try: the last one, so that known URLs stay right, then free ones."""
        last = self._access.port()
        if last is not None and _port_is_free(last):
            yield last
        for _ in range(5):
            with closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            yield port

    def _await_ready(self) -> bool:
        """Wait until the server answers; False as soon as no process of it is left.

        Finishes what a start that was killed left undone. Raises `EmbeddedError` after `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self._access.probe()
            if found in (Probe.ANSWERS, Probe.FULL):
                return True
            if not self._processes_left():
                return False
            if found is Probe.REFUSED:
                self._access.create_owner()
            time.sleep(PAUSE)
        raise EmbeddedError(
            f"the embedded database in {self.directory} is running but did not answer for "
            f"{PATIENCE:.0f} s; if another container uses the same folder, give each its own {HOME_VARIABLE}",
            retryable=True,
        )

    # Looking.

    def _data(self) -> Path | None:
        """The folder of the server's files, or None if there are none."""
        place = self.directory / "place"
        data = Path(place.read_text()) if place.exists() else self.directory / "data"
        return data if data.exists() else None

    def _postmaster(self) -> int | None:
        """The process id of the server, if it is alive and this folder's."""
        data = self._data()
        if data is None:
            return None
        import psutil

        try:
            pid = int((data / "postmaster.pid").read_text().split()[0])
            process = psutil.Process(pid)
            alive = process.status() != psutil.STATUS_ZOMBIE and str(data) in process.cmdline()
        except (OSError, IndexError, ValueError, psutil.Error):
            return None
        return pid if alive else None

    def _processes_left(self) -> bool:
        """Whether any process of the server lives, also one that was started by hand."""
        with self._running_lock() as lock:
            return lock is None or self._postmaster() is not None

    def _await_gone(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self._processes_left():
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)
        return True

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Whatever the file system refuses becomes an error that says what to do."""
        try:
            yield
        except PermissionError as error:
            message = f"{error.filename}: permission denied; set {HOME_VARIABLE} to a folder of your own"
        except OSError as error:
            message = f"the embedded database in {self.directory}: {error}"
        else:
            return
        raise EmbeddedError(message)

    # Locks between processes.

    @contextmanager
    def _running_lock(self) -> Iterator[int | None]:
        """The descriptor that holds `running.lock`, or None if a process of a server holds it."""
        descriptor = os.open(self.directory / "running.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)  # a server that inherited it goes on holding the lock

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Only one process at a time starts or stops the server of a folder."""
        deadline = time.monotonic() + 2 * PATIENCE
        descriptor = os.open(self.directory / "starting.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        message = f"another process has been starting {self.directory} for too long"
                        raise EmbeddedError(message, retryable=True) from None
                    time.sleep(PAUSE)
            yield
        finally:
            os.close(descriptor)


def _sync_file_system(path: Path) -> None:
    """Write out everything of a folder's file system: a tenth of the time of initdb's sync, file by file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), f"{path}: can't be written out")
    finally:
        os.close(descriptor)


def _owner_of(path: Path | None) -> int | None:
    return path.stat().st_uid if path is not None else None


def _major_of(data: Path) -> int | None:
    version = data / "PG_VERSION"
    return int(version.read_text()) if version.exists() else None


def _port_is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Postgres does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-4:])
