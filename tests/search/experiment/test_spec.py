"""The experiment file: what it means, what is refused, and its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from objectives.base import Choice, DataSpec, TrialConfig
from search.experiment.settings import (
    METHODS,
    GridSettings,
    MedianSettings,
    RandomSettings,
    TpeSettings,
)
from search.experiment.spec import ExperimentSpec, SpecError, load_spec, schema
from tests.contracts.experiment_files import SMALL, read, refused

# What a file means


def test_defaults_are_written_out() -> None:
    spec = read()
    assert spec.seed == 0
    assert spec.data.data_spec() == DataSpec(name="digits")
    assert (spec.model.name, spec.model.options) == ("cnn", {})
    assert dict(spec.methods) == {"random": RandomSettings(), "tpe": TpeSettings()}
    assert (spec.replicates, spec.budget.trials, spec.budget.epochs) == (30, 50, None)
    assert (spec.pruner.name, spec.metric, spec.allow_imports) == ("none", "accuracy", ())
    assert spec.max_epochs() == TrialConfig().epochs


def test_short_spellings() -> None:
    spec = read(
        data="digits",
        model="resnet",
        pruner="median",
        methods={"grid": None, "tpe": {}},
        space={"loss": ["mse"]},
    )
    assert spec.data.name == "digits"
    assert spec.model.name == "resnet"
    assert spec.pruner == MedianSettings()
    assert dict(spec.methods) == {"grid": GridSettings(), "tpe": TpeSettings()}


def test_config_merges_model_fixed_and_values() -> None:
    spec = read(
        model={"name": "cnn", "depth": 2},
        fixed={"epochs": 3, "schedule": "cosine", "schedule.warmup": 1, "augment.flip": 0.5},
        space={
            "learning_rate": [0.1, 0.2],
            "batch_size": [32, "full"],
            "model.width": [8, 16],
            "loss": ["mse"],
        },
    )
    config = spec.config({"learning_rate": 0.2, "batch_size": "full", "model.width": 8, "loss": "mse"})
    assert config == TrialConfig(
        loss=Choice("mse"),
        learning_rate=0.2,
        batch_size=None,
        epochs=3,
        schedule=Choice("cosine", {"warmup": 1}),
        augment={"flip": 0.5},
        model=Choice("cnn", {"depth": 2, "width": 8}),
    )


def test_studies_come_replicate_by_replicate() -> None:
    spec = read(methods={"random": {}, "qmc": {}}, replicates=2)
    assert spec.studies() == [
        ("random", 0, "small/random/0"),
        ("qmc", 0, "small/qmc/0"),
        ("random", 1, "small/random/1"),
        ("qmc", 1, "small/qmc/1"),
    ]


def test_task_carries_what_all_trials_share() -> None:
    task = read(metric="log_loss", allow_imports=["json"], data={"name": "digits", "limit": 100}).task()
    assert (task.metric, task.allow_imports, task.data.limit) == ("log_loss", ("json",), 100)


@pytest.mark.parametrize(
    ("name", "written", "kind"),
    [
        ("learning_rate", {"low": 1, "high": 2}, "float"),
        ("lambda", {"low": 0, "high": 1}, "float"),
        ("batch_size", {"low": 16, "high": 64}, "int"),
        ("epochs", {"low": 1.0, "high": 4.0}, "int"),
        ("model.width", {"low": 8, "high": 16}, "int"),
        ("model.dropout", {"low": 0, "high": 0.5}, "float"),
        ("schedule.warmup", {"low": 0, "high": 1}, "float"),
        ("augment.crop", {"low": 0, "high": 2}, "int"),
        ("augment.rotation", {"low": 0, "high": 2}, "float"),
        ("learning_rate", {"low": 1, "high": 2, "type": "float"}, "float"),
    ],
)
def test_ranges_take_the_kind_of_number_that_the_name_takes(name: str, written: object, kind: str) -> None:
    assert read(space={name: written}).space[name].type == kind


@pytest.mark.parametrize(
    ("space", "fixed", "most"),
    [
        ({"epochs": {"low": 2, "high": 7}}, {}, 7),
        ({"epochs": [3, 9, 6]}, {}, 9),
        ({"loss": ["mse"]}, {"epochs": 4}, 4),
        ({"loss": ["mse", "hinge"], "epochs": {"values": [2], "when": {"loss": ["mse"]}}}, {}, 10),
    ],
)
def test_max_epochs(space: object, fixed: object, most: int) -> None:
    assert read(space=space, fixed=fixed).max_epochs() == most


def test_a_relative_root_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inner").mkdir()
    file = tmp_path / "inner" / "search.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "data": {"name": "digits", "root": "../data"}}))
    monkeypatch.chdir(tmp_path / "inner")
    assert load_spec("search.yaml").data.root == str(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert load_spec(file).data.root == str(tmp_path / "data")


# Refusals


def test_everything_wrong_is_listed_at_once_with_lines() -> None:
    found = refused(
        """\
