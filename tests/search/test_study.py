"""Studies on a real database: budgets, grids, trials that are put back in the queue."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search.study import (
    GRID_KEY,
    Asked,
    Limits,
    Load,
    SearchStudy,
    StudyDeleted,
    TrialTaken,
    TrialUnusable,
    create_study,
    give_up,
    grid_key,
    limits_of,
    load_of,
    may_ever_start,
    may_start,
    requeue,
    shuffled,
    study_exists,
)
from storage.database import Database
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.experiments import small_spec


@pytest.fixture
def storage(database: Database) -> Iterator[optuna.storages.BaseStorage]:
    opened = open_optuna_storage(database.url)
    yield opened
    close_optuna_storage(opened)


def _study(storage: optuna.storages.BaseStorage, method: str = "random", **changes) -> SearchStudy:
    spec = small_spec(**changes)
    create_study(storage, spec, method, 0, "maximize")
    return SearchStudy(storage, spec, method, 0)


def _frozen(storage: optuna.storages.BaseStorage, asked: Asked) -> optuna.trial.FrozenTrial:
    return storage.get_trial(asked.trial_id)


class TestLimits:
    FREE = Load(trials=3, running=1, interrupted=0, fresh=0, epochs=9, committed=12)

    def test_budget_of_trials(self) -> None:
        assert may_start(self.FREE, Limits(4, None, None))
        assert not may_start(self.FREE, Limits(3, None, None))
        assert not may_ever_start(self.FREE, Limits(3, None, None))

    def test_in_flight_is_for_now(self) -> None:
        limits = Limits(4, None, 1)
        assert not may_start(self.FREE, limits)
        assert may_ever_start(self.FREE, limits)

    def test_epochs_promised_to_running_trials_are_not_given_twice(self) -> None:
        assert not may_start(self.FREE, Limits(4, 12, None))
        assert may_ever_start(self.FREE, Limits(4, 12, None)), "the running trial may be pruned"
        assert may_start(self.FREE, Limits(4, 13, None))
        assert not may_ever_start(self.FREE, Limits(4, 9, None))

    def test_interrupted_trials_go_on_whatever_the_budget(self) -> None:
        load = Load(trials=3, running=0, interrupted=1, fresh=0, epochs=9, committed=12)
        assert may_start(load, Limits(3, 9, 1))
        assert may_ever_start(load, Limits(3, 9, 1))
        assert not may_start(Load(3, 1, 1, 0, 9, 12), Limits(3, 9, 1)), "in_flight holds for them too"

    def test_waiting_points_of_a_grid(self) -> None:
        load = Load(trials=6, running=0, interrupted=0, fresh=4, epochs=6, committed=6)
        assert may_start(load, Limits(6, None, None))
        assert not may_start(load, Limits(6, 6, None))

    def test_a_grid_has_as_many_trials_as_points(self) -> None:
        spec = small_spec(budget={"trials": 50, "epochs": 100})
        assert limits_of(spec, "grid") == Limits(6, 100, None)
        assert limits_of(spec, "random") == Limits(50, 100, None)
        assert limits_of(small_spec(methods={"tpe": {"in_flight": 2}}), "tpe").in_flight == 2


def test_load_counts_epochs_once_and_promises_what_is_left() -> None:
    flat = {"x": optuna.distributions.FloatDistribution(0, 1)}

    def trial(state: TrialState, steps: int, params: bool = True) -> optuna.trial.FrozenTrial:
        return create_trial(
            state=state,
            value=0.5 if state == TrialState.COMPLETE else None,
            params={"x": 0.5} if params else {},
            distributions=flat if params else {},
            intermediate_values=dict.fromkeys(range(1, steps + 1), 0.5),
        )

    trials = [
        trial(TrialState.COMPLETE, 5),
        trial(TrialState.PRUNED, 2),
        trial(TrialState.RUNNING, 1),
        trial(TrialState.WAITING, 3),
        trial(TrialState.WAITING, 0, params=False),
        trial(TrialState.FAIL, 0),
    ]
    assert load_of(trials, 5) == Load(trials=6, running=1, interrupted=1, fresh=1, epochs=11, committed=17)


class TestGrid:
    def test_enqueued_once(self, storage) -> None:
        study = _study(storage, "grid")
        assert study.enqueue_grid() == 6
        assert study.enqueue_grid() == 0
        assert study.load() == Load(trials=6, running=0, interrupted=0, fresh=6, epochs=0, committed=0)

    def test_only_missing_points_are_added(self, storage) -> None:
        study = _study(storage, "grid")
        points = small_spec().search_space().grid_points()
        optuna.load_study(study_name=study.name, storage=storage).enqueue_trial(
            points[2], user_attrs={GRID_KEY: grid_key(points[2])}
        )
        assert study.enqueue_grid() == 5
        keys = [trial.user_attrs[GRID_KEY] for trial in _trials(storage, study)]
        assert sorted(keys) == sorted(map(grid_key, points))

    def test_asked_points_are_the_grid(self, storage) -> None:
        study = _study(storage, "grid")
        study.enqueue_grid()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asked = [study.ask() for _ in range(6)]
        points = small_spec().search_space().grid_points()
        assert sorted(grid_key(one.values) for one in asked) == sorted(map(grid_key, points))

    def test_order_is_the_replicates_own(self) -> None:
        points = small_spec().search_space().grid_points()
        orders = [shuffled(points, 3, replicate) for replicate in range(4)]
        assert len({str(order) for order in orders}) > 1
        assert all(sorted(map(grid_key, order)) == sorted(map(grid_key, points)) for order in orders)
        assert orders[0] == shuffled(points, 3, 0)

    def test_nested_order(self, storage) -> None:
        study = _study(storage, "grid", methods={"grid": {"order": "nested"}})
        study.enqueue_grid()
        assert [study.ask().values for _ in range(6)] == small_spec().search_space().grid_points()


def _trials(storage, study: SearchStudy) -> list[optuna.trial.FrozenTrial]:
    return storage.get_all_trials(storage.get_study_id_from_name(study.name))


STEPS_AND_CHOICES = {
    "learning_rate": {"low": 0.1, "high": 0.5, "step": 0.1, "grid": [0.1]},
    "batch_size": [32, 64],
}


def test_a_deleted_study_says_so(storage) -> None:
    study = _study(storage)
    optuna.delete_study(study_name=study.name, storage=storage)
    with pytest.raises(StudyDeleted, match="small/random/0 was deleted from Optuna's tables"):
        study.load()
    with pytest.raises(StudyDeleted):
        SearchStudy(storage, small_spec(), "random", 0)


class TestEnqueuedByOthers:
    def _enqueue(self, storage, study: SearchStudy, **values) -> None:
        optuna.load_study(study_name=study.name, storage=storage).enqueue_trial(values)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"batch_size": 999}, "batch_size is never 999"),
            ({"batch_size": None}, "batch_size is never nothing"),
            ({"learning_rate": 5.0}, "learning_rate is never 5.0"),
            ({"learning_rate": 0.15}, "learning_rate is never 0.15"),
            ({"learning_rate": "much"}, "learning_rate is never 'much'"),
            ({"learning-rate": 0.1}, "no dimension 'learning-rate'"),
        ],
    )
    def test_one_that_does_not_fit_fails_and_the_next_is_asked(self, storage, values, said: str) -> None:
        study = _study(storage, space=STEPS_AND_CHOICES)
        self._enqueue(storage, study, **values)
        with pytest.raises(TrialUnusable, match=said):
            study.ask()
        (trial,) = _trials(storage, study)
        assert trial.state == TrialState.FAIL
        assert said in trial.user_attrs["reason"]
        assert study.ask().number == 1

    def test_a_part_of_the_values_is_enough(self, storage) -> None:
        study = _study(storage, space=STEPS_AND_CHOICES)
        self._enqueue(storage, study, learning_rate=0.1 + 2 * 0.1, batch_size=64)
        self._enqueue(storage, study, batch_size=32)
        assert study.ask().values == {"learning_rate": pytest.approx(0.3), "batch_size": 64}
        assert study.ask().values["batch_size"] == 32

    def test_but_not_for_a_grid(self, storage) -> None:
        study = _study(storage, "grid", space=STEPS_AND_CHOICES)
        self._enqueue(storage, study, learning_rate=0.1)
        with pytest.raises(TrialUnusable, match="not a point of the grid: it has no 'batch_size'"):
            study.ask()


class TestRequeue:
    def test_same_trial_comes_back_whole(self, storage) -> None:
        study = _study(storage)
        first = study.ask()
        study.report(first, 1, 0.25)
        study.report(first, 2, 0.5)
        study.requeue(first)
        assert study.load() == Load(trials=1, running=0, interrupted=1, fresh=0, epochs=2, committed=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = study.ask()
            study.report(again, 1, 0.25)
        assert again == first
        assert _frozen(storage, again).intermediate_values == {1: 0.25, 2: 0.5}
        assert _frozen(storage, again).state == TrialState.RUNNING

    def test_it_goes_before_what_was_not_begun(self, storage) -> None:
        study = _study(storage, "grid")
        study.enqueue_grid()
        first, _ = study.ask(), study.ask()
        study.requeue(first)
        assert study.ask() == first

    def test_cut_off_while_its_values_were_drawn(self, storage) -> None:
        study = _study(storage)
        whole = study.ask()
        other = _study(storage, experiment="other")
        cut = optuna.load_study(study_name=other.name, storage=storage).ask()
        requeue(storage, cut._trial_id)
        assert other.ask().values == whole.values

    def test_ended_trials_stay_ended(self, storage) -> None:
        study = _study(storage)
        asked = study.ask()
        study.complete(asked, 0.5)
        assert not requeue(storage, asked.trial_id)
        assert not give_up(storage, asked.trial_id, "late")
        assert not requeue(storage, 10**6)
        assert _frozen(storage, asked).state == TrialState.COMPLETE


class TestEndings:
    def test_pruned_has_its_true_step_and_value(self, storage) -> None:
        study = _study(storage)
        asked = study.ask()
        study.report(asked, 1, 0.25)
        study.report(asked, 2, 0.125)
        study.prune(asked)
        trial = _frozen(storage, asked)
        assert (trial.state, trial.last_step, trial.value) == (TrialState.PRUNED, 2, 0.125)

    def test_failed_has_its_reason(self, storage) -> None:
        study = _study(storage)
        asked = study.ask()
        study.fail(asked, "shapes don't fit")
        trial = _frozen(storage, asked)
        assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "shapes don't fit")

    @pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
    def test_what_is_not_finite_is_never_told(self, storage, value: float) -> None:
        study = _study(storage)
        asked = study.ask()
        with pytest.raises(ValueError, match="epoch 1"):
            study.report(asked, 1, value)
        with pytest.raises(ValueError, match="ended with"):
            study.complete(asked, value)
        trial = _frozen(storage, asked)
        assert (trial.state, trial.intermediate_values) == (TrialState.RUNNING, {})

    def test_somebody_else_ended_it(self, storage) -> None:
        study = _study(storage)
        asked = study.ask()
        optuna.load_study(study_name=study.name, storage=storage).tell(asked.number, 0.9)
        for late in (
            lambda: study.report(asked, 1, 0.5),
            lambda: study.complete(asked, 0.5),
            lambda: study.prune(asked),
            lambda: study.fail(asked, "no"),
            lambda: study.note(asked, "epochs", 1),
        ):
            with pytest.raises(TrialTaken):
                late()
        assert _frozen(storage, asked).value == 0.9

    def test_the_study_was_deleted(self, storage) -> None:
        study = _study(storage)
        asked = study.ask()
        optuna.delete_study(study_name=study.name, storage=storage)
        with pytest.raises(TrialTaken):
            study.report(asked, 1, 0.5)


class TestPruning:
    def test_repeated_epochs_are_not_judged_by_later_ones(self, storage) -> None:
        study = _study(storage, pruner={"name": "asha", "min_epochs": 1, "eta": 2})
        good, bad = study.ask(), study.ask()
        study.report(bad, 1, 0.9)
        study.report(bad, 2, 0.1)
        study.report(good, 1, 0.5)
        study.report(good, 2, 0.9)
        study.requeue(bad)
        bad = study.ask()
        study.report(bad, 1, 0.9)
        assert not study.should_prune(bad, 1)
        study.report(bad, 2, 0.1)
        assert study.should_prune(bad, 2)

    def test_without_a_pruner_nothing_is_read(self, storage, monkeypatch) -> None:
        study = _study(storage)
        asked = study.ask()
        monkeypatch.setattr(storage, "get_trial", None)
        assert not study.should_prune(asked, 1)


def test_study_says_what_it_is(storage) -> None:
    spec = small_spec(methods={"tpe": {"n_startup_trials": 4}}, pruner="median")
    assert not study_exists(storage, spec.study_name("tpe", 0))
    create_study(storage, spec, "tpe", 0, "minimize")
    create_study(storage, spec, "tpe", 0, "minimize")
    assert study_exists(storage, spec.study_name("tpe", 0))
    study = optuna.load_study(study_name="small/tpe/0", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    attrs = study.user_attrs
    assert (attrs["shoal:method"], attrs["shoal:replicate"], attrs["shoal:metric"]) == ("tpe", 0, "accuracy")
    assert attrs["shoal:settings"]["n_startup_trials"] == 4
    assert attrs["shoal:pruner"]["name"] == "median"
    assert attrs["shoal:versions"]["optuna"] == optuna.__version__
    assert study.metric_names == ["accuracy"], "Optuna Dashboard names its axis by it"


def test_methods_share_their_first_trials_on_the_database(storage) -> None:
    values = {}
    for method in ("random", "tpe"):
        study = _study(storage, method, methods={"random": {}, "tpe": {}})
        values[method] = []
        for number in range(11):
            asked = study.ask()
            values[method].append(dict(asked.values))
            study.complete(asked, number / 10)
    assert values["random"][:10] == values["tpe"][:10]
    assert values["random"][10] != values["tpe"][10]
