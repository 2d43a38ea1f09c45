"""Studies on a real database: budgets, grids, trials that are put back in the queue."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from objectives.base import derive_seed
from search.sampling.grid import shuffled
from search.trials.making import grid_key, make_studies
from search.trials.placing import Limits, Load
from search.trials.study import (
    RETRY_KEY,
    SEED_KEY,
    Drawn,
    SearchStudy,
    StudyDeleted,
    Tally,
    TrialUnusable,
    limits_of,
)
from storage.database import Database
from storage.experiments import Experiments
from storage.ledger import Ending, EpochWrite, Lease, Ledger
from storage.ledgers import ledger_of
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.claims import report_of
from tests.contracts.experiments import small_spec


@pytest.fixture
def storage(database: Database) -> Iterator[optuna.storages.BaseStorage]:
    opened = open_optuna_storage(database.url)
    yield opened
    close_optuna_storage(opened)


@dataclass
class Open:
    """A study with the ledger of a worker that takes its trials one by one."""

    study: SearchStudy
    storage: optuna.storages.BaseStorage
    ledger: Ledger
    worker: int

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.storage.get_all_trials(self.storage.get_study_id_from_name(self.study.name))

    def take(self) -> Lease:
        """The next trial: the first that waits, else a new one."""
        waiting = any(trial.state == TrialState.WAITING for trial in self.trials)
        (lease,) = self.ledger.claim(self.study.name, self.worker, waiting=int(waiting), new=int(not waiting))
        return lease

    def ask(self) -> tuple[Lease, Drawn]:
        """The same with its values."""
        lease = self.take()
        drawn = self.study.draw(lease)
        if drawn.draw is not None:
            self.ledger.write(draws=[drawn.draw])
        return lease, drawn

    def report(self, lease: Lease, epoch: int, value: float) -> None:
        self.ledger.write(epochs=[EpochWrite(lease=lease, report=report_of(epoch, value), value=value)])

    def release(self, lease: Lease) -> None:
        self.ledger.write(endings=[Ending(lease=lease, state="released")])

    def complete(self, lease: Lease, value: float) -> None:
        self.ledger.write(endings=[Ending(lease=lease, state="complete", value=value)])


@pytest.fixture
def opened(database: Database, storage: optuna.storages.BaseStorage) -> Callable[..., Open]:
    """Opens a study of the small experiment, with changed sections."""

    def open_study(method: str = "random", **changes: Any) -> Open:
        spec = small_spec(**changes)
        Experiments(database).create(spec.experiment, spec.to_json(), "hash", {}, spec.studies())
        make_studies(database, storage, spec.model_copy(update={"methods": {method: spec.methods[method]}}))
        ledger = ledger_of(database, storage)
        return Open(SearchStudy(storage, spec, method, 0), storage, ledger, ledger.register("w"))

    return open_study


Opened = Callable[..., Open]


class TestLimits:
    def test_a_grid_has_as_many_trials_as_points(self) -> None:
        spec = small_spec(budget={"trials": 50, "epochs": 100})
        assert limits_of(spec, "grid") == Limits(6, 100, None)
        assert limits_of(spec, "random") == Limits(50, 100, None)
        assert limits_of(small_spec(methods={"tpe": {"in_flight": 2}}), "tpe").in_flight == 2


def _trial(state: TrialState, steps: int, *, params: bool = True, **notes: Any) -> optuna.trial.FrozenTrial:
    return create_trial(
        state=state,
        value=0.5 if state == TrialState.COMPLETE else None,
        params={"x": 0.5} if params else {},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)} if params else {},
        intermediate_values=dict.fromkeys(range(1, steps + 1), 0.5),
        user_attrs=notes,
    )


OURS = {SEED_KEY: 1}


def _study_of(*trials: optuna.trial.FrozenTrial) -> list[optuna.trial.FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


class TestTally:
    TRIALS = (
        _trial(TrialState.COMPLETE, 5),
        _trial(TrialState.PRUNED, 2),
        _trial(TrialState.RUNNING, 1, **OURS),
        _trial(TrialState.WAITING, 3),
        _trial(TrialState.WAITING, 0, params=False),
        _trial(TrialState.FAIL, 0),
    )
    LOAD = Load(trials=6, running=1, interrupted=1, fresh=1, epochs=11, committed=17)

    def test_counts_epochs_once_and_promises_what_is_left(self) -> None:
        assert Tally(5).update(_study_of(*self.TRIALS)) == self.LOAD

    def test_a_foreign_clients_running_trial_is_no_load_of_ours(self) -> None:
        foreign = _trial(TrialState.RUNNING, 2)
        load = Tally(5).update(_study_of(*self.TRIALS, foreign))
        assert (load.trials, load.running, load.epochs, load.committed) == (7, 1, 13, 19)

    def test_repetitions_of_failed_trials_come_on_top_of_the_budget(self) -> None:
        repeated = _trial(TrialState.COMPLETE, 5, **{RETRY_KEY: 5})
        waiting = _trial(TrialState.WAITING, 0, params=False, **{RETRY_KEY: 5})
        assert Tally(5).update(_study_of(*self.TRIALS, repeated)).trials == 6
        load = Tally(5).update(_study_of(*self.TRIALS, waiting))
        assert (load.trials, load.fresh) == (6, 2)

    def test_what_has_finished_is_looked_at_once(self) -> None:
        looked = []

        class Watched(optuna.trial.FrozenTrial):
            @property
            def last_step(self) -> int:
                looked.append(self.number)
                return 5

        trials = []
        for number in range(50):
            trial = _trial(TrialState.COMPLETE, 5)
            trial.__class__ = Watched
            trial.number = number
            trials.append(trial)
        tally = Tally(5)
        for count in (10, 10, 30, 50, 50):
            assert tally.update(trials[:count]).epochs == 5 * count
        assert looked == list(range(50))

    def test_a_running_trial_is_counted_again_each_time(self) -> None:
        tally = Tally(5)
        assert tally.update(_study_of(_trial(TrialState.RUNNING, 1, **OURS))).committed == 5
        assert tally.update(_study_of(_trial(TrialState.PRUNED, 2, **OURS))).committed == 2


class TestGrid:
    def test_asked_points_are_the_grid(self, opened: Opened) -> None:
        made = opened("grid")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = [made.ask()[1] for _ in range(6)]
        points = small_spec().grid_points(0)
        assert sorted(grid_key(one.values) for one in drawn) == sorted(map(grid_key, points))

    def test_order_is_the_replicates_own(self) -> None:
        points = small_spec().grid_points(0)
        orders = [shuffled(points, 3, replicate) for replicate in range(4)]
        assert len({str(order) for order in orders}) > 1
        assert all(sorted(map(grid_key, order)) == sorted(map(grid_key, points)) for order in orders)

    def test_nested_order(self, opened: Opened) -> None:
        made = opened("grid", methods={"grid": {"order": "nested"}})
        assert [made.ask()[1].values for _ in range(6)] == made.study._spec.grid_points(0)


STEPS_AND_CHOICES = {
    "learning_rate": {"low": 0.1, "high": 0.5, "step": 0.1, "grid": [0.1]},
    "batch_size": [32, 64],
}


def test_a_deleted_study_says_so(opened: Opened, storage) -> None:
    study = opened().study
    optuna.delete_study(study_name=study.name, storage=storage)
    with pytest.raises(StudyDeleted, match="small/random/0 was deleted from Optuna's tables"):
        study.load()
    with pytest.raises(StudyDeleted):
        SearchStudy(storage, small_spec(), "random", 0)


class TestEnqueuedByOthers:
    def _enqueue(self, made: Open, **values: Any) -> None:
        optuna.load_study(study_name=made.study.name, storage=made.storage).enqueue_trial(values)

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
    def test_one_that_does_not_fit_is_unusable(self, opened: Opened, values: Any, said: str) -> None:
        made = opened(space=STEPS_AND_CHOICES)
        self._enqueue(made, **values)
        with pytest.raises(TrialUnusable, match=said):
            made.study.draw(made.take())

    def test_a_part_of_the_values_is_enough(self, opened: Opened) -> None:
        made = opened(space=STEPS_AND_CHOICES)
        self._enqueue(made, learning_rate=0.1 + 2 * 0.1, batch_size=64)
        self._enqueue(made, batch_size=32)
        assert made.ask()[1].values == {"learning_rate": pytest.approx(0.3), "batch_size": 64}
        assert made.ask()[1].values["batch_size"] == 32

    def test_but_not_for_a_grid(self, opened: Opened) -> None:
        made = opened("grid", space=STEPS_AND_CHOICES)
        self._enqueue(made, learning_rate=0.1)
        with pytest.raises(TrialUnusable, match="not a point of the grid: it has no 'batch_size'"):
            made.study.draw([made.take() for _ in range(3)][-1])  # after the grid's own two


class TestAgain:
    def test_same_trial_comes_back_whole(self, opened: Opened) -> None:
        made = opened()
        first, drawn = made.ask()
        made.report(first, 1, 0.25)
        made.report(first, 2, 0.5)
        made.release(first)
        assert made.study.load() == Load(trials=1, running=0, interrupted=1, fresh=0, epochs=2, committed=3)
        again, redrawn = made.ask()
        assert (again.trial_id, again.number, again.last_step) == (first.trial_id, 0, 2)
        assert (redrawn.values, redrawn.seed) == (drawn.values, drawn.seed)
        assert redrawn.draw is not None
        assert (redrawn.draw.values, redrawn.draw.attributes) == ({}, {SEED_KEY: drawn.seed}), (
            "it is ours again"
        )
        (trial,) = made.trials
        assert (trial.state, trial.intermediate_values) == (TrialState.RUNNING, {1: 0.25, 2: 0.5})

    def test_it_goes_before_what_was_not_begun(self, opened: Opened) -> None:
        made = opened("grid")
        first, _ = made.ask()[0], made.ask()
        made.release(first)
        assert made.take().trial_id == first.trial_id

    def test_cut_off_before_its_values_were_stored(self, opened: Opened) -> None:
        whole = opened().ask()[1]
        other = opened(experiment="other")
        other.release(other.take())
        assert other.ask()[1].values == whole.values

    def test_drawing_twice_gives_the_same(self, opened: Opened) -> None:
        made = opened("tpe", methods={"tpe": {"n_startup_trials": 2}})
        for value in (0.1, 0.9, 0.5):
            lease, _ = made.ask()
            made.complete(lease, value)
        lease = made.take()
        assert made.study.draw(lease).values == made.study.draw(lease).values


class TestSeeds:
    def test_a_trials_number_decides(self, opened: Opened) -> None:
        made = opened()
        drawn = [made.ask()[1] for _ in range(2)]
        assert [one.seed for one in drawn] == [derive_seed(3, 0, 0), derive_seed(3, 0, 1)]
        assert [trial.user_attrs[SEED_KEY] for trial in made.trials] == [one.seed for one in drawn]

    def test_a_repeated_trial_has_that_of_the_first(self, opened: Opened) -> None:
        made = opened()
        for _ in range(2):
            made.ask()
        lease, drawn = made.ask()
        for _ in range(2):
            made.ledger.write(endings=[Ending(lease=lease, state="failed", reason="no")])
            made.ledger.retry_failed(1)
            lease, again = made.ask()
            assert (
                (again.seed, again.values)
                == (drawn.seed, drawn.values)
                == (derive_seed(3, 0, 2), drawn.values)
            )


def test_a_sampler_writes_nothing(opened: Opened) -> None:
    """Optuna's TPE would note on the trial what it has drawn, past the lease."""
    made = opened("tpe", methods={"tpe": {"n_startup_trials": 1}})
    for value in (0.1, 0.9):
        lease, _ = made.ask()
        made.complete(lease, value)
    made.study.draw(made.take())
    trial = made.trials[-1]
    assert (trial.params, trial.system_attrs, trial.user_attrs) == ({}, {}, {})


