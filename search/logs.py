"""Logs: what is logged, how it looks, and what of it must not show.

`SHOAL_LOG_FORMAT=json` writes one JSON object a line, with the experiment, study, trial, attempt and
worker that a line is about, for whatever collects the logs of a cluster; `text` is for people.
`SHOAL_LOG_LEVEL` is the least level shown of our own loggers: by default `info` as JSON, where nobody
watches a terminal, and `warning` as text. Others' loggers show warnings. Everything goes to stderr;
to rotate or ship it is the platform's business.

What a line is about comes from two places: `about(...)` around a block of work, for all lines of its
thread, and `extra=ids(...)` with a single line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import IO, Any, Literal, TypeAlias, get_args

from search.failures import CommandError, ExitCode, Failure
from search.output import LOG_FORMAT_VARIABLE, clean

LEVEL_VARIABLE = "SHOAL_LOG_LEVEL"

Format: TypeAlias = Literal["text", "json"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

OURS = ("search", "storage", "objectives")
"""Packages whose loggers show what the level says."""

FIELDS = ("experiment", "study", "trial", "trial_id", "attempt", "worker")
"""What a line may be about, in this order."""

HIDDEN = "***"
# Up to the last @ of a word everything after the user counts as password, as in `storage.urls.mask`.
_LOGIN = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s:/?#@]*):[^\s]*@")
_OPTION = re.compile(r"(?i)((?:password|passfile|sslkey|token|secret)['\"]?\s*[=:]\s*)[^&\s,}]+")

_about: ContextVar[Mapping[str, object]] = ContextVar("about", default=MappingProxyType({}))


class LogSettingsError(CommandError):
    """One of the two variables says what can't be."""


@contextmanager
def about(**ids: object) -> Iterator[None]:
    """In this block, and in threads that are started with its context, lines are about these."""
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def ids(**ids: object) -> dict[str, object]:
    """What a single line is about, for a logger's `extra`; keys are those of `FIELDS` or free ones."""
    return {"ids": ids}


def masked(text: str) -> str:
    """Text without anything that looks like the password of a URL, or like a secret option."""
    return _OPTION.sub(rf"\1{HIDDEN}", _LOGIN.sub(rf"\1:{HIDDEN}@", text))


def told(record: logging.LogRecord) -> dict[str, object]:
    """What a record is about, the known fields first."""
    given = {**_about.get(), **getattr(record, "ids", {})}
    known = {name: given.pop(name) for name in FIELDS if name in given}
    return {name: value for name, value in {**known, **given}.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; exceptions and line breaks are inside its strings."""

    def format(self, record: logging.LogRecord) -> str:
        """Never raises: what JSON doesn't know is written as its text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **told(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(_masked_value(line), ensure_ascii=True, allow_nan=False)


class TextFormatter(logging.Formatter):
    """A record as people read it, on one line but for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The time is the machine's own, with its zone."""
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="seconds")
        ids = "".join(f" {name}={value}" for name, value in told(record).items())
        message = f"{record.getMessage()}{f'  [{ids.strip()}]' if ids else ''}".replace("\n", " ")
        text = f"{time} {record.levelname.lower()} {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return clean(masked(text))


FORMATTERS: Mapping[Format, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def log_format() -> Format:
    """How logs look here. Raises `LogSettingsError`."""
    given = os.environ.get(LOG_FORMAT_VARIABLE, "").strip().lower() or "text"
    for known in get_args(Format):
        if given == known:
            return known  # type: ignore[no-any-return]  # the values of a Literal are of its type
    raise _unknown(LOG_FORMAT_VARIABLE, given, get_args(Format))


def log_level() -> int:
    """The least level of our own that is shown. Raises `LogSettingsError`."""
    given = os.environ.get(LEVEL_VARIABLE, "").strip().lower()
    if not given:
        return logging.INFO if log_format() == "json" else logging.WARNING
    if given not in LEVELS:
        raise _unknown(LEVEL_VARIABLE, given, LEVELS)
    return LEVELS[given]


def configure(stream: IO[str] | None = None) -> None:
    """Log as the environment says, to stderr unless told. Done again, it replaces what it did before.

    Raises `LogSettingsError`, with everything as it was.
    """
    formatter, level = FORMATTERS[log_format()](), log_level()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(stream)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(level)


class _Handler(logging.StreamHandler[Any]):
    """Ours; writes to whatever stderr is at the moment, for it may be replaced."""

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__(stream or sys.stderr)
        self._follows = stream is None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if self._follows:
            self.stream = sys.stderr
        super().emit(record)


def _masked_value(value: object) -> object:
    """A value for JSON, which knows no infinity; whatever is in it."""
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {masked(str(key)): _masked_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked_value(inner) for inner in value]
    return masked(str(value))


def _unknown(variable: str, given: str, known: Iterable[str]) -> LogSettingsError:
    what = f"{variable} is {given!r}; it is one of {', '.join(known)}"
    return LogSettingsError(Failure(ExitCode.BAD_INPUT, "bad_input", what))
