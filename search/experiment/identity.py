"""What may change under one experiment name, and what may not.

Pure functions of two specs: the one of a file, and the one that was stored under the same name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from search.experiment.problems import Problem, shown
from search.experiment.settings import GridSettings
from search.sampling.grid import made_dimensions

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec

PUT_BACK = "put it back, or give the experiment another name"


def identity_of(spec: ExperimentSpec) -> dict[str, Any]:
    """See `ExperimentSpec.identity`."""
    plain = spec.to_json()
    kept: dict[str, Any] = {
        key: plain[key] for key in ("seed", "model", "fixed", "space", "pruner", "metric")
    }
    if plain["data"] is not None:
        kept["data"] = {k: value for k, value in plain["data"].items() if k not in {"root", "download"}}
    if plain["objective"] is not None:
        kept["objective"] = plain["objective"]
    kept["comparison"] = {key: value for key, value in plain["comparison"].items() if key != "retrain"}
    kept["comparison"]["retrain"] = {"at_least": plain["comparison"]["retrain"]["at_least"]}
    return kept


def conflicts_of(spec: ExperimentSpec, stored: ExperimentSpec) -> list[Problem]:
    """See `ExperimentSpec.conflicts`."""
    before, now = stored.identity(), spec.identity()
    for plain, one, other in ((before, stored, spec), (now, spec, stored)):
        plain["methods"] = {
            name: settings.model_dump(mode="json", exclude={"in_flight"})
            for name, settings in one.methods.items()
            if name in other.methods
        }
    found = [
        Problem(place, f"was {shown(old)} when the experiment was made, now it is {shown(new)}", PUT_BACK)
        for place, old, new in _differences(canonical(before), canonical(now), "")
    ]
    return found + _grid_conflicts(spec, stored)


def _grid_conflicts(spec: ExperimentSpec, stored: ExperimentSpec) -> list[Problem]:
    """Levels that are made depend on the budget: another one would make another grid beside the first."""
    settings, before = spec.methods.get("grid"), stored.methods.get("grid")
    if not isinstance(settings, GridSettings) or before is None:
        return []
    if not made_dimensions(spec.space, settings):
        return []
    old, new = stored.budget.trials, spec.budget.trials
    shared = range(min(spec.replicates, stored.replicates))
    if old == new or all(spec.grid_points(index) == stored.grid_points(index) for index in shared):
        return []
    message = f"was {old} when the levels of the grid were made, now it is {new}"
    remedy = f"{PUT_BACK}; only a grid whose points the file names can grow"
    return [Problem("budget.trials", message, remedy)]


def shrinks_of(spec: ExperimentSpec, stored: ExperimentSpec) -> list[Problem]:
    """See `ExperimentSpec.shrinks`."""
    counts = [
        ("replicates", stored.replicates, spec.replicates),
        ("budget.trials", stored.budget.trials, spec.budget.trials),
        ("comparison.retrain.seeds", stored.comparison.retrain.seeds, spec.comparison.retrain.seeds),
    ]
    found = [
        Problem(place, f"was {old}, now it is {new}", f"at least {old}, or another name for the experiment")
        for place, old, new in counts
        if new < old
    ]
    before, now = stored.budget.epochs, spec.budget.epochs
    if now is not None and (before is None or now < before):
        least = "leave it out" if before is None else f"at least {before}"
        message = f"was {'without limit' if before is None else before}, now it is {now}"
        found.append(Problem("budget.epochs", message, f"{least}, or another name for the experiment"))
    found += [
        Problem(f"methods.{name}", "was there, and is no longer", "add it again, or give another name")
        for name in stored.methods
        if name not in spec.methods
    ]
    return found


def canonical(value: Any) -> Any:
    """Numbers written as 1 and as 1.0 are one number; keys have no order."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return value


def _differences(old: Any, new: Any, place: str) -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if json.dumps(old) == json.dumps(new) else [(place, _flat(old), _flat(new))]


def _flat(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value
