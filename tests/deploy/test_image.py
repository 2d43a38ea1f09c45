"""The image, as far as it can be looked at without being built, and the scripts that are in it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, ROOT, call

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
IMAGE = DEPLOY / "image"


def instructions() -> list[str]:
    """The Dockerfile's instructions, each in one line."""
    code = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    return [line for line in re.sub(r"\s*\\\n\s*", " ", code).splitlines() if line]


def final_stage() -> list[str]:
    every = instructions()
    start = max(place for place, line in enumerate(every) if line.startswith("FROM "))
    return every[start:]


def value(keyword: str) -> str:
    """What the final stage says with an instruction that stands there once."""
    (line,) = [line for line in final_stage() if line.startswith(f"{keyword} ")]
    return line.removeprefix(f"{keyword} ").strip()


def run(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return call(sys.executable, "-I", IMAGE / script, *arguments, **options)


# The Dockerfile


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    done = call(hadolint, DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_its_base_is_said_exactly() -> None:
    assert re.search(r"^ARG BASE=\S+:3\.11\S*@sha256:[0-9a-f]{64}$", DOCKERFILE, re.MULTILINE)
    assert {line.split()[1] for line in instructions() if line.startswith("FROM ")} == {"${BASE}"}


def test_it_runs_as_a_user_with_a_number_and_no_rights() -> None:
    assert value("USER") == "10001:10001"
    after = final_stage()[final_stage().index("USER 10001:10001") + 1 :]
    assert not [line for line in after if line.startswith(("RUN", "COPY", "ADD"))]


def test_its_commands_need_no_shell() -> None:
    assert json.loads(value("ENTRYPOINT")) == ["/usr/bin/tini", "--", "shoal"]
    assert json.loads(value("CMD")) == ["--help"]
    check = value("HEALTHCHECK")
    assert json.loads(check[check.index("CMD ") + 4 :])[0] == "python3"


def test_no_compiler_and_nothing_that_is_built_at_start_is_in_it() -> None:
    installed = re.findall(r"apt-get install (.*?)&&", " ".join(final_stage()))
    packages = [word for words in installed for word in words.split() if not word.startswith("-")]
    assert packages == ["tini"]
    assert "rm -rf /var/lib/apt/lists/*" in " ".join(final_stage())
    assert DOCKERFILE.count("--only-binary :all:") == 2


def test_rays_mode_of_authentication_is_said() -> None:
    assert "RAY_AUTH_MODE=token" in value("ENV")


def test_no_secret_and_no_index_of_packages_is_written_into_it() -> None:
    assert not re.findall(
        r"(?i)(password|secret|token)\s*=\s*[^\s$]", DOCKERFILE.replace("RAY_AUTH_MODE=token", "")
    )
    assert "pip.conf" not in " ".join(
        line for line in instructions() if not line.startswith("RUN --mount=type=secret")
    )
    hosts = set(re.findall(r"https?://([^/\s)]+)", DOCKERFILE))
    assert hosts <= {"pytorch.org"}, "where a reader is sent"


def test_only_what_the_image_is_made_of_is_sent_to_the_builder() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    sent = {line[1:] for line in ignored if line.startswith("!")}
    taken = {
        word.rstrip("/")
        for line in instructions()
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert taken
    assert all(any(path == top or path.startswith(f"{top}/") for top in sent) for path in taken)
    assert all((ROOT / path).exists() for path in sent | taken)


# torch's build


@pytest.mark.parametrize(
    ("says", "build"),
    [("cuda = '13.0'", "cuda"), ("cuda = None", "cpu"), ("cuda = None\nhip = '6.4'", "rocm")],
)
@pytest.mark.parametrize("wanted", ["cuda", "cpu"])
def test_torch_of_another_build_ends_the_build(says: str, build: str, wanted: str, tmp_path: Path) -> None:
    torch = tmp_path / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise ImportError('nobody imports it')")
    (torch / "version.py").write_text(f"__version__ = '2.13.0'\n{says}\n")
    code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}]; sys.argv = ['check', {wanted!r}]; "
    code += f"runpy.run_path({str(IMAGE / 'check_torch.py')!r}, run_name='__main__')"
    done = call(sys.executable, "-I", "-c", code)
    if build == wanted:
        assert (done.returncode, done.stdout) == (0, f"torch: the {build} build\n")
    else:
        assert done.returncode == 1
        assert f"torch is the {build} build, but {wanted} was asked for" in done.stderr


def test_torchs_build_has_to_be_said() -> None:
    done = run("check_torch.py", "")
    assert done.returncode == 1
    assert "must be one of cuda, cpu" in done.stderr


# What is installed


def test_requirements_are_the_projects() -> None:
    plain = run("requirements.py", "", cwd=ROOT).stdout.splitlines()
    assert any(line.startswith("torch>=") for line in plain)
    assert not any(line.startswith("mlflow") for line in plain)
    more = run("requirements.py", "mlflow, parquet", cwd=ROOT).stdout.splitlines()
    assert more[: len(plain)] == plain
    assert {re.split("[<>=]", line)[0] for line in more[len(plain) :]} == {
        "mlflow-skinny",
        "pyarrow",
        "pandas",
    }


def test_an_unknown_extra_ends_the_build() -> None:
    done = run("requirements.py", "mlfow", cwd=ROOT)
    assert done.returncode == 1
    assert "no extra is called mlfow" in done.stderr


# Health


@pytest.fixture
def server() -> Iterator[str]:
    """Answers with the status that the path names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (404, 0), (500, 1), (503, 1)])
def test_a_service_is_healthy_that_answers(status: int, code: int, server: str) -> None:
    assert run("healthy.py", f"{server}/{status}").returncode == code


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_service_is_unhealthy_that_is_not_there() -> None:
    done = run("healthy.py", f"http://127.0.0.1:{free_port()}/")
    assert done.returncode == 1
    assert done.stderr.startswith("unhealthy: ")


def test_a_container_is_healthy_whose_database_accepts_connections(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        port = listening.getsockname()[1]
        url = f"postgresql://shoal_worker:hidden@127.0.0.1:{port}/shoal"
        file = tmp_path / "url"
        file.write_text(f"{url}\n")
        assert run("healthy.py", env={"SHOAL_DATABASE_URL": url}).returncode == 0
        assert run("healthy.py", env={"SHOAL_DATABASE_URL_FILE": str(file)}).returncode == 0
    done = run("healthy.py", env={"SHOAL_DATABASE_URL": url})
    assert done.returncode == 1
    assert f"database at 127.0.0.1:{port}" in done.stderr
    assert "hidden" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [{}, {"SHOAL_DATABASE_URL_FILE": "/nowhere"}, {"SHOAL_DATABASE_URL": "postgresql://u:pa:hidden@h:x/d"}],
)
def test_a_container_without_a_usable_url_is_unhealthy(environment: dict[str, str]) -> None:
    done = run("healthy.py", env=environment)
    assert done.returncode == 1
    assert "unhealthy: " in done.stderr
    assert "hidden" not in done.stderr


# Ray


def test_ray_is_started_at_the_address_towards_the_head(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\necho "$@"\n')
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    script = IMAGE / "shoal-ray-start"
    done = call(sys.executable, "-I", script, "localhost", "--head", "--num-cpus=0", env=environment)
    assert done.stdout == "start --node-ip-address=127.0.0.1 --head --num-cpus=0\n"
    for wrong in ("--head", "no-such-name.invalid"):
        refused = call(sys.executable, "-I", script, wrong, env=environment)
        assert refused.returncode == 1
        assert wrong in refused.stderr or "usage" in refused.stderr
