"""A Ray head's job server, as far as we speak with one: its jobs are entries of a dict."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from search.launch.jobs import JobServer
from tests.contracts.processes import PATIENCE


class FakeHead:
    """`jobs` by submission, as the API shows them; `logs`; `seen` requests. `token`: what it wants."""

    def __init__(self, token: str | None = None) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.token = token
        self.answer: tuple[int, str] | None = None
        """What it says to everything instead, if anything; not to what asks for a path of `spared`."""
        self.spared: set[str] = set()
        self.drops = 0
        """How many requests it will break off, having heard them."""
        self.location = ""
        self.address = ""
        self.lock = threading.Lock()

    def reply(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, str]:
        self.seen.append((method, path))
        self.authorizations.append(authorization)
        if self.answer is not None and path not in self.spared:
            return self.answer
        if self.token is not None and not authorization:
            return 401, "Unauthorized: Missing authentication token"
        if self.token is not None and authorization != f"Bearer {self.token}":
            return 403, "Forbidden: Invalid authentication token"
        parts = path.strip("/").split("/")
        if path == "/api/version":
            return 200, json.dumps({"ray_version": "2.60.0"})
        if method == "POST":
            return self._submit(json.loads(body))
        if parts[2] not in self.jobs:
            return 404, f"Job {parts[2]} does not exist"
        if parts[-1] == "logs":
            return 200, json.dumps({"logs": self.logs.get(parts[2], "")})
        return 200, json.dumps(self.jobs[parts[2]])

    def _submit(self, wanted: dict[str, Any]) -> tuple[int, str]:
        with self.lock:
            self.bodies.append(wanted)
            name = wanted["submission_id"]
            if name in self.jobs:
                return 500, f"Traceback: Job with submission_id {name} already exists."
            if wanted["entrypoint"].endswith("bad"):
                return 400, "Traceback:\nValueError: no such thing"
            self.jobs[name] = {"status": "PENDING", "message": "", "driver_exit_code": None}
            return 200, json.dumps({"submission_id": name})


def patient_server(head: FakeHead, *, token: str | None = None) -> JobServer:
    """Who asks that head, for as long as a busy machine takes: one that gives up finds another answer."""
    return JobServer(head.address, token=token, timeout=PATIENCE)


@contextmanager
def fake_head(token: str | None = None) -> Iterator[FakeHead]:
    """One that listens on this machine."""
    head = FakeHead(token)

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, said = head.reply(self.command, self.path, body, self.headers.get("Authorization", ""))
            if head.drops:
                head.drops -= 1
                return
            self.send_response(code)
            if head.location:
                self.send_header("Location", head.location)
            data = said.encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _reply  # noqa: N815 (names of http.server)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        head.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield head
        finally:
            server.shutdown()
            thread.join()
