"""Experiment files for tests, as few words as they can have, and what was read of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.experiment.spec import ExperimentSpec, SpecError, read_spec

SMALL = {
    "experiment": "small",
    "data": {"name": "digits"},
    "space": {"learning_rate": {"low": 1e-3, "high": 0.1, "log": True}},
}


def read(**changes: object) -> ExperimentSpec:
    return read_spec(json.dumps({**SMALL, **changes}), folder=Path("/nowhere"))


def refused(text: str | None = None, **changes: object) -> list[str]:
    """The problems of a file, as lines."""
    with pytest.raises(SpecError) as caught:
        read_spec(json.dumps({**SMALL, **changes}) if text is None else text, folder=Path("/nowhere"))
    return [str(problem) for problem in caught.value.problems]


FUNCTION = {
    "experiment": "small",
    "objective": {"function": "search.examples.analytic:branin", "direction": "minimize", "worst": 400},
    "metric": "value",
    "allow_imports": ["search.examples.analytic"],
    "space": {"x1": {"low": -5.0, "high": 10.0}, "x2": {"low": 0.0, "high": 15.0}},
}


def function(**changes: object) -> ExperimentSpec:
    sections = {key: value for key, value in {**FUNCTION, **changes}.items() if value is not None}
    return read_spec(json.dumps(sections), folder=Path("/nowhere"))
