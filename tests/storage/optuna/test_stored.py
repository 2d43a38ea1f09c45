"""Trials that decode what is asked for: the same as stock Optuna's, and nearly nothing until then."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import math
import pickle
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.database import Database
from storage.optuna import stored
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna.stored import StoredTrial, evolved, first_value, has_user_attr

AWKWARD = [
    "",
    "a b",
    'quo"te',
    "back\\slash",
    "{brace,}",
    "NULL",
    "comma,",
    "ünïcödé ☃",
    "new\nline",
    "\t",
    "'",
]
NAMES = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(exclude_characters="\0"), max_size=8))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
NUMBERS = st.floats(allow_nan=False)
FIELDS = list(create_trial(value=1.0).__dict__)
numbers = itertools.count()


@st.composite
def trials(draw: st.DrawFn) -> FrozenTrial:
    """A finished trial with anything in it."""
    params: dict[str, Any] = {}
    distributions = {}
    for name in draw(st.lists(NAMES, max_size=3, unique=True)):
        if draw(st.booleans()):
            choices = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
            distributions[name] = CategoricalDistribution(choices)
            params[name] = draw(st.sampled_from(choices))
        else:
            distributions[name] = FloatDistribution(-1e9, 1e9)  # type: ignore[assignment]
            params[name] = draw(st.floats(-1e9, 1e9))
    state = draw(st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]))
    return create_trial(
        state=state,
        values=draw(st.lists(NUMBERS, min_size=2, max_size=2)) if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs=draw(st.dictionaries(NAMES, JSON, max_size=3)),
        system_attrs=draw(st.dictionaries(NAMES, JSON, max_size=2)),
        intermediate_values=draw(
            st.dictionaries(st.integers(-5, 2**31 - 1), st.floats(allow_nan=False), max_size=4)
        ),
    )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(templates=st.lists(trials(), min_size=1, max_size=3), order=st.permutations(FIELDS))
def test_reads_what_stock_reads(
    storage: ShoalStorage, stock: RDBStorage, templates: list[FrozenTrial], order: list[str]
) -> None:
    """Whatever is in it, and in whatever order it is asked for."""
    directions = [optuna.study.StudyDirection.MINIMIZE] * 2
    study = storage.create_new_study(directions, f"{next(numbers)}")
    storage.create_trials(study, templates)
    for ours, theirs in zip(storage.get_all_trials(study), stock.get_all_trials(study), strict=True):
        assert ours == theirs
    with ShoalStorage(storage.wire.url) as other:
        for ours, theirs in zip(
            other.get_all_trials(study, deepcopy=False), stock.get_all_trials(study), strict=True
        ):
            assert isinstance(ours, StoredTrial)
            assert ours.last_step == theirs.last_step
            assert first_value(ours) == (theirs.values or [None])[0]
            for name in theirs.user_attrs.keys() | {"a", '"', "ünï"}:
                assert has_user_attr(ours, name) == (name in theirs.user_attrs)
            for name in order:
                assert getattr(ours, name) == theirs.__dict__[name]
            assert list(ours.distributions) == list(theirs.distributions)


@pytest.fixture
def one(storage: ShoalStorage) -> StoredTrial:
    """A stored trial of which nothing was asked."""
    study = optuna.create_study(storage=storage)
    study.add_trial(
        create_trial(
            value=0.25,
            params={"x": 0.5},
            distributions={"x": FloatDistribution(0, 1)},
            user_attrs={"deep": [{"a": 1}]},
            intermediate_values={2: 0.5, 1: math.nan},
        )
    )
    with ShoalStorage(storage.wire.url) as other:
        (trial,) = other.get_all_trials(study._study_id, deepcopy=False)
    assert isinstance(trial, StoredTrial)
    return trial


def plain(trial: StoredTrial) -> FrozenTrial:
    """The same as stock Optuna would have it, made without asking for anything of the trial itself."""
    return pickle.loads(pickle.dumps(copy.deepcopy(evolved(trial))))  # type: ignore[no-any-return]


def test_is_a_frozen_trial_to_everybody(one: StoredTrial) -> None:
    other = plain(one)
    assert type(other) is FrozenTrial
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        # NaN is not equal to itself: the value of a step is.
        assert copied.intermediate_values.keys() == {1, 2}
        copied.intermediate_values = other.intermediate_values
        assert copied.__dict__ == other.__dict__
    assert list(copy.copy(one).__dict__) == FIELDS
    assert repr(one).replace("StoredTrial", "FrozenTrial") == repr(other)
    assert one != create_trial(value=1.0)
    assert one != "a trial"
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = one.nonsense


def test_equality_decodes(one: StoredTrial) -> None:
    one.intermediate_values = {}
    other = evolved(one)
    assert copy.copy(one) == one == other
    assert one == copy.copy(other)
    assert evolved(other, _values=[0.5]) != one


def test_a_copy_is_its_own(one: StoredTrial) -> None:
    deep, shallow = copy.deepcopy(one), copy.copy(one)
    deep.user_attrs["deep"][0]["a"] = 2
    deep.distributions.clear()
    shallow.number = 7
    assert one.user_attrs == {"deep": [{"a": 1}]}
    assert list(one.distributions) == ["x"]
    assert one.number == 0


def test_nothing_is_decoded_before_it_is_asked_for(
    storage: ShoalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for reading a study, nor for its best trial, nor for what workers count."""
    study = optuna.create_study(storage=storage)
    template = create_trial(
        value=1.0,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={"shoal:seed": 1},
        intermediate_values={1: 0.5, 2: 0.25},
    )
    storage.create_trials(study._study_id, [template] * 5)
    with ShoalStorage(storage.wire.url) as other:
        for name in list(stored._DECODERS):
            if name != "_distributions":
                monkeypatch.delitem(stored._DECODERS, name)
        found = other.get_all_trials(study._study_id, deepcopy=False)
        assert other.get_best_trial(study._study_id) is found[0]
        assert [trial.last_step for trial in found] == [2] * 5
        assert not any(has_user_attr(trial, "shoal:retry_of") for trial in found)
        with pytest.raises(AttributeError):
            _ = found[0].intermediate_values


