"""Which engine runs an experiment's trials: one of `TRAINERS` for networks, else the one for functions."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from objectives.base import Engine
    from objectives.choices import Choices
    from search.spec import ExperimentSpec

TRAINERS = {"fused": "objectives.fused:FusedEngine", "plain": "objectives.trainer:PlainEngine"}
"""Name → class of an `Engine`, made from the task and the device. Imported by workers alone."""

CHOOSING = frozenset({"fused"})
"""Those that choose between ways to train, and are told where the choices are kept."""


def make_engine(spec: ExperimentSpec, name: str, device: str, choices: Choices | None = None) -> Engine:
    """The engine of a worker. A function of the user's own has one of its own, whatever the name.

    Raises `KeyError` if there is no trainer of that name, and what the engine raises.
    """
    function = spec.function_task()
    if function is None:
        options = {"choices": choices} if name in CHOOSING else {}
        return trainer(name)(spec.task(), device, **options)
    from objectives.plugin import FunctionEngine

    return FunctionEngine(function, device)


def trainer(name: str) -> Callable[..., Engine]:
    """The engine class of that name, or of a ``module:class``. Raises `KeyError` if there is none."""
    module, _, attribute = (name if ":" in name else TRAINERS[name]).partition(":")
    made: Callable[..., Engine] = getattr(import_module(module), attribute)
    return made
