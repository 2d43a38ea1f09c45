"""What the parts of an experiment file must agree on: names, options, conditions, grids, data.

Each check takes a `Draft`, the parts of a file that could be read, and returns findings. A check
whose part is missing says nothing, so that a broken section hides no problem of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from objectives import registry
from objectives.base import CHOICES, FULL_BATCH, ObjectiveError, Scalar, TrialConfig
from objectives.imports import is_import
from search.experiment.check_methods import (
    comparison_findings,
    epoch_findings,
    grid_size_findings,
    method_findings,
)
from search.experiment.check_objective import objective_findings
from search.experiment.dimensions import Choices, Dimension, Finding, Range, same
from search.experiment.draft import Draft, Place, items, values_at, written
from search.experiment.problems import nearest, shown
from search.experiment.space import condition_findings


def findings(draft: Draft) -> list[Finding]:
    """Everything that the readable parts contradict, in the order of the file's sections."""
    found = (
        objective_findings(draft) if draft.is_function else _data_findings(draft) + _metric_findings(draft)
    )
    found += _twice(draft)
    if not draft.is_function:  # whose dimensions have names and values of its own
        found += _config_findings(draft)
    for name, dimension in draft.space.items():
        found += [(("space", name, *path), text, remedy) for path, text, remedy in dimension.findings()]
    found += [
        (("space", *path), text, remedy)
        for path, text, remedy in condition_findings(draft.space, draft.broken)
    ]
    found += method_findings(draft)
    if not found and not draft.broken:  # a count of broken points would mislead
        found += grid_size_findings(draft)
    return found + epoch_findings(draft) + comparison_findings(draft)


# Data


def _data_findings(draft: Draft) -> list[Finding]:
    if draft.data is None:
        problem = registry.problem_of_name("data", draft.data_name) if draft.data_name is not None else None
        return [(("data", "name"), problem.message, problem.remedy)] if problem else []
    from objectives.datasets import describe, problems_of_data

    spec = draft.data.data_spec()
    try:
        problems = problems_of_data(spec)
        if problems:
            return [(tuple(key.split(".")), message, remedy) for key, message, remedy in problems]
        images = describe(spec).train_images
    except (ObjectiveError, OSError) as error:
        return [(("data",), str(error), "check the name and the folder")]
    remedy = f"at most {images}, or `{FULL_BATCH}`"
    return [
        (place, f"batch size {size} is more than the {images} training images", remedy)
        for place, size in written(draft, "batch_size")
        if not isinstance(size, str) and size > images
    ]


def _metric_findings(draft: Draft) -> list[Finding]:
    problem = registry.problem_of_name("metric", draft.metric) if draft.metric is not None else None
    return [(("metric",), problem.message, problem.remedy)] if problem else []


# Names, options and values


def _twice(draft: Draft) -> list[Finding]:
    found: list[Finding] = []
    space = draft.space.keys() | draft.broken
    for name in draft.fixed:
        if name in space:
            found.append((("fixed", name), "is in `space` as well", "keep one of the two"))
        elif name.partition(".")[0] == "model" and not draft.is_function:
            found.append((("fixed", name), "is a part of the model", "write it under `model`"))
    if draft.model is None or draft.is_function:
        return found
    found += [
        (("model", option), f"is in `space` as `model.{option}` as well", "keep one of the two")
        for option in draft.model.options
        if f"model.{option}" in space
    ]
    if draft.model_is_named and "model" in space:
        found.append((("model", "name"), "`model` is in `space` as well", "keep one of the two"))
    return found


@dataclass(frozen=True, slots=True)
class _Entries:
    """Which entries of a registry the trials may use."""

    names: tuple[str, ...] = ()
    """Those that exist."""
    certain: bool = True
    """No other was named: then an option that none of them takes is wrong."""
    default: str | None = None
    """Used where the dimension that names the entry is not part of a trial."""


def _config_findings(draft: Draft) -> list[Finding]:
    found: list[Finding] = []
    entries: dict[str, _Entries] = {}
    for group in CHOICES:
        entries[group], problems = _entries_of(draft, group)
        found += problems
    known = set(registry.keys())
    for group, chosen in entries.items():
        for name in chosen.names:
            known |= {f"{group}.{option}" for option in registry.options(group, name, draft.imports)}
    for place, key, dimension in items(draft):
        if key in CHOICES:
            continue
        group = key.partition(".")[0]
        if key not in known:
            if group not in entries or entries[group].certain:
                found.append((place, f"unknown key {shown(key)}", nearest(key, known)))
        elif "." in key and group in entries:
            found += _option_findings(draft, place, key, dimension, entries[group])
        else:
            found += _value_findings(place, dimension, registry.option_of(key))
    return found + _required(draft, entries)


