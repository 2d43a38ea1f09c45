"""Which engine runs an experiment's trials: one of `TRAINERS` for networks, else the one for functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from search.trials.precisions import held_precision

if TYPE_CHECKING:
    from objectives.base import Engine
    from objectives.choices import Choices
    from search.experiment.spec import ExperimentSpec

TRAINERS = {"fused": "objectives.fused:FusedEngine", "plain": "objectives.trainer:PlainEngine"}
"""Name → class of an `Engine`, made from the task and the device. Imported by workers alone."""

CHOOSING = frozenset({"fused"})
"""Those that choose between ways to train, and are told where the choices are kept."""


def make_engine(
    spec: ExperimentSpec, name: str, device: str, choices: Choices | None = None, precision: str = "auto"
) -> Engine:
    """The engine of a worker. A function of the user's own has one of its own, whatever the name.

    Raises `KeyError` if there is no trainer of that name, `ObjectiveError` where the experiment needs a
    module that may not be imported here, or its trials are computed in another precision, `ChoicesError`, and
    what the engine raises.
    """
    check_imports(spec)
    function = spec.function_task()
    if function is None:
        options = {"choices": choices} if name in CHOOSING else {}
        task = replace(spec.task(), precision=held_precision(choices, device, precision))
        return trainer(name)(task, device, **options)
    from objectives.plugin import FunctionEngine

    return FunctionEngine(function, device)


def check_imports(spec: ExperimentSpec) -> None:
    """Leave trials to other workers rather than fail them all, where their modules aren't allowed here.

    Raises `ObjectiveError`, which says what the operator of this worker can do.
    """
    from objectives.base import ObjectiveError
    from objectives.imports import import_remedy, may_import

    said = json.dumps(spec.to_json())
    refused = [m for m in spec.allow_imports if f'"{m}:' in said and not may_import(m)]
    if refused:
        remedy = import_remedy(f"{refused[0]}:", spec.allow_imports)
        raise ObjectiveError(f"{spec.experiment} imports {', '.join(refused)}, not allowed here: {remedy}")


def told_of(spec: ExperimentSpec, name: str, device: str, engine: Engine) -> dict[str, Any]:
    """What a worker says of itself as it registers: how it trains, on what, how many trials at once."""
    slots = engine.free_slots
    if spec.function_task() is not None:
        return {"trainer": "function", "slots": slots}
    from objectives.devices import kind_of_device, resolve_device

    return {"trainer": name, "device": kind_of_device(resolve_device(device)), "slots": slots}


def trainer(name: str) -> Callable[..., Engine]:
    """The engine class of that name, or of a ``module:class``. Raises `KeyError` if there is none."""
    module, _, attribute = (name if ":" in name else TRAINERS[name]).partition(":")
    made: Callable[..., Engine] = getattr(import_module(module), attribute)
    return made
