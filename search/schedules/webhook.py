"""Sends notes to a webhook: signed, over https, without following redirects; what fails is tried again.

A receiver checks ``X-Shoal-Signature: sha256=HMAC-SHA256(secret, timestamp + "." + body)`` with the
``X-Shoal-Timestamp`` (seconds since 1970) beside it, refuses old ones, and drops an ``X-Shoal-Id`` that it
has seen: a note comes at least once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import os
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from search.experiment.problems import Problem
from search.schedules.notices import slack_body
from storage.outbox import Outbox
from storage.schedule_records import NoticeRecord

SECRET_VARIABLE = "SHOAL_WEBHOOK_SECRET"  # noqa: S105 (the variable's name)
SECRET_FILE_VARIABLE = "SHOAL_WEBHOOK_SECRET_FILE"  # noqa: S105 (likewise)
SHORTEST_SECRET = 16
FILE_PREFIX = "file:"

TIMEOUT_SECONDS = 10.0
"""For the connection, and for each answer of the other side."""
FIRST_WAIT, LONGEST_WAIT = 5.0, 3600.0
"""Seconds between two tries: doubled each time, and half as much again or less by chance."""
GIVE_UP_SECONDS = 3 * 24 * 3600.0
"""After which a note that nobody takes is given up."""


class DeliveryError(Exception):
    """A note did not arrive; the message holds neither the secret nor the path of the URL."""

    def __init__(self, message: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        """As the receiver wants it; None: it says nothing."""


def webhook_problems(webhook: str, *, listed: bool = True) -> list[Problem]:
    """What is wrong with where notes are to go; empty if nothing. `listed`: others see it: no password."""
    if webhook.startswith(FILE_PREFIX):
        if Path(webhook.removeprefix(FILE_PREFIX)).is_absolute():
            return []
        return [Problem("webhook", "names a file by a relative path", "file:/run/secrets/shoal/webhook-url")]
    try:
        url = urlsplit(webhook)
        port = url.port
    except ValueError:
        return [Problem("webhook", "is no web address", "one like https://hooks.example.org/shoal")]
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        return [Problem("webhook", "is no web address", "one like https://hooks.example.org/shoal")]
    if any(ord(character) <= 32 or ord(character) > 126 for character in webhook):
        return [
            Problem("webhook", "holds characters that an address can't", "escape them as %20, for instance")
        ]
    if listed and (url.username is not None or url.password is not None):
        what = "holds a user or password, which lists would show"
        return [Problem("webhook", what, f"put the whole address into a file: --webhook {FILE_PREFIX}/PATH")]
    if url.scheme == "http" and not is_loopback(url.hostname):
        return [Problem("webhook", f"sends notes to {url.hostname} unencrypted", "use https")]
    return []


def declared_problems(webhook: str) -> list[Problem]:
    """What is wrong with an address that is given as it is, and stored for whoever reads the database.

    The path or query of a webhook is often its password: neither arguments nor tables are a place for one.
    """
    problems = webhook_problems(webhook)
    if problems or webhook.startswith(FILE_PREFIX):
        return problems
    url = urlsplit(webhook)
    if is_loopback(url.hostname or "") or not (url.path.strip("/") or url.query or url.fragment):
        return []
    what = "has a path, which is often its password, and arguments and tables are seen by others"
    remedy = f"put the address into a file where schedules are fired: --webhook {FILE_PREFIX}/PATH"
    return [Problem("webhook", what, remedy)]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def masked(webhook: str) -> str:
    """Where notes go, for lists: the path of a webhook is often its password."""
    if webhook.startswith(FILE_PREFIX):
        return webhook
    url = urlsplit(webhook)
    place = f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}"
    return f"{place}/…" if url.path.strip("/") or url.query else place


def secret_from(environment: Mapping[str, str] | None = None) -> bytes | None:
    """The secret to sign with, from the environment or the file that it names; None: there is none.

    Raises `DeliveryError` if it can't be read or is too short to protect anything.
    """
    environment = os.environ if environment is None else environment
    secret = environment.get(SECRET_VARIABLE, "")
    name = environment.get(SECRET_FILE_VARIABLE, "")
    if not secret and name:
        try:
            secret = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DeliveryError(f"{SECRET_FILE_VARIABLE}: {name} can't be read: {reason}") from None
    if not secret:
        return None
    if len(secret) < SHORTEST_SECRET:
        raise DeliveryError(f"the secret has fewer than {SHORTEST_SECRET} characters")
    return secret.encode()


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """What `X-Shoal-Signature` holds."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(secret: bytes, timestamp: str, body: bytes, received: str) -> bool:
    """For receivers: whether a note is ours."""
    return hmac.compare_digest(signature(secret, timestamp, body), received)


