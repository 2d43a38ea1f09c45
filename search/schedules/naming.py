"""How generations are named, where their chance comes from, and the file that a firing runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

SEPARATOR = ".g"
LONGEST_GENERATION = 8
"""Characters that a generation adds to a name at most: `.g` and six digits."""
LONGEST_NAME = 64 - LONGEST_GENERATION
"""An experiment's name has 64 characters at most."""


def experiment_of(name: str, each: str, generation: int, spec: Mapping[str, Any]) -> str:
    """What the firing of that generation runs: `NAME.gN`, or always the file's own experiment."""
    return f"{name}{SEPARATOR}{generation}" if each == "new" else str(spec["experiment"])


def seed_of(name: str, generation: int, seed: int) -> int:
    """The seed of a generation: the first 32 bits of SHA-256 of ``seed/name/generation``.

    The same whenever and wherever it fires, and none that two generations share but by chance.
    """
    text = f"{seed}/{name}/{generation}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def file_of(name: str, each: str, generation: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment file that a firing runs, as plain values: `spec` with a name and a seed of its own."""
    given = {key: value for key, value in spec.items() if value is not None}
    if "objective" in given:
        given.pop("model", None)  # a stored spec has its default, a file may not say it beside a function
    given["experiment"] = experiment_of(name, each, generation, spec)
    if each == "new":
        given["seed"] = seed_of(name, generation, int(spec["seed"]))
    return given
