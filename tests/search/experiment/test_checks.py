"""What sections of an experiment file must agree on, each with its place and remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.experiment.spec import ExperimentSpec, SpecError, read_spec

RATE = {"low": 1e-3, "high": 0.1, "log": True, "grid": [0.01]}
SMALL = {
    "experiment": "small",
    "data": {"name": "digits"},
    "space": {"learning_rate": RATE},
    "methods": {"random": {}},
}


def read(**changes: object) -> ExperimentSpec:
    return read_spec(json.dumps({**SMALL, **changes}), folder=Path("/nowhere"))


def refused(**changes: object) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(**changes)
    return [str(problem).replace(" (line 1)", "") for problem in caught.value.problems]


def only(**changes: object) -> str:
    """The one problem that there is."""
    found = refused(**changes)
    assert len(found) == 1, found
    return found[0]


# Names


@pytest.mark.parametrize(
    ("changes", "place", "meant"),
    [
        ({"fixed": {"loss": "crossentropy"}}, "fixed.loss", "cross_entropy"),
        ({"space": {"loss": ["mse", "hing"]}}, "space.loss[1]", "hinge"),
        ({"space": {"optimizer": {"values": ["sgd", "adm"]}}}, "space.optimizer.values[1]", "adam"),
        ({"fixed": {"schedule": "cosin"}}, "fixed.schedule", "cosine"),
        ({"fixed": {"regulariser": "l3"}}, "fixed.regulariser", "l"),
        ({"model": "cnm"}, "model.name", "cnn"),
        ({"data": "digit"}, "data.name", "digits"),
        ({"metric": "acuracy"}, "metric", "accuracy"),
        ({"fixed": {"learning_rat": 0.1}}, "fixed.learning_rat", "learning_rate"),
        ({"space": {"batchsize": [32]}}, "space.batchsize", "batch_size"),
        ({"space": {"model.widht": [32]}}, "space.model.widht", "model.width"),
        ({"fixed": {"augment.flp": 0.5}}, "fixed.augment.flp", "augment.flip"),
        ({"model": {"name": "cnn", "widht": 3}}, "model.widht", "model.width"),
    ],
)
def test_unknown_names_come_with_the_nearest_known_one(
    changes: dict[str, object], place: str, meant: str
) -> None:
    line = only(**changes)
    assert line.startswith(f"{place}: ")
    assert meant in line.split(" → ")[1]


def test_the_dataset_is_checked_though_its_section_is_broken() -> None:
    found = refused(data={"name": "digit", "vali": 1})
    assert [line.split(":")[0] for line in found] == ["data.vali", "data.name"]


# Values


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"fixed": {"epochs": 0}}, "fixed.epochs"),
        ({"fixed": {"learning_rate": 1e308}}, "fixed.learning_rate"),
        ({"space": {"learning_rate": {"low": 1e-3, "high": 1e308, "log": True}}}, "space.learning_rate.high"),
        ({"space": {"learning_rate": [0.1, 1e308]}}, "space.learning_rate[1]"),
        ({"fixed": {"epochs": "5"}}, "fixed.epochs"),
        ({"fixed": {"class_weights": "even"}}, "fixed.class_weights"),
        ({"fixed": {"lambda": -1}}, "fixed.lambda"),
        ({"fixed": {"batch_size": "all"}}, "fixed.batch_size"),
        ({"fixed": {"batch_size": True}}, "fixed.batch_size"),
        ({"space": {"batch_size": [32, 0.5]}}, "space.batch_size[1]"),
        ({"space": {"learning_rate": {"low": -1, "high": 1}}}, "space.learning_rate.low"),
        (
            {"space": {"optimizer": ["momentum"], "optimizer.momentum": [0.9, 1.5]}},
            "space.optimizer.momentum[1]",
        ),
        ({"space": {"model.batch_norm": [True, 1.5]}}, "space.model.batch_norm[1]"),
        ({"space": {"model.batch_norm": {"low": 0, "high": 1}}}, "space.model.batch_norm"),
        ({"space": {"model.activation": ["relu", "softsign"]}}, "space.model.activation[1]"),
        ({"space": {"optimizer": {"low": 1, "high": 2}}}, "space.optimizer"),
        ({"space": {"optimizer": [1, "sgd"]}}, "space.optimizer[0]"),
        ({"space": {"model.width": {"low": 8, "high": 16.5}}}, "space.model.width.high"),
        ({"model": {"name": "cnn", "dropout": 1.5}}, "model.dropout"),
        ({"fixed": {"augment.flip": 2}}, "fixed.augment.flip"),
    ],
)
def test_values_out_of_range_or_of_another_type(changes: dict[str, object], place: str) -> None:
    found = refused(**changes)
    assert {line.split(":")[0] for line in found} == {place}, found


# Options and conditions


def test_an_option_needs_an_entry_that_takes_it() -> None:
    assert only(fixed={"optimizer": "adam", "optimizer.momentum": 0.9}) == (
        "fixed.optimizer.momentum: optimizer adam does not take 'momentum' → "
        "leave it out; momentum, nesterov would take it"
    )


def test_an_option_that_some_choices_do_not_take_needs_a_condition() -> None:
    line = only(space={"optimizer": ["sgd", "momentum", "adam"], "optimizer.momentum": [0.5, 0.9]})
    assert line == (
        "space.optimizer.momentum: optimizer sgd, adam does not take 'momentum' → "
        "make it conditional: `when: {optimizer: [momentum]}`"
    )
    line = only(space={"optimizer": ["sgd", "momentum"]}, fixed={"optimizer.momentum": 0.9})
    assert line.endswith("move it to `space` with `when: {optimizer: [momentum]}`")


def test_a_matching_condition_is_enough() -> None:
    option = {"values": [0.5, 0.9], "when": {"optimizer": ["momentum"]}}
    assert read(space={"optimizer": ["sgd", "momentum"], "optimizer.momentum": option})
    wide = {"values": [0.5], "when": {"optimizer": ["momentum", "sgd"]}}
    assert "optimizer sgd does not take" in only(
        space={"optimizer": ["sgd", "momentum"], "optimizer.momentum": wide}
    )


def test_an_option_of_a_choice_that_is_not_always_there_must_fit_the_default_as_well() -> None:
    optimizer = {"values": ["momentum"], "when": {"loss": ["mse"]}}
    line = only(space={"loss": ["mse", "hinge"], "optimizer": optimizer, "optimizer.momentum": [0.9]})
    assert "optimizer sgd does not take 'momentum'" in line


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ({"optimiser": ["sgd"]}, "there is no dimension 'optimiser' in `space` → did you mean `optimizer`?"),
        ({"optimizer": ["adam"]}, "optimizer is never 'adam'"),
        ({"learning_rate": [0.01]}, "a range of floats"),
        ({"lambda": [0.1]}, "go in a circle"),
    ],
)
def test_conditions(when: dict[str, object], words: str) -> None:
    space = {
        "learning_rate": RATE,
        "optimizer": ["sgd", "momentum"],
        "lambda": {"values": [0.1], "when": when},
    }
    assert words in only(space=space)


def test_what_is_in_two_places() -> None:
    assert only(fixed={"learning_rate": 0.1}).startswith("fixed.learning_rate: is in `space` as well")
    assert only(fixed={"model.width": 8}).startswith("fixed.model.width: is a part of the model")
    width = {"space": {"model.width": [8, 16]}, "model": {"name": "cnn", "width": 8}}
    assert only(**width).startswith("model.width: is in `space` as `model.width` as well")
    assert only(space={"model": ["cnn", "resnet"]}, model="cnn").startswith(
        "model.name: `model` is in `space`"
    )
    assert read(space={"model": ["cnn", "resnet"]}, model={"width": 8})


# Imports


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's module with a loss and a model factory."""
    (tmp_path / "own_parts.py").write_text(
        "def loss(logits, labels, *, power: float = 2.0): return logits\n"
        "def model(shape, classes, *, layers: int, slope: float = 0.1): return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_parts"


def test_references_need_their_module_in_allow_imports(module: str) -> None:
    line = only(fixed={"loss": f"{module}:loss"})
    assert line.startswith("fixed.loss: ")
    assert "allow_imports" in line
    assert read(fixed={"loss": f"{module}:loss", "loss.power": 3.0}, allow_imports=[module])
    assert "has no function 'nothing'" in only(fixed={"loss": f"{module}:nothing"}, allow_imports=[module])


def test_options_of_a_users_own_model_are_checked(module: str) -> None:
    own = {"name": f"{module}:model"}
    assert only(model=own, allow_imports=[module]).startswith(f"model.layers: {module}:model needs it")
    assert read(model={**own, "layers": 2}, allow_imports=[module])
    assert "unknown key 'model.depth'" not in only(
        model={**own, "layers": 2, "depth": 1}, allow_imports=[module]
    )
    line = only(
        model={**own, "layers": 2}, space={"model.slope": {"low": 0, "high": 1}}, allow_imports=[module]
    )
    assert line.endswith("but the range is of whole numbers → add `type: float`")


def test_nothing_is_said_of_references_while_allow_imports_is_broken(module: str) -> None:
    assert refused(fixed={"loss": f"{module}:loss", "loss.power": 1.0}, allow_imports=[3]) == [
        "allow_imports[0]: must be text, not 3"
    ]


# Grids


def test_a_grid_of_given_levels_needs_points_and_some_are_proposed() -> None:
    given = {"grid": {"levels": "given"}}
    space = {
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "epochs": {"low": 5, "high": 20, "step": 5},
    }
    found = refused(space=space, methods=given)
    assert [line.split(" → ")[1] for line in found] == [
        "add `grid: [0.000316, 0.00316, 0.0316]`, or let `levels` be `offset`",
        "add `grid: [5, 10, 15, 20]`, or let `levels` be `offset`",
    ]
    assert read(space=space)
    assert read(space=space, methods={"grid": {}})
    assert read(
        space={**{name: {**written, "grid": [written["high"]]} for name, written in space.items()}},
        methods=given,
    ).search_space().grid_points() == [{"epochs": 20, "learning_rate": 0.1}]


def test_a_grid_may_not_be_larger_than_the_budget() -> None:
    space = {"loss": ["mse", "mae", "hinge"], "batch_size": [16, 32], "learning_rate": RATE}
    assert read(space=space, methods={"grid": {}}, budget={"trials": 6})
    line = only(space=space, methods={"grid": {}}, budget={"trials": 5})
    place, message = line.split(": ", 1)
    assert place == "budget.trials"
    assert message == (
        "the grid has 6 points, but the budget is 5 trials → fewer points, or `budget: {trials: 6}`"
    )
    assert read(space=space, budget={"trials": 5})


def test_points_of_the_file_alone_may_be_too_many() -> None:
    space = {"loss": ["mse", "mae"], "lambda": {"low": 0, "high": 1}}
    space |= {"learning_rate": {"low": 0.1, "high": 1, "grid": [0.1, 0.2, 0.3]}}
    assert read(space=space, methods={"grid": {}}, budget={"trials": 3})
    line = only(space=space, methods={"grid": {}}, budget={"trials": 2})
    assert "the grid has 3 points, but the budget is 2 trials" in line


def test_a_grid_beyond_counting_is_refused_quickly() -> None:
    space = {f"model.{name}": list(range(8, 500)) for name in ("width", "dense")}
    space |= {name: [n / 1000 for n in range(1, 900)] for name in ("learning_rate", "lambda", "augment.flip")}
    line = only(space={**space}, methods={"grid": {}})
    assert "the grid has more than 100,000 points" in line


# Data, epochs, pruners


def test_missing_data_without_download(tmp_path: Path) -> None:
    found = refused(data={"name": "mnist", "root": str(tmp_path), "download": False})
    assert len(found) == 1
    assert found[0].startswith("data")
    assert str(tmp_path) in found[0]
    assert read(data={"name": "mnist", "root": str(tmp_path), "download": True}).data.download


def test_image_folder_needs_a_size(tmp_path: Path) -> None:
    assert any(
        line.startswith("data") for line in refused(data={"name": "image_folder", "root": str(tmp_path)})
    )


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"fixed": {"batch_size": 2000}}, "fixed.batch_size"),
        ({"space": {"batch_size": [32, 2000, "full"]}}, "space.batch_size[1]"),
        ({"space": {"batch_size": {"low": 16, "high": 2000}}}, "space.batch_size.high"),
    ],
)
def test_batches_larger_than_the_training_images(changes: dict[str, object], place: str) -> None:
    line = only(**changes)
    assert line.startswith(f"{place}: batch size 2000 is more than the 1150 training images")


