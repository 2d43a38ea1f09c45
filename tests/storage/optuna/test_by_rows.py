"""Readings by rows, as batches make them: of thousands of trials that wait only those that have changed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.database import Database
from storage.optuna import trials as reading
from storage.optuna.shoal_storage import ShoalStorage
from tests.contracts.postgres_proxy import Break, PostgresProxy
from tests.contracts.wire import Wire, wired
from tests.storage.optuna.spaces import SIX

WAITING, RUNNING = TrialState.WAITING, TrialState.RUNNING


@pytest.fixture
def study_id(storage: ShoalStorage) -> int:
    """A study with three trials that rest, read as a whole."""
    made = optuna.create_study(study_name="s", storage=storage)._study_id
    storage.create_trials(made, [at_rest(0.25 * place) for place in range(3)])
    storage.get_all_trials(made)
    return made


def at_rest(value: float) -> FrozenTrial:
    """A trial that waits after an epoch."""
    return create_trial(
        state=WAITING,
        params={"x": 0.5},
        distributions={"x": SIX["x"]},
        user_attrs={"seed": None},
        intermediate_values={1: value},
    )


def by_rows(storage: ShoalStorage, study_id: int) -> list[FrozenTrial]:
    """The trials as a batch reads them."""
    with storage.batch():
        return storage.get_all_trials(study_id, deepcopy=False)


def in_order(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """By their keys: where trials are deleted a number may come again."""
    return sorted(trials, key=lambda trial: trial._trial_id)


def stored(stock: RDBStorage, study_id: int) -> list[FrozenTrial]:
    """What the tables hold."""
    return in_order(stock.get_all_trials(study_id, deepcopy=False))


def change(database: Database, statement: str, **values: object) -> None:
    database.script(f"{statement} RETURNING 1", values)


def to_state(database: Database, trial_id: int, state: str) -> None:
    change(database, "UPDATE trials SET state = %(state)s WHERE trial_id = %(id)s", id=trial_id, state=state)


def delete(database: Database, trial_id: int) -> None:
    tables = ("trial_intermediate_values", "trial_params", "trial_user_attributes")
    others = "".join(f"DELETE FROM {table} WHERE trial_id = %(id)s;" for table in tables)
    change(database, f"{others} DELETE FROM trials WHERE trial_id = %(id)s", id=trial_id)


def test_what_has_not_changed_is_the_same_object(storage: ShoalStorage, study_id: int) -> None:
    first = by_rows(storage, study_id)
    assert all(old is new for old, new in zip(first, by_rows(storage, study_id), strict=True))


def test_one_that_others_took_gave_back_or_ended_is_read_in_full(
    storage: ShoalStorage, study_id: int, stock: RDBStorage
) -> None:
    taken, back, ended = [trial._trial_id for trial in by_rows(storage, study_id)]
    for trial_id in (taken, back, ended):
        stock.set_trial_state_values(trial_id, RUNNING)
        stock.set_trial_intermediate_value(trial_id, 2, 0.125)
        stock.set_trial_user_attr(trial_id, "seed", 7)
    stock.set_trial_state_values(back, WAITING)
    stock.set_trial_state_values(ended, TrialState.PRUNED, [0.125])
    seen = by_rows(storage, study_id)
    assert [trial.state for trial in seen] == [RUNNING, WAITING, TrialState.PRUNED]
    assert seen == stock.get_all_trials(study_id)


def test_a_trial_that_was_given_back_in_between_is_read(
    storage: ShoalStorage, study_id: int, beside: Database
) -> None:
    """Taken, trained further and back between two readings: it waits as before, and is another."""
    trial_id = by_rows(storage, study_id)[1]._trial_id
    to_state(beside, trial_id, "RUNNING")
    change(
        beside,
        "UPDATE trial_intermediate_values SET step = 3, intermediate_value = 0.75 WHERE trial_id = %(id)s",
        id=trial_id,
    )
    to_state(beside, trial_id, "WAITING")
    assert by_rows(storage, study_id)[1].intermediate_values == {3: 0.75}


def test_deleted_ones_are_noticed(storage: ShoalStorage, study_id: int, beside: Database) -> None:
    before = by_rows(storage, study_id)
    delete(beside, before[1]._trial_id)
    assert by_rows(storage, study_id) == [before[0], before[2]]
    with pytest.raises(KeyError):
        storage.get_trial(before[1]._trial_id)
    for trial in (before[0], before[2]):
        delete(beside, trial._trial_id)
    assert by_rows(storage, study_id) == []


def test_a_deleted_study_is_noticed(storage: ShoalStorage, study_id: int, stock: RDBStorage) -> None:
    stock.delete_study(study_id)
    with pytest.raises(KeyError):
        by_rows(storage, study_id)


def test_new_ones_and_running_ones_are_read_as_ever(
    storage: ShoalStorage, study_id: int, stock: RDBStorage
) -> None:
    running = stock.create_new_trial(study_id)
    waiting = stock.create_new_trial(study_id, at_rest(0.5))
    assert by_rows(storage, study_id) == stock.get_all_trials(study_id)
    stock.set_trial_param(running, "x", 0.75, SIX["x"])
    stock.set_trial_intermediate_value(running, 1, 0.5)
    stock.set_trial_user_attr(running, "a", 1)
    assert by_rows(storage, study_id) == stock.get_all_trials(study_id)
    stock.set_trial_state_values(waiting, RUNNING)
    assert by_rows(storage, study_id) == stock.get_all_trials(study_id)


def test_what_is_written_into_the_queue_is_read_by_others_at_once_and_here_with_the_row(
    storage: ShoalStorage, study_id: int, stock: RDBStorage
) -> None:
    """The rule is in `storage.optuna.cache`."""
    first, second, _ = [trial._trial_id for trial in by_rows(storage, study_id)]
    for trial_id in (first, second):
        stock.set_trial_user_attr(trial_id, "a", 1)
        stock.set_trial_intermediate_value(trial_id, 2, 0.5)
    assert all("a" not in trial.user_attrs for trial in by_rows(storage, study_id))
    stock.set_trial_state_values(first, RUNNING)
    seen = by_rows(storage, study_id)
    assert (seen[0].user_attrs["a"], seen[0].intermediate_values[2]) == (1, 0.5)
    assert "a" not in seen[1].user_attrs
    assert storage.get_all_trials(study_id) == stock.get_all_trials(study_id)
    assert by_rows(storage, study_id)[1].user_attrs["a"] == 1


def test_what_this_process_writes_is_not_undone(
    storage: ShoalStorage, study_id: int, stock: RDBStorage
) -> None:
    mine, theirs, lost = [trial._trial_id for trial in by_rows(storage, study_id)]
    assert storage.set_trial_state_values(mine, RUNNING)
    storage.set_trial_intermediate_value(mine, 2, 0.5)
    storage.set_trial_user_attr(theirs, "a", 1)
    stock.set_trial_state_values(lost, RUNNING)
    assert not storage.set_trial_state_values(lost, RUNNING)
    seen = by_rows(storage, study_id)
    assert [trial.state for trial in seen] == [RUNNING, WAITING, RUNNING]
    assert (seen[0].intermediate_values[2], seen[1].user_attrs["a"]) == (0.5, 1)
    storage.set_trial_state_values(mine, WAITING)
    assert by_rows(storage, study_id) == stock.get_all_trials(study_id)


def test_what_was_taken_while_it_was_read_is_read_once_more(
    storage: ShoalStorage, study_id: int, stock: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reading found may be older than what this process has done meanwhile, and is not believed."""
    trial_id = by_rows(storage, study_id)[0]._trial_id
    stock.set_trial_user_attr(trial_id, "a", 1)
    stock.set_trial_state_values(trial_id, RUNNING)
    stock.set_trial_state_values(trial_id, WAITING)
    read = reading.read_trials

    def slow(*asked: Any) -> object:
        found = read(*asked)
        assert storage.set_trial_state_values(trial_id, RUNNING)
        return found

    monkeypatch.setattr(reading, "read_trials", slow)
    assert by_rows(storage, study_id)[0].state == RUNNING
    monkeypatch.undo()
    assert by_rows(storage, study_id) == stock.get_all_trials(study_id)


