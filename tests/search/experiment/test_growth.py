"""An experiment that grows: what may change, and that samplers see one space where the tables have two."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState, create_trial

from objectives.base import Scalar
from search.control.controller import find_or_create, run_experiment
from search.experiment import growth
from search.experiment.dimensions import Choices, Range
from search.experiment.growth import Widening, grown
from search.trials.making import make_studies
from storage.checker import check_history
from storage.database import Database
from storage.errors import ExperimentExists
from storage.experiments import Experiments
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.fake_engine import FAKE


class TestGrown:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            (("a", "b"), True),
            (("a", "b", "c"), True),
            (("b", "a"), False),
            (("c", "a", "b"), False),
            (("a",), False),
        ],
    )
    def test_choices_come_at_the_end(self, values: tuple[Scalar, ...], expected: bool) -> None:
        assert grown(Choices(values=("a", "b")), Choices(values=values)) is expected

    def test_one_and_true_are_two_choices(self) -> None:
        assert not grown(Choices(values=(1, 2)), Choices(values=(True, 2)))

    @pytest.mark.parametrize(
        ("new", "expected"),
        [
            ({"low": 0.1, "high": 2.0}, True),
            ({"low": 0.01, "high": 1.0}, True),
            ({"low": 0.2, "high": 1.0}, False),
            ({"low": 0.1, "high": 0.9}, False),
            ({"low": 0.1, "high": 1.0, "log": True}, False),
        ],
    )
    def test_bounds_get_wider(self, new: dict[str, Any], expected: bool) -> None:
        assert grown(Range(low=0.1, high=1.0), Range(**new)) is expected

    def test_steps_stay_where_they_are(self) -> None:
        old = Range(low=0.5, high=1.0, step=0.25)
        assert grown(old, Range(low=0.0, high=2.0, step=0.25))
        assert not grown(old, Range(low=0.1, high=2.0, step=0.25))
        assert not grown(old, Range(low=0.0, high=2.0, step=0.5))

    def test_conditions_stay(self) -> None:
        old = Choices(values=("a",), when={"x": (1,)})
        assert not grown(old, Choices(values=("a",)))

    def test_kinds_stay(self) -> None:
        assert not grown(Choices(values=(1, 2)), Range(low=1, high=2))


SPACE = {
    "learning_rate": {"low": 1e-3, "high": 1.0, "log": True},
    "optimizer": ["sgd", "adam"],
}
MORE = SPACE | {"optimizer": ["sgd", "adam", "rmsprop"]}
WIDER = MORE | {"learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}


class TestConflicts:
    def _said(self, stored: dict[str, Any], new: dict[str, Any]) -> list[str]:
        found = growth.conflicts(small_spec(**new), small_spec(**stored))
        return [problem.place for problem in found]

    def test_growth_is_none(self) -> None:
        stored = {"space": SPACE, "methods": {"random": {}}}
        assert self._said(stored, stored) == []
        assert self._said(stored, stored | {"space": WIDER, "budget": {"trials": 9}}) == []

    def test_everything_else_is(self) -> None:
        stored = {"space": MORE, "methods": {"random": {}}}
        assert self._said(stored, stored | {"space": SPACE}) != []
        assert self._said(stored, stored | {"space": {**MORE, "batch_size": [32]}}) != []
        assert self._said(stored, stored | {"seed": 4}) == ["seed"]

    def test_a_grid_keeps_its_points(self) -> None:
        levels = {"low": 0.1, "high": 1.0, "grid": [0.1, 1.0]}
        stored = {"space": SPACE | {"learning_rate": levels}, "methods": {"grid": {}}}
        more = MORE | {"learning_rate": levels | {"grid": [0.1, 0.5, 1.0]}}
        assert self._said(stored, stored | {"space": more}) == []
        fewer = MORE | {"learning_rate": levels | {"grid": [0.1, 0.5]}}
        assert self._said(stored, stored | {"space": fewer}) == ["space"]


OLD: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0, 1),
    "kind": CategoricalDistribution(["a", "b"]),
}
NEW: dict[str, BaseDistribution] = {
    "x": FloatDistribution(0, 2),
    "kind": CategoricalDistribution(["a", "b", "c"]),
}


def _study(count: int, kinds: dict[str, BaseDistribution] = OLD) -> optuna.Study:
    study = optuna.create_study()
    for number in range(count):
        study.add_trial(
            create_trial(
                value=float(number),
                params={"x": 0.5, "kind": "b"},
                distributions=kinds,
                state=TrialState.COMPLETE,
            )
        )
    return study


class TestWidening:
    def test_a_study_that_has_not_grown_is_itself(self) -> None:
        study = _study(3)
        assert Widening(OLD).of(study) is study

    def test_old_trials_are_shown_in_todays_space(self) -> None:
        study = _study(3)
        study._storage.create_new_trial(
            study._study_id, create_trial(value=9.0, params={"x": 1.5, "kind": "c"}, distributions=NEW)
        )
        assert IntersectionSearchSpace().calculate(study) == {}, "what Optuna's samplers would draw together"
        seen = Widening(NEW).of(study)
        assert IntersectionSearchSpace().calculate(seen) == NEW
        assert [trial.params for trial in seen.get_trials()] == [trial.params for trial in study.trials]
        assert study.trials[0].distributions == OLD, "what is stored stays"
        assert seen.direction == study.direction

    def test_each_trial_is_rewritten_once(self) -> None:
        study, widening = _study(3), Widening(NEW)
        before = widening.of(study).get_trials(deepcopy=False)
        study.add_trial(study.trials[0])
        after = widening.of(study).get_trials(deepcopy=False)
        assert [a is b for a, b in zip(before, after, strict=False)] == [True] * 3
        assert len(after) == 4

    def test_a_value_that_is_none_of_todays_stays_as_it_was(self) -> None:
        strange: dict[str, BaseDistribution] = {
            "x": FloatDistribution(0, 9),
            "kind": CategoricalDistribution(["b", "z"]),
        }
        study = optuna.create_study()
        study.add_trial(create_trial(value=1.0, params={"x": 8.0, "kind": "z"}, distributions=strange))
        (trial,) = Widening(NEW).of(study).get_trials()
        assert (trial.params, trial.distributions) == ({"x": 8.0, "kind": "z"}, strange)


@pytest.mark.parametrize("method", ["random", "qmc", "tpe", "gp"])
def test_a_finished_experiment_goes_on_in_a_wider_space(database: Database, method: str) -> None:
    settings = {"n_startup_trials": 3} if method in {"tpe", "gp"} else {}
    common: dict[str, Any] = {"methods": {method: settings}, "fixed": {"epochs": 1}}
    old = small_spec(space=SPACE, budget={"trials": 5}, **common)
    new = small_spec(space=WIDER, budget={"trials": 20}, **common)
    for spec in (old, new):
        outcome = run_experiment(spec, database.url, in_process=True, trainer=FAKE)
        assert outcome.state == "finished"
    with prepared(database, new) as running:
        trials = running.trials(method)
        assert check_history(database, running.experiment.id) == []
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20
    kinds = [trial.distributions["optimizer"] for trial in trials]
    assert (
        kinds
        == [CategoricalDistribution(["sgd", "adam"])] * 5
        + [CategoricalDistribution(["sgd", "adam", "rmsprop"])] * 15
    )
    assert "rmsprop" in {trial.params["optimizer"] for trial in trials[5:]}
    assert len(Experiments(database).get("small").spec["space"]["optimizer"]["values"]) == 3


def test_a_grid_gets_the_points_that_it_lacks(database: Database) -> None:
    levels = {"low": 1e-3, "high": 1.0, "log": True, "grid": [0.1, 1.0]}
    for optimizers, points in ((["sgd"], 2), (["sgd", "adam"], 4)):
        spec = small_spec(
            space={"learning_rate": levels, "optimizer": optimizers},
            methods={"grid": {}},
            fixed={"epochs": 1},
        )
        outcome = run_experiment(spec, database.url, in_process=True, trainer=FAKE)
        assert [(row.complete, row.trials) for row in outcome.studies] == [(points, points)]


def test_workers_that_are_at_work_take_up_what_was_added(database: Database) -> None:
    """The controller has the experiment's lock; a worker that an earlier one left behind hears of it."""
    old = small_spec(space=SPACE, methods={"random": {}}, budget={"trials": 2})
    new = small_spec(space=MORE, methods={"random": {}, "tpe": {}}, budget={"trials": 4}, replicates=2)
    with prepared(database, old) as running, running.broker() as broker:
        assert len(broker.claim(9)) == 2
        experiments = Experiments(database)
        record, resumed = find_or_create(experiments, new)
        assert resumed
        with experiments.control(record):
            experiments.grow(record.id, new.to_json(), new.studies())
            make_studies(database, running.storage, new)
        broker.adopt(new)
        claims = broker.claim(99) + broker.sharing.leave()
        names = [claim.lease.study_name for claim in claims]
    assert sorted(names) == sorted(
        ["small/random/0"] * 2 + ["small/random/1"] * 4 + ["small/tpe/0", "small/tpe/1"]
    )


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"budget": {"trials": 5}}, "budget.trials"),
        ({"methods": {"random": {}}}, "methods.grid"),
        ({"budget": {"trials": 6, "epochs": 10}}, "budget.epochs"),
    ],
)
def test_an_experiment_never_shrinks_in_silence(
    database: Database, changes: dict[str, Any], place: str
) -> None:
    experiments = Experiments(database)
    find_or_create(experiments, small_spec())
    with pytest.raises(ExperimentExists, match=place):
        find_or_create(experiments, small_spec(**changes))
    assert experiments.get("small").spec == small_spec().to_json()
