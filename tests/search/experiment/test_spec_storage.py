"""Specs that are stored and come back, and files made of anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from search.experiment.settings import (
    METHODS,
    PRUNER_SETTINGS,
)
from search.experiment.spec import ExperimentSpec, Problem, SpecError, read_spec
from tests.contracts.experiment_files import read


def rich() -> ExperimentSpec:
    return read(
        space={
            "optimizer": ["sgd", "momentum"],
            "optimizer.momentum": {"low": 0, "high": 0.9, "grid": [0.5], "when": {"optimizer": ["momentum"]}},
            "batch_size": [32, "full"],
            "model.batch_norm": [True, False],
            "learning_rate": {"low": 1, "high": 2, "grid": [1]},
        },
        fixed={"epochs": 20},
        methods={name: {} for name in METHODS},
        pruner={"name": "hyperband"},
        allow_imports=["json"],
    )


def test_stored_specs_come_back_equal() -> None:
    stored = json.loads(json.dumps(rich().to_json(), sort_keys=True))
    assert ExperimentSpec.from_json(stored) == rich()
    assert ExperimentSpec.from_json(stored).space_hash() == rich().space_hash()


def test_a_stored_spec_is_read_without_torch_or_optuna() -> None:
    code = (
        "import json, sys; from search.experiment.spec import ExperimentSpec;"
        "spec = ExperimentSpec.from_json(json.loads(sys.argv[1]));"
        "spec.task(), spec.space_hash(), spec.search_space(), spec.config({});"
        "print([name for name in ('torch', 'optuna', 'sqlalchemy', 'ray') if name in sys.modules])"
    )
    stored = json.dumps(rich().to_json())
    ran = subprocess.run([sys.executable, "-c", code, stored], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_specs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        rich().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(PRUNER_SETTINGS))
def test_every_pruner_can_be_named_and_stored(name: str) -> None:
    spec = read(pruner=name, fixed={"epochs": 20})
    assert type(spec.pruner) is PRUNER_SETTINGS[name]
    assert type(ExperimentSpec.from_json(spec.to_json()).pruner) is PRUNER_SETTINGS[name]


# Garbage

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(
        ["digits", "cnn", "mse", "full", "median", "a:b", "json:loads", "optimizer", "learning_rate"]
    ),
)
WORDS = st.sampled_from(
    [
        "name",
        "values",
        "low",
        "high",
        "log",
        "step",
        "grid",
        "when",
        "type",
        "epochs",
        "trials",
        "learning_rate",
        "batch_size",
        "loss",
        "loss.gamma",
        "optimizer",
        "optimizer.momentum",
        "model",
        "model.width",
        "schedule",
        "lambda",
        "random",
        "tpe",
        "depth",
        "limit",
        "root",
        "eta",
        "augment.flip",
        "model.name",
        ".",
        "",
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4)
    ),
)
DIMENSIONS = st.dictionaries(
    WORDS,
    st.lists(SCALARS, max_size=3)
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(["values", "low", "high", "log", "step", "grid", "when", "type"], VALUES)
    ),
    max_size=4,
)
FILES = st.fixed_dictionaries(
    {"experiment": st.just("x") | SCALARS, "data": st.just("digits") | VALUES, "space": DIMENSIONS | VALUES},
    optional={
        **dict.fromkeys(
            ["seed", "model", "replicates", "budget", "pruner", "metric", "allow_imports", "unknown"], VALUES
        ),
        "fixed": st.dictionaries(WORDS, SCALARS, max_size=4) | VALUES,
        "methods": st.dictionaries(st.sampled_from([*METHODS, "cmaes"]), st.just({}) | VALUES, max_size=3)
        | VALUES,
    },
)


def spec_or_problems(text: str) -> tuple[ExperimentSpec | None, tuple[Problem, ...]]:
    try:
        return read_spec(text, folder=Path("/nowhere")), ()
    except SpecError as error:
        return None, error.problems


@settings(max_examples=400)
@given(FILES)
def test_garbage_is_refused_with_problems_and_nothing_else(file: dict[str, object]) -> None:
    text = yaml.safe_dump(file, allow_unicode=True)
    spec, problems = spec_or_problems(text)
    assert bool(problems) != bool(spec)
    for problem in problems:
        assert problem.message
        assert len(str(problem)) < 1000
    if spec:
        assert ExperimentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert spec.search_space().distributions()
