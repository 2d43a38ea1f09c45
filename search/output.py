"""What commands print: data on stdout, messages on stderr, and JSON instead of tables on request.

Nothing here interprets markup in strings, and control characters are replaced, so a category value
or an error message of a user's model can't paint a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from rich.console import Console, RenderableType
from rich.text import Text

from search.failures import Failure
from search.fitting import FittingTable

LOG_FORMAT_VARIABLE = "SHOAL_LOG_FORMAT"

PIPE_WIDTH = 2000
"""Columns when stdout is not a terminal: rows must not be cut or folded for a program that reads them."""

STDOUT, STDERR = 1, 2
"""The numbers of their files."""

WARNING_STYLE = "yellow"

logger = logging.getLogger(__name__)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """Text without control characters, which could move the cursor or hide what is there."""
    return _CONTROL.sub("\ufffd", str(text))


def encoded(body: object, **options: object) -> str:
    """JSON without control characters: those that JSON lets stand are escaped, so that nothing is lost."""
    text = json.dumps(body, default=str, allow_nan=False, ensure_ascii=False, **options)  # type: ignore[arg-type]  # of `json.dumps` alone
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Cleaned:
    """A terminal that is written data which nobody has looked at."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a file's; line ends stay as they are."""
        self._stream.write("\r\n".join(map(clean, text.split("\r\n"))))
        return len(text)

    def flush(self) -> None:
        """As a file's."""
        self._stream.flush()


def is_terminal() -> bool:
    """Whether what is printed on stdout is shown rather than kept."""
    return sys.stdout.isatty()


def data_stream() -> IO[str]:
    """Where data go that are text already: as they are into a file or a pipe, cleaned onto a terminal."""
    return _Cleaned(sys.stdout) if is_terminal() else sys.stdout  # type: ignore[return-value]  # it has what a console writes to


def open_missing() -> None:
    """Give stdout and stderr where to go if whoever started us closed them, as `>&-` and some daemons do."""
    # The lowest numbers that are free are taken, also those that a child would take for its own stdout.
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w")
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w")


def spell() -> None:
    """Let stdout take every character, also where the locale's encoding has not got it.

    What is kept or read by another program is UTF-8 then, as experiment files and JSON have to be; a
    terminal of another encoding, and who asked for one, gets question marks.
    """
    if not isinstance(sys.stdout, io.TextIOWrapper) or sys.stdout.encoding.lower() == "utf-8":
        return
    if is_terminal() or "PYTHONIOENCODING" in os.environ:
        sys.stdout.reconfigure(errors="replace")
    else:
        sys.stdout.reconfigure(encoding="utf-8")


def discard(stream: IO[str]) -> None:
    """Let all that is written to the stream from now on go nowhere, at the process's end too."""
    with suppress(OSError):  # one without a descriptor needs nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class PipeConsole(Console):
    """A console that raises `BrokenPipeError` once nobody reads any more.

    Rich's own would end the process, in the middle of a run for instance.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich where it catches the error; what is printed later goes nowhere."""
        self.quiet = True
        discard(self.file)
        raise  # noqa: PLE0704 - the error that rich is handling


def console(stream: IO[str]) -> Console:
    """A console on the stream; rich itself minds NO_COLOR, FORCE_COLOR, TERM and COLUMNS."""
    plain = not stream.isatty() and "COLUMNS" not in os.environ
    return PipeConsole(
        file=stream,
        width=PIPE_WIDTH if plain else None,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=plain,
    )


def stdout() -> Console:
    """Where data go."""
    return console(sys.stdout)


def stderr() -> Console:
    """Where messages go; nowhere where stderr holds log lines for programs, see `message`."""
    made = console(sys.stderr)
    made.quiet = for_programs()
    return made


def for_programs() -> bool:
    """Whether each line on stderr is to be JSON (`search.logs`)."""
    return os.environ.get(LOG_FORMAT_VARIABLE, "").strip().lower() == "json"


