"""Sending notes: signed, only where it is safe, again where it failed."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from search.schedules import webhook
from search.schedules.notices import Results, notice_body, slack_body
from search.schedules.webhook import (
    GIVE_UP_SECONDS,
    LONGEST_WAIT,
    DeliveryError,
    declared_problems,
    deliver_one,
    masked,
    secret_from,
    send,
    signature,
    verify,
    wait_seconds,
    webhook_problems,
)
from storage.database import Database
from storage.outbox import Outbox
from storage.schedules import Schedules
from tests.contracts.schedules import SECRET, Receiver, body, held, receiver, settings


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhook.SECRET_VARIABLE, SECRET)


def outbox_with_note(database: Database, url: str | None, **changes: object) -> Outbox:
    schedules = Schedules(database)
    made, _ = schedules.declare("nightly", settings(webhook=url, **changes))
    schedules.end(held(schedules, made), "finished", tell=notice_body)
    return Outbox(database)


# Where notes go


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/x?y=1",
        "https://[2001:db8::1]:8443/",
        "http://127.0.0.1:9000/x",
        "http://[::1]/",
        "http://localhost/x",
        "file:/run/secrets/shoal/webhook-url",
    ],
)
def test_good_addresses_pass(url: str) -> None:
    assert webhook_problems(url) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "no web address"),
        ("ftp://example.org/x", "no web address"),
        ("https://", "no web address"),
        ("https://example.org:99999/", "no web address"),
        ("https://example.org:0/", "no web address"),
        ("http://example.org/x", "unencrypted"),
        ("http://127.0.0.1.example.org/", "unencrypted"),
        ("http://localhost.example.org/", "unencrypted"),
        ("http://10.0.0.1/x", "unencrypted"),
        ("https://user:pw@example.org/", "password"),
        ("https://example.org/a b", "characters"),
        ("https://example.org/a\r\nX-Evil: 1", "characters"),
        ("file:relative/path", "relative"),
    ],
)
def test_bad_addresses_are_named(url: str, said: str) -> None:
    [problem] = webhook_problems(url)
    assert said in problem.message
    assert problem.remedy
    assert "pw" not in problem.message.replace("password", "")


def test_the_path_of_an_address_is_not_shown() -> None:
    assert masked("https://hooks.slack.com:444/services/T0/B0/xyz?k=v") == "https://hooks.slack.com:444/…"
    assert masked("https://example.org/") == "https://example.org"
    assert masked("file:/run/x") == "file:/run/x"


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example.org", "https://hooks.example.org:8443/", "http://127.0.0.1:9/x?y", "file:/x"],
)
def test_an_address_without_a_secret_may_be_given_as_it_is(url: str) -> None:
    assert declared_problems(url) == []


@pytest.mark.parametrize("rest", ["/services/T0/s3cret", "/?token=s3cret", "?s3cret", "#s3cret"])
def test_an_address_that_may_be_a_password_belongs_into_a_file(rest: str) -> None:
    [problem] = declared_problems(f"https://hooks.example.org{rest}")
    assert "password" in problem.message
    assert "file:/" in problem.remedy
    assert "s3cret" not in str(problem)


def test_a_bad_address_is_bad_also_as_it_is_given() -> None:
    [problem] = declared_problems("http://example.org/x")
    assert "unencrypted" in problem.message


# The secret


def test_the_secret_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n", encoding="utf-8")
    assert secret_from({}) is None
    assert secret_from({webhook.SECRET_VARIABLE: SECRET}) == SECRET.encode()
    assert secret_from({webhook.SECRET_FILE_VARIABLE: str(path)}) == SECRET.encode()


def test_a_bad_secret_is_refused_without_being_quoted(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="fewer than 16") as short:
        secret_from({webhook.SECRET_VARIABLE: "tooshort"})
    assert "tooshort" not in str(short.value)
    with pytest.raises(DeliveryError, match="can't be read: No such file"):
        secret_from({webhook.SECRET_FILE_VARIABLE: str(tmp_path / "missing")})


def test_the_signature_is_the_published_one() -> None:
    """By hand: printf '1700000000.{}' | openssl dgst -sha256 -hmac 'a secret of enough length'."""
    made = signature(SECRET.encode(), "1700000000", b"{}")
    assert made == "sha256=ee23b92584c73450c54ad797e973e03024407c3f6bd915b5e8b60f29a7077a00"
    assert verify(SECRET.encode(), "1700000000", b"{}", made)
    assert not verify(SECRET.encode(), "1700000001", b"{}", made)
    assert not verify(SECRET.encode(), "1700000000", b"{ }", made)
    assert not verify(b"another secret, long enough", "1700000000", b"{}", made)


# Sending


def test_a_note_arrives_signed(database: Database, hook: Receiver) -> None:
    outbox = outbox_with_note(database, hook.url)
    done = deliver_one(outbox, clock=lambda: 1_700_000_000.9)
    assert done is not None
    assert (done.error, done.notice.tries) == ("", 1)
    [(headers, sent)] = hook.received
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Shoal-Timestamp"] == "1700000000"
    assert verify(SECRET.encode(), headers["X-Shoal-Timestamp"], sent, headers["X-Shoal-Signature"])
    note = json.loads(sent)
    assert (note["schema"], note["id"], note["state"]) == (
        "shoal.notice/1",
        headers["X-Shoal-Id"],
        "finished",
    )
    assert SECRET not in f"{headers}{sent!r}"
    assert deliver_one(outbox) is None


def test_without_a_secret_nothing_leaves(
    database: Database, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(webhook.SECRET_VARIABLE)
    done = deliver_one(outbox_with_note(database, hook.url))
    assert done is not None
    assert "SHOAL_WEBHOOK_SECRET" in done.error
    assert hook.received == []


def test_slack_gets_its_own_form_and_wants_no_secret(
    database: Database, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(webhook.SECRET_VARIABLE)
    deliver_one(outbox_with_note(database, hook.url, webhook_format="slack"))
    [(headers, sent)] = hook.received
    assert list(json.loads(sent)) == ["text"]
    assert "*nightly* generation 1: finished" in json.loads(sent)["text"]
    assert "X-Shoal-Signature" not in headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(database: Database, hook: Receiver, status: int) -> None:
    hook.answers.append((status, {"Location": hook.url + "/elsewhere"}))
    done = deliver_one(outbox_with_note(database, hook.url))
    assert done is not None
    assert "redirects are not followed" in done.error
    assert len(hook.received) == 1


def test_what_failed_is_sent_again_under_the_same_id(database: Database, hook: Receiver) -> None:
    hook.answers += [(500, {}), (404, {})]
    outbox = outbox_with_note(database, hook.url)
    errors = []
    while (done := deliver_one(outbox)) is not None:
        errors.append(done.error)
        outbox.ahead += timedelta(seconds=60)
    assert errors == ["127.0.0.1 answered 500", "127.0.0.1 answered 404", ""]
    assert len({headers["X-Shoal-Id"] for headers, _ in hook.received}) == 1
    assert len({sent for _, sent in hook.received}) == 1


def test_the_receiver_may_ask_for_more_time(database: Database, hook: Receiver) -> None:
    hook.answers.append((429, {"Retry-After": "1800"}))
    outbox = outbox_with_note(database, hook.url)
    deliver_one(outbox)
    outbox.ahead += timedelta(seconds=1700)
    assert deliver_one(outbox) is None
    outbox.ahead += timedelta(seconds=200)
    assert deliver_one(outbox) is not None


def test_a_crash_after_sending_sends_twice_and_loses_nothing(
    database: Database, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = outbox_with_note(database, hook.url)
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "sent", lambda _notice: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            deliver_one(outbox)
    assert deliver_one(outbox) is None
    outbox.ahead += timedelta(minutes=5)
    deliver_one(outbox)
    assert len(hook.received) == 2
    assert hook.received[0][1] == hook.received[1][1]


def test_a_note_that_nobody_takes_is_given_up(database: Database, hook: Receiver) -> None:
    hook.answers += [(500, {})] * 2
    outbox = outbox_with_note(database, hook.url)
    deliver_one(outbox)
    outbox.ahead += timedelta(seconds=GIVE_UP_SECONDS)
    done = deliver_one(outbox)
    assert done is not None
    assert done.final
    outbox.ahead += timedelta(days=30)
    assert deliver_one(outbox) is None


def test_a_schedule_without_webhook_keeps_no_note_waiting(database: Database) -> None:
    done = deliver_one(outbox_with_note(database, None))
    assert done is not None
    assert done.final


def test_the_address_may_lie_in_a_file(database: Database, hook: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "url"
    outbox = outbox_with_note(database, f"file:{path}")
    missing = deliver_one(outbox)
    assert missing is not None
    assert "can't be read" in missing.error
    path.write_text(f"{hook.url}\n", encoding="utf-8")
    outbox.ahead += timedelta(minutes=1)
    found = deliver_one(outbox)
    assert found is not None
    assert found.error == ""


def test_an_address_in_a_file_may_hold_a_login(hook: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(hook.url.replace("http://", "http://me%40work:p%3Aw@"), encoding="utf-8")
    send(f"file:{path}", b"{}", {})
    [(headers, _)] = hook.received
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"me@work:p:w"
    assert "p%3Aw" not in headers["Host"]


def test_a_note_without_a_login_carries_none(hook: Receiver) -> None:
    send(hook.url, b"{}", {})
    [(headers, _)] = hook.received
    assert "Authorization" not in headers


@pytest.mark.parametrize("content", ["http://example.org/s3cret", "file:/etc/passwd", "", "\x00"])
def test_a_file_with_a_bad_address_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "url"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DeliveryError) as refused:
        send(f"file:{path}", b"{}", {})
    assert "s3cret" not in str(refused.value)


def test_who_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/s3cret"
        with pytest.raises(DeliveryError, match="no answer") as late:
            send(url, b"{}", {}, timeout=0.2)
    assert "s3cret" not in str(late.value)


def test_who_speaks_no_http_is_an_error_like_any() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DeliveryError, match=r"127\.0\.0\.1"):
            send(f"http://127.0.0.1:{server.getsockname()[1]}/", b"{}", {}, timeout=5)
        thread.join()


def test_a_closed_port_is_an_error_like_any() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeliveryError, match="refused"):
        send(f"http://127.0.0.1:{port}/", b"{}", {})


def test_waiting_doubles_with_chance_and_ends_somewhere() -> None:
    middle = [wait_seconds(tries, lambda: 0.5) for tries in range(1, 6)]
    assert middle == [5, 10, 20, 40, 80]
    assert wait_seconds(500, lambda: 0.5) == LONGEST_WAIT
    assert (wait_seconds(1, lambda: 0.0), wait_seconds(1, lambda: 1.0)) == (2.5, 7.5)


# The forms


def test_a_note_holds_what_happened(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_SERVE_URL", "https://shoal.example.org/")
    schedules = Schedules(database)
    made, _ = schedules.declare("nightly", settings(webhook="https://example.org/hidden"))
    firing = held(schedules, made)
    schedules.end(firing, "stalled", "no epoch", report="/r/report.html", tell=body)
    results = Results(12, "accuracy", "maximize", {"tpe": 0.9, "grid": None}, {"complete": 3, "failed": 1})
    note = json.loads(notice_body(made, schedules.firing(firing.id), "id1", results))
    assert note["best"] == {"tpe": 0.9, "grid": None}
    assert (note["state"], note["reason"], note["generation"]) == ("stalled", "no epoch", 1)
    assert note["report"]["path"] == "/r/report.html"
    assert note["links"] == {"experiment": "https://shoal.example.org/experiments/12"}
    assert datetime.fromisoformat(note["ended_at"]) > datetime(2020, 1, 1, tzinfo=UTC)
    assert "hidden" not in json.dumps(note)


def test_slack_reads_no_markup_from_our_texts() -> None:
    note = {
        "state": "failed",
        "schedule": "n",
        "generation": 1,
        "reason": "<!channel> & <https://evil|x>",
        "experiment": "e",
        "seconds": 61.0,
        "trials": {"complete": 1, "pruned": 0, "failed": 2},
        "best": {"tpe": 0.5},
        "metric": "accuracy",
        "links": {},
        "report": {"host": "h", "path": "/r"},
    }
    text = json.loads(slack_body(json.dumps(note)))["text"]
    assert "&lt;!channel&gt; &amp; &lt;https://evil|x&gt;" in text
    assert "• tpe: accuracy 0.5" in text
    assert "1 complete, 0 pruned, 2 failed" in text
    assert "<" not in text