def send(webhook: str, body: bytes, headers: Mapping[str, str], *, timeout: float = TIMEOUT_SECONDS) -> None:
    """POST a note. Raises `DeliveryError` unless the answer is a success; redirects are none."""
    url = _resolved(webhook)
    host = url.hostname or ""
    connection = (
        http.client.HTTPSConnection(host, url.port, timeout=timeout, context=ssl.create_default_context())
        if url.scheme == "https"
        else http.client.HTTPConnection(host, url.port, timeout=timeout)
    )
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    try:
        connection.request("POST", path, body=body, headers={**headers, **_login(url)})
        answer = connection.getresponse()
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(f"{host}: its certificate is not to be trusted: {error.verify_message}") from None
    except TimeoutError:
        raise DeliveryError(f"{host}: no answer in {timeout:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or type(error).__name__
        raise DeliveryError(f"{host}: {said}") from None
    finally:
        connection.close()
    if 200 <= answer.status < 300:
        return
    if 300 <= answer.status < 400:
        raise DeliveryError(f"{host} answered {answer.status}: redirects are not followed")
    raise DeliveryError(
        f"{host} answered {answer.status}", wait_seconds=_retry_after(answer.getheader("Retry-After"))
    )


def _login(url: SplitResult) -> dict[str, str]:
    """The header that a user and password in an address stand for."""
    if url.username is None:
        return {}
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _resolved(webhook: str) -> SplitResult:
    in_file = webhook.startswith(FILE_PREFIX)
    if in_file:
        path = Path(webhook.removeprefix(FILE_PREFIX))
        try:
            webhook = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise DeliveryError(f"the webhook's file {path} can't be read: {reason}") from None
        # Here it may hold a password: nobody lists it.
        if webhook.startswith(FILE_PREFIX):
            raise DeliveryError(f"the webhook's file {path} names another file")
    problems = webhook_problems(webhook, listed=not in_file)
    if problems:
        raise DeliveryError(f"the webhook {problems[0].message}")
    return urlsplit(webhook)


def _retry_after(header: str | None) -> float | None:
    if header is None or not header.isdigit():
        return None
    return min(float(header[:6]), LONGEST_WAIT)


def wait_seconds(tries: int, chance: Callable[[], float] = random.random) -> float:
    """How long to wait after so many tries that failed."""
    doubled = FIRST_WAIT * 2.0 ** min(tries - 1, 20)
    return min(doubled, LONGEST_WAIT) * (0.5 + chance())


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one try."""

    notice: NoticeRecord
    error: str = ""
    """Empty: it arrived."""
    final: bool = False
    """It won't be tried again."""


def deliver_one(outbox: Outbox, *, clock: Callable[[], float] = time.time) -> Sent | None:
    """Send the note that waits longest, if any is due. `clock`: seconds since 1970, for the timestamp."""
    notice = outbox.take()
    if notice is None:
        return None
    if notice.webhook is None:
        outbox.failed(notice, "the schedule has no webhook any more", wait_seconds=0, final=True)
        return Sent(notice, "the schedule has no webhook any more", final=True)
    try:
        body, headers = _signed(notice, clock)
        send(notice.webhook, body, headers)
    except DeliveryError as error:
        wait = max(wait_seconds(notice.tries), error.wait_seconds or 0.0)
        age = (notice.now - notice.created_at).total_seconds()
        final = age >= GIVE_UP_SECONDS
        outbox.failed(notice, str(error), wait_seconds=wait, final=final)
        return Sent(notice, str(error), final)
    outbox.sent(notice)
    return Sent(notice)


def _signed(notice: NoticeRecord, clock: Callable[[], float]) -> tuple[bytes, dict[str, str]]:
    """Body and headers. Notes in our own form are never sent unsigned; Slack checks no signature."""
    secret = secret_from()
    slack = notice.webhook_format == "slack"
    if secret is None and not slack:
        raise DeliveryError(f"no secret to sign with: set {SECRET_VARIABLE} or {SECRET_FILE_VARIABLE}")
    body = (slack_body(notice.body) if slack else notice.body).encode()
    timestamp = str(int(clock()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "shoal",
        "X-Shoal-Id": notice.id,
        "X-Shoal-Timestamp": timestamp,
    }
    if secret is not None:
        headers["X-Shoal-Signature"] = signature(secret, timestamp, body)
    return body, headers
