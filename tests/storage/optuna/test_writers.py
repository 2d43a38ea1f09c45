"""Many writers on one study: ours beside stock Optuna, and the threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from storage.optuna.shoal_storage import ShoalStorage
from tests.storage.optuna.spaces import SIX


def at_once(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in that many threads that start together; the first exception of any is raised."""
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(run, number) for number in range(count)]:
            future.result()


def test_numbers_are_dense_and_distinct_beside_stock_writers(empty_url: str) -> None:
    """Four of ours, of which two in batches, and four stock ones."""
    with ShoalStorage(empty_url) as storage:
        study_id = optuna.create_study(study_name="s", storage=storage)._study_id

        def write(number: int) -> None:
            own: ShoalStorage | RDBStorage = RDBStorage(empty_url) if number % 2 else ShoalStorage(empty_url)
            sampler = optuna.samplers.RandomSampler(seed=number)
            study = optuna.load_study(study_name="s", storage=own, sampler=sampler)
            for _ in range(4):
                if isinstance(own, ShoalStorage) and number % 4:
                    with own.batch(new={study_id: 3}):
                        trials = [study.ask(fixed_distributions=SIX) for _ in range(3)]
                else:
                    trials = [study.ask(fixed_distributions=SIX) for _ in range(3)]
                for trial in trials:
                    trial.report(0.5, 1)
                    study.tell(trial, 0.25)
            own.close() if isinstance(own, ShoalStorage) else own.engine.dispose()

        at_once(8, write)
        trials = storage.get_all_trials(study_id)
        assert [trial.number for trial in trials] == list(range(8 * 12))
        assert len({trial._trial_id for trial in trials}) == 8 * 12
        assert all(trial.state == TrialState.COMPLETE for trial in trials)
        assert all(trial.intermediate_values == {1: 0.5} and len(trial.params) == 6 for trial in trials)


def test_every_waiting_trial_is_popped_once(storage: ShoalStorage) -> None:
    study = optuna.create_study(study_name="s", storage=storage)
    study_id = study._study_id
    storage.create_trials(
        study_id,
        [
            optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"x": i / 40}})
            for i in range(40)
        ],
    )
    popped: list[float] = []

    def pop(number: int) -> None:
        # Two threads share a storage, the others have their own.
        own = storage if number < 2 else ShoalStorage(storage.wire.url)
        mine = optuna.load_study(study_name="s", storage=own)
        for _ in range(10):
            trial = mine.ask()
            popped.append(trial.suggest_float("x", 0, 1))
            mine.tell(trial, 0.5)
        if own is not storage:
            own.close()

    at_once(4, pop)
    assert sorted(popped) == [i / 40 for i in range(40)]


def test_threads_of_one_storage(storage: ShoalStorage) -> None:
    """Batches of some threads, single calls of others; each sees its own writes at once."""
    study = optuna.create_study(study_name="s", storage=storage)

    def work(number: int) -> None:
        for step in range(5):
            trial = study.ask(fixed_distributions=SIX)
            trial.report(number, step)
            assert storage.get_trial(trial._trial_id).intermediate_values == {step: number}
            if number % 2:
                with storage.batch():
                    trial.set_user_attr("thread", number)
                    study.tell(trial, step)
            else:
                trial.set_user_attr("thread", number)
                study.tell(trial, step)
            assert storage.get_trial(trial._trial_id).state == TrialState.COMPLETE

    at_once(8, work)
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(40))
    assert sorted(trial.user_attrs["thread"] for trial in trials) == sorted(list(range(8)) * 5)
    with ShoalStorage(storage.wire.url) as again:
        assert again.get_all_trials(study._study_id) == trials


def test_study_optimize_in_threads(storage: ShoalStorage) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=24, n_jobs=4)
    assert [trial.number for trial in study.trials] == list(range(24))
    assert study.best_value == min(trial.params["x"] for trial in study.trials)