def show(*parts: RenderableType) -> None:
    """Print data for people; text is left to the terminal to wrap, so that paths can be copied."""
    target = stdout()
    for part in parts:
        if isinstance(part, str):
            target.print(clean(part), soft_wrap=True)
        else:
            target.print(part)


def message(text: str, *, style: str = "") -> None:
    """Tell the user something that is not data; in the log where that is what stderr holds."""
    if for_programs():
        logger.log(logging.WARNING if style == WARNING_STYLE else logging.INFO, "%s", text)
    stderr().print(Text(clean(text), style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Tell the user something to beware of."""
    message(f"warning: {text}", style=WARNING_STYLE)


def document(schema: str, body: Mapping[str, object]) -> None:
    """Print data for programs: one JSON document whose `schema` names its form and version."""
    sys.stdout.write(encoded({"schema": f"shoal.{schema}", **body}, indent=2) + "\n")
    sys.stdout.flush()


def listing(
    schema: str, body: Mapping[str, object], name: str, entries: Sequence[Mapping[str, object]]
) -> None:
    """As `document`, with many entries under a last key `name`: one a line, ten times as quickly written."""
    head = encoded({"schema": f"shoal.{schema}", **body})
    lines = ",".join(f"\n    {encoded(entry)}" for entry in entries)
    sys.stdout.write(f"{head[:-1]},\n  {json.dumps(name)}: [{lines}\n  ]\n}}\n")
    sys.stdout.flush()


def text(written: str) -> None:
    """Print data that is text already: JSON, YAML, CSV."""
    data_stream().write(written)
    sys.stdout.flush()


def line(schema: str, body: Mapping[str, object]) -> None:
    """As `document`, on one line: for what is printed again and again."""
    sys.stdout.write(encoded({"schema": f"shoal.{schema}", **body}) + "\n")
    sys.stdout.flush()


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = ()
) -> FittingTable:
    """A table of text; the columns in `numbers` are aligned to the right."""
    grid = FittingTable(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            clean(column),
            justify="right" if column in numbers else "left",
            # A number that is cut must not look like another one.
            overflow="ellipsis" if column in numbers else "fold",
            no_wrap=column in numbers,
        )
    for row in rows:
        grid.add_row(*(entry if isinstance(entry, Text) else Text(clean(entry)) for entry in row))
    return grid


def mark(state: str) -> Text:
    """How a check went, coloured: `ok`, `warn` or `fail`."""
    words = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
    return Text(words[state][0], style=words[state][1])


def facts(rows: Sequence[tuple[str, object]]) -> FittingTable:
    """Names and what they are, one below the other."""
    grid = table(("", ""), rows)
    grid.show_header = False
    return grid


def show_failure(failure: Failure, *, as_json: bool) -> None:
    """Print an error: for people on stderr, and as JSON on stdout where JSON was asked for."""
    if for_programs():
        said = [failure.what, failure.why, *(f"{p.place}: {p.message}" for p in failure.problems)]
        logger.error("%s", "; ".join(filter(None, said)), extra={"ids": {"kind": failure.kind}})
    target = stderr()
    head = Text("error: ", style="bold red")
    target.print(head + Text(clean(failure.what)), soft_wrap=True)
    for problem in failure.problems:
        place = Text(f"  {clean(problem.place)}: " if problem.place else "  ", style="bold")
        target.print(place + Text(clean(problem.message)), soft_wrap=True)
        if problem.remedy:
            target.print(Text(f"      → {clean(problem.remedy)}", style="cyan"), soft_wrap=True)
    if failure.why:
        target.print(Text(f"  why: {clean(failure.why)}"), soft_wrap=True)
    if failure.next:
        target.print(Text(f"  next: {clean(failure.next)}", style="cyan"), soft_wrap=True)
    if as_json:
        problems = [{"place": p.place, "message": p.message, "remedy": p.remedy} for p in failure.problems]
        document(
            "error/1",
            {
                "error": {
                    "code": int(failure.code),
                    "kind": failure.kind,
                    "what": failure.what,
                    "why": failure.why,
                    "next": failure.next,
                    "problems": problems,
                }
            },
        )
