"""The embedded server of other users: root, nobody, and those who may not touch another's data."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from storage import embedded, privileges
from storage.embedded import EmbeddedPostgres
from storage.errors import EmbeddedError
from tests.storage.plain_connections import ask

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """Makes a folder of some user that every user may reach (pytest's own are private)."""
    made: list[Path] = []

    def make(uid: int) -> Path:
        base = Path(os.path.realpath("/tmp")) / f"shoal-test-{os.getpid()}-{len(made)}"
        base.mkdir(mode=0o755)
        made.append(base)
        os.chown(base, uid, uid)
        return base

    yield make
    for base in made:
        shutil.rmtree(base)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
class TestAsRoot:
    def test_runs_as_nobody_where_namespaces_are_forbidden(self, open_folder, monkeypatch):
        monkeypatch.setattr(privileges, "namespaces_work", lambda: False)
        server = EmbeddedPostgres(open_folder(0) / "postgres", durable=False)
        try:
            url = server.start()
            assert psutil.Process(server.status().pid).username() == "nobody"
            assert (server.directory / "credentials").stat().st_uid == 0
            os.kill(server.status().pid, signal.SIGKILL)
            assert server.start() == url
        finally:
            server.stop()

    def test_nobody_keeps_data_elsewhere_if_it_cannot_come_here(self, open_folder, tmp_path, monkeypatch):
        monkeypatch.setattr(privileges, "namespaces_work", lambda: False)
        monkeypatch.setattr(embedded, "SHARED_PLACE", open_folder(0) / "shared")
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        server = EmbeddedPostgres(private / "postgres", durable=False)
        try:
            url = server.start()
            assert ask(url, "SELECT 1") == 1
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert not (server.directory / "data").exists()
        finally:
            server.stop()

    def test_data_of_a_namespace_are_not_touched_where_namespaces_are_forbidden(self, server, monkeypatch):
        if server._data().stat().st_uid != 0:
            pytest.skip("this system allows no user namespace")
        monkeypatch.setattr(privileges, "namespaces_work", lambda: False)
        with pytest.raises(EmbeddedError, match="namespace"):
            server.start()

    @pytest.mark.parametrize("uid", [65534, 54321], ids=["nobody", "a user without a name"])
    def test_an_unprivileged_user_starts_one(self, open_folder, uid):
        home = open_folder(uid)
        code = "from storage.embedded import EmbeddedPostgres as E; e = E(); print(e.start())\n"
        code += "import psycopg2; psycopg2.connect(e.start().replace('+psycopg2', '')).close(); e.stop()"
        finished = _run_as(uid, code, home, HOME=str(home))
        if uid == 54321 and not privileges.namespaces_work():
            assert "does not exist" in finished.stderr
            return
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.startswith("postgresql+psycopg2://")
        (folder,) = home.glob(".local/share/shoal/postgres")
        assert folder.stat().st_uid == uid

    def test_data_of_another_user_are_refused_with_a_remedy(self, server):
        code = "from storage.embedded import EmbeddedPostgres as E; from pathlib import Path; "
        code += f"E(Path({str(server.directory)!r})).start()"
        finished = _run_as(65534, code, Path("/"))
        assert "EmbeddedError" in finished.stderr
        assert "SHOAL_HOME" in finished.stderr


def _run_as(uid: int, code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user; skips where no Python can."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return subprocess.run(
        [_python_for_everybody(), "-c", code],
        env={"PATH": os.defpath, "PYTHONPATH": ":".join([str(REPOSITORY), *packages]), **environment},
        cwd=cwd,
        user=uid,
        group=uid,
        extra_groups=[],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )


def _python_for_everybody() -> str:
    """A Python of our version that any user may run and that reads our packages; skips without one."""
    wanted = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, shutil.which(wanted, path="/usr/bin:/usr/local/bin")):
        if python is None:
            continue
        tried = (
            subprocess.run(
                [python, "-c", "import psycopg2._psycopg"],
                env={"PYTHONPATH": ":".join(path for path in sys.path if path.endswith("site-packages"))},
                cwd="/",
                user=65534,
                group=65534,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            if os.access(python, os.X_OK) and privileges.reachable(Path(python))
            else None
        )
        if tried is not None and tried.returncode == 0:
            return python
    pytest.skip(f"no {wanted} that other users may run")
