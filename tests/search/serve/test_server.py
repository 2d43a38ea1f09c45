"""The password of the web view: where it comes from, and when there must be one."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.failures import CommandError, ExitCode
from search.serve.server import PASSWORD_VARIABLE, SHORTEST_PASSWORD, resolve_password

PASSWORD = "long enough for anybody"


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_none(host: str) -> None:
    assert resolve_password(host, None) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "shoal.example", ""])
def test_whatever_others_reach_needs_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for empty in (None, ""):
        if empty is not None:
            monkeypatch.setenv(PASSWORD_VARIABLE, empty)
        with pytest.raises(CommandError) as refused:
            resolve_password(host, None)
        assert refused.value.failure.code is ExitCode.BAD_INPUT
        assert "password is needed" in refused.value.failure.what


def test_the_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    assert resolve_password("0.0.0.0", None) == PASSWORD
    file = tmp_path / "password"
    file.write_text(" another with blanks \r\n", encoding="utf-8")
    assert resolve_password("0.0.0.0", file) == " another with blanks "


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * (SHORTEST_PASSWORD - 1), b"\xff" * 40])
def test_a_short_or_unreadable_one_is_refused_on_loopback_too(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(CommandError) as refused:
        resolve_password("127.0.0.1", file)
    assert refused.value.failure.code is ExitCode.BAD_INPUT


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="can't read the password file"):
        resolve_password("127.0.0.1", tmp_path / "nothing")
