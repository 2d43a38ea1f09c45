"""From the text of an experiment file to an `ExperimentSpec`, or to the list of all its problems.

Sections are read one by one, dimensions and methods too, so that a broken one hides nothing in the
others. Then `checks` looks at what could be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from search.experiment.checks import findings
from search.experiment.dimensions import Choices, Dimension, Finding, Range, dimension_form
from search.experiment.draft import Draft
from search.experiment.problems import Problem, SpecError, shown
from search.experiment.pydantic_words import findings_of, unknown_key
from search.experiment.sections import MAX_DIMENSIONS, Budget, DataSettings, ModelSettings, ObjectiveSettings
from search.experiment.settings import (
    METHODS,
    PRUNER_SETTINGS,
    ComparisonSettings,
    MethodSettings,
    RetrainSettings,
)
from search.experiment.spec import ExperimentSpec, method_from, pruner_from, with_type
from search.experiment.yaml_file import MAX_PROBLEMS, Document, Place, Value, parse, read_file

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_EXAMPLE: dict[str, Any] = {"experiment": "x", "data": "digits", "space": {"learning_rate": [0.1]}}
"""A valid file, into which one value at a time is put to be judged alone."""

_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataSettings,
    "objective": ObjectiveSettings,
    "model": ModelSettings,
    "budget": Budget,
}
"""Sections that are read in one piece."""

_SHORT = ("name", "function")
"""What a section means by a bare text."""

_REQUIRED = {
    "experiment": "`experiment: my-first-search`",
    "data": "`data: {name: digits}`, or an `objective` of your own",
    "space": "`space: {learning_rate: {low: 1e-4, high: 0.1, log: true}}`",
}


def load(path: Path) -> ExperimentSpec:
    """See `search.experiment.spec.load_spec`."""
    return read(read_file(path), folder=path.absolute().parent, name=str(path))


def read(text: str | bytes, *, folder: Path, name: str = "") -> ExperimentSpec:
    """See `search.experiment.spec.read_spec`."""
    reader = _Reader(parse(text, name), folder)
    return reader.spec()


class _Reader:
    """Reads one document; collects problems as it goes."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.problems = list(document.problems)

    def spec(self) -> ExperimentSpec:
        file = self.document.value
        self.check_keys(file)
        values: dict[str, Any] = {}
        for key in ("experiment", "seed", "replicates", "metric", "allow_imports"):
            if key in file:
                self.keep(values, key, self.plain(key, file[key]))
        for key, model in _SECTIONS.items():
            if key in file:
                self.keep(values, key, self.section(key, file[key], model))
        if "comparison" in file:
            self.keep(values, "comparison", self.comparison(file["comparison"]))
        if "pruner" in file:
            self.keep(values, "pruner", self.pruner(file["pruner"]))
        broken: set[str] = set()
        values["fixed"] = self.fixed(file.get("fixed", {}), broken)
        values["space"] = self.space(file.get("space"), broken) if "space" in file else {}
        if "methods" in file:
            values["methods"] = self.methods(file["methods"])
        self.resolve_root(values)
        self.report(findings(self.draft(file, values, broken)))
        if self.problems:
            problems = list(dict.fromkeys(self.problems))
            raise SpecError(problems[:MAX_PROBLEMS])
        try:
            return ExperimentSpec.model_validate(values)
        except ValidationError as error:  # a rule of the model that no section showed
            self.report(findings_of(error, (), ExperimentSpec.model_fields))
            raise SpecError(self.problems) from error

    def draft(self, file: dict[str, Value], values: dict[str, Any], broken: set[str]) -> Draft:
        def part(key: str) -> Any:
            """What was read, the default where the file says nothing, None where it is broken."""
            if key in values or key in file:
                return values.get(key)
            return ExperimentSpec.model_fields[key].get_default(call_default_factory=True)

        model, data, methods = file.get("model"), file.get("data"), file.get("methods")
        name = data.get("name") if isinstance(data, dict) else data
        return Draft(
            data=values.get("data"),
            model=part("model"),
            fixed=values["fixed"],
            space=values["space"],
            methods=part("methods"),
            budget=part("budget"),
            pruner=part("pruner"),
            metric=part("metric"),
            allow_imports=part("allow_imports"),
            broken=frozenset(broken),
            model_is_named=isinstance(model, str) or (isinstance(model, dict) and "name" in model),
            data_name=name if isinstance(name, str) else None,
            method_names=frozenset(methods if isinstance(methods, dict) else part("methods") or ()),
            comparison=part("comparison"),
            objective=values.get("objective"),
            keys=frozenset(file),
        )

    # Sections

    def check_keys(self, file: dict[str, Value]) -> None:
        fields = ExperimentSpec.model_fields
        self.report(unknown_key((key,), fields) for key in file if key not in fields)
        for key, example in _REQUIRED.items():
            if key not in file and not (key == "data" and "objective" in file):
                self.report([((key,), "is missing", f"add {example}")])

    def plain(self, key: str, value: Value) -> Any:
        spec = self.attempt(
            (key,), lambda: ExperimentSpec.model_validate({**_EXAMPLE, key: value}), inside=()
        )
        return None if spec is None else getattr(spec, key)

    def section(self, key: str, value: Value, model: type[M]) -> M | None:
        short = next((key for key in _SHORT if key in model.model_fields), None)
        if isinstance(value, str) and short is not None:
            value = {short: value}
        return self.attempt((key,), lambda: model.model_validate(value), model.model_fields)

    def comparison(self, value: Value) -> ComparisonSettings:
        """Key by key, so that a broken one hides nothing of the others; it has its default meanwhile."""
        kept: dict[str, Any] = {}
        for key, written in self.mapping(("comparison",), value).items():
            place = ("comparison", key)
            if key == "retrain":
                make = partial(RetrainSettings.model_validate, written)
                self.keep(kept, key, self.attempt(place, make, RetrainSettings.model_fields))
            elif key in ComparisonSettings.model_fields:
                alone = partial(ComparisonSettings.model_validate, {key: written})
                made = self.attempt(place, alone, inside=("comparison",))
                self.keep(kept, key, None if made is None else getattr(made, key))
            else:
                self.report([unknown_key(place, ComparisonSettings.model_fields)])
        return ComparisonSettings(**kept)

    def pruner(self, value: Value) -> Any:
        name = value.get("name") if isinstance(value, dict) else value
        known = PRUNER_SETTINGS.get(name) if isinstance(name, str) else None
        fields = known.model_fields if known else ()
        return self.attempt(("pruner",), lambda: pruner_from(value), fields)

    def fixed(self, value: Value, broken: set[str]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, written in self.mapping(("fixed",), value).items():
            example = {**_EXAMPLE, "fixed": {name: written}}
            spec = self.attempt(("fixed", name), partial(ExperimentSpec.model_validate, example), inside=())
            if spec is None:
                broken.add(name)
            else:
                kept.update(spec.fixed)
        return kept

    def space(self, value: Value, broken: set[str]) -> dict[str, Dimension]:
        kept: dict[str, Dimension] = {}
        mapping = self.mapping(("space",), value)
        if isinstance(value, dict) and not value:
            self.report([(("space",), "has no dimension", f"add {_REQUIRED['space']}")])
        for name, written in mapping.items():
            dimension = self.dimension(("space", name), written)
            if dimension is None:
                broken.add(name)
            else:
                kept[name] = dimension
        return kept

    def dimension(self, place: Place, written: Value) -> Dimension | None:
        if not isinstance(written, dict | list):
            message = f"{shown(written)} is neither a list nor a mapping"
            remedy = "list its values: [a, b], or give `low` and `high`; a constant belongs in `fixed`"
            self.report([(place, message, remedy)])
            return None
        if isinstance(written, dict) and "values" in written and {"low", "high"} & written.keys():
            self.report([(place, "has `values` and `low`/`high`", "keep one of the two forms")])
            return None
        form, long = dimension_form(written)
        if isinstance(written, dict) and not {"values", "low", "high"} & written.keys():
            self.report([(place, "has neither `values` nor `low` and `high`", "`values: [a, b]`")])
        fields = Choices.model_fields.keys() | Range.model_fields.keys()
        dimension: Dimension | None = self.attempt(
            place, lambda: form.model_validate_json(json.dumps(long)), fields
        )
        if dimension is None:
            return None
        return with_type(str(place[1]), dimension, function="objective" in self.document.value)

    def methods(self, value: Value) -> dict[str, MethodSettings]:
        kept: dict[str, MethodSettings] = {}
        if isinstance(value, dict) and not value:
            self.report([(("methods",), "names no method", f"one or more of: {', '.join(METHODS)}")])
        for name, written in self.mapping(("methods",), value).items():
            fields = METHODS[name].model_fields if name in METHODS else ()
            settings = self.attempt(("methods", name), partial(method_from, name, written), fields)
            if settings is not None:
                kept[name] = settings
        return kept

    def resolve_root(self, values: dict[str, Any]) -> None:
        """A relative folder is relative to the file, whoever reads it from wherever."""
        data = values.get("data")
        if data is None or data.root is None:
            return
        try:
            root = (self.folder / Path(data.root).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            self.report([(("data", "root"), f"is no folder name: {error}", "name a folder")])
            del values["data"]
            return
        values["data"] = data.model_copy(update={"root": str(root)})

    # Helpers

    def mapping(self, place: Place, value: Value) -> dict[str, Value]:
        if isinstance(value, dict):
            if len(value) > MAX_DIMENSIONS:
                message = f"has {len(value)} entries; at most {MAX_DIMENSIONS} are possible"
                self.report([(place, message, "a smaller one")])
                return {}
            return value
        self.report([(place, f"must be a mapping, not {shown(value)}", "write `name: value` lines under it")])
        return {}

    def keep(self, values: dict[str, Any], key: str, value: Any) -> None:
        if value is not None:
            values[key] = value

    def attempt(
        self,
        place: Place,
        make: Callable[[], T],
        fields: Iterable[str] = (),
        *,
        inside: Place | None = None,
    ) -> T | None:
        """What `make` makes, or None and its problems; also None if something in there is unread.

        `fields` are the keys to suggest for an unknown one; `inside` is where pydantic's own paths
        begin, if that is not `place`.
        """
        try:
            made = make()
        except ValidationError as error:
            self.report(findings_of(error, place if inside is None else inside, fields))
            return None
        except PydanticCustomError as error:
            self.report([(place, error.message(), str((error.context or {}).get("remedy", "")))])
            return None
        unread = any(path[: len(place)] == place for path in self.document.unread)
        return None if unread else made

    def report(self, found: Iterable[Finding]) -> None:
        for path, message, remedy in found:
            place = self.as_written(path)
            if not any(place[: len(unread)] == unread for unread in self.document.unread):
                self.problems.append(Problem(self.document.place(place), message, remedy))

    def as_written(self, path: Place) -> Place:
        """The path in the file: a dimension may be a bare list, which has no `values`."""
        space = self.document.value.get("space")
        if path[:1] != ("space",) or path[2:3] != ("values",) or not isinstance(space, dict):
            return path
        return (*path[:2], *path[3:]) if isinstance(space.get(str(path[1])), list) else path