def test_the_limit_counts_for_the_batch_size() -> None:
    data = {"name": "digits", "limit": 100}
    assert "more than the 80 training images" in only(data=data, fixed={"batch_size": 81})
    assert read(data=data, fixed={"batch_size": 80})


def test_a_budget_of_less_than_one_trial() -> None:
    assert only(budget={"epochs": 9}).startswith("budget.epochs: 9 epochs are fewer than the 10 of one trial")
    assert read(budget={"epochs": 10})


@pytest.mark.parametrize(
    ("pruner", "epochs", "place"),
    [
        ({"name": "asha", "min_epochs": 5}, 5, "pruner.min_epochs"),
        ({"name": "asha"}, 1, "pruner.min_epochs"),
        ({"name": "asha_promotion", "min_epochs": 5}, 5, "pruner.min_epochs"),
        ({"name": "median", "n_warmup_steps": 4}, 5, "pruner.n_warmup_steps"),
        ({"name": "percentile", "n_warmup_steps": 4}, 5, "pruner.n_warmup_steps"),
        ({"name": "successive_halving", "min_resource": 6}, 5, "pruner.min_resource"),
        ({"name": "successive_halving", "min_early_stopping_rate": 1}, 3, "pruner.min_resource"),
        ({"name": "hyperband", "min_resource": 5}, 5, "pruner.min_resource"),
        ({"name": "hyperband", "max_resource": 6}, 5, "pruner.max_resource"),
    ],
)
def test_pruners_that_need_more_epochs_than_a_trial_has(
    pruner: dict[str, object], epochs: int, place: str
) -> None:
    line = only(pruner=pruner, fixed={"epochs": epochs})
    assert line.startswith(f"{place}: ")
    assert len(line) < 300
    assert read(pruner=pruner, fixed={"epochs": epochs + 2}).pruner.name == pruner["name"]


