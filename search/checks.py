"""What the parts of an experiment file must agree on: names, options, conditions, grids, data.

Each check takes a `Draft`, the parts of a file that could be read, and returns findings. A check
whose part is missing says nothing, so that a broken section hides no problem of another.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from objectives import registry
from objectives.base import CHOICES, FULL_BATCH, ObjectiveError, Scalar, TrialConfig
from search.dimensions import Choices, Dimension, Finding, Range, same
from search.problems import nearest, shown
from search.settings import (
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    MethodSettings,
    NoPruner,
    PercentileSettings,
    PrunerSettings,
    SuccessiveHalvingSettings,
    TpeSettings,
)
from search.space import SearchSpace, condition_findings
from search.spec import Budget, DataSettings, ModelSettings, max_epochs

FEW = 5
"""A grid is proposed all values of a dimension that has no more than these."""

Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """The parts of an experiment file that could be read. None: that part is broken."""

    data: DataSettings | None
    model: ModelSettings | None
    fixed: Mapping[str, Scalar]
    space: Mapping[str, Dimension]
    methods: Mapping[str, MethodSettings]
    budget: Budget | None
    pruner: PrunerSettings | None
    metric: str | None
    allow_imports: Collection[str] | None
    broken: frozenset[str] = frozenset()
    """Names in `fixed` and `space` that exist but could not be read."""
    model_is_named: bool = False
    """Whether the file itself says which model."""
    data_name: str | None = None
    """The dataset, which may be readable though `data` is not."""

    @property
    def imports(self) -> Collection[str]:
        """The modules that may be imported; none where the file can't be read."""
        return self.allow_imports or ()


def findings(draft: Draft) -> list[Finding]:
    """Everything that the readable parts contradict, in the order of the file's sections."""
    found = _data_findings(draft)
    if draft.metric is not None:
        problem = registry.problem_of_name("metric", draft.metric)
        if problem:
            found.append((("metric",), problem.message, problem.remedy))
    found += _twice(draft)
    found += _config_findings(draft)
    for name, dimension in draft.space.items():
        found += [(("space", name, *path), text, remedy) for path, text, remedy in dimension.findings()]
    found += [
        (("space", *path), text, remedy)
        for path, text, remedy in condition_findings(draft.space, draft.broken)
    ]
    found += _method_findings(draft)
    if not found and not draft.broken:  # a count of broken points would mislead
        found += _grid_size_findings(draft)
    return found + _epoch_findings(draft)


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
        for place, size in _written(draft, "batch_size")
        if not isinstance(size, str) and size > images
    ]


# Names, options and values


def _twice(draft: Draft) -> list[Finding]:
    found: list[Finding] = []
    space = draft.space.keys() | draft.broken
    for name in draft.fixed:
        if name in space:
            found.append((("fixed", name), "is in `space` as well", "keep one of the two"))
        elif name.partition(".")[0] == "model":
            found.append((("fixed", name), "is a part of the model", "write it under `model`"))
    if draft.model is None:
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
    for place, key, dimension in _items(draft):
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


def _items(draft: Draft) -> list[tuple[Place, str, Dimension]]:
    """Every part of a config that the file sets, a constant as a dimension of one value."""
    constants = [(("fixed", key), key, value) for key, value in draft.fixed.items()]
    if draft.model is not None:
        constants += [(("model", key), f"model.{key}", value) for key, value in draft.model.options.items()]
    items: list[tuple[Place, str, Dimension]] = [
        (place, key, Choices(values=(value,))) for place, key, value in constants
    ]
    return items + [(("space", name), name, dimension) for name, dimension in draft.space.items()]


def _entries_of(draft: Draft, group: str) -> tuple[_Entries, list[Finding]]:
    default = str(getattr(TrialConfig(), group).name)
    dimension = draft.space.get(group)
    if isinstance(dimension, Range):
        remedy = f"list them: [{', '.join(registry.names(group)[:3])}, …]"
        return _Entries(certain=False), [(("space", group), f"{group} takes names, not a range", remedy)]
    written: list[tuple[Place, Scalar]]
    if isinstance(dimension, Choices):
        written = _values(("space", group), dimension)
    elif group in draft.broken or (group == "model" and draft.model is None):
        return _Entries(certain=False), []
    elif group == "model" and draft.model is not None:
        written = [(("model", "name") if draft.model_is_named else ("model",), draft.model.name)]
    else:
        written = [(("fixed", group), draft.fixed.get(group, default))]
    found: list[Finding] = []
    names = []
    certain = True
    for place, name in written:
        if draft.allow_imports is None and isinstance(name, str) and registry.is_import(name):
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
    for where, value in _values(place, dimension):
        problem = registry.problem_of_value(option.name, option, value)
        if problem:
            found.append((where, problem.message, problem.remedy))
    return found


