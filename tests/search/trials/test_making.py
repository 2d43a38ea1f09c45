"""Studies and the points of their grids: made together, made once, at a cost that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from search.experiment.spec import ExperimentSpec
from search.trials.making import grid_key, make_studies
from search.trials.study import GRID_KEY, SearchStudy, StudyDeleted, batched
from storage.connections import engine_settings
from storage.database import Database
from storage.optuna_storage import close_optuna_storage, open_optuna_storage
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.wire import Wire, wired


@pytest.fixture(params=["ours", "stock"])
def storage(request: pytest.FixtureRequest, database: Database) -> Iterator[BaseStorage]:
    """Ours, and Optuna's own, which we use on tables that we don't know."""
    opened = open_optuna_storage(database.url)
    if request.param == "stock":
        close_optuna_storage(opened)
        opened = RDBStorage(database.url, engine_kwargs=engine_settings("test"))
    yield opened
    close_optuna_storage(opened)


def _queue(storage: BaseStorage, name: str) -> list[Any]:
    trials = storage.get_all_trials(storage.get_study_id_from_name(name))
    assert all(trial.state == TrialState.WAITING for trial in trials)
    return [trial.user_attrs[GRID_KEY] for trial in trials]


def test_a_study_says_what_it_is(database: Database, storage: BaseStorage) -> None:
    spec = small_spec(methods={"tpe": {"n_startup_trials": 4}}, pruner="median", metric="error", replicates=2)
    make_studies(database, storage, spec)
    for replicate in range(2):
        study = optuna.load_study(study_name=f"small/tpe/{replicate}", storage=storage)
        assert study.direction == StudyDirection.MINIMIZE
        attrs = study.user_attrs
        assert (attrs["shoal:method"], attrs["shoal:replicate"]) == ("tpe", replicate)
        assert (attrs["shoal:experiment"], attrs["shoal:metric"]) == ("small", "error")
        assert attrs["shoal:settings"]["n_startup_trials"] == 4
        assert attrs["shoal:pruner"]["name"] == "median"
        assert attrs["shoal:versions"]["optuna"] == optuna.__version__
        assert study.metric_names == ["error"], "Optuna Dashboard names its axis by it"


def test_what_is_there_stays(database: Database, storage: BaseStorage) -> None:
    """Of a study that somebody else made, or a version before this one, nothing is changed."""
    spec = small_spec()
    study = optuna.create_study(study_name="small/random/0", storage=storage, direction="minimize")
    study.set_user_attr("shoal:versions", {"optuna": "before"})
    make_studies(database, storage, spec)
    make_studies(database, storage, spec)
    assert study.direction == StudyDirection.MINIMIZE
    assert study.user_attrs["shoal:versions"] == {"optuna": "before"}
    assert study.user_attrs["shoal:method"] == "random", "but what it lacks is added"
    assert [one.study_name for one in storage.get_all_studies()] == ["small/random/0", "small/grid/0"]


def test_a_grid_is_put_in_the_queue_once(database: Database, storage: BaseStorage) -> None:
    spec = small_spec(replicates=2)
    for _ in range(2):
        make_studies(database, storage, spec)
    for replicate in range(2):
        expected = [grid_key(point) for point in spec.grid_points(replicate)]
        assert len(expected) == 6
        assert _queue(storage, f"small/grid/{replicate}") == expected
    trials = storage.get_all_trials(storage.get_study_id_from_name("small/grid/1"))
    assert [trial.number for trial in trials] == list(range(6))
    assert [trial.system_attrs["fixed_params"] for trial in trials] == spec.grid_points(1)


def test_only_missing_points_are_added(database: Database, storage: BaseStorage) -> None:
    spec = small_spec()
    points = spec.grid_points(0)
    study = optuna.create_study(study_name="small/grid/0", storage=storage, direction="maximize")
    study.enqueue_trial(points[2], user_attrs={GRID_KEY: grid_key(points[2])})
    make_studies(database, storage, spec)
    found = _queue(storage, "small/grid/0")
    assert found[0] == grid_key(points[2])
    assert sorted(found) == sorted(map(grid_key, points))


def _trips(wire: Wire) -> int:
    queries, wire.queries = list(wire.queries), []
    return len([query for query in queries if "set_config('TimeZone'" not in query])


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    with wired(database.url) as made:
        yield made


MANY = {"methods": {"grid": {}, "random": {}, "tpe": {}}}


def _many(replicates: int) -> ExperimentSpec:
    return small_spec(replicates=replicates, **MANY)


@pytest.mark.parametrize("replicates", [2, 30])
def test_the_cost_does_not_grow_with_the_studies(wire: Wire, replicates: int) -> None:
    """30 replicates of three methods cost as many messages as two: 90 studies, and 180 points of grids."""
    with Database(wire.url) as database:
        storage = open_optuna_storage(wire.url)
        spec = _many(replicates)
        with database.lock("first"):
            pass  # what a client asks a server that is new to it doesn't count
        _trips(wire)
        make_studies(database, storage, spec)
        # All studies; for the grids: the locks, what is there, what is missing, the locks given back.
        assert _trips(wire) == 1 + 4
        make_studies(database, storage, spec)
        assert _trips(wire) == 1 + 3, "nothing is missing"
        assert len(storage.get_all_studies()) == 3 * replicates
        close_optuna_storage(storage)


@pytest.mark.parametrize("replicates", [2, 16])
def test_a_workers_first_claim_reads_all_studies_together(wire: Wire, replicates: int) -> None:
    with Database(wire.url) as database, prepared(database, _many(replicates)) as running:
        worker = open_optuna_storage(wire.url)  # a process of its own, which knows nothing yet
        try:
            with replace(running, storage=worker).broker() as broker:
                with database.lock("first", wait=False, idle_seconds=9):
                    pass
                _trips(wire)
                assert len(broker.claim(1)) == 1
                # Which studies there are, and all that they have; of one: lock, read, claim, store, unlock.
                assert _trips(wire) == 2 + 5
        finally:
            close_optuna_storage(worker)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_breaks_while_a_grid_is_stored_doubles_nothing(wire: Wire, cut: str) -> None:
    """Before the server heard of it, and after it had committed."""

    def is_enqueuing(query: str) -> bool:
        return "INSERT INTO trials" in query

    setattr(wire, f"cut_{cut}", is_enqueuing)
    spec = small_spec(replicates=3)
    with Database(wire.url) as database:
        storage = open_optuna_storage(wire.url)
        make_studies(database, storage, spec)
        assert getattr(wire, f"cut_{cut}") is None, "it was cut"
        for replicate in range(3):
            expected = [grid_key(point) for point in spec.grid_points(replicate)]
            assert _queue(storage, f"small/grid/{replicate}") == expected
        close_optuna_storage(storage)


def test_a_study_deleted_meanwhile_is_left_out(database: Database) -> None:
    """What is looked up together is found without it, and using it says that it is gone."""
    with prepared(database, small_spec(replicates=2)) as running:
        storage = running.storage
        names = [name for *_, name in running.spec.studies()]
        with batched(storage, names):
            pass
        optuna.delete_study(study_name="small/random/1", storage=RDBStorage(database.url))
        with batched(storage, names):
            assert SearchStudy(storage, running.spec, "random", 0).load().trials == 0
            with pytest.raises(StudyDeleted):
                SearchStudy(storage, running.spec, "random", 1)
        with batched(storage, names), pytest.raises(KeyError):
            storage.get_study_id_from_name("small/random/1")
        make_studies(database, storage, running.spec)
        with batched(storage, names):
            assert SearchStudy(storage, running.spec, "random", 1).load().trials == 0
