"""What a trial's values may be: the names and options of every registry, and what is wrong with values.

An option of a registry entry is a keyword-only parameter of its function: its annotation gives type
and range (`objectives.ranges`), its default is used where it is left out. There is no second list.

Free of torch: registries are imported when they are asked for.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args, get_origin

from objectives.base import CHOICES, FULL_BATCH, ObjectiveError, Scalar, TrialConfig, TrialError
from objectives.imports import import_remedy, is_import, resolve_import

Kind: TypeAlias = Literal["bool", "int", "float", "str"]


@dataclass(frozen=True, slots=True)
class Option:
    """One value that a user may set: its type, its range, what it is if left out."""

    name: str
    kind: Kind
    default: Scalar | None
    """None: there is no default, the value must be given."""
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    """`low` itself is not allowed."""
    high_open: bool = False
    """`high` itself is not allowed."""
    choices: tuple[str, ...] = ()
    """The texts allowed; for a number, texts allowed beside numbers (batch size `full`). Empty: any."""

    @property
    def allowed(self) -> str:
        """In words: `a number, at least 0 and below 1`."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "str":
            return f"one of {', '.join(self.choices)}" if self.choices else "a text"
        bounds = []
        if self.low is not None:
            bounds.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high is not None:
            bounds.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        number = "a whole number" if self.kind == "int" else "a finite number"
        words = f", or {' or '.join(self.choices)}" if self.choices else ""
        return number + (", " if bounds else "") + " and ".join(bounds) + words


class Problem(NamedTuple):
    """What is wrong with one value, and what to do about it."""

    key: str
    message: str
    remedy: str


class _Group(NamedTuple):
    """Where a registry is, and which attribute of an entry carries its options ("": the entry itself)."""

    module: str
    registry: str
    carrier: str = ""
    takes_imports: bool = False


_GROUPS: Mapping[str, _Group] = {
    "loss": _Group("objectives.losses", "LOSSES", takes_imports=True),
    "regulariser": _Group("objectives.regularisers", "REGULARISERS", carrier="penalty"),
    "optimizer": _Group("objectives.optimizers", "OPTIMIZERS", carrier="build"),
    "schedule": _Group("objectives.schedules", "SCHEDULES"),
    "model": _Group("objectives.models", "MODELS", takes_imports=True),
    "augment": _Group("objectives.augment", "AUGMENTATIONS"),
    "data": _Group("objectives.datasets", "DATASETS"),
    "metric": _Group("objectives.metrics", "METRICS", carrier="function"),
}

_WITHOUT_OPTIONS = ("data", "metric")

_NOT_OPTIONS = ("strength",)
"""Keyword-only parameters that the trainer gives: λ is a part of the config, not of the regulariser."""

_DEFAULTS = TrialConfig()

PLAIN: Mapping[str, Option] = {
    "lambda": Option("lambda", "float", _DEFAULTS.strength, low=0),
    "learning_rate": Option("learning_rate", "float", _DEFAULTS.learning_rate, low=0, low_open=True),
    "batch_size": Option("batch_size", "int", _DEFAULTS.batch_size, low=1, choices=(FULL_BATCH,)),
    "epochs": Option("epochs", "int", _DEFAULTS.epochs, low=1),
    "class_weights": Option("class_weights", "str", _DEFAULTS.class_weights, choices=("none", "balanced")),
}
"""The parts of a config that are plain values."""


def names(group: str) -> tuple[str, ...]:
    """The entries of a registry: loss, regulariser, optimizer, schedule, model, augment, data or metric."""
    return tuple(_entries(group))


def options(group: str, name: str, allow_imports: Collection[str] = ()) -> dict[str, Option]:
    """The options of entry ``name`` of registry ``group``, or of a user's ``module:function``.

    An augmentation has one, `amount`. Raises `TrialError` for a name that there isn't.
    """
    if is_import(name) and _GROUPS[group].takes_imports:
        return _options_of(resolve_import(name, allow_imports), name)
    return dict(_registered_options(group, name))


def option_applies(key: str, chosen: str, allow_imports: Collection[str] = ()) -> bool:
    """Whether the entry ``chosen`` of ``key``'s group takes it: (`loss.gamma`, `focal`) → True.

    True for every key that isn't an option of a chosen entry: `epochs`, `loss`, `augment.flip`.
    """
    group, dot, name = key.partition(".")
    return not dot or group not in CHOICES or name in options(group, chosen, allow_imports)


