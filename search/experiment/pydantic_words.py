"""Pydantic's errors in the words of the experiment file: path, message, remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from search.experiment.dimensions import Finding
from search.experiment.problems import nearest, shown

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "finite_number": "a finite number",
}
"""Pydantic's error type → what it wanted."""

_COMPARED = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def findings_of(error: ValidationError, place: tuple[str | int, ...], fields: Iterable[str]) -> list[Finding]:
    """All problems in a pydantic error.

    `place` is where its paths begin; `fields` are the keys to suggest for an unknown one.
    """
    names = tuple(fields)
    found: list[Finding] = []
    for details in error.errors(include_url=False):
        if details["type"] == "too_short" and _length(details["input"]) >= details["ctx"]["min_length"]:
            continue  # pydantic counts the valid entries; what is wrong with the others is among the errors
        path = (*place, *(part for part in details["loc"] if part != "[key]"))
        if details["type"] == "extra_forbidden":
            found.append(unknown_key(path, names))
        else:
            found.append(
                (path, *_words(details["type"], details["input"], details.get("ctx", {}), details["msg"]))
            )
    return found


def unknown_key(path: tuple[str | int, ...], fields: Iterable[str]) -> Finding:
    """The finding for a key that is none of `fields`."""
    return path, f"unknown key {shown(path[-1])}", nearest(str(path[-1]), fields)


def _words(kind: str, value: object, context: dict[str, Any], message: str) -> tuple[str, str]:
    if kind == "missing":
        return "is missing", ""
    if kind in _WANTED:
        wanted = _WANTED[kind]
        return f"must be {wanted}, not {_described(value)}", _unquoted(kind, value)
    if kind in _COMPARED:
        key, words = _COMPARED[kind]
        return f"{shown(value)} is out of range", f"{words} {context[key]:,}"
    if kind == "literal_error":
        return f"must be {context['expected']}, not {_described(value)}", ""
    if kind in ("too_short", "string_too_short"):
        return "is empty", f"at least {context.get('min_length', 1)}"
    if kind in ("too_long", "string_too_long"):
        return f"is too long ({_length(value) or shown(value)})", f"at most {context['max_length']}"
    return message, str(context.get("remedy", ""))


def _described(value: object) -> str:
    return f"the text {shown(value)}" if isinstance(value, str) else shown(value)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _unquoted(kind: str, value: object) -> str:
    """`write 32 without quotes`, where the text would do as a number."""
    if not isinstance(value, str) or kind not in ("int_type", "float_type"):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return f"write {value} without quotes"
