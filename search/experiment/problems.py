"""What is wrong with an experiment file, as values that name the place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_SHOWN = 60
"""Longest piece of a user's value that a message repeats."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right in an experiment file."""

    place: str
    """Dotted path in the file, with its line where it is known: ``space.epochs.low (line 12)``."""
    message: str
    """What is wrong, with the value."""
    remedy: str
    """What to write instead; may be empty where the message says it all."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.message) if part) + (
            f" → {self.remedy}" if self.remedy else ""
        )


class SpecError(Exception):
    """An experiment file can't be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        """At least one."""
        super().__init__("\n".join(map(str, self.problems)))


def shown(value: object) -> str:
    """A user's value for a message: one line, never long."""
    if isinstance(value, str):
        text = repr(value if len(value) <= MAX_SHOWN else f"{value[: MAX_SHOWN - 1]}…")
    elif isinstance(value, bool):
        text = "true" if value else "false"
    elif value is None:
        text = "nothing"
    elif isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, list | tuple):
        text = "a list"
    elif isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:
        text = "a very large number"
    else:
        text = str(value)
    return text


def nearest(word: str, candidates: Iterable[str]) -> str:
    """The remedy for a word that is not one of `candidates`: the one meant, or all of them."""
    names = sorted(candidates)
    close = difflib.get_close_matches(word[:MAX_SHOWN].lower(), names, n=1, cutoff=0.55)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"one of: {', '.join(names)}" if names else ""
