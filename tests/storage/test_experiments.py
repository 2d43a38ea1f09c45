"""Experiments: created once, found by name, held by one controller."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC

import pytest

from storage.control import control_key
from storage.database import Database, lock_number
from storage.errors import ExperimentBusy, ExperimentExists, ExperimentNotFound, ValueRefused
from storage.experiments import Experiments
from tests.conftest import on_server

STUDIES = [("grid", 0, "digits/grid/0"), ("grid", 1, "digits/grid/1"), ("tpe", 0, "digits/tpe/0")]


@pytest.fixture
def experiments(database: Database) -> Experiments:
    return Experiments(database)


def create(experiments: Experiments, name: str = "digits", studies=STUDIES):
    return experiments.create(name, {"z": 1, "a": {"λ": 0.1}}, "hash", {"torch": "2"}, studies)


def test_what_was_created_is_found(experiments):
    created = create(experiments)
    assert experiments.get("digits") == created
    assert experiments.list() == [created]
    assert list(created.spec) == ["z", "a"]  # as it was written
    assert created.spec["a"] == {"λ": 0.1}
    assert (created.state, created.stop_requested) == ("created", False)
    assert created.created_at.utcoffset() == UTC.utcoffset(None)
    found = experiments.studies(created.id)
    assert [(study.method, study.replicate, study.name) for study in found] == STUDIES


def test_a_name_is_taken_once(experiments):
    created = create(experiments)
    with pytest.raises(ExperimentExists) as caught:
        create(experiments, studies=[])
    assert caught.value.existing == created


def test_of_two_that_create_at_once_one_wins(experiments):
    def attempt(_number: int) -> str:
        try:
            return f"made {create(experiments).id}"
        except ExperimentExists as error:
            return f"found {error.existing.id}"

    with ThreadPoolExecutor(4) as threads:
        outcomes = sorted(threads.map(attempt, range(4)))
    (record,) = experiments.list()
    assert outcomes == [f"found {record.id}"] * 3 + [f"made {record.id}"]
    assert len(experiments.studies(record.id)) == len(STUDIES)


def test_a_taken_study_name_leaves_nothing(experiments):
    create(experiments)
    with pytest.raises(ValueRefused, match="digits/tpe/0"):
        create(experiments, "other", [("gp", 0, "other/gp/0"), ("tpe", 0, "digits/tpe/0")])
    assert [record.name for record in experiments.list()] == ["digits"]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("", {}),
        ("a\x00b", {}),
        ("a\ud800b", {}),
        ("x" * 129, {}),
        ("nan", {"x": float("nan")}),
        ("object", {"x": object()}),
    ],
)
def test_what_cannot_be_stored_is_refused(experiments, name, spec):
    with pytest.raises(ValueRefused):
        experiments.create(name, spec, "hash", {}, [])


def test_a_missing_name_comes_with_near_ones(experiments):
    create(experiments)
    with pytest.raises(ExperimentNotFound, match="did you mean 'digits'") as caught:
        experiments.get("digist")
    assert caught.value.near == ("digits",)
    for odd in ("", "\x00", "\ud800", "'; DROP SCHEMA shoal CASCADE; --"):
        with pytest.raises(ExperimentNotFound):
            experiments.get(odd)


def test_growing_adds_studies_and_keeps_the_others(experiments):
    created = create(experiments)
    before = experiments.studies(created.id)
    grown = experiments.grow(created.id, {"replicates": 3}, [*STUDIES, ("grid", 2, "digits/grid/2")])
    assert grown.spec == {"replicates": 3}
    after = experiments.studies(created.id)
    assert after[:3] == before
    assert [study.name for study in after[3:]] == ["digits/grid/2"]


def test_states(experiments):
    created = create(experiments)
    for state in ("running", "stopped", "running", "failed", "running", "finished"):
        experiments.set_state(created.id, state)
        assert experiments.get("digits").state == state
    assert experiments.get("digits").updated_at > created.updated_at
    with pytest.raises(ValueRefused):
        experiments.set_state(created.id, "sleeping")


def test_stop_can_be_asked_for_and_taken_back(experiments):
    created = create(experiments)
    assert not experiments.stop_requested(created.id)
    experiments.request_stop(created.id)
    assert experiments.stop_requested(created.id)
    experiments.request_stop(created.id, False)
    assert not experiments.stop_requested(created.id)


@pytest.mark.parametrize("waits", [True, False])
def test_a_connection_that_broke_meanwhile_costs_a_look_nothing(experiments, postgres_url, waits):
    created = create(experiments)
    assert experiments.pulse(created.id, waits=waits)[0] is False
    pid = experiments.database.script("SELECT pg_backend_pid()", ())[0][0]
    on_server(postgres_url, f"SELECT pg_terminate_backend({pid}, 10000)", "")
    experiments.request_stop(created.id)
    assert experiments.pulse(created.id, waits=waits)[0] is True


def test_unknown_ids(experiments):
    for call in (
        lambda: experiments.set_state(7, "running"),
        lambda: experiments.request_stop(7),
        lambda: experiments.stop_requested(7),
        lambda: experiments.grow(7, {}, []),
    ):
        with pytest.raises(ExperimentNotFound):
            call()
    assert experiments.studies(7) == []


def test_one_controller_at_a_time(experiments, database_url):
    created = create(experiments)
    with Database(database_url) as database:
        with experiments.control(created), pytest.raises(ExperimentBusy) as caught:
            Experiments(database).control(created).__enter__()
        assert caught.value.retryable
        with Experiments(database).control(created):
            pass


def test_who_is_controlled_is_seen_without_taking_part(experiments, database_url):
    first = create(experiments)
    second = create(experiments, "other", [])
    ids = [first.id, second.id]
    assert experiments.controlled(ids) == frozenset()
    with Database(database_url) as elsewhere, Experiments(elsewhere).control(second):
        assert experiments.controlled(ids) == {second.id}
        assert experiments.controlled([first.id]) == frozenset()
        with experiments.control(first):
            assert experiments.controlled(ids) == set(ids)
    assert experiments.controlled(ids) == frozenset()


def test_a_lock_in_another_database_controls_nothing_here(experiments, postgres_url):
    created = create(experiments)
    with Database(postgres_url) as other, other.lock(control_key(created.id)):
        assert experiments.controlled([created.id]) == frozenset()


def test_the_numbers_of_locks_survive_postgres_halves(experiments):
    """Large and negative numbers among them."""
    ids = range(40)
    numbers = [lock_number(control_key(number)) for number in ids]
    assert min(numbers) < 0 < max(numbers)
    with ExitStack() as held:
        for number in ids:
            held.enter_context(experiments.database.lock(control_key(number)))
        assert experiments.controlled(range(80)) == set(ids)
