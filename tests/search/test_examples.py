"""The files that ship: valid, as large as they say, and the template explains every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from search.experiment.sections import Budget, DataSettings, ObjectiveSettings
from search.experiment.settings import (
    METHODS,
    PRUNER_SETTINGS,
    AshaSettings,
    ComparisonSettings,
    MethodSettings,
    PrunerSettings,
)
from search.experiment.spec import ExperimentSpec, load_spec, schema
from search.experiment.template import template
from search.experiment.yaml_file import parse
from search.plan import make_plan

EXAMPLES = Path(__file__).parents[2] / "search" / "examples"


def test_the_template_is_valid_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(template(), encoding="utf-8")
    spec = load_spec(file)
    assert spec.data.name == "digits"
    assert make_plan(spec).grid_points == 64  # 4 rates · 2 λ · 2 losses · 2 optimizers · 2 batch sizes


def test_the_template_explains_every_key() -> None:
    text = template()
    models = (ExperimentSpec, DataSettings, Budget, ComparisonSettings)
    for key in dict.fromkeys(key for model in models for key in model.model_fields):
        assert f"\n{key}:" in text or f"\n  {key}:" in text or f"\n# {key}:" in text, key
    for word in (*ObjectiveSettings.model_fields, "low", "high", "log", "step", "type", "grid", "when"):
        assert f"#   {word}" in text, word
    for name, settings in METHODS.items():
        assert re.search(rf"^  (# )?{name}: ", text, re.MULTILINE), name
        for key in settings.model_fields:
            assert f"{key}:" in text, (name, key)
    for name, pruner in PRUNER_SETTINGS.items():
        assert name in text
        for key in pruner.model_fields:
            assert f"{key}:" in text, (name, key)


def commented(text: str, marker: str) -> dict[str, object]:
    """The mapping in the one comment line that begins with `marker`."""
    line = next(line for line in text.splitlines() if line.strip().lstrip("# ").startswith(marker))
    return yaml.safe_load(line.strip().lstrip("# "))


def test_defaults_in_the_template_are_the_defaults() -> None:
    text = template()
    raw = yaml.safe_load(text)
    defaults: dict[str, MethodSettings] = {name: model() for name, model in METHODS.items()}
    for name in ("grid", "random", "tpe"):
        assert METHODS[name].model_validate(raw["methods"][name]) == defaults[name]
    assert ComparisonSettings.model_validate(raw["comparison"]) == ComparisonSettings()
    for name in ("qmc", "gp"):
        written = commented(text, f"{name}:")[name]
        assert written == defaults[name].model_dump()
    for name in ("median", "percentile", "successive_halving", "hyperband", "asha", "asha_promotion"):
        pruner: PrunerSettings = PRUNER_SETTINGS[name]()
        assert commented(text, f"{{name: {name},") == pruner.model_dump()


@pytest.mark.parametrize(
    "name",
    ["template.yaml", "digits.yaml", "fashion_mnist.yaml", "fashion_mnist_comparison.yaml", "analytic.yaml"],
)
def test_the_schema_allows_the_files(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    # Read by our own reader: PyYAML takes 1e-3 for text.
    raw = parse((EXAMPLES / name).read_bytes()).value
    assert [error.message for error in validator.iter_errors(raw)] == []
    assert not validator.is_valid({**raw, "sede": 1})
    assert not validator.is_valid({**raw, "pruner": {"name": "asha", "eta": "3"}})
    assert not validator.is_valid({**raw, "methods": {"cmaes": {}}})
    assert not validator.is_valid({**raw, "space": {"loss": {"low": 1}}})
    assert not validator.is_valid({**raw, "comparison": {"alfa": 0.1}})
    assert not validator.is_valid({**raw, "comparison": {"pairs": [["tpe"]]}})
    assert not validator.is_valid({key: raw[key] for key in raw if key not in ("data", "objective")})
    assert not validator.is_valid({**raw, "data": "digits", "objective": {"function": "a:b"}})


def test_the_objective_in_the_template_is_a_valid_one() -> None:
    written = commented(template(), "objective:")["objective"]
    assert ObjectiveSettings.model_validate(written).worst == 100.0


def test_the_analytic_example_makes_a_grid_of_its_whole_budget() -> None:
    spec = load_spec(EXAMPLES / "analytic.yaml")
    plan = make_plan(spec)
    assert (plan.objective, plan.dataset) == ("search.examples.analytic:branin", None)
    assert (plan.grid_points, plan.trials, plan.epochs) == (25, 750, 3000)
    assert [len(axis.points) for axis in plan.grid] == [5, 5]
    assert all(len(set(map(str, spec.grid_points(index)))) == 25 for index in range(10))
    assert spec.direction() == "minimize"


def test_digits_is_the_demo() -> None:
    spec = load_spec(EXAMPLES / "digits.yaml")
    plan = make_plan(spec)
    assert list(spec.methods) == ["grid", "random", "tpe"]
    assert (spec.replicates, spec.budget.trials, plan.grid_points) == (5, 20, 20)
    assert (plan.studies, plan.trials, plan.epochs) == (15, 300, 1500)
    assert {"loss", "lambda", "learning_rate", "batch_size", "optimizer"} == set(spec.space)
    assert spec.pruner == AshaSettings(min_epochs=1, eta=2)


@pytest.mark.shared_data
def test_fashion_mnist_reads_the_shared_data() -> None:
    spec = load_spec(EXAMPLES / "fashion_mnist.yaml")
    root = EXAMPLES.parents[2] / "shared" / "data"
    if not (root / "FashionMNIST").exists():
        pytest.skip("no ../shared/data beside the repository")
    assert spec.data.root == str(root.resolve())
    plan = make_plan(spec)
    assert (plan.train_images, plan.validation_images) == (16000, 4000)
    assert (plan.trials, plan.epochs) == (16, 48)
    assert (spec.model.name, spec.model.options) == ("cnn", {})
