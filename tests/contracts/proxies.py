"""Caddy or nginx as deploy/proxy configures them, before servers of ours; requests with any name in them."""

from __future__ import annotations

import base64
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contracts.ports import free_ports

PROXY = Path(__file__).parents[2] / "deploy" / "proxy"
USER, PASSWORD = "ann", "correct horse battery"
HASH = "$2a$04$hR5uJC7VHwSRCTzYQuvi2uATjXD3v0AZnQmJ2uS80rpkn0mhHwOMO"
"""Of the password, at the least cost that bcrypt knows."""
VIEW, DASHBOARD = "localhost", "dashboard.localhost"


def program(name: str) -> str:
    """Its path; without it the test skips."""
    return shutil.which(name) or pytest.skip(f"{name} is not installed here")


@dataclass(frozen=True)
class Answer:
    """What a proxy said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Proxy:
    """One that runs."""

    port: int

    def ask(
        self,
        path: str = "/",
        *,
        site: str = VIEW,
        host: str | None = None,
        method: str = "GET",
        password: str | None = PASSWORD,
        **headers: str,
    ) -> Answer:
        """Ask a site; `host` says another name than the one that encryption was agreed for."""
        given = {"Host": f"{host or site}:{self.port}", "Connection": "close", **headers}
        if password is not None:
            login = base64.b64encode(f"{USER}:{password}".encode()).decode()
            given["Authorization"] = f"Basic {login}"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        with closing(context.wrap_socket(plain, server_hostname=site)) as secured:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            connection.sock = secured
            connection.request(method, path, headers=given)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


@contextmanager
def caddy(
    folder: Path, view: int, dashboard: int, *, login: str = "basic", **environment: str
) -> Iterator[Proxy]:
    """Caddy before the two ports, with everything that it writes in the folder."""
    found = program("caddy")
    (port,) = free_ports(1)
    (folder / "users").write_text(f"{USER} {HASH}\n")
    chosen = folder / f"{login}.caddy"
    text = (PROXY / "login" / f"{login}.caddy").read_text()
    version = re.search(
        r"(\d+)\.(\d+)", subprocess.run([found, "version"], check=True, capture_output=True, text=True).stdout
    )
    if version and (int(version[1]), int(version[2])) < (2, 8):
        text = text.replace("basic_auth", "basicauth")  # its name until then
    chosen.write_text(text)
    settings = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "SHOAL_PROXY_PORT": str(port),
        "SHOAL_VIEW": f"127.0.0.1:{view}",
        "SHOAL_DASHBOARD": f"127.0.0.1:{dashboard}",
        "SHOAL_PROXY_LOGIN": str(chosen),
        "SHOAL_PROXY_USERS": str(folder / "users"),
        **environment,
    }
    command = [found, "run", "--config", str(PROXY / "Caddyfile"), "--adapter", "caddyfile"]
    with running(command, settings, folder, port):
        yield Proxy(port)


@contextmanager
def nginx(folder: Path, view: int, dashboard: int) -> Iterator[Proxy]:
    """nginx with the ports and files of the test written into its configuration."""
    found, openssl = program("nginx"), program("openssl")
    (port,) = free_ports(1)
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True,
    )  # fmt: skip
    hashed = subprocess.run(
        [openssl, "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout
    (folder / "users").write_text(f"{USER}:{hashed}")
    (folder / "users").chmod(0o644)
    folder.chmod(0o755)
    text = (PROXY / "nginx.conf").read_text()
    for old, new in {
        "/etc/nginx/shoal-users": str(folder / "users"),
        "/etc/nginx/shoal.crt": str(folder / "crt"),
        "/etc/nginx/shoal.key": str(folder / "key"),
        "listen 8443": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8090": f"127.0.0.1:{view}",
        "127.0.0.1:8080": f"127.0.0.1:{dashboard}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    owner = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"daemon off;\n{owner}pid {folder}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}\n}}\n"
    )
    with running(
        [found, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"], dict(os.environ), folder, port
    ):
        yield Proxy(port)


@contextmanager
def running(command: list[str], environment: Mapping[str, str], folder: Path, port: int) -> Iterator[None]:
    """A process that listens on a port before the block begins, and is gone after it."""
    log = folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=dict(environment), cwd=PROXY, stdout=said, stderr=said)
    try:
        for _ in range(600):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(30)
