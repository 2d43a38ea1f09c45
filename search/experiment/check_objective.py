"""What an experiment with a function of the user's own must agree on."""

from __future__ import annotations

from objectives.base import ObjectiveError
from search.experiment.dimensions import Finding
from search.experiment.draft import Draft, written


def objective_findings(draft: Draft) -> list[Finding]:
    """A function that can't be imported or called; sections that have no meaning beside it."""
    found: list[Finding] = [
        ((section,), "has no meaning beside `objective`", "keep one of the two")
        for section in ("data", "model")
        if section in draft.keys
    ]
    if draft.objective is not None and draft.allow_imports is not None:
        found += _function_findings(draft.objective.function, draft.allow_imports)
    if "metric" not in draft.keys:
        message = "is missing: only you know what the function returns"
        found.append((("metric",), message, "add a name for it, such as `metric: loss`"))
    for place, value in written(draft, "epochs"):
        if type(value) is not int or value < 1:
            found.append((place, f"{value!r} is no number of epochs", "a whole number, at least 1"))
    return found


def _function_findings(function: str, allow_imports: object) -> list[Finding]:
    from objectives.imports import import_remedy, is_import, resolve_import
    from objectives.plugin import keywords_of

    assert isinstance(allow_imports, tuple)
    place = ("objective", "function")
    if not is_import(function):
        return [(place, f"{function!r} does not have the form module:function", "name its module as well")]
    try:
        keywords_of(resolve_import(function, allow_imports), function)
    except ObjectiveError as error:
        module = function.partition(":")[0]
        listed = module in allow_imports
        remedy = import_remedy(function, allow_imports) if listed else f"add `allow_imports: [{module}]`"
        return [(place, str(error), remedy)]
    return []