def _values(place: Place, dimension: Dimension) -> list[tuple[Place, Scalar]]:
    """The values to check, with their places: each one listed, or both ends of a range."""
    if isinstance(dimension, Choices):
        if place[0] != "space":
            return [(place, dimension.values[0])]
        return [((*place, "values", index), value) for index, value in enumerate(dimension.values)]
    kind = int if dimension.integer else float
    return [((*place, "low"), kind(dimension.low)), ((*place, "high"), kind(dimension.high))]


def _written(draft: Draft, key: str) -> list[tuple[Place, Scalar]]:
    return [
        pair for place, name, dimension in _items(draft) if name == key for pair in _values(place, dimension)
    ]


def _required(draft: Draft, entries: Mapping[str, _Entries]) -> list[Finding]:
    given = {key for _, key, _ in _items(draft)} | draft.broken
    found: list[Finding] = []
    for group, chosen in entries.items():
        for name in chosen.names:
            for option in registry.options(group, name, draft.imports).values():
                key = f"{group}.{option.name}"
                if option.default is None and key not in given:
                    place = ("model", option.name) if group == "model" else ("fixed", key)
                    found.append((place, f"{name} needs it", f"write {option.allowed}"))
    return found


# Methods, grids, epochs


def _method_findings(draft: Draft) -> list[Finding]:
    found: list[Finding] = []
    tpe = draft.methods.get("tpe")
    if isinstance(tpe, TpeSettings) and tpe.group and not tpe.multivariate:
        found.append((("methods", "tpe", "group"), "needs `multivariate: true`", "set both or neither"))
    if "grid" in draft.methods:
        for name, dimension in draft.space.items():
            if not dimension.points() and not dimension.findings():
                message = "method `grid` needs points here, and a range has none of its own"
                found.append((("space", name), message, f"add `grid: {_example_points(dimension)}`"))
    return found


def _example_points(dimension: Dimension) -> str:
    """All values if they are few, else three at the middles of equal cells, on the dimension's own scale."""
    if isinstance(dimension, Choices):
        return "[…]"
    low, high = float(dimension.low), float(dimension.high)
    step = dimension.step or (1 if dimension.integer and not dimension.log else None)
    cells = (1 / 6, 3 / 6, 5 / 6)
    if step is not None:
        last = round((high - low) / step)
        indices = range(last + 1) if last < FEW else [int(last * cell + 0.5) for cell in cells]
        points = [low + index * step for index in indices]
    elif dimension.log:
        points = [low * (high / low) ** cell for cell in cells]
    else:
        points = [low + (high - low) * cell for cell in cells]
    texts = [str(round(point)) if dimension.integer else f"{point:.3g}" for point in points]
    return f"[{', '.join(dict.fromkeys(texts))}]"


def _grid_size_findings(draft: Draft) -> list[Finding]:
    if "grid" not in draft.methods or draft.budget is None:
        return []
    size, exact = SearchSpace(draft.space).grid_size()
    trials = draft.budget.trials
    if size <= trials:
        return []
    remedy = f"fewer points, or `budget: {{trials: {size}}}`" if exact else "fewer points"
    count = f"{size:,}" if exact else f"more than {size:,}"
    return [
        (("budget", "trials"), f"the grid has {count} points, but the budget is {trials:,} trials", remedy)
    ]


def _epoch_findings(draft: Draft) -> list[Finding]:
    written = _written(draft, "epochs")
    if "epochs" in draft.broken or any(type(value) is not int or value < 1 for _, value in written):
        return []  # said already
    most = max_epochs(draft.fixed, draft.space)
    found: list[Finding] = []
    if draft.budget is not None and draft.budget.epochs is not None and draft.budget.epochs < most:
        message = f"{draft.budget.epochs} epochs are fewer than the {most} of one trial"
        found.append((("budget", "epochs"), message, "a larger budget, or fewer epochs per trial"))
    return found + _pruner_findings(draft.pruner, most)


def _pruner_findings(pruner: PrunerSettings | None, most: int) -> list[Finding]:
    """A pruner whose first decision comes at a trial's last epoch or later prunes nothing."""
    if pruner is None or isinstance(pruner, NoPruner):
        return []
    key, first = "name", 1
    if isinstance(pruner, MedianSettings | PercentileSettings):
        key, first = "n_warmup_steps", pruner.n_warmup_steps + 1
    elif isinstance(pruner, SuccessiveHalvingSettings):
        # Bounded: the exponent is at most 16, but Python's integers would follow any product.
        key = "min_resource"
        first = pruner.min_resource * pruner.reduction_factor**pruner.min_early_stopping_rate
    elif isinstance(pruner, HyperbandSettings):
        key, first = "min_resource", pruner.min_resource
        if pruner.max_resource is not None and pruner.max_resource > most:
            message = f"{pruner.max_resource} epochs are more than the {most} of a trial"
            return [(("pruner", "max_resource"), message, f"at most {most}, or leave it out")]
    elif isinstance(pruner, AshaSettings):
        key, first = "min_epochs", pruner.min_epochs
    if first < most:
        return []
    message = (
        f"the first decision is after epoch {shown(first)}, but a trial has {most}: nothing would be pruned"
    )
    return [(("pruner", key), message, "decide earlier, train longer, or `pruner: none`")]
