"""What may change in a file under one name, what a smaller one would take away, and hashes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from search.experiment.spec import ExperimentSpec
from tests.contracts.experiment_files import SMALL, read


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
