"""How a value looks in a row, and how it looks in Optuna's `FrozenTrial` (`storage.optuna.stored`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import TrialState

LONGEST_KEY = 512
"""Characters of a name of a parameter, an attribute or a study in Optuna's tables."""
LARGEST_INTEGER = 2**31 - 1
"""All of Optuna's integer columns have four bytes."""

FINISHED = frozenset(state for state in TrialState if state.is_finished())
OPEN = frozenset(TrialState) - FINISHED
STATES = {state.name: state for state in TrialState}


@lru_cache(maxsize=4096)
def distribution_of(text: str) -> BaseDistribution:
    """A distribution from its JSON; the same object for the same text, so never to be changed."""
    return json_to_distribution(text)


def local_time(moment: datetime | None) -> datetime | None:
    """A time as `FrozenTrial` has it, naive in this machine's zone, from one of the tables: naive UTC."""
    if moment is None:
        return None
    return moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def utc_time(moment: datetime | None) -> datetime | None:
    """The other way round."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


def checked_key(key: str) -> str:
    """A name that fits its column. Raises `ValueError` before it can spoil a transaction with others."""
    if len(key) > LONGEST_KEY:
        raise ValueError(f"a name may have {LONGEST_KEY} characters; this one has {len(key)}: {key[:40]}…")
    if "\0" in key:
        raise ValueError(f"a name can't hold the character NUL: {key!r}")
    return key


def checked_step(step: int) -> int:
    """A step that fits its column, as a plain `int`."""
    number = int(step)
    if not -LARGEST_INTEGER <= number <= LARGEST_INTEGER:
        raise ValueError(f"a step may be ±{LARGEST_INTEGER} at most, not {number}")
    return number


def decoded(keys: Iterable[str] | None, texts: Iterable[str] | None) -> dict[str, Any]:
    """Attributes from their names and JSON; none are NULL in SQL."""
    if keys is None or texts is None:
        return {}
    return {key: json.loads(text) for key, text in zip(keys, texts, strict=True)}
