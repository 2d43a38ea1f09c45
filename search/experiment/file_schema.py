"""The JSON Schema of an experiment file, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from search.experiment.settings import METHODS, PRUNER_SETTINGS
from search.experiment.spec import ExperimentSpec

REFERENCE = "#/$defs/{model}"


def file_schema() -> dict[str, Any]:
    """A draft 2020-12 schema that allows what `load_spec` can read, short spellings included.

    It knows forms, types and bounds. What depends on other parts of a file (which options an
    optimizer takes, conditions, the size of a grid) is said by `shoal plan`.
    """
    whole = ExperimentSpec.model_json_schema(ref_template=REFERENCE)
    settings = [*METHODS.values(), *PRUNER_SETTINGS.values()]
    _, extra = models_json_schema([(model, "validation") for model in settings], ref_template=REFERENCE)
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    whole["title"] = "shoal experiment file"
    definitions = whole["$defs"]
    definitions.update(extra["$defs"])
    for unused in ("MethodSettings", "PrunerSettings"):
        definitions.pop(unused, None)
    properties = whole["properties"]
    _replace(properties, "data", _or_name(_reference("DataSettings")))
    _replace(properties, "objective", _reference("ObjectiveSettings"))
    whole["oneOf"] = [{"required": ["data"]}, {"required": ["objective"]}]
    _replace(properties, "model", _or_name(_reference("ModelSettings")))
    _replace(properties, "pruner", _pruner(definitions))
    _replace(properties, "methods", _methods())
    properties["space"]["additionalProperties"] = {
        "anyOf": [
            definitions["Choices"]["properties"]["values"],
            _reference("Choices"),
            _reference("Range"),
        ]
    }
    return whole


def _reference(model: str) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(model=model)}


def _or_name(form: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, form]}


def _pruner(definitions: dict[str, Any]) -> dict[str, Any]:
    for model in PRUNER_SETTINGS.values():
        definitions[model.__name__]["required"] = ["name"]
    forms = [_reference(model.__name__) for model in PRUNER_SETTINGS.values()]
    return {"anyOf": [{"enum": list(PRUNER_SETTINGS)}, *forms]}


def _methods() -> dict[str, Any]:
    forms = {
        name: {"anyOf": [{"type": "null"}, _reference(model.__name__)]} for name, model in METHODS.items()
    }
    return {"type": "object", "properties": forms, "additionalProperties": False, "minProperties": 1}


def _replace(properties: dict[str, Any], key: str, form: dict[str, Any]) -> None:
    """Another form under the same title, description and default."""
    kept = {
        word: properties[key][word] for word in ("title", "description", "default") if word in properties[key]
    }
    properties[key] = kept | form