experiment: ../evil
sede: 4
data: {name: digit, valdation: 0.1}
model: {depth: two}
fixed:
  epochs: 5.5
  momentum: 0.9
space:
  learning_rate: {low: 1, high: 0.1, log: true}
  lambda: {low: 0, high: 1, log: true}
  optimizer: [sgd, momntum]
  batch_size: [32, on]
  loss: hinge
  model.width: {low: 8, high: 32, when: {model.dpth: [1]}}
methods:
  grid: {levels: given}
  tpe: {n_startup_trial: 3}
  cma-es: {}
  gpp: {}
budget: {trials: 0}
replicates: true
pruner: {name: ashaa}
metric: acuracy
"""
    )
    starts = [
        "space.batch_size[1] (line 12): `on` is text",
        "sede (line 2): unknown key 'sede' → did you mean `seed`?",
        "experiment (line 1): '../evil' is no experiment name",
        "replicates (line 21): must be a whole number, not true",
        "data.valdation (line 3): unknown key 'valdation' → did you mean `validation`?",
        "data.name (line 3): there is no",
        "budget.trials (line 20): 0 is out of range → at least 1",
        "pruner (line 22): there is no pruner 'ashaa' → did you mean `asha`?",
        "space.loss (line 13): 'hinge' is neither a list nor a mapping",
        "methods.tpe.n_startup_trial (line 17): unknown key 'n_startup_trial' → did you mean",
        "methods.cma-es (line 18): CMA-ES is left out: Optuna's sampler unpickles",
        "methods.gpp (line 19): there is no method 'gpp' → did you mean `gp`?",
        "metric (line 23): ",
        "space.optimizer[1] (line 11): ",
        "fixed.epochs (line 6): ",
        "fixed.momentum (line 7): unknown key 'momentum' → did you mean `optimizer.momentum`?",
        "model.depth (line 4): 'two' ",
        "space.learning_rate.low (line 9): low 1 is above high 0.1",
        "space.lambda.low (line 10): log needs low above 0",
        "space.model.width.when.model.dpth (line 14): there is no dimension 'model.dpth'",
        "space.model.width (line 14): grid levels are `given`, but this range gives none",
    ]
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)
    assert len(found) == len(starts)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "a b",
        "../x",
        "a/b",
        "/etc",
        ".hidden",
        "-x",
        "x" * 65,
        "x" * 600,
        "ä",
        "a\n",
        "a\0",
        3,
        None,
        True,
    ],
)
def test_experiment_names(name: object) -> None:
    found = refused(experiment=name)
    assert len(found) == 1
    assert found[0].startswith("experiment (line 1): ")
    assert "1 to 64 letters" in found[0]
    assert len(found[0]) < 250


def test_the_longest_name_is_fine() -> None:
    assert read(experiment="A" + "b.-_" * 15 + "abc").experiment.endswith("abc")


@pytest.mark.parametrize("key", ["experiment", "data", "space"])
def test_missing_sections(key: str) -> None:
    text = json.dumps({name: value for name, value in SMALL.items() if name != key})
    assert [line.split(" → ")[0] for line in refused(text)] == [f"{key}: is missing"]


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"seed": -1}, "seed (line 1): -1 is out of range"),
        ({"seed": "3"}, "seed (line 1): must be a whole number, not the text '3' → write 3 without quotes"),
        ({"seed": 1.0}, "seed (line 1): must be a whole number"),
        ({"replicates": 0}, "replicates (line 1): 0 is out of range"),
        ({"replicates": 1001}, "replicates (line 1): 1001 is out of range → at most 1,000"),
        ({"budget": {"trials": 10**9}}, "budget.trials (line 1): 1000000000 is out of range"),
        ({"budget": {"epochs": "many"}}, "budget.epochs (line 1): must be a whole number"),
        ({"budget": 3}, "budget (line 1): must be a mapping, not 3"),
        ({"data": {"name": "digits", "validation": 1}}, "data.validation (line 1): 1 is out of range"),
        ({"data": {"name": "digits", "download": 1}}, "data.download (line 1): must be true or false, not 1"),
        ({"data": {}}, "data.name (line 1): is missing"),
        ({"data": {"name": "digits", "root": "a\0b"}}, "data.root (line 1): is no folder name"),
        ({"space": {}}, "space (line 1): has no dimension"),
        ({"space": []}, "space (line 1): must be a mapping, not a list"),
        ({"space": {f"d{n}": [1] for n in range(65)}}, "space (line 1): has 65 entries"),
        ({"space": {"loss": []}}, "space.loss (line 1): is empty"),
        ({"space": {"loss": {}}}, "space.loss (line 1): has neither `values` nor"),
        ({"space": {"epochs": {"low": 1, "values": [1]}}}, "space.epochs (line 1): has `values` and `low`"),
        ({"space": {"epochs": {"low": 1, "hgih": 2}}}, "space.epochs.hgih (line 1): unknown key 'hgih'"),
        ({"space": {"loss": ["mse", None]}}, "space.loss[1] (line 1): must be a number, text"),
        ({"fixed": {"epochs": [1]}}, "fixed.epochs (line 1): must be a number, text"),
        ({"fixed": 3}, "fixed (line 1): must be a mapping, not 3"),
        ({"methods": {}}, "methods (line 1): names no method"),
        ({"methods": ["grid"]}, "methods (line 1): must be a mapping"),
        ({"methods": {"CmaEs": {}}}, "methods.CmaEs (line 1): CMA-ES is left out"),
        ({"methods": {"tpe": {"in_flight": 0}}}, "methods.tpe.in_flight (line 1): 0 is out of range"),
        ({"methods": {"qmc": {"type": "latin"}}}, "methods.qmc.type (line 1): must be 'sobol' or 'halton'"),
        ({"methods": {"tpe": {"group": True, "multivariate": False}}}, "methods.tpe.group (line 1): needs"),
        ({"pruner": {}}, "pruner (line 1): there is no pruner nothing"),
        ({"pruner": 3}, "pruner (line 1): must be a mapping with `name`, not 3"),
        ({"pruner": {"name": "asha", "eta": 1}}, "pruner.eta (line 1): 1 is out of range → at least 2"),
        ({"pruner": {"name": "percentile", "percentile": 100}}, "pruner.percentile (line 1): 100 is out"),
        ({"metric": 3}, "metric (line 1): must be text, not 3"),
        ({"allow_imports": "json"}, "allow_imports (line 1): must be a list"),
        ({"allow_imports": [""]}, "allow_imports[0] (line 1): is empty"),
        ({"model": {"name": "cnn", "depth": {"low": 1}}}, "model.depth (line 1): must be a number, text"),
    ],
)  # fmt: skip
def test_structure(changes: dict[str, object], start: str) -> None:
    found = refused(**changes)
    assert any(line.startswith(start) for line in found), found
    assert all(len(line) < 400 for line in found)


def test_values_that_could_not_be_read_are_not_complained_about_twice() -> None:
    text = "experiment: x\ndata: digits\nspace: {learning_rate: {low: .nan, high: 1}, loss: [mse, no]}\n"
    assert [line.split(":")[0] for line in refused(text)] == [
        "space.learning_rate.low (line 3)",
        "space.loss[1] (line 3)",
    ]


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(SpecError, match="there is no such file"):
        load_spec("/nowhere/search.yaml")


def test_a_list_of_wrong_values_is_not_called_empty() -> None:
    problems = refused(space={"learning_rate": [1e38, 2e38]})
    assert len(problems) == 2
    assert not any("is empty" in problem for problem in problems)
    assert any("is empty" in problem for problem in refused(space={"learning_rate": []}))


# Schema


def keys_of(form: object, definitions: dict[str, object]) -> set[str]:
    """Every property name that a schema knows."""
    found: set[str] = set()
    if isinstance(form, dict):
        found |= set(form.get("properties", {}))
        for part in form.values():
            found |= keys_of(part, definitions)
    elif isinstance(form, list):
        for part in form:
            found |= keys_of(part, definitions)
    return found


def test_the_schema_knows_every_key_and_has_no_loose_reference() -> None:
    whole = schema()
    text = json.dumps(whole)
    assert keys_of(whole, whole["$defs"]) >= set(ExperimentSpec.model_fields) | set(METHODS) | {
        "low",
        "values",
        "eta",
    }
    for piece in text.split('"#/$defs/')[1:]:
        assert piece.split('"')[0] in whole["$defs"]
    assert all(
        form.get("description")
        for model in whole["$defs"].values()
        for key, form in model["properties"].items()
        if key != "name"  # of a pruner: its only value says it
    )