def test_who_wants_all_is_not_given_what_another_thread_read_by_rows(
    storage: ShoalStorage, study_id: int, stock: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial_id = by_rows(storage, study_id)[0]._trial_id
    stock.set_trial_user_attr(trial_id, "a", 1)
    reads_all = threading.current_thread()

    class Lock:
        """The lock for readings, which lets another thread read before the one that wants all."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if threading.current_thread() is reads_all:
                with ThreadPoolExecutor(1) as pool:
                    assert "a" not in pool.submit(by_rows, storage, study_id).result()[0].user_attrs
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    monkeypatch.setitem(storage._trials._reading, study_id, Lock())
    assert storage.get_all_trials(study_id)[0].user_attrs["a"] == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reading_whose_connection_breaks_is_tried_again(
    study_id: int, empty_url: str, stock: RDBStorage, when: Break
) -> None:
    with PostgresProxy(empty_url) as proxy, ShoalStorage(proxy.url) as through:
        trials = by_rows(through, study_id)
        stock.set_trial_state_values(trials[1]._trial_id, RUNNING)
        proxy.break_at("changed", when)
        assert by_rows(through, study_id) == stock.get_all_trials(study_id)
        assert proxy.broken == 1


@pytest.mark.parametrize("seed", range(3))
def test_whatever_others_do_to_states_is_seen(
    storage: ShoalStorage, study_id: int, stock: RDBStorage, beside: Database, seed: int
) -> None:
    """Also by one that reads seldom, and by one that has just come."""
    chance = random.Random(seed)
    acts: list[Callable[[int], object]] = [
        lambda trial_id: stock.set_trial_state_values(trial_id, RUNNING),
        lambda trial_id: stock.set_trial_state_values(trial_id, WAITING),
        lambda trial_id: stock.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5]),
        lambda trial_id: storage.set_trial_state_values(trial_id, RUNNING),
        lambda trial_id: storage.set_trial_state_values(trial_id, WAITING),
        lambda _: stock.create_new_trial(study_id, at_rest(chance.random())),
        lambda _: storage.create_new_trial(study_id, at_rest(chance.random())),
        lambda trial_id: delete(beside, trial_id),
    ]
    with ShoalStorage(storage.wire.url) as seldom:
        by_rows(seldom, study_id)
        for turn in range(40):
            there = [one._trial_id for one in stored(stock, study_id) if not one.state.is_finished()]
            # What this process has not heard of yet it can't write.
            with suppress(KeyError, optuna.exceptions.UpdateFinishedTrialError):
                chance.choice(acts if there else acts[5:7])(chance.choice(there or [-1]))
            truth = stored(stock, study_id)
            assert in_order(by_rows(storage, study_id)) == truth
            if turn % 13 == 0:
                assert in_order(by_rows(seldom, study_id)) == truth
        with ShoalStorage(storage.wire.url) as new:
            assert in_order(by_rows(new, study_id)) == in_order(by_rows(seldom, study_id)) == truth


@pytest.fixture
def wire(empty_url: str) -> Iterator[Wire]:
    with wired(empty_url) as made:
        yield made


@pytest.mark.parametrize("others", [100, 2000])
def test_rows_that_travel_are_those_that_changed(
    storage: ShoalStorage, study_id: int, wire: Wire, others: int
) -> None:
    made = storage.create_trials(study_id, [at_rest(0.5) for _ in range(others)])
    with ShoalStorage(wire.url) as through:
        by_rows(through, study_id)
        wire.taken()
        by_rows(through, study_id)
        assert wire.taken() == (1, 1), "one message, and a row that says that the study is there"
        for trial_id in made[::30][:3]:
            storage.set_trial_state_values(trial_id, RUNNING)
        by_rows(through, study_id)
        assert wire.taken() == (1, 3)
        by_rows(through, study_id)
        assert wire.taken() == (1, 3), "what runs may report at any moment"


def test_several_studies_are_read_by_rows_together(storage: ShoalStorage, study_id: int, wire: Wire) -> None:
    other = optuna.create_study(study_name="t", storage=storage)._study_id
    made = storage.create_trials(other, [at_rest(0.5) for _ in range(50)])
    with ShoalStorage(wire.url) as through:
        for changed in ([], [made[7]]):
            for trial_id in changed:
                storage.set_trial_state_values(trial_id, RUNNING)
            with through.batch():
                through.look_up(["s", "t"])
                seen = [through.get_all_trials(one, deepcopy=False) for one in (study_id, other)]
            assert seen == [storage.get_all_trials(one) for one in (study_id, other)]
            messages, rows = wire.taken()
    assert (messages, rows) == (1, 2), "of the first that it is there, of the second what has changed"
