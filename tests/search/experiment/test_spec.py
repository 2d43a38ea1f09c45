"""The experiment file: what it means, what is refused, what may change, how it is stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.base import Choice, DataSpec, ObjectiveError, TrialConfig
from search.experiment.settings import (
    METHODS,
    PRUNER_SETTINGS,
    GridSettings,
    MedianSettings,
    RandomSettings,
    TpeSettings,
)
from search.experiment.spec import ExperimentSpec, Problem, SpecError, load_spec, read_spec, schema

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


# Identity


@pytest.mark.parametrize(
    "changes",
    [
        {"replicates": 31},
        {"budget": {"trials": 51, "epochs": 5000}},
        {"methods": {"random": {}, "tpe": {}, "qmc": {}}},
        {"methods": {"random": {}}},
        {"methods": {"random": {}, "tpe": {"in_flight": 4}}},
        {"data": {"name": "digits", "root": "/other", "download": True}},
        {"allow_imports": ["json"]},
        {"space": {"learning_rate": {"high": 0.1, "log": True, "low": 0.001}}},
        {"experiment": "other"},
    ],
)
def test_what_may_change_under_one_name(changes: dict[str, object]) -> None:
    assert read(**changes).space_hash() == read().space_hash()
    assert read(**changes).conflicts(read()) == []


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"seed": 1}, "seed"),
        ({"data": {"name": "digits", "validation": 0.3}}, "data.validation"),
        ({"data": {"name": "digits", "limit": 300}}, "data.limit"),
        ({"model": {"name": "cnn", "depth": 2}}, "model.depth"),
        ({"fixed": {"epochs": 11}}, "fixed.epochs"),
        ({"space": {"learning_rate": {"low": 1e-3, "high": 0.2, "log": True}}}, "space.learning_rate.high"),
        (
            {"space": {"learning_rate": {"low": 1e-3, "high": 0.1, "log": True, "grid": [0.1]}}},
            "space.learning_rate.grid",
        ),
        ({"pruner": "median"}, "pruner.interval_steps"),
        ({"metric": "error"}, "metric"),
    ],
)
def test_what_may_not_change_under_one_name(changes: dict[str, object], place: str) -> None:
    assert read(**changes).space_hash() != read().space_hash()
    found = read(**changes).conflicts(read())
    assert found[0].place == place
    assert "another name" in found[0].remedy


def test_settings_of_a_method_that_both_have_may_not_change() -> None:
    changed = read(methods={"tpe": {"n_startup_trials": 3}})
    assert [problem.place for problem in changed.conflicts(read())] == ["methods.tpe.n_startup_trials"]


@pytest.mark.parametrize(
    "changed",
    [
        {"axis": "trials"},
        {"pairs": [["tpe", "random"]]},
        {"alpha": 0.01},
        {"smallest_difference": 0.01},
        {"meaningful": 0.8},
        {"power": 0.9},
    ],
)
def test_what_was_declared_may_not_change(changed: dict[str, object]) -> None:
    (problem,) = read(comparison=changed).conflicts(read())
    assert problem.place == f"comparison.{next(iter(changed))}"
    assert read(comparison=changed).space_hash() != read().space_hash()
    assert read(comparison=changed).conflicts(read(comparison=changed)) == []


def test_with_how_many_seeds_a_winner_counts_was_declared() -> None:
    """Else somebody could choose, once retrainings have failed, who is left out."""
    (problem,) = read(comparison={"retrain": {"at_least": 2}}).conflicts(read())
    assert problem.place.startswith("comparison.retrain")


def test_how_often_winners_are_retrained_may_change() -> None:
    more = read(comparison={"retrain": {"seeds": 20}})
    assert more.conflicts(read()) == []
    assert more.space_hash() == read().space_hash()


def test_an_experiment_stored_before_there_were_comparisons_can_go_on() -> None:
    """As the first release stored them: no `comparison`, no `objective`, no `levels` of a grid."""
    now = read(methods={"grid": {}, "random": {}}, space={"loss": ["mse", "mae"]})
    stored = json.loads(json.dumps(now.to_json()))
    del stored["comparison"], stored["objective"], stored["methods"]["grid"]["levels"]
    before = ExperimentSpec.from_json(stored)
    assert before == now
    assert now.conflicts(before) == []
    assert before.grid_points(0) == now.grid_points(0)
    declared = read(
        methods={"grid": {}, "random": {}}, space={"loss": ["mse", "mae"]}, comparison={"alpha": 0.01}
    )
    assert [problem.place for problem in declared.conflicts(before)] == ["comparison.alpha"]


def test_the_budget_of_a_grid_whose_levels_are_made_may_not_change() -> None:
    def made(trials: int, **changes: object) -> ExperimentSpec:
        return read(methods={"grid": {}, "random": {}}, budget={"trials": trials}, **changes)

    (problem,) = made(30).conflicts(made(20))
    assert problem.place == "budget.trials"
    assert "was 20 when the levels of the grid were made, now it is 30" in problem.message
    assert made(20, replicates=3).conflicts(made(20)) == []
    # Points of the file don't come from the budget; neither does a grid that joins later.
    space = {"learning_rate": {"low": 1e-3, "high": 0.1, "log": True, "grid": [0.01]}}
    assert made(30, space=space).conflicts(made(20, space=space)) == []
    assert made(30).conflicts(read(methods={"random": {}}, budget={"trials": 20})) == []


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({}, []),
        ({"replicates": 31, "budget": {"trials": 60}, "methods": {"random": {}, "tpe": {}, "gp": {}}}, []),
        ({"replicates": 29}, ["replicates"]),
        ({"budget": {"trials": 49}}, ["budget.trials"]),
        ({"budget": {"epochs": 5000}}, ["budget.epochs"]),
        ({"methods": {"tpe": {}, "gp": {}}}, ["methods.random"]),
        ({"comparison": {"retrain": {"seeds": 9}}}, ["comparison.retrain.seeds"]),
        ({"replicates": 3, "budget": {"trials": 10}}, ["replicates", "budget.trials"]),
    ],
)
def test_what_a_smaller_file_would_take_away(changes: dict[str, object], places: list[str]) -> None:
    assert [problem.place for problem in read(**changes).shrinks(read())] == places


def test_a_smaller_or_a_new_limit_on_epochs_shrinks() -> None:
    def limited(epochs: int | None) -> ExperimentSpec:
        return read(budget={"trials": 50, "epochs": epochs})

    assert [problem.message for problem in limited(100).shrinks(limited(200))] == ["was 200, now it is 100"]
    assert "without limit" in limited(100).shrinks(limited(None))[0].message
    assert limited(None).shrinks(limited(100)) == []
    assert limited(200).shrinks(limited(100)) == []


# Functions of the user's own

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


def test_an_objective_takes_the_place_of_data_and_model() -> None:
    spec = function(fixed={"epochs": 3, "shift": 0.5})
    assert spec.data is None
    assert (spec.direction(), spec.metric, spec.max_epochs()) == ("minimize", "value", 3)
    task = spec.function_task()
    assert task is not None
    assert (task.function, task.metric, task.worst) == ("search.examples.analytic:branin", "value", 400.0)
    assert task.allow_imports == ("search.examples.analytic",)
    config = spec.config({"x1": 1.0, "x2": 2.0})
    assert (config.epochs, config.values) == (3, {"shift": 0.5, "x1": 1.0, "x2": 2.0})
    with pytest.raises(ObjectiveError, match="trains no networks"):
        spec.task()
    assert read().function_task() is None
    assert read().direction() == "maximize"
    assert read(metric="log_loss").direction() == "minimize"


def test_a_function_has_one_epoch_unless_the_file_says_otherwise() -> None:
    assert function().max_epochs() == 1
    assert function().config({"x1": 1.0, "x2": 2.0}).epochs == 1
    searched = function(space={**FUNCTION["space"], "epochs": {"low": 2, "high": 9}})
    assert searched.max_epochs() == 9
    assert searched.config({"x1": 1.0, "x2": 2.0, "epochs": 4}).epochs == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {**FUNCTION["objective"], "worst": 300}},
        {"objective": {**FUNCTION["objective"], "direction": "maximize"}},
        {"objective": {**FUNCTION["objective"], "function": "search.examples.analytic:hartmann6"}},
        {"metric": "loss"},
    ],
)
def test_an_objective_may_not_change_under_one_name(changes: dict[str, object]) -> None:
    assert function(**changes).conflicts(function())
    assert function().conflicts(function()) == []


def test_an_objective_is_stored_and_comes_back() -> None:
    spec = function()
    assert ExperimentSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": "digits"}, "data (line 1): has no meaning beside `objective`"),
        ({"model": "cnn"}, "model (line 1): has no meaning beside `objective`"),
        ({"metric": None}, "metric: is missing: only you know what the function returns"),
        ({"objective": None, "metric": None, "space": {"loss": ["mse"]}}, "data: is missing"),
        (
            {"allow_imports": None},
            "objective.function (line 1): 'search.examples.analytic:branin' may not be",
        ),
        ({"objective": "search.examples.analytic:branin"}, "objective.direction (line 1): is missing"),
        ({"objective": {**FUNCTION["objective"], "wurst": 1}}, "objective.wurst (line 1): unknown key"),
        (
            {"objective": {**FUNCTION["objective"], "function": "search.examples.analytic:brannin"}},
            "objective.function (line 1): module 'search.examples.analytic' has no function 'brannin'",
        ),
        (
            {"objective": {**FUNCTION["objective"], "function": "branin"}},
            "objective.function (line 1): 'branin' does not have the form module:function",
        ),
        (
            {"objective": {**FUNCTION["objective"], "function": "search.examples.analytic:branin_value"}},
            "objective.function (line 1): search.examples.analytic:branin_value can't be called as function(",
        ),
        ({"fixed": {"epochs": 1.5}}, "fixed.epochs (line 1): 1.5 is no number of epochs"),
        ({"fixed": {"x1": 1}}, "fixed.x1 (line 1): is in `space` as well"),
        (
            {"objective": {**FUNCTION["objective"], "worst": "much"}},
            "objective.worst (line 1): must be a num",
        ),
    ],
)
def test_what_is_wrong_with_an_objective(changes: dict[str, object], line: str) -> None:
    with pytest.raises(SpecError) as caught:
        function(**changes)
    found = [str(problem) for problem in caught.value.problems]
    assert any(each.startswith(line) for each in found), found


def test_names_of_a_functions_dimensions_are_free() -> None:
    free = {"loss": [1, 2], "anything": {"low": 1, "high": 4}, "model.width": {"low": 0.5, "high": 1.0}}
    assert function(space=free, fixed={"batch_size": "huge"}).space["loss"].values == (1, 2)


def test_numbers_and_order_as_written_do_not_change_the_hash() -> None:
    one = read(space={"learning_rate": {"low": 1, "high": 2, "type": "float"}, "loss": ["mse"]})
    other = read(space={"loss": ["mse"], "learning_rate": {"high": 2.0, "low": 1.0, "type": "float"}})
    assert one.space_hash() == other.space_hash()


def test_true_and_one_are_different_values() -> None:
    one, true = read(space={"model.batch_norm": [True]}), read()
    stored = true.to_json() | {"space": {"model.batch_norm": {"values": [1], "grid": None, "when": {}}}}
    other = ExperimentSpec.from_json(stored)
    assert one.space_hash() != other.space_hash()
    assert [problem.place for problem in one.conflicts(other)] == ["space.model.batch_norm.values"]


def test_the_hash_is_the_same_in_every_process() -> None:
    code = (
        "from pathlib import Path; from search.experiment.spec import read_spec; import sys;"
        "print(read_spec(sys.argv[1], folder=Path('/nowhere')).space_hash())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, json.dumps(SMALL)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == read().space_hash()


# Storage


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


@settings(max_examples=400, deadline=2000, derandomize=True)
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


def test_a_list_of_wrong_values_is_not_called_empty() -> None:
    problems = refused(space={"learning_rate": [1e38, 2e38]})
    assert len(problems) == 2
    assert not any("is empty" in problem for problem in problems)
    assert any("is empty" in problem for problem in refused(space={"learning_rate": []}))