def keys(chosen: Mapping[str, str] | None = None, allow_imports: Collection[str] = ()) -> tuple[str, ...]:
    """Every key that a config may have; ``chosen`` limits a group's options to those of one entry.

    ``keys({"loss": "focal"})`` has `loss.gamma` and no other option of a loss.
    """
    found = [*PLAIN, *CHOICES, *(f"augment.{name}" for name in names("augment"))]
    for group in CHOICES:
        entries = [chosen[group]] if chosen and group in chosen else names(group)
        for entry in entries:
            found += [f"{group}.{name}" for name in options(group, entry, allow_imports)]
    return tuple(dict.fromkeys(found))


def option_of(key: str, chosen: str | None = None, allow_imports: Collection[str] = ()) -> Option | None:
    """The option that ``key`` sets when ``chosen`` is the entry of its group; None if there is none.

    A key that names an entry, such as `loss`, is a text (any text: `module:function` is allowed).
    Without ``chosen``, the default entry of the group. Raises `TrialError` if there is no such entry.
    """
    if key in PLAIN:
        return PLAIN[key]
    if key in CHOICES:
        return Option(key, "str", _default_name(key))
    group, _, name = key.partition(".")
    if group == "augment" and name in names("augment"):
        return options("augment", name)["amount"]
    if group in CHOICES:
        return options(group, chosen or _default_name(group), allow_imports).get(name)
    return None


def problem_of_name(
    group: str, name: object, allow_imports: Collection[str] = (), *, key: str | None = None
) -> Problem | None:
    """What is wrong with naming ``name`` where an entry of ``group`` is expected; None if nothing is."""
    key = key or group
    if not isinstance(name, str):
        return Problem(key, f"{_shown(name)} is not a name", f"write one of {', '.join(names(group))}")
    if is_import(name):
        if not _GROUPS[group].takes_imports:
            return Problem(
                key,
                f"{_shown(name)}: only a loss or a model may be a module:function of your own",
                f"write one of {', '.join(names(group))}",
            )
        try:
            options(group, name, allow_imports)
        except ObjectiveError as error:
            return Problem(key, str(error), import_remedy(name, allow_imports))
        return None
    if name not in names(group):
        return Problem(key, f"there is no {group} {_shown(name)}", _nearest(name, names(group)))
    return None


def problem_of_value(key: str, option: Option, value: object) -> Problem | None:
    """What is wrong with ``value`` for ``option``: its type, its range, or that it isn't finite."""
    remedy = f"write {option.allowed}"
    if option.choices and isinstance(value, str):
        if value in option.choices:
            return None
        if option.kind == "str":
            return Problem(key, f"{_shown(value)} is not allowed", _nearest(value, option.choices))
    if not _has_kind(value, option.kind):
        return Problem(key, f"{_shown(value)} is {_type_word(value)}", remedy + _as_number(value, option))
    if isinstance(value, bool | str):
        return None
    assert isinstance(value, int | float)
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(key, f"{value} is not a finite number", remedy)
    too_low = option.low is not None and (value < option.low or (option.low_open and value == option.low))
    too_high = option.high is not None and (
        value > option.high or (option.high_open and value == option.high)
    )
    if too_low or too_high:
        return Problem(key, f"{_shown(value)} is out of range", remedy)
    if isinstance(value, int) and abs(value) >= 2**63:
        return Problem(key, f"{_shown(value)} is too large for a whole number", remedy)
    return None


def problems_of(values: Mapping[str, object], *, allow_imports: Collection[str] = ()) -> list[Problem]:
    """Everything that is wrong with one trial's values, as `TrialConfig.from_values` takes them.

    In the order of ``values``; empty if the config can be trained. Modules in ``allow_imports`` are
    imported if something names them, no others are.
    """
    problems: list[Problem] = []
    chosen: dict[str, str] = {}
    for group in CHOICES:
        name = values.get(group, _default_name(group))
        problem = problem_of_name(group, name, allow_imports)
        if problem is None:
            chosen[group] = str(name)
    for key, value in values.items():
        if key in CHOICES:
            problem = problem_of_name(key, value, allow_imports)
        else:
            problem = _problem_of_item(key, value, chosen, allow_imports)
        if problem is not None:
            problems.append(problem)
    for group, name in chosen.items():
        for option in options(group, name, allow_imports).values():
            if option.default is None and f"{group}.{option.name}" not in values:
                key = f"{group}.{option.name}"
                problems.append(Problem(key, f"{name} needs it", f"write {option.allowed}"))
    return problems


def _entries(group: str) -> Mapping[str, Any]:
    where = _GROUPS[group]
    registry: Mapping[str, Any] = getattr(importlib.import_module(where.module), where.registry)
    return registry


def _registered_options(group: str, name: str) -> Mapping[str, Option]:
    entries = _entries(group)
    if name not in entries:
        raise TrialError(f"there is no {group} {name!r}; known: {', '.join(entries)}")
    if group in _WITHOUT_OPTIONS:
        return {}
    carrier = _GROUPS[group].carrier
    return _cached_options_of(getattr(entries[name], carrier) if carrier else entries[name], name)


