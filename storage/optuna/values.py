"""How a value looks in a row, and how it looks in Optuna's `FrozenTrial`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

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


class StoredTrial(FrozenTrial):
    """A `FrozenTrial` whose deep copies share its distributions, which never change.

    To copy those is most of what Optuna's `Study.tell` costs. Pickled it is a plain `FrozenTrial`.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        copied = detached(self)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (FrozenTrial,), self.__dict__


def evolved(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """A trial that differs in some attributes (by their names inside `FrozenTrial`) and shares the rest.

    Whoever holds the old one never sees it change, as Optuna's storages have to promise.
    """
    new = StoredTrial.__new__(StoredTrial)
    new.__dict__.update(trial.__dict__, **changes)
    return new


def detached(trial: FrozenTrial) -> FrozenTrial:
    """A copy that its holder may change, as deep as `copy.deepcopy` but for the distributions."""
    return evolved(
        trial,
        _values=None if trial._values is None else list(trial._values),
        _params=copy.deepcopy(trial._params),
        _distributions=dict(trial._distributions),
        _user_attrs=copy.deepcopy(trial._user_attrs),
        _system_attrs=copy.deepcopy(trial._system_attrs),
        intermediate_values=dict(trial.intermediate_values),
    )


def unshared(trial: FrozenTrial) -> FrozenTrial:
    """A copy to which entries may be added: Optuna's `Trial` does so to what a storage gave it."""
    return evolved(
        trial,
        _params=dict(trial._params),
        _distributions=dict(trial._distributions),
        _user_attrs=dict(trial._user_attrs),
        _system_attrs=dict(trial._system_attrs),
        intermediate_values=dict(trial.intermediate_values),
    )


def decoded(keys: Iterable[str] | None, texts: Iterable[str] | None) -> dict[str, Any]:
    """Attributes from their names and JSON; none are NULL in SQL."""
    if keys is None or texts is None:
        return {}
    return {key: json.loads(text) for key, text in zip(keys, texts, strict=True)}
