"""Pruners: the rule of our own successive halving, and each builder against Optuna's semantics."""

from __future__ import annotations

import random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.experiment.settings import PRUNER_SETTINGS, AshaSettings, HyperbandSettings
from search.pruning.pruners import POOL_PRUNERS, PRUNERS, AshaPruner, Direction, build_pruner, keep
from search.pruning.stopping import rungs_passed

VALUES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e6, 1e6))
RUNGS = st.lists(VALUES, min_size=1, max_size=40)
DIRECTIONS = st.sampled_from(["maximize", "minimize"])


@given(values=RUNGS, eta=st.integers(2, 5), direction=DIRECTIONS, chance=st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_arrival(
    values: list[float], eta: int, direction: Direction, chance: random.Random
) -> None:
    rung = dict(enumerate(values))
    arrived = list(rung.items())
    chance.shuffle(arrived)
    for number in rung:
        assert keep(dict(arrived), number, eta, direction) == keep(rung, number, eta, direction)


@given(values=RUNGS, eta=st.integers(2, 5), direction=DIRECTIONS)
def test_best_is_kept(values: list[float], eta: int, direction: Direction) -> None:
    rung = dict(enumerate(values))
    best = max(values) if direction == "maximize" else min(values)
    assert keep(rung, values.index(best), eta, direction)


@given(values=RUNGS, eta=st.integers(2, 5), direction=DIRECTIONS)
def test_exactly_one_in_eta_of_a_cohort_is_kept(values: list[float], eta: int, direction: Direction) -> None:
    rung = dict(enumerate(values))
    kept = sum(keep(rung, n, eta, direction) for n in rung)
    assert kept == (len(values) // eta if len(values) >= eta else len(values))


@given(values=RUNGS, eta=st.integers(2, 5), gain=st.floats(0, 1e3), direction=DIRECTIONS)
def test_a_better_value_is_never_worse(
    values: list[float], eta: int, gain: float, direction: Direction
) -> None:
    rung = dict(enumerate(values))
    better = rung | {0: values[0] + (gain if direction == "maximize" else -gain)}
    assert keep(better, 0, eta, direction) >= keep(rung, 0, eta, direction)


def test_ties_go_to_the_lower_number() -> None:
    assert [n for n in range(6) if keep(dict.fromkeys(range(6), 0.5), n, 3, "maximize")] == [0, 1]


def test_nobody_is_stopped_among_fewer_than_eta() -> None:
    assert keep({0: 0.9, 1: 0.1}, 1, 3, "maximize")
    assert not keep({0: 0.9, 1: 0.1, 2: 0.2}, 1, 3, "maximize")


@pytest.mark.parametrize(
    ("step", "rungs"), [(0, []), (1, []), (2, [2]), (5, [2]), (6, [2, 6]), (18, [2, 6, 18])]
)
def test_rungs(step: int, rungs: list[int]) -> None:
    assert rungs_passed(step, 2, 3) == rungs


def _lock_step(
    curves: list[list[float]], pruner: optuna.pruners.BasePruner, order: list[int]
) -> dict[int, int]:
    """Epochs that each trial trained when all go on epoch by epoch, reporting in `order`, then decided."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    trials = [study.ask() for _ in curves]
    alive = set(range(len(curves)))
    epochs = dict.fromkeys(alive, 0)
    for epoch in range(1, len(curves[0]) + 1):
        for number in order:
            if number in alive:
                trials[number].report(curves[number][epoch - 1], epoch)
                epochs[number] = epoch
        stopped = {number for number in order if number in alive and trials[number].should_prune()}
        for number in stopped:
            study.tell(trials[number], state=optuna.trial.TrialState.PRUNED)
        alive -= stopped
    return epochs


def test_lock_step_cohort_is_halved_at_each_rung() -> None:
    curves = [[number + epoch / 10 for epoch in range(1, 10)] for number in range(27)]
    epochs = _lock_step(curves, AshaPruner(min_epochs=1, eta=3), list(range(27)))
    assert [sum(e >= rung for e in epochs.values()) for rung in (1, 2, 4)] == [27, 9, 3]
    assert epochs[26] == 9


@settings(max_examples=25)
@given(values=st.lists(VALUES, min_size=9, max_size=9), order=st.permutations(range(9)))
def test_lock_step_cohort_in_any_order(values: list[float], order: list[int]) -> None:
    curves = [[value] * 4 for value in values]
    pruner = AshaPruner(min_epochs=1, eta=3)
    assert _lock_step(curves, pruner, order) == _lock_step(curves, pruner, list(range(9)))


def test_let_through_early_is_looked_at_again() -> None:
    """The first at a rung knows of nobody better; once the better have come it is stopped."""
    study = optuna.create_study(direction="maximize", pruner=AshaPruner(min_epochs=1, eta=3))
    early, *late = [study.ask() for _ in range(3)]
    early.report(0.1, 1)
    assert not early.should_prune()
    for trial, value in zip(late, (0.5, 0.9), strict=True):
        trial.report(value, 1)
    early.report(0.95, 2)
    assert early.should_prune()
    assert not late[1].should_prune()


def test_no_report_no_verdict() -> None:
    study = optuna.create_study(pruner=AshaPruner())
    assert not study.ask().should_prune()


def test_every_pruner_has_settings_and_a_builder() -> None:
    assert list(PRUNERS) == list(POOL_PRUNERS) == list(PRUNER_SETTINGS)


@pytest.mark.parametrize("name", PRUNERS)
def test_defaults_stop_a_bad_trial_and_spare_a_good_one(name: str) -> None:
    study = optuna.create_study(
        direction="maximize", study_name="pruned", pruner=build_pruner(PRUNER_SETTINGS[name](), 9)
    )

    def stopped_at(value: float) -> int | None:
        trial = study.ask()
        for epoch in range(1, 10):
            trial.report(value, epoch)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return epoch
        study.tell(trial, value)
        return None

    for number in range(18):
        stopped_at(0.5 + number / 100)
    # Several of each: Hyperband's brackets differ in their first rung.
    assert [stopped_at(1.0) for _ in range(3)] == [None] * 3
    assert any(stopped_at(0.0) for _ in range(6)) == PRUNER_SETTINGS[name].stops


def test_settings_reach_the_pruner() -> None:
    asha = build_pruner(AshaSettings(min_epochs=4, eta=2), 16)
    assert vars(asha) == {"_min_epochs": 4, "_eta": 2}
    assert vars(build_pruner(HyperbandSettings(), 27))["_max_resource"] == 27
    assert vars(build_pruner(HyperbandSettings(max_resource=9), 27))["_max_resource"] == 9