def test_a_settled_trial_is_two_objects_to_the_garbage_collector(storage: ShoalStorage) -> None:
    """The trial, and what was read of it until the collector has seen that it holds nothing."""
    study = optuna.create_study(storage=storage)
    template = create_trial(
        value=1.0,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={"shoal:seed": 1},
        intermediate_values={1: 0.5, 2: 0.25},
    )
    storage.create_trials(study._study_id, [template] * 1000)
    with ShoalStorage(storage.wire.url) as other:
        other.get_all_studies()
        gc.collect()
        before = len(gc.get_objects())
        other._trials.read(study._study_id)
        gc.collect()
        assert len(gc.get_objects()) - before < 1.2 * 1000


def test_attributes_as_other_clients_write_them(storage: ShoalStorage, empty_url: str) -> None:
    """Python's JSON knows NaN, Postgres' doesn't."""
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(value=1.0))
    with Database(empty_url) as database:
        database.script(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT trial_id, 'a\"b', '[NaN, Infinity]' FROM trials RETURNING 1",
            (),
        )
    with ShoalStorage(storage.wire.url) as other:
        (trial,) = other.get_all_trials(study._study_id, deepcopy=False)
    assert json.dumps(trial.user_attrs) == '{"a\\"b": [NaN, Infinity]}'


def test_arrays_of_texts_as_postgres_writes_them() -> None:
    array = '{a,"q\\"q","b\\\\b","{x,y}","","NULL","two words",ü}'
    assert stored._elements(array) == ["a", 'q"q', "b\\b", "{x,y}", "", "NULL", "two words", "ü"]
    assert stored._elements(None) == []


def test_whether_an_attribute_is_there(one: StoredTrial) -> None:
    assert has_user_attr(one, "deep")
    assert not has_user_attr(one, "a")  # a key of a value
    assert not has_user_attr(one, "other")
