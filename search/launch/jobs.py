"""The jobs of a Ray cluster, over HTTP: submit, ask, read the log.

Ray's Jobs API is plain JSON (docs.ray.io, "Ray Jobs REST API"). Spoken here without Ray's own client: that
one waits for an answer for ever, lets RAY_ADDRESS overrule the address that was asked for, and takes two
seconds to import on a machine that may have no Ray at all.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.launch.rules import Job

DEFAULT_PORT = 8265
TIMEOUT_SECONDS = 20.0
"""For one answer. A head that starts takes long for its first."""
MOST_BYTES = 64 * 2**20
"""Of an answer: a log beyond that is not for a terminal."""
ALIVE = frozenset({"PENDING", "RUNNING"})
MODE_VARIABLE = "RAY_AUTH_MODE"
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


class ClusterError(Exception):
    """The cluster can't be asked, or refuses; the message is for a user. `next`: what to do."""

    def __init__(self, message: str, next: str = "") -> None:
        super().__init__(message)
        self.next = next


class AddressError(ValueError):
    """That is no address of a cluster's job server."""


@dataclass(frozen=True, slots=True)
class JobView:
    """What the cluster says of a job."""

    state: Job
    status: str
    """In Ray's words."""
    message: str = ""
    exit_code: int | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token goes to the address that was given and nowhere else."""

    def redirect_request(self, *_args: Any) -> None:
        return None


class ConnectionDroppedError(ClusterError):
    """Somebody was there, and went away in the middle of a request."""


DROPPED = (BrokenPipeError, ConnectionResetError)


class JobServer:
    """The job server of one cluster. May be shared by threads; each call is one request.

    Every method raises `ClusterError` if nobody answers, the token is refused, or the answer makes no sense.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout: float = TIMEOUT_SECONDS) -> None:
        """`address` as `canonical_address` gives it; `token`: Ray's, None for a cluster without one;
        `timeout`: seconds for one answer.
        """
        self.address = address
        self._token = token
        self.timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirects())

    def version(self) -> str:
        """Ray's version there."""
        answer = self._json(*self._ask("GET", "/api/version"))
        return str(answer.get("ray_version", ""))

    def look(self, submission: str) -> JobView:
        """What became of a submission."""
        status, body = self._ask("GET", f"/api/jobs/{_quoted(submission)}", passes=(404,))
        if status == http.HTTPStatus.NOT_FOUND:
            return JobView(Job.UNKNOWN, "unknown")
        told = self._json(status, body)
        name = str(told.get("status", ""))
        code = told.get("driver_exit_code")
        return JobView(
            Job.ALIVE if name in ALIVE else Job.ENDED,
            name,
            str(told.get("message") or ""),
            code if isinstance(code, int) else None,
        )

    def submit(self, submission: str, entrypoint: str, environment: Mapping[str, str]) -> bool:
        """Start a job; False if the cluster has seen that submission before, and nothing was started."""
        wanted = {
            "entrypoint": entrypoint,
            "submission_id": submission,
            "runtime_env": {"env_vars": dict(environment)} if environment else {},
            "metadata": {},
        }
        status, body = self._ask("POST", "/api/jobs/", wanted, passes=(400, 500))
        if status < http.HTTPStatus.BAD_REQUEST:
            return True
        if self.look(submission).state is not Job.UNKNOWN:
            return False
        raise ClusterError(f"the cluster at {self.address} refuses the job: {_last_line(body)}")

    def log(self, submission: str) -> str:
        """What a job's driver has written so far; empty if there is no such job."""
        status, body = self._ask("GET", f"/api/jobs/{_quoted(submission)}/logs", passes=(404,))
        if status == http.HTTPStatus.NOT_FOUND:
            return ""
        return str(self._json(status, body).get("logs") or "")

    def _json(self, _status: int, body: str) -> dict[str, Any]:
        try:
            told = json.loads(body)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ClusterError(f"what answers at {self.address} is no Ray job server", CHECK_ADDRESS)
        return told

    def _ask(
        self, method: str, path: str, wanted: object = None, *, passes: tuple[int, ...] = ()
    ) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if wanted is None else json.dumps(wanted).encode()
        # The scheme was checked by `canonical_address`.
        request = urllib.request.Request(self.address + path, data, headers, method=method)  # noqa: S310 (checked, see above)
        try:
            return self._once(request, passes)
        except ConnectionDroppedError:
            # On the way, as tunnels and proxies do now and then. Jobs have names: to ask twice starts one.
            return self._once(request, passes)

    def _once(self, request: urllib.request.Request, passes: tuple[int, ...]) -> tuple[int, str]:
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return answer.status, answer.read(MOST_BYTES).decode("utf-8", "replace")
        except urllib.error.HTTPError as refusal:
            with refusal:
                body = refusal.read(MOST_BYTES).decode("utf-8", "replace")
            if refusal.code in passes:
                return refusal.code, body
            raise self._refused(refusal.code, body) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            kind = ConnectionDroppedError if isinstance(reason, DROPPED) else ClusterError
            raise kind(f"can't reach Ray at {self.address}: {why}", CHECK_ADDRESS) from None

    def _refused(self, code: int, body: str) -> ClusterError:
        if code == http.HTTPStatus.UNAUTHORIZED:
            said = "wants a token, and none was sent" if not self._token else "doesn't take the token"
            return ClusterError(f"Ray at {self.address} {said}", SET_TOKEN)
        if code == http.HTTPStatus.FORBIDDEN:
            return ClusterError(
                f"Ray at {self.address} refuses the token: it is another cluster's", SET_TOKEN
            )
        if http.HTTPStatus.MULTIPLE_CHOICES <= code < http.HTTPStatus.BAD_REQUEST:
            return ClusterError(
                f"{self.address} sends us elsewhere, where no token is sent to", CHECK_ADDRESS
            )
        return ClusterError(f"Ray at {self.address} answers {code}: {_last_line(body)}", CHECK_ADDRESS)