class TestPruning:
    def test_repeated_epochs_are_not_judged_by_later_ones(self, opened: Opened) -> None:
        made = opened(pruner={"name": "asha", "min_epochs": 1, "eta": 2})
        good, bad = made.ask()[0], made.ask()[0]
        made.report(bad, 1, 0.9)
        made.report(bad, 2, 0.1)
        made.report(good, 1, 0.5)
        made.report(good, 2, 0.9)
        made.release(bad)
        bad = made.ask()[0]
        made.report(bad, 1, 0.9)
        assert made.study.stops([(bad.number, 1)]) == [False]
        made.report(bad, 2, 0.1)
        assert made.study.stops([(bad.number, 2)]) == [True]

    def test_without_a_pruner_nothing_is_read(self, opened: Opened, storage, monkeypatch) -> None:
        made = opened()
        lease, _ = made.ask()
        monkeypatch.setattr(storage, "get_all_trials", None)
        assert made.study.stops([(lease.number, 1)]) == [False]


def test_methods_share_their_first_trials_on_the_database(opened: Opened) -> None:
    values: dict[str, list[dict[str, Any]]] = {}
    for method in ("random", "tpe"):
        made = opened(method, experiment=method, methods={"random": {}, "tpe": {}})
        values[method] = []
        for number in range(11):
            lease, drawn = made.ask()
            values[method].append(dict(drawn.values))
            made.complete(lease, number / 10)
    assert values["random"][:10] == values["tpe"][:10]
    assert values["random"][10] != values["tpe"][10]
