"""The dry run: counts are right, times follow from the measurements, notes say what matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from objectives.base import Task, TrialConfig, TrialError
from search.evidence import few_replicates, few_trials
from search.plan import GP_SECONDS_PER_ASK, Plan, corners, make_plan
from search.spec import ExperimentSpec, read_spec

SMALL = {
    "experiment": "small",
    "data": {"name": "digits", "validation": 0.25},
    "fixed": {"epochs": 4},
    "space": {
        "learning_rate": {"low": 1e-3, "high": 0.1, "log": True, "grid": [0.01, 0.1]},
        "batch_size": [32, 64, 128],
    },
    "methods": {"grid": {}, "random": {}},
    "replicates": 3,
    "budget": {"trials": 10},
}


def read(**changes: object) -> ExperimentSpec:
    return read_spec(json.dumps({**SMALL, **changes}), folder=Path("/nowhere"))


def by_batch(task: Task, config: TrialConfig) -> float:
    """A pretended measurement: as many images per second as ten batches have."""
    assert task.data.name == "digits"
    return 10.0 * (config.batch_size or 1000)


def test_counts() -> None:
    plan = make_plan(read())
    assert (plan.studies, plan.grid_points) == (6, 6)
    assert [(method.name, method.trials, method.epochs) for method in plan.methods] == [
        ("grid", 6, 24),
        ("random", 10, 40),
    ]
    assert (plan.trials, plan.epochs) == (48, 192)
    assert (plan.train_images, plan.validation_images) == (
        1078,
        360,
    ) or plan.train_images + plan.validation_images
    assert (plan.speeds, plan.seconds) == ((), None)


def test_the_epoch_budget_caps_a_study() -> None:
    plan = make_plan(read(budget={"trials": 10, "epochs": 30}))
    assert [method.epochs for method in plan.methods] == [24, 30]
    assert any("after 30 epochs" in note for note in plan.notes)


def test_time_is_a_range_over_the_measured_corners() -> None:
    one, two = (make_plan(read(), measure=by_batch, workers=workers) for workers in (1, 2))
    assert [(speed.values, speed.images_per_second) for speed in one.speeds] == [
        ({"batch_size": 32}, 320.0),
        ({"batch_size": 128}, 1280.0),
    ]
    images = 192 * (one.train_images + one.validation_images / 3)
    assert one.seconds == pytest.approx((images / 1280, images / 320))
    assert two.seconds == pytest.approx((images / 1280 / 2, images / 320 / 2))


def test_corners_are_ends_of_batch_size_and_model() -> None:
    space = {"batch_size": [64, "full", 32], "model.width": {"low": 8, "high": 16}, "learning_rate": [0.1]}
    assert corners(read(space=space, methods={"random": {}})) == [
        {"batch_size": 32, "model.width": 8},
        {"batch_size": 32, "model.width": 16},
        {"batch_size": "full", "model.width": 8},
        {"batch_size": "full", "model.width": 16},
    ]
    assert corners(read(space={"learning_rate": [0.1]})) == [{}]


def test_gaussian_process_asks_take_their_time() -> None:
    plan = make_plan(read(methods={"gp": {}}, budget={"trials": 60}), measure=by_batch)
    assert plan.sampler_seconds == pytest.approx(3 * 50 * GP_SECONDS_PER_ASK)
    assert plan.seconds is not None
    assert plan.seconds[0] > plan.sampler_seconds


def test_what_cannot_be_measured_is_said() -> None:
    def failing(task: Task, config: TrialConfig) -> float:
        raise TrialError("images are too small")

    plan = make_plan(read(), measure=failing)
    assert plan.seconds is None
    assert "the speed could not be measured: images are too small" in plan.notes


def notes(**changes: object) -> str:
    return "\n".join(make_plan(read(**changes)).notes)


def test_notes() -> None:
    assert few_trials(10) in notes()
    assert few_replicates(3) in notes()
    assert "the grid has 6 points, fewer than the 10 trials" in notes()
    assert "upper bounds: the pruner `median`" in notes(pruner="median")
    assert "tpe begins with 10 random trials, so all 10" in notes(methods={"tpe": {}})
    assert "an ask of gp costs about 0.9 s" in notes(methods={"gp": {}})
    assert "tpe runs 8 trials of a study at once" in notes(methods={"tpe": {"in_flight": 8}})
    assert "tpe runs any number of trials" in notes(methods={"tpe": {"in_flight": None}})


def test_a_sound_comparison_has_no_notes() -> None:
    assert notes(methods={"random": {}, "tpe": {}}, budget={"trials": 60}, replicates=30) == ""


def test_a_plan_is_plain_values() -> None:
    plan: Plan = make_plan(read(), measure=by_batch)
    assert json.loads(json.dumps(plan.to_json()))["studies"] == 6


def test_the_real_measurement_gives_a_time() -> None:
    from objectives.measure import images_per_second

    spec = read(model={"name": "cnn", "depth": 1, "width": 4, "dense": 8}, space={"batch_size": [32]})
    plan = make_plan(spec, measure=lambda task, config: images_per_second(task, config, seconds=0.05))
    assert plan.seconds is not None
    assert 0 < plan.seconds[0] == plan.seconds[1]