def test_a_rung_beyond_all_numbers_is_no_trouble() -> None:
    pruner = {"name": "successive_halving", "min_early_stopping_rate": 16, "reduction_factor": 1_000_000}
    assert len(only(pruner=pruner)) < 300


def test_the_longest_trial_counts_for_the_pruner() -> None:
    pruner = {"name": "asha", "min_epochs": 5}
    assert read(pruner=pruner, space={"epochs": {"low": 2, "high": 6}})
    assert "a trial has 5" in only(pruner=pruner, space={"epochs": [2, 5]})


# Comparison


METHODS = {"random": {}, "tpe": {}, "grid": {}}


@pytest.mark.parametrize(
    ("comparison", "line"),
    [
        ({"pairs": [["tpe", "randm"]]}, "comparison.pairs[0][1]: there is no 'randm' in `methods` → did you"),
        ({"pairs": [["gp", "tpe"]]}, "comparison.pairs[0][0]: there is no 'gp' in `methods` → one of: grid"),
        ({"pairs": [["tpe", "tpe"]]}, "comparison.pairs[0]: 'tpe' is compared with itself"),
        ({"pairs": [["tpe", "random"], ["random", "tpe"]]}, "comparison.pairs[1]: is pair 1 again"),
        ({"pairs": []}, "comparison.pairs: is empty"),
        ({"pairs": [["tpe"]]}, "comparison.pairs[0][1]: is missing"),
        ({"pairs": ["tpe"]}, "comparison.pairs[0]: must be a list"),
        ({"alfa": 0.1}, "comparison.alfa: unknown key 'alfa' → did you mean `alpha`?"),
        ({"alpha": 0.5}, "comparison.alpha: 0.5 is out of range → below 0.5"),
        ({"axis": "epoch"}, "comparison.axis: must be 'trials', 'epochs' or 'seconds'"),
        ({"smallest_difference": 1}, "comparison.smallest_difference: no two values of accuracy differ by 1"),
        ({"smallest_difference": 0}, "comparison.smallest_difference: 0 is out of range → above 0"),
        ({"meaningful": 0.5}, "comparison.meaningful: 0.5 is out of range"),
        ({"retrain": {"seed": 3}}, "comparison.retrain.seed: unknown key 'seed' → did you mean `seeds`?"),
        ({"retrain": {"seeds": -1}}, "comparison.retrain.seeds: -1 is out of range"),
        ({"retrain": 3}, "comparison.retrain: must be a mapping, not 3"),
        ("all", "comparison: must be a mapping"),
    ],
)
def test_what_a_comparison_may_not_say(comparison: object, line: str) -> None:
    assert only(methods=METHODS, space={"loss": ["mse"]}, comparison=comparison).startswith(line)


def test_all_problems_of_a_comparison_are_listed_at_once() -> None:
    wrong = {
        "pairs": [["tpe", "x"], ["y", "random"]],
        "smallest_difference": 7,
        "retrain": {"seed": 1},
        "power": 2,
        "axes": "epochs",
    }
    assert {line.split(": ")[0] for line in refused(methods=METHODS, comparison=wrong)} == {
        "comparison.pairs[0][1]",
        "comparison.pairs[1][0]",
        "comparison.smallest_difference",
        "comparison.retrain.seed",
        "comparison.power",
        "comparison.axes",
    }


def test_a_method_that_is_broken_may_be_named_in_a_pair() -> None:
    line = only(methods={"random": {}, "tpe": {"group": 3}}, comparison={"pairs": [["tpe", "random"]]})
    assert line.startswith("methods.tpe.group")


def test_the_range_of_the_metric_bounds_the_smallest_difference() -> None:
    assert read(metric="log_loss", comparison={"smallest_difference": 2}).comparison.smallest_difference == 2
    assert "log_loss" in only(metric="log_loss", comparison={"smallest_difference": 40})
