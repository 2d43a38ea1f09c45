"""Which database URLs are taken, and that none of their passwords is ever shown."""

from __future__ import annotations

import socket
import traceback
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from storage.database import Database, open_database
from storage.errors import DatabaseUnreachable
from storage.urls import FILE_VARIABLE, URL_VARIABLE, canonical, mask, resolve_url

SECRET = "pAss-w0rd"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_three_spellings_mean_the_same(scheme):
    assert canonical(f"{scheme}://me:{SECRET}@host:5433/things?sslmode=disable") == (
        f"postgresql+psycopg2://me:{SECRET}@host:5433/things?sslmode=disable"
    )


def test_escaped_passwords_survive():
    assert make_url(canonical("postgres://me:p%40s%2Fs@host/things")).password == "p@s/s"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://me:{SECRET}@host/things", "postgresql://me:***@host/things"),
        ("postgresql://me@host/things", "postgresql://me@host/things"),
        ("postgresql://host/things", "postgresql://host/things"),
        (f"postgresql://me:{SECRET}@rest@host/things", "postgresql://me:***@host/things"),
        (f"postgresql://me:a/{SECRET}@host/things", "postgresql://me:***@host/things"),
        (
            f"postgresql://host/things?password={SECRET}&sslmode=disable",
            "postgresql://host/things?password=***&sslmode=disable",
        ),
        (f"host=here password={SECRET}", "***"),
        (f"me:{SECRET}@host", "***"),
    ],
)
def test_mask(url, shown):
    assert mask(url) == shown


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1))
def test_no_password_gets_through_the_mask(password):
    secret = f"<{password}>"
    assert secret not in mask(f"postgresql://me:{secret}@host/things")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"mysql://me:{SECRET}@host/things", "only Postgres"),
        ("sqlite:///things.db", "only Postgres"),
        (f"postgresql+asyncpg://me:{SECRET}@host/things", "only Postgres"),
        ("", "no database URL"),
        (f"garbage {SECRET}", "no database URL"),
        (f"host=here password={SECRET}", "no database URL"),
        (f"postgresql://me:x@{SECRET}@host/things", "%40"),
        (f"postgresql://me:{SECRET}@host:port/things", "can't be read"),
    ],
)
def test_what_is_no_postgres_url_is_refused_with_a_reason(url, says):
    with pytest.raises(DatabaseUnreachable, match=says) as caught:
        Database(url)
    _assert_silent(caught.value)
    assert not caught.value.retryable


def _assert_silent(error: BaseException) -> None:
    """No password in anything that shows an error, not even in what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        assert SECRET not in f"{seen} {seen!r} {seen.args}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    assert SECRET not in "".join(traceback.format_exception(error))


def _closed_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class TestUnreachable:
    """Each way of not getting a connection, as users meet it."""

    def fail(self, url: str) -> DatabaseUnreachable:
        with pytest.raises(DatabaseUnreachable) as caught:
            open_database(url)
        _assert_silent(caught.value)
        assert "***" in str(caught.value)
        return caught.value

    def test_nothing_listens(self):
        error = self.fail(f"postgresql://me:{SECRET}@127.0.0.1:{_closed_port()}/things")
        assert "nothing listens" in str(error)
        assert error.retryable

    def test_unknown_host(self):
        error = self.fail(f"postgresql://me:{SECRET}@no-such-host.invalid/things")
        assert "no such host" in str(error)

    def test_wrong_password(self, postgres_url):
        wrong = make_url(postgres_url).set(password=SECRET).render_as_string(hide_password=False)
        error = self.fail(wrong)
        assert "password" in str(error)
        assert not error.retryable

    def test_unknown_database(self, postgres_url):
        elsewhere = make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
        with pytest.raises(DatabaseUnreachable, match="no such database"):
            open_database(elsewhere)

    def test_unknown_option(self, postgres_url):
        error = self.fail(f"postgresql://me:{SECRET}@127.0.0.1/things?bogus=1")
        assert "bogus" in str(error)


def test_representations_hide_the_password():
    with Database(f"postgresql://me:{SECRET}@host/things") as database:
        for shown in (repr(database), str(database), database.masked_url, repr(database.engine)):
            assert SECRET not in shown


def test_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv(URL_VARIABLE, "postgresql://host/environment")
    assert resolve_url("postgresql://host/argument").endswith("/argument")
    assert resolve_url(None).endswith("/environment")


def test_without_a_url_the_embedded_server_is_used(postgres_url, monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert resolve_url() == postgres_url
    monkeypatch.setenv(URL_VARIABLE, "")
    assert resolve_url() == postgres_url


class TestFile:
    """`SHOAL_DATABASE_URL_FILE`: the URL as a secret in a file."""

    URL = f"postgresql://me:{SECRET}@host/things"

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv(URL_VARIABLE, raising=False)
        path = tmp_path / "url"
        path.write_text(f"{self.URL}\n")
        monkeypatch.setenv(FILE_VARIABLE, str(path))
        return path

    @pytest.mark.parametrize("mode", [0o400, 0o600, 0o444])
    def test_it_holds_the_url(self, file: Path, mode: int) -> None:
        file.chmod(mode)
        assert resolve_url() == canonical(self.URL)
        assert resolve_url("postgresql://other/things") == canonical("postgresql://other/things")

    def test_both_variables_are_one_too_many(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(URL_VARIABLE, self.URL)
        with pytest.raises(DatabaseUnreachable, match="are both set") as refused:
            resolve_url()
        assert SECRET not in str(refused.value)

    def test_one_that_everybody_may_write_is_not_trusted(self, file: Path) -> None:
        file.chmod(0o646)
        with pytest.raises(DatabaseUnreachable, match="everybody may write"):
            resolve_url()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "does not hold one line"),
            (b"\n\n", "does not hold one line"),
            (f"postgresql://me:{SECRET}@host/a\npostgresql://host/b\n".encode(), "does not hold one line"),
            (b"x" * 5000, "does not hold one line"),
            (b"\xff\xfe", "is not text"),
            (f"mysql://me:{SECRET}@host/a".encode(), "only Postgres"),
            (SECRET.encode(), "that is no database URL"),
        ],
    )
    def test_what_it_holds_else_is_told_in_words(self, file: Path, content: bytes, message: str) -> None:
        file.write_bytes(content)
        with pytest.raises(DatabaseUnreachable, match=message) as refused:
            resolve_url()
        assert SECRET not in "".join(traceback.format_exception(refused.value))

    def test_one_that_is_not_there(self, file: Path) -> None:
        file.unlink()
        with pytest.raises(DatabaseUnreachable, match=f"can't read {file}: No such file"):
            resolve_url()
        file.mkdir()
        with pytest.raises(DatabaseUnreachable, match="Is a directory"):
            resolve_url()
