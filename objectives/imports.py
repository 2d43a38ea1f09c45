"""`module:function` in an experiment file: what may be imported, decided where it is imported.

A file is data that a stranger may have written, and importing a module runs it. So two must agree: the file
lists the module in its `allow_imports`, and whoever runs the process lists it in `$SHOAL_ALLOW_IMPORTS`. The
second is asked in each process, also by a worker for an experiment that another machine's `shoal run` let in.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import Any

from objectives.base import TrialError

ALLOW_VARIABLE = "SHOAL_ALLOW_IMPORTS"
ALLOWED_ALWAYS = ("search.examples",)
"""What may be imported where the operator says nothing: our own examples."""


def may_import(module: str) -> bool:
    """Whether whoever runs this process lets experiment files name the module.

    `$SHOAL_ALLOW_IMPORTS` lists, separated by commas, modules with all that is below them; without it
    only the examples that come with shoal are allowed.
    """
    said = os.environ.get(ALLOW_VARIABLE, "")
    listed = [entry.strip() for entry in said.split(",") if entry.strip()] or ALLOWED_ALWAYS
    return any(module == entry or module.startswith(f"{entry}.") for entry in listed)


def import_remedy(reference: str, allow_imports: Collection[str]) -> str:
    """What to do about a reference that `resolve_import` refused."""
    module = reference.partition(":")[0]
    if module not in allow_imports:
        return "list its module in allow_imports"
    if not may_import(module):
        return f"who runs shoal, and each of its workers, adds {module} to {ALLOW_VARIABLE}"
    root = module.partition(".")[0]
    if root.isidentifier() and find_spec(root) is None:
        return f"install {root}, or put the folder that it is in on PYTHONPATH, for each worker as well"
    return "correct the module or its name"


def is_import(name: str) -> bool:
    """Whether ``name`` is a ``module:function`` reference rather than a name in a registry."""
    return ":" in name


def resolve_import(reference: str, allow_imports: Collection[str]) -> Callable[..., Any]:
    """The callable that ``module:function`` names.

    Raises `TrialError`, before anything is imported, unless the module is in ``allow_imports`` (the
    file's word) and `may_import` lets it (the operator's); also if the module can't be imported or has no
    such callable.
    """
    module_name, _, attribute = reference.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise TrialError(f"{reference!r} does not have the form module:function")
    if module_name not in allow_imports:
        raise TrialError(f"{reference!r} may not be imported: {module_name!r} is not in allow_imports")
    if not may_import(module_name):
        raise TrialError(
            f"{reference!r} may not be imported: {module_name!r} is not among the modules that "
            f"{ALLOW_VARIABLE} allows here"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a guard for __main__ may exit
        raise TrialError(f"importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise TrialError(f"module {module_name!r} has no function {attribute!r}")
    return function  # type: ignore[no-any-return]  # nothing says of which type it is
