"""The jobs of a cluster over HTTP: against a server that says what Ray says, and what it shouldn't."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from search.launch.jobs import (
    AddressError,
    ClusterError,
    JobServer,
    JobView,
    canonical_address,
    token_of,
)
from search.launch.rules import Job
from tests.search.launch.fake_head import fake_head, patient_server

TOKEN = "a" * 32


def test_submitted_once_however_often() -> None:
    with fake_head(TOKEN) as head:
        server = patient_server(head, token=TOKEN)
        assert server.version() == "2.60.0"
        assert server.look("shoal-x-1").state is Job.UNKNOWN
        assert server.submit("shoal-x-1", "shoal resume", {"A": "b"})
        assert not server.submit("shoal-x-1", "shoal resume", {})
        assert head.bodies[0]["runtime_env"] == {"env_vars": {"A": "b"}}
        assert head.bodies[1]["runtime_env"] == {}
        assert list(head.jobs) == ["shoal-x-1"]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PENDING", Job.ALIVE),
        ("RUNNING", Job.ALIVE),
        ("SUCCEEDED", Job.ENDED),
        ("FAILED", Job.ENDED),
        ("STOPPED", Job.ENDED),
    ],
)
def test_what_became_of_a_job(status: str, state: Job) -> None:
    with fake_head() as head:
        head.jobs["x"] = {"status": status, "message": "why", "driver_exit_code": 4}
        head.logs["x"] = "said\n"
        server = patient_server(head)
        assert server.look("x") == JobView(state, status, "why", 4)
        assert server.log("x") == "said\n"
        assert server.log("unknown") == ""


def test_a_name_stays_in_its_place_in_the_path() -> None:
    with fake_head() as head:
        patient_server(head).look("../../secrets?x")
        assert head.seen == [("GET", "/api/jobs/..%2F..%2Fsecrets%3Fx")]


@pytest.mark.parametrize(
    ("token", "said"), [(None, "wants a token, and none was sent"), ("b" * 32, "refuses the token")]
)
def test_a_token_that_is_missing_or_wrong(token: str | None, said: str) -> None:
    with fake_head(TOKEN) as head, pytest.raises(ClusterError, match=said) as caught:
        patient_server(head, token=token).look("x")
    assert "RAY_AUTH_TOKEN" in caught.value.next
    assert "b" * 32 not in str(caught.value)


def test_a_token_is_not_taken_elsewhere() -> None:
    with fake_head() as elsewhere, fake_head() as head:
        head.answer, head.location = (302, ""), f"{elsewhere.address}/api/version"
        with pytest.raises(ClusterError, match="sends us elsewhere"):
            patient_server(head, token=TOKEN).version()
        assert elsewhere.seen == []


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, "[1]"), (502, "bad gateway"), (404, "no")])
def test_what_is_no_job_server_is_said_to_be_none(answer: tuple[int, str]) -> None:
    with fake_head() as head:
        head.answer = answer
        with pytest.raises(ClusterError) as caught:
            patient_server(head).version()
        assert head.address in str(caught.value)


def test_a_job_that_is_refused_for_another_reason() -> None:
    with fake_head() as head, pytest.raises(ClusterError, match="ValueError: no such thing"):
        patient_server(head).submit("x", "is bad", {})


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ClusterError, match=r"can't reach Ray at http://127.0.0.1:.*refused"):
        JobServer(address).version()
    with pytest.raises(ClusterError, match="can't reach Ray"):
        JobServer("http://nowhere.invalid:8265").version()


def test_a_request_that_is_broken_off_is_made_once_more() -> None:
    with fake_head() as head:
        server = patient_server(head)
        head.drops = 1
        assert server.version() == "2.60.0"
        head.drops = 1
        assert not server.submit("a", "shoal resume", {}), "the first time it was heard: one was started"
        assert [method for method, _ in head.seen] == ["GET", "GET", "POST", "POST", "GET"]
        assert len(head.jobs) == 1
        head.drops = 2
        with pytest.raises(ClusterError, match="can't reach Ray"):
            server.version()


def test_one_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="timed out"):
            JobServer(address, timeout=0.05).version()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        (" head:80/ ", "http://head:80"),
        ("https://head", "https://head:443"),
        ("http://[::1]:8265", "http://[::1]:8265"),
        ("HTTP://10.0.0.5", "http://10.0.0.5:8265"),
    ],
)
def test_addresses(given: str, meant: str) -> None:
    assert canonical_address(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "http://",
        "ray://head:10001",
        "http://head:x",
        "http://head/path",
        "http://head?x=1",
        "file:///etc",
    ],
)
def test_what_is_no_address(given: str) -> None:
    with pytest.raises(AddressError):
        canonical_address(given)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(AddressError) as caught:
        canonical_address("http://me:hunter2@head:8265")
    assert "hunter2" not in str(caught.value)


def test_the_token_that_ray_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    file = tmp_path / "token"
    file.write_text("  from-file\n", encoding="utf-8")
    assert token_of({}) is None
    assert token_of({"RAY_AUTH_TOKEN": "t"}) == "t"
    assert token_of({"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "disabled"}) is None
    assert token_of({"RAY_AUTH_TOKEN_PATH": str(file), "RAY_AUTH_MODE": "token"}) == "from-file"
    with pytest.raises(ClusterError, match="there is no token"):
        token_of({"RAY_AUTH_MODE": "token"})
    with pytest.raises(ClusterError, match="can't be read"):
        token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "missing")})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home", encoding="utf-8")
    assert token_of({"RAY_AUTH_MODE": "token"}) == "of-home"
