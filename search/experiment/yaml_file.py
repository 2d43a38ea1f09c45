"""Reads YAML that a stranger wrote: plain values only, bounded, with the line of each of them.

The values are those of YAML 1.2's core schema, which people expect: `1e-3` is a number, `true` and
`false` are the only booleans, nothing is a date. What PyYAML would quietly read as something else
(YAML 1.1's `on`, `yes`, `010`) is a problem, not a surprise. Tags, merge keys and keys that are no
text are refused, so no object is ever made from a file. Anchors work within the same bounds as if
everything were written out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from search.experiment.problems import Problem, SpecError, shown

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NODES = 20_000
MAX_PROBLEMS = 100
MAX_DIGITS = 64

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Place: TypeAlias = tuple[str | int, ...]

# The C parser is ten times as fast; PyYAML comes without it on some platforms.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = dict.fromkeys(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OLD_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(\.[0-9_]*)?")


@dataclass(slots=True)
class Document:
    """What a file says."""

    value: dict[str, Value]
    """The mapping at the top."""
    lines: dict[Place, int] = field(default_factory=dict)
    """Where each value stands; lines count from 1."""
    problems: list[Problem] = field(default_factory=list)
    """What is wrong with single values; the rest of the file was read all the same."""
    unread: set[Place] = field(default_factory=set)
    """Values that could not be read: they are None here, and nothing more should be said of them."""

    def place(self, path: Place) -> str:
        """The dotted path for a message, with the line of what is nearest to it."""
        text = dotted(path)
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{text} (line {line})"
        return text


def dotted(path: Place) -> str:
    """`space.loss.values[2]` for ("space", "loss", "values", 2)."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if len(part) <= 64 else f"{part[:63]}…"
            text += f".{word}" if text else word
    return text


def read_file(path: Path) -> bytes:
    """The bytes of an experiment file. Raises `SpecError` if there is none, or it is no such file."""
    name = str(path)
    try:
        if path.is_dir():
            raise SpecError([Problem(name, "is a folder", "name the file in it")])
        if not path.exists():
            raise SpecError([Problem(name, "there is no such file", "`shoal init` writes one to start from")])
        if not path.is_file():  # a pipe or a device might never end
            raise SpecError([Problem(name, "is not a plain file", "name an experiment file")])
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise SpecError([Problem(name, f"can't be read: {reason}", "")]) from error


