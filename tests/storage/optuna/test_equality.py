"""What we write, stock Optuna reads as it was; what stock Optuna writes, we read as it does."""

from __future__ import annotations

import math
from datetime import datetime

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.database import Database
from storage.optuna.shoal_storage import ShoalStorage
from tests.storage.optuna.spaces import SIX

AWKWARD = (0.1 + 0.2, 5e-324, -1.7976931348623157e308, 1e-310, -0.0, math.inf, -math.inf, math.nan)
"""Rounding, the smallest denormal, the largest negative, and what is no number."""

MOMENT = datetime.fromisoformat("2026-07-01T12:30:00.123456")
"""Naive local time, as in `FrozenTrial`."""


@pytest.fixture(params=["ours writes", "stock writes"])
def pair(request: pytest.FixtureRequest, storage: ShoalStorage, stock: RDBStorage) -> tuple[BaseStorage, ...]:
    """The storage that writes, and the one that reads."""
    return (storage, stock) if request.param == "ours writes" else (stock, storage)


def same(left: list[FrozenTrial], right: list[FrozenTrial]) -> None:
    plain = [
        [
            {**trial.__dict__, "intermediate_values": None} | {"_values": repr(trial._values)}
            for trial in trials
        ]
        for trials in (left, right)
    ]
    assert plain[0] == plain[1]
    assert [repr(sorted(trial.intermediate_values.items())) for trial in left] == [
        repr(sorted(trial.intermediate_values.items())) for trial in right
    ]
    assert [list(trial.params) for trial in left] == [list(trial.params) for trial in right]


def fill(storage: BaseStorage) -> int:
    """A study with a trial in each state, awkward numbers, and all kinds of parameters and attributes."""
    study = optuna.create_study(
        study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(seed=3), direction="maximize"
    )
    study.set_user_attr("note", {"nested": [1, None, "ü"]})
    for state in TrialState:
        if state == TrialState.WAITING:
            continue
        trial = study.ask(fixed_distributions=SIX)
        for step, value in enumerate(AWKWARD):
            trial.report(value, 2 * step)
        storage.set_trial_intermediate_value(trial._trial_id, 0, 0.25)  # over an earlier one
        trial.set_user_attr("tuple", (1, "two", 3.5))
        trial.set_user_attr("tuple", [4])
        storage.set_trial_system_attr(trial._trial_id, "big", "x" * 10_000)
        if state != TrialState.RUNNING:
            study.tell(trial, 0.1 + 0.2 if state == TrialState.COMPLETE else None, state=state)
    for value in AWKWARD[:-1]:
        study.tell(study.ask(), value)
    study.enqueue_trial({"x": 0.5, "optimizer": None}, user_attrs={"key": "k"})
    return study._study_id


def test_all_that_a_study_has(pair: tuple[BaseStorage, BaseStorage]) -> None:
    writer, reader = pair
    study_id = fill(writer)
    writer.remove_session()
    same(reader.get_all_trials(study_id), writer.get_all_trials(study_id))
    assert {trial.state for trial in reader.get_all_trials(study_id)} == set(TrialState)
    (theirs,), (ours,) = reader.get_all_studies(), writer.get_all_studies()
    assert theirs.__dict__ == ours.__dict__
    assert theirs.user_attrs == {"note": {"nested": [1, None, "ü"]}}
    for trial in reader.get_all_trials(study_id):
        same([reader.get_trial(trial._trial_id)], [writer.get_trial(trial._trial_id)])
        for name in trial.params:
            stored = reader.get_trial_param(trial._trial_id, name)
            assert stored == writer.get_trial_param(trial._trial_id, name)


def test_a_copy_of_a_storage_reads_the_same(storage: ShoalStorage) -> None:
    study_id = fill(storage)
    again = ShoalStorage(storage.wire.url)
    try:
        same(again.get_all_trials(study_id), storage.get_all_trials(study_id))
    finally:
        again.close()


def test_templates(pair: tuple[BaseStorage, BaseStorage]) -> None:
    writer, reader = pair
    study_id = writer.create_new_study([StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE], "s")
    params = {"layers": 3, "x": 0.25, "optimizer": None}
    for state in TrialState:
        template = create_trial(
            state=state,
            values=[5e-324, -math.inf] if state == TrialState.COMPLETE else None,
            params=params,
            distributions={name: SIX[name] for name in params},
            user_attrs={"b": [1], "a": None},
            system_attrs={"c": "d"},
            intermediate_values={3: math.nan, 1: math.inf},
        )
        template.datetime_complete = MOMENT if state.is_finished() else None
        writer.create_new_trial(study_id, template)
    same(reader.get_all_trials(study_id), writer.get_all_trials(study_id))
    assert reader.get_study_directions(study_id) == writer.get_study_directions(study_id)


def test_the_first_value_of_a_parameter_stays(pair: tuple[BaseStorage, BaseStorage]) -> None:
    writer, reader = pair
    study_id = writer.create_new_study([StudyDirection.MINIMIZE])
    trial_id = writer.create_new_trial(study_id)
    writer.set_trial_param(trial_id, "x", 0.25, SIX["x"])
    writer.set_trial_param(trial_id, "x", 0.75, SIX["x"])
    assert writer.get_trial(trial_id).params == {"x": 0.25}
    writer.set_trial_state_values(trial_id, TrialState.FAIL)
    assert reader.get_trial(trial_id).params == {"x": 0.25}


def test_numpy_numbers_are_numbers(storage: ShoalStorage) -> None:
    numpy = pytest.importorskip("numpy")
    study = optuna.create_study(storage=storage)
    trial = study.ask(fixed_distributions=SIX)
    trial.report(numpy.float32(0.5), numpy.int64(3))
    study.tell(trial, numpy.float64(0.25))
    (stored,) = study.trials
    assert (stored.value, stored.intermediate_values) == (0.25, {3: 0.5})
    assert type(stored.value) is float


def test_times_are_utc_in_the_tables(storage: ShoalStorage, empty_url: str) -> None:
    study = optuna.create_study(storage=storage)
    study.tell(study.ask(), 1.0)
    with Database(empty_url) as database:
        apart = database.scalar(
            "SELECT max(greatest(abs(extract(epoch FROM timezone('UTC', now()) - datetime_start)), "
            "abs(extract(epoch FROM timezone('UTC', now()) - datetime_complete)))) FROM trials"
        )
    assert apart < 60


def test_the_columns_that_stock_optuna_fills_are_filled(storage: ShoalStorage, stock: RDBStorage) -> None:
    """A NaN in a column of numbers would read as finite to everybody else."""
    fill(storage)
    storage.flush()
    with Database(storage.wire.url) as database:
        assert not database.scalar(
            "SELECT count(*) FROM trial_intermediate_values "
            "WHERE (intermediate_value IS NULL) = (intermediate_value_type = 'FINITE') "
            "OR intermediate_value IN ('NaN', 'Infinity', '-Infinity')"
        )
        assert not database.scalar(
            "SELECT count(*) FROM trial_values WHERE (value IS NULL) = (value_type = 'FINITE') "
            "OR value IN ('NaN', 'Infinity', '-Infinity')"
        )