def _entries_of(draft: Draft, group: str) -> tuple[_Entries, list[Finding]]:
    default = str(getattr(TrialConfig(), group).name)
    dimension = draft.space.get(group)
    if isinstance(dimension, Range):
        remedy = f"list them: [{', '.join(registry.names(group)[:3])}, …]"
        return _Entries(certain=False), [(("space", group), f"{group} takes names, not a range", remedy)]
    named: list[tuple[Place, Scalar]]
    if isinstance(dimension, Choices):
        named = values_at(("space", group), dimension)
    elif group in draft.broken or (group == "model" and draft.model is None):
        return _Entries(certain=False), []
    elif group == "model" and draft.model is not None:
        named = [(("model", "name") if draft.model_is_named else ("model",), draft.model.name)]
    else:
        named = [(("fixed", group), draft.fixed.get(group, default))]
    found: list[Finding] = []
    names = []
    certain = True
    for place, name in named:
        if draft.allow_imports is None and isinstance(name, str) and is_import(name):
            certain = False  # whether it may be imported is not known
            continue
        problem = registry.problem_of_name(group, name, draft.imports)
        if problem:
            found.append((place, problem.message, problem.remedy))
        else:
            names.append(str(name))
    conditional = isinstance(dimension, Choices) and bool(dimension.when)
    return _Entries(tuple(names), certain and not found, default if conditional else None), found


def _option_findings(
    draft: Draft, place: Place, key: str, dimension: Dimension, entries: _Entries
) -> list[Finding]:
    group, _, name = key.partition(".")
    allow_imports = draft.imports
    allowed = dimension.when.get(group)
    if allowed is None:
        chosen = (*entries.names, *filter(None, [entries.default]))
    else:
        chosen = tuple(entry for entry in entries.names if any(same(entry, value) for value in allowed))
    without = [entry for entry in chosen if not registry.option_applies(key, entry, allow_imports)]
    if without:
        takers = [entry for entry in entries.names if entry not in without] or [
            entry for entry in registry.names(group) if registry.option_applies(key, entry)
        ]
        condition = f"when: {{{group}: [{', '.join(takers)}]}}"
        if not set(takers) <= set(entries.names):
            remedy = f"leave it out; {', '.join(takers)} would take it"
        elif place[0] != "space":
            remedy = f"move it to `space` with `{condition}`"
        else:
            remedy = f"make it conditional: `{condition}`"
        return [(place, f"{group} {', '.join(without)} does not take {shown(name)}", remedy)]
    found: list[Finding] = []
    for entry in chosen:
        for finding in _value_findings(place, dimension, registry.option_of(key, entry, allow_imports)):
            if finding not in found:
                found.append(finding)
    return found


def _value_findings(place: Place, dimension: Dimension, option: registry.Option | None) -> list[Finding]:
    if option is None:
        return []
    if isinstance(dimension, Range):
        if option.kind in ("bool", "str"):
            return [(place, f"takes {option.allowed}, not a range", "give it `values`")]
        if option.kind == "float" and dimension.type == "int":
            message = "takes any number, but the range is of whole numbers"
            return [(place, message, "add `type: float`")]
    found: list[Finding] = []
    for where, value in values_at(place, dimension):
        problem = registry.problem_of_value(option.name, option, value)
        if problem:
            found.append((where, problem.message, problem.remedy))
    return found


def _required(draft: Draft, entries: Mapping[str, _Entries]) -> list[Finding]:
    given = {key for _, key, _ in items(draft)} | draft.broken
    found: list[Finding] = []
    for group, chosen in entries.items():
        for name in chosen.names:
            for option in registry.options(group, name, draft.imports).values():
                key = f"{group}.{option.name}"
                if option.default is None and key not in given:
                    place = ("model", option.name) if group == "model" else ("fixed", key)
                    found.append((place, f"{name} needs it", f"write {option.allowed}"))
    return found
