"""The image as it is run: as a user without rights on a read-only file system.

`make image` builds it and runs this; elsewhere it is skipped. On a machine that reaches no registry
`make image-base` makes a base first, and `make image BASE=localhost/shoal-base` builds on it.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.contracts.shoal_command import ONE_METHOD, tiny
from tests.deploy.container import Image, mounted

NAME = os.environ.get("SHOAL_TEST_IMAGE", "")
TOKEN = "t" * 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NAME, reason="SHOAL_TEST_IMAGE names no image: `make image` builds and tests one"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if os.geteuid() != 0 or shutil.which("buildah") is None:
        pytest.skip("this takes root and buildah (Debian: apt-get install buildah)")
    with mounted(NAME, tmp_path_factory.mktemp("data")) as found:
        yield found


def test_it_is_what_the_dockerfile_says(image: Image) -> None:
    assert image.config["User"] == "10001:10001"
    assert image.entrypoint == ["/usr/bin/tini", "--", "shoal"]
    assert image.config["Healthcheck"]["Test"] == ["CMD", "python3", "-I", "/opt/shoal/healthy.py"]
    assert image.config["Labels"]["org.opencontainers.image.title"] == "shoal"
    assert "RAY_AUTH_MODE=token" in image.config["Env"]


def test_its_user_has_no_rights_and_can_write_nothing_but_its_own(image: Image) -> None:
    said = image.run("sh", "-c", "id -u; grep -E 'NoNewPrivs|CapEff' /proc/self/status")
    assert said.split() == ["10001", "CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    for place in ("/", "/opt/shoal", "/usr/bin", "/etc"):
        image.run("sh", "-c", f"! touch {place}/here 2>/dev/null")
    image.run("touch", "/tmp/here", "/var/lib/shoal/here")


def test_nothing_in_it_compiles_installs_or_changes_the_user(image: Image) -> None:
    tools = "cc gcc g++ c++ clang ld make cmake pip pip3 curl wget git"
    assert image.run("sh", "-c", f"for tool in {tools}; do command -v $tool; done; true") == ""
    with_suid = image.run("sh", "-c", "find / -xdev -perm /4000 -type f 2>/dev/null; true").split()
    base = {"chfn", "chsh", "gpasswd", "mount", "newgrp", "passwd", "su", "umount"}
    assert {Path(path).name for path in with_suid} <= base, (
        "what the base brings, and no-new-privileges disarms"
    )


def test_its_commands_answer(image: Image) -> None:
    assert image.shoal().startswith("Usage: shoal COMMAND")
    assert image.shoal("--version").strip() == image.config["Labels"]["org.opencontainers.image.version"]
    said = image.shoal("doctor")
    assert "FAIL" not in said
    assert "ray " in said


def test_it_trains_against_a_postgres(image: Image, empty_database_url: str) -> None:
    (image.folder / "url").write_text(empty_database_url)
    (image.folder / "tiny.yaml").write_text(tiny("in-image", *ONE_METHOD))
    where = {"SHOAL_DATABASE_URL_FILE": "/data/url"}
    image.run("python3", "-I", "/opt/shoal/healthy.py", **where)
    image.shoal("db", "migrate", **where)
    image.shoal("run", "/data/tiny.yaml", "--in-process", "--report", "/tmp/report", **where)
    assert "in-image  finished" in image.shoal("status", "in-image", **where)
    image.shoal("db", "check", **where)


def test_a_backup_is_made_and_restored_in_it(image: Image, empty_database_url: str) -> None:
    (image.folder / "url").write_text(empty_database_url)
    (image.folder / "tiny.yaml").write_text(tiny("kept", *ONE_METHOD))
    where = {"SHOAL_DATABASE_URL_FILE": "/data/url"}
    image.shoal("run", "/data/tiny.yaml", "--in-process", "--report", "/tmp/report", **where)
    image.run("shoal-backup", "/data", "2", **where)
    assert len(list(image.folder.glob("shoal-*.dump"))) == 1
    said = image.run("shoal-restore-drill", "/data", "1")
    assert "kept" in said
    assert "restored: /data/shoal-" in said


@pytest.mark.ray
def test_ray_runs_in_it_and_wants_its_token(image: Image) -> None:
    (image.folder / "token").write_text(TOKEN)
    port, agent, jobs = free_ports(3)
    start = [
        "tini", "--", "shoal-ray-start", "127.0.0.1", "--head", "--block", "--num-cpus=0", "--num-gpus=0",
        f"--port={port}", f"--dashboard-port={jobs}",
        f"--dashboard-agent-listen-port={agent}", "--object-store-memory=134217728", "--temp-dir=/tmp/ray",
        "--disable-usage-stats",
    ]  # fmt: skip
    with image.running(*start, RAY_AUTH_TOKEN_PATH="/data/token") as head:
        while not healthy(f"http://127.0.0.1:{agent}/api/healthz"):
            assert head.poll() is None, (image.folder / "log").read_text()
            time.sleep(0.5)
        image.run("python3", "-I", "/opt/shoal/healthy.py", f"http://127.0.0.1:{agent}/api/healthz")
        assert status(f"http://127.0.0.1:{jobs}/api/jobs/") == 401
        assert status(f"http://127.0.0.1:{jobs}/api/jobs/", TOKEN) == 200
    assert not healthy(f"http://127.0.0.1:{agent}/api/healthz"), "nothing of it is left"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def status(url: str, token: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def healthy(url: str) -> bool:
    try:
        return status(url) == 200
    except OSError:
        return False
