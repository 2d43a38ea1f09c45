"""Trials as they were read: decoded only as far as somebody asks.

A study of ten thousand trials is ten thousand of these, and most of what they hold is never looked at: a
sampler that doesn't learn wants none of it, a rule of pruning the values of one step. So what the database
said stays text until then. That keeps opening a study cheap and, as there is nearly nothing in such a trial
that Python's garbage collector has to visit, every later operation as well: a collection goes through all
that a process holds, in the middle of whatever it happens to be doing.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from storage.optuna.values import distribution_of, local_time

Texts: TypeAlias = tuple[Any, ...]
"""As read: start and end in UTC; arrays of the internal values of parameters; JSON objects of the user's and
of Optuna's attributes; arrays of the steps, of what was reported at them, and of the final values.

A plain tuple of plain values, which the garbage collector stops to visit."""
_START, _COMPLETE, _INTERNAL, _USER, _SYSTEM, _STEPS, _REPORTS, _VALUES = range(8)


Attributes: TypeAlias = tuple[str | None, str | None]
"""JSON objects of the user's attributes and of Optuna's; None: there are none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which parameters a trial has; one object for all trials with the same."""

    names: tuple[str, ...]
    distributions: dict[str, BaseDistribution]
    """Shared by all of those trials, so never to be changed."""


class StoredTrial(FrozenTrial):
    """A `FrozenTrial` that decodes what is asked for, and whose deep copies share its distributions.

    To copy those, which never change, is most of what Optuna's `Study.tell` costs. Pickled it is a plain
    `FrozenTrial`.
    """

    __slots__ = ("_shape", "_texts")

    _shape: Shape
    _texts: Texts | None
    """None: everything is decoded."""

    def __getattr__(self, name: str) -> Any:
        """What was not decoded yet: Python looks here for what isn't there."""
        if name not in _DECODERS or self._texts is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = _DECODERS[name](self._shape, self._texts)
        setattr(self, name, value)
        return value

    @property
    def last_step(self) -> int | None:
        """As `FrozenTrial`'s, without decoding what was reported."""
        steps = self.intermediate_values if self._texts is None else _steps_of(self._texts[_STEPS])
        return max(steps, default=None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrozenTrial):
            return NotImplemented
        return _whole(self) == _whole(other)

    def __hash__(self) -> int:
        return hash(tuple(_whole(self).values()))

    def __repr__(self) -> str:
        return FrozenTrial.__repr__(evolved(self))

    def __copy__(self) -> FrozenTrial:
        # Optuna copies a trial for every parameter that it suggests.
        copied = FrozenTrial.__new__(FrozenTrial)
        copied.__dict__.update(_whole(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        copied = detached(self)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (FrozenTrial,), _whole(self)


def stored_trial(trial_id: int, number: int, state: TrialState, shape: Shape, texts: Texts) -> StoredTrial:
    """A trial as it was read."""
    trial = StoredTrial.__new__(StoredTrial)
    trial._trial_id, trial._number, trial.state = trial_id, number, state
    trial._shape, trial._texts = shape, texts
    return trial


def attribute_texts(trial: StoredTrial) -> Attributes:
    """What was read of its attributes, to see whether they have changed; trials of a reading have it."""
    texts = trial._texts
    return (None, None) if texts is None else (texts[_USER], texts[_SYSTEM])


def has_user_attr(trial: FrozenTrial, name: str) -> bool:
    """Whether a trial has a user attribute of that name, which does not have to be decoded for that."""
    if isinstance(trial, StoredTrial) and trial._texts is not None and name.isascii() and name.isprintable():
        text = trial._texts[_USER]
        if text is None or json.dumps(name) not in text:
            return False
    return name in trial.user_attrs


def first_value(trial: FrozenTrial) -> float | None:
    """Its first final value, which does not have to be decoded for that."""
    if isinstance(trial, StoredTrial) and trial._texts is not None:
        text = trial._texts[_VALUES]
        return None if text is None else float(text[1:-1].partition(",")[0])
    return trial._values[0] if trial._values else None


def evolved(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """A trial that differs in some attributes (by their names inside `FrozenTrial`) and shares the rest.

    Whoever holds the old one never sees it change, as Optuna's storages have to promise.
    """
    new = StoredTrial.__new__(StoredTrial)
    new._texts = None
    new.__dict__.update(_whole(trial), **changes)
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


@lru_cache(maxsize=4096)
def shape_of(names: str | None, distributions: str | None) -> Shape:
    """A shape from arrays of the names of parameters and of the JSON of their distributions."""
    ordered = tuple(_elements(names))
    kinds = map(distribution_of, _elements(distributions))
    return Shape(ordered, dict(zip(ordered, kinds, strict=True)))


@lru_cache(maxsize=4096)
def interned(text: str | None) -> str | None:
    """The same text, the same object for equal ones: most trials report at the same steps."""
    return text


@lru_cache(maxsize=4096)
def _steps_of(text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(map(int, text[1:-1].split(",")))


_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def _elements(array: str | None) -> list[str]:
    """The elements of an array of texts, none of them NULL, from Postgres' notation."""
    found = _ELEMENT.findall(array or "")
    return [bare or _ESCAPED.sub(r"\1", quoted) for quoted, bare in found]


def _floats(array: str | None) -> list[float]:
    return [] if array is None else list(map(float, array[1:-1].split(",")))


def _whole(trial: FrozenTrial) -> dict[str, Any]:
    """All attributes by name; those of a stored trial decoded, in the order of Optuna's own."""
    if isinstance(trial, StoredTrial) and trial._texts is not None:
        return {name: getattr(trial, name) for name in _FIELDS}
    return trial.__dict__


def _params(shape: Shape, texts: Texts) -> dict[str, Any]:
    return {
        name: shape.distributions[name].to_external_repr(value)
        for name, value in zip(shape.names, _floats(texts[_INTERNAL]), strict=True)
    }


def _reports(_shape: Shape, texts: Texts) -> dict[int, float]:
    return dict(zip(_steps_of(texts[_STEPS]), _floats(texts[_REPORTS]), strict=True))


def _values(_shape: Shape, texts: Texts) -> list[float] | None:
    return None if texts[_VALUES] is None else _floats(texts[_VALUES])


def _attributes(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if text is None else json.loads(text)
    return found


_DECODERS: dict[str, Callable[[Shape, Texts], Any]] = {
    "_values": _values,
    "_datetime_start": lambda _, texts: local_time(texts[_START]),
    "datetime_complete": lambda _, texts: local_time(texts[_COMPLETE]),
    "_params": _params,
    "_user_attrs": lambda _, texts: _attributes(texts[_USER]),
    "_system_attrs": lambda _, texts: _attributes(texts[_SYSTEM]),
    "intermediate_values": _reports,
    "_distributions": lambda shape, _: shape.distributions,
}
"""Attribute inside `FrozenTrial` → how it comes from what was read."""
_FIELDS = ("_number", "state", *_DECODERS, "_trial_id")
"""All of its attributes, in Optuna's order."""
