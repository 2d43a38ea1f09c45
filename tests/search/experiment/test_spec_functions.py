"""Files that search a function of the user's own."""

from __future__ import annotations

import json

import pytest

from objectives.base import ObjectiveError
from search.experiment.spec import ExperimentSpec, SpecError
from tests.contracts.experiment_files import FUNCTION, function, read


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