def parse(text: str | bytes, name: str = "") -> Document:
    """The values in a YAML text. Raises `SpecError` where nothing can be made of it."""
    if len(text) > MAX_BYTES:
        size = MAX_BYTES // 1024
        raise SpecError([Problem(name, f"larger than {size} KiB", "an experiment file has a few KiB")])
    if isinstance(text, bytes):
        text = _decoded(text, name)
    try:
        return _Builder(name).build(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else name
        words = " ".join(filter(None, (error.problem, error.context))) or "can't be understood"
        raise SpecError(
            [
                Problem(
                    place,
                    f"not YAML: {words}",
                    "check indentation (spaces, no tabs), colons and quotes near there",
                )
            ]
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        # Control characters and lone surrogates; the parser's own words name the position.
        words = " ".join(str(error).split())[:200]
        raise SpecError([Problem(name, f"not YAML: {words}", "use plain text")]) from error


def _decoded(text: bytes, name: str) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        message = f"not UTF-8 text (byte {error.start}, line {line})"
        raise SpecError([Problem(name, message, "save it as UTF-8")]) from error


@dataclass(slots=True)
class _Anchor:
    value: Value
    nodes: int
    height: int


class _Builder:
    """Makes values of parser events, refusing as soon as a bound is passed."""

    def __init__(self, name: str) -> None:
        self.document = Document({})
        self.name = name
        self.nodes = 0
        self.anchors: dict[str, _Anchor | None] = {}
        self.event: Any = None
        self.events: Any = None

    def build(self, events: Any) -> Document:
        self.events = events
        self.next()  # stream start
        self.next()
        if isinstance(self.event, yaml.StreamEndEvent):
            self.refuse("the file is empty", "`shoal init` writes one to start from")
        self.next()  # document start
        value, _ = self.value((), 1)
        if not isinstance(value, dict):
            self.refuse(f"the file holds {shown(value)}, not a mapping", "begin with `experiment: name`")
        self.next()  # document end
        self.next()
        if not isinstance(self.event, yaml.StreamEndEvent):
            self.refuse("there is a second document after `---`", "one experiment per file")
        assert isinstance(value, dict)
        self.document.value = value
        return self.document

    def next(self) -> None:
        self.event = next(self.events)

    @property
    def line(self) -> int:
        return int(self.event.start_mark.line) + 1

    def refuse(self, message: str, remedy: str) -> None:
        raise SpecError([*self.document.problems, Problem(f"line {self.line}", message, remedy)])

    def note(self, path: Place, message: str, remedy: str) -> None:
        place = f"{dotted(path)} (line {self.line})" if path else f"line {self.line}"
        self.document.problems.append(Problem(place, message, remedy))
        if len(self.document.problems) >= MAX_PROBLEMS:
            self.refuse("too many problems to list", "put the ones above right first")

    def count(self, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.refuse(f"more than {MAX_NODES:,} values, anchors written out", "a smaller file")
        if depth > MAX_DEPTH:
            self.refuse(f"nested more than {MAX_DEPTH} deep", "an experiment file needs four levels")

    def value(self, path: Place, depth: int) -> tuple[Value, int]:
        """The value that begins at the current event, and the height of its tree."""
        event = self.event
        self.document.lines.setdefault(path, self.line)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, depth)
        self.count(1, depth)
        before = self.nodes
        if event.anchor:
            self.anchors[event.anchor] = None  # known, but not finished
        if event.tag:
            self.note(path, f"the tag {shown(event.tag)} is not allowed", "write the plain value")
        height = 1
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self.sequence(path, depth)
        else:
            value, height = self.mapping(path, depth)
        if event.anchor:
            self.anchors[event.anchor] = _Anchor(value, 1 + self.nodes - before, height)
        return value, height

    def alias(self, event: Any, depth: int) -> tuple[Value, int]:
        anchor = self.anchors.get(event.anchor)
        if anchor is None:
            known = event.anchor in self.anchors
            self.refuse(
                f"`*{event.anchor[:60]}` stands inside itself"
                if known
                else f"there is no `&{event.anchor[:60]}`",
                "write the value",
            )
        assert anchor is not None
        self.count(anchor.nodes, depth + anchor.height - 1)
        return anchor.value, anchor.height

    def sequence(self, path: Place, depth: int) -> tuple[list[Value], int]:
        items: list[Value] = []
        height = 1
        self.next()
        while not isinstance(self.event, yaml.SequenceEndEvent):
            item, below = self.value((*path, len(items)), depth + 1)
            items.append(item)
            height = max(height, below + 1)
            self.next()
        return items, height

    def mapping(self, path: Place, depth: int) -> tuple[dict[str, Value], int]:
        items: dict[str, Value] = {}
        first: dict[str, int] = {}
        height = 1
        self.next()
        while not isinstance(self.event, yaml.MappingEndEvent):
            line = self.line
            key = self.key(path, depth)
            repeated = key in first
            if repeated:
                self.note(
                    (*path, key), f"`{key[:60]}` is already there in line {first[key]}", "keep one of them"
                )
            self.next()
            value, below = self.value((*path, key), depth + 1)
            if not repeated:
                first[key] = line
                items[key] = value
                self.document.lines[(*path, key)] = line
            height = max(height, below + 1)
            self.next()
        return items, height

    def key(self, path: Place, depth: int) -> str:
        event = self.event
        if not isinstance(event, yaml.ScalarEvent):
            self.refuse("a key must be plain text", "write `key: value`")
        self.count(1, depth)
        if event.tag or event.anchor:
            self.note(path, f"the key {shown(event.value)} has a tag or an anchor", "write the plain key")
        if event.value == "<<" and not event.style:
            self.note(path, "merge keys (`<<`) are not read", "write the values out")
        elif not event.style and event.value.lower() in _OLD_BOOLEANS:
            self.note((*path, event.value), "is a boolean in YAML 1.1", "put the key in quotes")
        elif not event.style and (_FLOAT.fullmatch(event.value) or event.value in _BOOLEANS | _NULLS):
            self.note((*path, event.value), "the key is no text", "put it in quotes if it is meant as text")
        return str(event.value)

    def scalar(self, event: Any, path: Place) -> Value:
        text: str = event.value
        if event.style:  # in quotes, or a block
            return text
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if (meant := _OLD_BOOLEANS.get(text.lower())) is not None:
            message = f"`{text}` is text in YAML 1.2 and a boolean in YAML 1.1"
            return self.unread(path, message, f"write {meant}, or put it in quotes")
        if _UNDERSCORED.fullmatch(text):
            return self.unread(path, f"`{text[:60]}` has underscores", "write the digits alone, or quote it")
        if _SPECIAL.fullmatch(text):
            return self.unread(path, f"{text} is not a finite number", "write a number")
        return self.number(text, path) if _FLOAT.fullmatch(text) else text

    def number(self, text: str, path: Place) -> Value:
        if len(text) > MAX_DIGITS:
            return self.unread(path, f"a number of {len(text)} characters", f"at most {MAX_DIGITS}")
        if _OLD_OCTAL.fullmatch(text):
            message = f"`{text}` is octal in YAML 1.1 and decimal in YAML 1.2"
            return self.unread(path, message, "leave the leading zero out, or put it in quotes")
        if _INTEGER.fullmatch(text):
            return int(text)
        value = float(text)
        if not math.isfinite(value):
            return self.unread(path, f"{text} is not a finite number", "write a smaller number")
        return value

    def unread(self, path: Place, message: str, remedy: str) -> Value:
        self.note(path, message, remedy)
        self.document.unread.add(path)
        nothing: Value = None
        return nothing
