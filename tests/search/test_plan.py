"""The dry run: counts are right, times follow from the measurements, notes say what matters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from objectives.base import Task, TrialConfig, TrialError
from search.compare.pairs import declared_pairs
from search.evidence import few_replicates, few_trials
from search.examples import analytic
from search.experiment.spec import ExperimentSpec, load_spec, read_spec
from search.plan import GP_SECONDS_PER_ASK, Plan, Rates, Speed, corners, make_plan, measured_speed

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
    sections = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    return read_spec(json.dumps(sections), folder=Path("/nowhere"))


def by_batch(task: Task, config: TrialConfig) -> Rates:
    """A pretended measurement: as many images per second as ten batches have."""
    assert task.data.name == "digits"
    return Rates(alone=10.0 * (config.batch_size or 1000))


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
    assert one.comparison is not None
    assert one.comparison.retraining_epochs == 2 * 3 * 10 * 4
    images = (192 + 240) * (one.train_images + one.validation_images / 3)
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
    assert few_trials(10) in notes(methods={"random": {}, "tpe": {}})
    assert few_trials(10) in notes()
    assert few_trials(6) not in notes(), "a demonstration goes by the budget, which the grid has not"
    assert few_replicates(3) in notes()
    assert "the grid has 6 points, fewer than the 10 trials" in notes()
    assert "upper bounds: the pruner `median`" in notes(pruner="median")
    resting = {"name": "asha_promotion", "min_epochs": 1, "eta": 4}
    assert "upper bounds: the pruner `asha_promotion`" in notes(pruner=resting)
    assert "fewer than 64 trials none is promoted over all 3 rungs" in notes(
        pruner=resting, fixed={"epochs": 17}
    )
    assert "none is promoted" not in notes(pruner=resting, fixed={"epochs": 4})
    assert "gp learns from trials" in notes(pruner=resting, methods={"gp": {}})
    assert "gp learns from trials" not in notes(methods={"gp": {}})
    assert "tpe begins with 10 random trials, so all 10" in notes(methods={"tpe": {}})
    assert "an ask of gp costs about 0.9 s" in notes(methods={"gp": {}})
    assert "tpe runs 8 trials of a study at once" in notes(methods={"tpe": {"in_flight": 8}})
    assert "tpe runs any number of trials" in notes(methods={"tpe": {"in_flight": None}})


def test_a_single_method_says_what_its_winners_cost() -> None:
    again = (
        "trained again with 10 fresh seeds and scored on the sealed test set: 30 more trials, 120 more epochs"
    )
    assert again in notes(methods={"random": {}})
    assert again not in notes()  # the plan of the comparison says it
    assert "trained again" not in notes(methods={"random": {}}, comparison={"retrain": {"seeds": 0}})


def test_a_functions_winners_see_no_test_set() -> None:
    spec = load_spec(Path(analytic.__file__).with_name("analytic.yaml"))
    alone = spec.model_copy(update={"methods": {"random": spec.methods["random"]}})
    said = "\n".join(make_plan(alone).notes)
    assert "winners are trained again with 10 fresh seeds: 100 more trials" in said
    assert "test set" not in said


def test_what_is_declared_and_can_be_shown() -> None:
    methods = {"grid": {}, "random": {}, "tpe": {}}
    found = make_plan(read(methods=methods, replicates=30)).comparison
    assert found is not None
    # Named as the report names them.
    assert found.pairs == declared_pairs(None, list(methods))
    assert (found.axis, found.smallest_difference) == ("epochs", 0.005)
    # Noether, two-sided, 0.05 over three pairs: z(1 - 0.05 / 6) = 2.394, z(0.95) = 1.645.
    assert found.detectable == pytest.approx(0.5 + (2.394 + 1.645) / math.sqrt(6 * 30), abs=1e-3)
    assert found.replicates_needed == 44
    assert "30 replicates find P(A > B) = 0.80" in found.detects
    assert (found.retrainings, found.retraining_epochs) == (3 * 30 * 10, 3 * 30 * 10 * 4)
    declared = {"pairs": [["tpe", "random"]], "axis": "trials", "retrain": {"seeds": 3}, "power": 0.8}
    found = make_plan(read(methods=methods, replicates=30, comparison=declared)).comparison
    assert found is not None
    assert (found.pairs, found.axis, found.retrainings) == ((("tpe", "random"),), "trials", 270)
    assert found.detectable == pytest.approx(0.5 + (1.960 + 0.842) / math.sqrt(6 * 30), abs=1e-3)
    assert make_plan(read(methods={"random": {}})).comparison is None


def test_slips_and_weak_winners_are_noted() -> None:
    assert "winners are retrained with 3 seeds" in notes(comparison={"retrain": {"seeds": 3}})
    assert "winners are not retrained" in notes(comparison={"retrain": {"seeds": 0}})
    assert "0.5 is 50% of what accuracy spans" in notes(comparison={"smallest_difference": 0.5})
    assert "spans" not in notes(comparison={"smallest_difference": 0.01})


def test_the_grid_that_is_made_is_shown() -> None:
    space = {"learning_rate": {"low": 1e-3, "high": 0.1, "log": True}, "batch_size": [32, 64]}
    plan = make_plan(read(space=space, methods={"grid": {"levels": "centred"}, "random": {}}))
    assert plan.grid_points == 10
    assert {axis.name: (axis.kind, len(axis.points)) for axis in plan.grid} == {
        "learning_rate": ("levels", 5),
        "batch_size": ("complete", 2),
    }
    assert {axis.name: axis.points for axis in plan.grid}["learning_rate"][2] == 0.01


def test_a_grid_whose_replicates_differ_is_counted_as_the_largest() -> None:
    """Which of nine choices a replicate takes decides which conditional dimensions it has."""
    spec = read(
        objective={"function": "search.examples.analytic:branin", "direction": "minimize", "worst": 1},
        metric="value",
        allow_imports=["search.examples.analytic"],
        fixed={},
        space={
            "kind": list("abcdefghi"),
            "other": list("xyz"),
            "learning_rate": {"low": 0.1, "high": 1.0},
            "depth": {"low": 1, "high": 9, "when": {"kind": ["a"]}},
            "width": {"low": 8, "high": 64, "when": {"kind": ["b"]}},
        },
        methods={"grid": {}, "random": {}},
        budget={"trials": 28},
        replicates=20,
        data=None,
    )
    sizes = [len(spec.grid_points(replicate)) for replicate in range(20)]
    assert len(set(sizes)) > 1
    plan = make_plan(spec)
    assert plan.grid_points == max(sizes) <= 28
    assert plan.trials == 20 * (max(sizes) + 28)


def test_a_function_has_no_images_and_no_known_time() -> None:
    written = {
        "experiment": "f",
        "objective": {"function": "search.examples.analytic:branin", "direction": "minimize", "worst": 400},
        "metric": "value",
        "allow_imports": ["search.examples.analytic"],
        "space": {"x1": {"low": -5.0, "high": 10.0}, "x2": {"low": 0.0, "high": 15.0}},
        "budget": {"trials": 10},
    }
    plan = make_plan(read_spec(json.dumps(written), folder=Path("/nowhere")), measure=by_batch)
    assert (plan.dataset, plan.train_images, plan.seconds) == (None, None, None)
    assert (plan.trials, plan.epochs) == (600, 600)
    said = "\n".join(plan.notes)
    assert "the time is not known" in said
    assert "say what matters for value" in said


def test_a_sound_comparison_has_no_notes() -> None:
    assert notes(methods={"random": {}, "tpe": {}}, budget={"trials": 60}, replicates=30) == ""


def test_a_plan_is_plain_values() -> None:
    plan: Plan = make_plan(read(), measure=by_batch)
    assert json.loads(json.dumps(plan.to_json()))["studies"] == 6


def test_the_way_that_is_chosen_decides_the_time() -> None:
    def fused(task: Task, config: TrialConfig) -> Rates:
        slower = "slower" if config.batch_size == 128 else None
        return Rates(alone=1000.0, fused=2000.0, slots=16, bytes_per_slot=1 << 20, reason=slower)

    plan = make_plan(read(), measure=fused)
    assert [speed.images_per_second for speed in plan.speeds] == [2000.0, 1000.0]
    assert plan.train_images is not None
    assert plan.validation_images is not None
    images = 4 * (plan.train_images + plan.validation_images / 3)
    assert plan.speeds[0].trials_per_hour == pytest.approx(3600 * 2000 / images)


def test_the_real_measurement_gives_a_time() -> None:
    spec = read(model={"name": "cnn", "depth": 1, "width": 4, "dense": 8}, space={"batch_size": [32]})
    plan = make_plan(spec, measure=measured_speed)
    assert plan.seconds is not None
    assert 0 < plan.seconds[0] == plan.seconds[1]
    (speed,) = plan.speeds
    assert isinstance(speed, Speed)
    rates = speed.rates
    assert rates.fused is not None
    assert (rates.slots, rates.bytes_per_slot) == (16, 4 * 7 * (4 * 9 + 4 + 4 * 36 * 8 + 8 + 8 * 10 + 10))
    assert speed.images_per_second == (rates.alone if rates.reason else rates.fused)
    assert rates.convolutions == {"0": "grouped"}
    assert plan.to_json()["speeds"][0]["rates"]["convolutions"] == {"0": "grouped"}