CHECK_ADDRESS = f"check the address (http://HEAD:{DEFAULT_PORT}) and that the cluster runs"
SET_TOKEN = f"{MODE_VARIABLE}=token, and {TOKEN_VARIABLE} or {TOKEN_FILE_VARIABLE} with that cluster's token"


def canonical_address(address: str) -> str:
    """`address` with scheme and port and nothing else. Raises `AddressError`, quoting no secret."""
    given = address.strip()
    if "://" not in given:
        given = f"http://{given}"
    example = f"one looks like http://head:{DEFAULT_PORT}"
    try:
        parts = urllib.parse.urlsplit(given)
        port = parts.port
    except ValueError as error:
        raise AddressError(f"that is no address of a Ray cluster ({error}); {example}") from None
    if "@" in parts.netloc:
        raise AddressError(f"an address holds no user or password: the token goes into {TOKEN_VARIABLE}")
    if parts.scheme not in ("http", "https"):
        raise AddressError(f"{parts.scheme}:// is not what a Ray cluster takes jobs by; {example}")
    if not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise AddressError(f"that is no address of a Ray cluster; {example}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else DEFAULT_PORT
    return f"{parts.scheme}://{host}:{port or default}"


def token_of(environment: Mapping[str, str] | None = None) -> str | None:
    """The token that Ray's own client would send, or None: RAY_AUTH_MODE, RAY_AUTH_TOKEN(_PATH), the home's.

    Raises `ClusterError` where a token is wanted and there is none, or its file can't be read.
    """
    environment = os.environ if environment is None else environment
    mode = environment.get(MODE_VARIABLE, "").lower()
    if mode == "disabled":
        return None
    if token := environment.get(TOKEN_VARIABLE, "").strip():
        return token
    named = environment.get(TOKEN_FILE_VARIABLE, "")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ClusterError(f"the token's file can't be read: {path}: {why}", SET_TOKEN) from None
        token = ""
    if token:
        return token
    if mode == "token":
        raise ClusterError(f"{MODE_VARIABLE} is token, and there is no token", SET_TOKEN)
    return None


def _quoted(submission: str) -> str:
    return urllib.parse.quote(submission, safe="")


def _last_line(body: str) -> str:
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a word"
