"""Logs: one line of JSON each, what it is about, and no secret in any of them."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from search import logs, output
from search.failures import ExitCode
from search.logs import LEVEL_VARIABLE, OURS, LogSettingsError, about, configure, ids, masked
from search.output import LOG_FORMAT_VARIABLE

SECRET = "hunter2/@:%"
logger = logging.getLogger("search.somewhere")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON; afterwards all is as it was."""
    monkeypatch.setenv(LOG_FORMAT_VARIABLE, "json")
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in OURS}
    before = list(root.handlers)
    written = io.StringIO()
    configure(written)
    yield written
    root.handlers = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_when_what_and_about_what(stream: io.StringIO) -> None:
    with about(experiment="e", worker="w"):
        logger.info("claimed trial %d", 3, extra=ids(study="e/tpe/0", trial=3, attempt=1, seconds=0.5))
    (line,) = lines(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "search.somewhere",
        "message": "claimed trial 3",
        "experiment": "e",
        "study": "e/tpe/0",
        "trial": 3,
        "attempt": 1,
        "worker": "w",
        "seconds": 0.5,
    }
    assert list(line)[3:8] == ["experiment", "study", "trial", "attempt", "worker"]


def test_what_a_line_is_about_ends_with_the_block_and_nests(stream: io.StringIO) -> None:
    with about(experiment="e"):
        with about(worker="w"):
            logger.info("in")
        logger.info("between")
    logger.info("out")
    assert [(line.get("experiment"), line.get("worker")) for line in lines(stream)] == [
        ("e", "w"),
        ("e", None),
        (None, None),
    ]


def test_a_thread_with_the_context_speaks_of_the_same(stream: io.StringIO) -> None:
    with about(experiment="e"):
        thread = threading.Thread(target=copy_context().run, args=(logger.info, "said"))
        thread.start()
        thread.join()
    assert lines(stream)[0]["experiment"] == "e"


def test_an_exception_and_a_line_break_stay_on_one_line(stream: io.StringIO) -> None:
    logger.error("it\nbroke", exc_info=ValueError("first\nsecond"))
    (line,) = lines(stream)
    assert line["message"] == "it\nbroke"
    assert line["exception"].endswith("ValueError: first\nsecond")
    assert stream.getvalue().count("\n") == 1


def test_what_json_does_not_know_is_text(stream: io.StringIO) -> None:
    logger.info("odd", extra=ids(value=float("nan"), thing=object, name="\ud800"))
    (line,) = lines(stream)
    assert line["value"] == "nan"
    assert line["thing"] == "<class 'object'>"


URLS = [
    f"postgresql://user:{SECRET}@host:5432/db?sslmode=require",
    f"postgresql+psycopg2://u:{SECRET}@h/d",
    f"https://me:{SECRET}@tracking:5000",
]


@pytest.mark.parametrize("url", URLS)
def test_passwords_show_nowhere(stream: io.StringIO, url: str) -> None:
    logger.warning("can't reach %s; try again", url, extra=ids(where=url, nested={"url": url}))
    logger.error("again", exc_info=RuntimeError(url))
    assert "hunter2" not in stream.getvalue()
    first, second = lines(stream)
    user = url.partition("://")[2].partition(":")[0]
    assert f"{user}:***@" in first["message"]
    assert "hunter2" not in str(second)


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "options are sslpassword=hunter2&x=1",
        "{'password': 'hunter2'}",
        "RAY_AUTH_TOKEN=hunter2",
        "webhook_secret: hunter2",
    ],
)
def test_secret_options_are_hidden(text: str) -> None:
    assert "hunter2" not in masked(text)
    assert "***" in masked(text)


def test_what_is_no_secret_is_left_alone() -> None:
    for text in (
        "trial 3 of e/tpe/0 complete after epoch 10 with 0.97",
        "http://host:8265/jobs",
        "see me@host",
        "the lease's token 17 is old",
    ):
        assert masked(text) == text


def test_text_is_for_people(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setenv(LOG_FORMAT_VARIABLE, "text")
    monkeypatch.setenv(LEVEL_VARIABLE, "info")
    configure(stream)
    with about(experiment="e"):
        logger.info("a name \x1b[31m from\nelsewhere, %s", URLS[0])
    said = stream.getvalue()
    assert said.count("\n") == 1
    assert "\x1b" not in said
    assert "hunter2" not in said
    assert said.rstrip().endswith("[experiment=e]")
    assert " info a name " in said


def test_levels(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    def shown(level: str, form: str) -> list[str]:
        monkeypatch.setenv(LOG_FORMAT_VARIABLE, form)
        monkeypatch.setenv(LEVEL_VARIABLE, level)
        written = io.StringIO()
        configure(written)
        for name in ("search.x", "objectives.y", "elsewhere"):
            for said in ("debug", "info", "warning", "error"):
                getattr(logging.getLogger(name), said)("%s:%s", name[0], said)
        return [word for word in written.getvalue().replace('"', " ").split() if word[1:2] == ":"]

    ours = [f"{name}:{level}" for name in "so" for level in ("debug", "info", "warning", "error")]
    others = ["e:warning", "e:error"]
    assert shown("debug", "json") == ours + others
    assert shown("", "json") == [word for word in ours if "debug" not in word] + others
    assert shown("", "text") == [word for word in ours if "warn" in word or "error" in word] + others
    assert shown("ERROR", "text") == ["s:error", "o:error", *others]


def test_configuring_again_replaces_the_handler(stream: io.StringIO) -> None:
    configure(stream)
    configure(stream)
    logger.info("once")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize(("variable", "value"), [(LOG_FORMAT_VARIABLE, "xml"), (LEVEL_VARIABLE, "loud")])
def test_settings_that_cant_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, stream: io.StringIO
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(LogSettingsError) as refused:
        configure(stream)
    assert refused.value.failure.code is ExitCode.BAD_INPUT
    assert variable in refused.value.failure.what
    monkeypatch.delenv(variable)


def test_messages_of_commands_are_log_lines_as_well(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that every line on stderr can be read by a program."""
    output.message("asked e to stop")
    output.warn("every trial failed")
    assert capsys.readouterr() == ("", "")
    assert [(line["level"], line["message"]) for line in lines(stream)] == [
        ("info", "asked e to stop"),
        ("warning", "warning: every trial failed"),
    ]


def test_without_the_variable_messages_are_for_people(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(LOG_FORMAT_VARIABLE, raising=False)
    output.message("asked e to stop")
    assert capsys.readouterr().err == "asked e to stop\n"
    assert logs.log_format() == "text"