@cache
def _cached_options_of(function: Callable[..., Any], name: str) -> Mapping[str, Option]:
    """Reading a signature takes 0.1 ms, and a plan checks thousands of configs."""
    return _options_of(function, name)


def _options_of(function: Callable[..., Any], name: str) -> dict[str, Option]:
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation that only a type checker can resolve
        signature = inspect.signature(function)
    return {
        parameter.name: _option_from(parameter, name)
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _NOT_OPTIONS
    }


_KINDS: Mapping[object, Kind] = {bool: "bool", int: "int", float: "float", str: "str"}


def _option_from(parameter: inspect.Parameter, owner: str) -> Option:
    default = None if parameter.default is parameter.empty else parameter.default
    annotation: object = parameter.annotation
    metadata: Sequence[object] = ()
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        annotation = str
    if annotation is parameter.empty or isinstance(annotation, str):
        annotation = type(default)  # a user's function without (readable) annotations
    kind = _KINDS.get(annotation)
    if kind is None or not all(isinstance(choice, str) for choice in choices):
        raise TrialError(
            f"option {parameter.name!r} of {owner!r} must be annotated as bool, int, float, str "
            "or a Literal of texts"
        )
    bounds = dict(_bounds(metadata))
    return Option(
        parameter.name,
        kind,
        default,
        low=bounds.get("ge", bounds.get("gt")),
        high=bounds.get("le", bounds.get("lt")),
        low_open="gt" in bounds,
        high_open="lt" in bounds,
        choices=choices,
    )


def _bounds(metadata: Sequence[object]) -> Iterator[tuple[str, float]]:
    """The bounds among ``metadata``; an `Interval` carries all four, a `Ge` one."""
    for item in metadata:
        for bound in ("gt", "ge", "lt", "le"):
            limit = getattr(item, bound, None)
            if limit is not None:
                yield bound, limit


def _default_name(group: str) -> str:
    choice = getattr(_DEFAULTS, group)
    return str(choice.name)


def _problem_of_item(
    key: object, value: object, chosen: Mapping[str, str], allow_imports: Collection[str]
) -> Problem | None:
    """What is wrong with an entry of a config that isn't the name of a choice."""
    if not isinstance(key, str):
        return Problem(str(key), f"{_shown(key)} is not a key", "keys are texts")
    group, _, name = key.partition(".")
    if group in CHOICES and group not in chosen:
        return None  # the group's own name is wrong, and said to be
    option = option_of(key, chosen.get(group), allow_imports)
    if option is not None:
        return problem_of_value(key, option, value)
    if group in CHOICES and is_import(chosen[group]):
        return Problem(
            key,
            f"{group} {_shown(chosen[group])} does not take {_shown(name)}",
            "its options are its keyword-only parameters: (…, *, name: type = default)",
        )
    owners = [entry for entry in names(group) if name in options(group, entry)] if group in CHOICES else []
    if owners:
        when = f"{{{group}: [{', '.join(owners)}]}}"
        return Problem(
            key,
            f"{group} {_shown(chosen[group])} does not take {_shown(name)}",
            f"leave it out, or make it conditional: when: {when}",
        )
    known = (*PLAIN, *CHOICES, "and options, such as loss.gamma or augment.flip")
    remedy = _nearest(key, keys(chosen, allow_imports), known)
    return Problem(key, f"{_shown(key)} is not part of a config", remedy)


def _has_kind(value: object, kind: Kind) -> bool:
    """Whether ``value`` has type ``kind``; a bool is no number, a whole number does for a float."""
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "float":
        return isinstance(value, int | float)
    return isinstance(value, {"bool": bool, "int": int, "str": str}[kind])


def _type_word(value: object) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number with a fraction", str: "a text"}
    return words.get(type(value), "empty" if value is None else f"a {type(value).__name__}")


def _as_number(value: object, option: Option) -> str:
    """A hint for numbers that YAML reads as texts: it takes 1e-3 for one, 1.0e-3 not."""
    if not isinstance(value, str) or option.kind not in ("int", "float"):
        return ""
    try:
        return f"; without quotes and with a point, {float(value)!r}"
    except ValueError:
        return ""


def _nearest(word: str, words: Collection[str], known: Collection[str] = ()) -> str:
    """Which of ``words`` was meant, by its letters or its initials (lr); else which are ``known``."""
    near = [each for each in words if word == "".join(part[:1] for part in each.split("_"))]
    near += difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known or words)}"


def _shown(value: object) -> str:
    """``value`` as a message shows it: quoted, and never long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write very large ones
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
