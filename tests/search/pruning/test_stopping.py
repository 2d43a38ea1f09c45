"""Rules for a whole pool: what Optuna's pruners say of the same histories, trial by trial."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.experiment.settings import (
    AshaSettings,
    HyperbandSettings,
    MedianSettings,
    NoPruner,
    PercentileSettings,
    PrunerSettings,
    SuccessiveHalvingSettings,
)
from search.pruning.pruners import Direction, build_pool_pruner, build_pruner
from search.pruning.rungs import RungTable
from search.pruning.stopping import percentile_of

EPOCHS = 12
NUMBERS = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0, -1.0]),
    st.floats(-1e6, 1e6),
    st.sampled_from([math.inf, -math.inf]),
)
SMALL = st.integers(0, 4)
RULES = st.one_of(
    st.just(NoPruner()),
    st.builds(MedianSettings, n_startup_trials=SMALL, n_warmup_steps=SMALL, interval_steps=st.integers(1, 4)),
    st.builds(
        PercentileSettings,
        percentile=st.floats(1, 99),
        n_startup_trials=SMALL,
        n_warmup_steps=SMALL,
        interval_steps=st.integers(1, 4),
    ),
    st.builds(
        SuccessiveHalvingSettings,
        min_resource=st.integers(1, 3),
        reduction_factor=st.integers(2, 4),
        min_early_stopping_rate=st.integers(0, 2),
    ),
    st.builds(
        HyperbandSettings,
        min_resource=st.integers(1, 2),
        max_resource=st.integers(2, EPOCHS),
        reduction_factor=st.integers(2, 4),
    ),
    st.builds(AshaSettings, min_epochs=st.integers(1, 3), eta=st.integers(2, 4)),
)


def _without_marks(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    plain = []
    for trial in trials:
        other = copy.copy(trial)
        other._system_attrs = {}
        plain.append(other)
    return plain


class Pools:
    """A study whose trials report in pools; Optuna's pruner is asked trial by trial, ours once per pool."""

    def __init__(self, rule: PrunerSettings, direction: Direction) -> None:
        self.study = optuna.create_study(
            study_name="pools", direction=direction, pruner=build_pruner(rule, EPOCHS)
        )
        self.ours = build_pool_pruner(rule, EPOCHS, "pools", direction)
        self.kept, self.kept_plain = RungTable(), RungTable()
        self.running: dict[int, optuna.Trial] = {}

    def start(self, count: int) -> None:
        for _ in range(count):
            trial = self.study.ask()
            self.running[trial.number] = trial

    def report(self, step: int, values: dict[int, float]) -> dict[int, bool]:
        """Let trials report and be judged; every way of asking has to say the same."""
        for number, value in values.items():
            self.running[number].report(value, step)
        asked = [(number, step) for number in values]
        trials = self.study.get_trials(deepcopy=False)
        plain = _without_marks(trials)
        self.kept.update(trials)
        self.kept_plain.update(plain)
        fresh, fresh_plain = RungTable(), RungTable()
        fresh.update(trials)
        fresh_plain.update(plain)
        judged = self.ours.judge(self.kept, asked)
        theirs = [self.running[number].should_prune() for number in values]
        tables = {"kept": self.kept, "fresh": fresh, "plain": fresh_plain, "kept plain": self.kept_plain}
        for name, table in tables.items():
            assert self.ours.verdicts(table, asked) == theirs, name
        for verdict, number, before in zip(judged, values, [trials[n] for n in values], strict=True):
            now = self.study._storage.get_trial(self.running[number]._trial_id).system_attrs
            assert dict(verdict.marks) == {key: now[key] for key in now.keys() - before.system_attrs.keys()}
        return dict(zip(values, theirs, strict=True))

    def end(self, number: int, state: TrialState, value: float | None = None) -> None:
        self.study.tell(self.running.pop(number), value, state=state)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # Optuna's, of curves without a number
@settings(max_examples=300, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(rule=RULES, direction=st.sampled_from(["maximize", "minimize"]), seed=st.integers(0, 2**32))
def test_says_what_optuna_says(rule: PrunerSettings, direction: Direction, seed: int) -> None:
    """Pools of random trials, one epoch after the other; some fail, those at their end complete unasked."""
    pools = Pools(rule, direction)
    chance = random.Random(seed)
    nan, digits = chance.choice([0.0, 0.2]), chance.choice([0, 1, 6])
    epochs: dict[int, int] = {}
    for _ in range(chance.randint(1, 30)):
        pools.start(chance.randint(0, 4))
        for number in pools.running:
            epochs.setdefault(number, 0)
        by_step: dict[int, list[int]] = {}
        for number in sorted(pools.running, key=lambda _: chance.random()):
            if chance.random() < 0.8:
                by_step.setdefault(epochs[number] + 1, []).append(number)
        for step, numbers in by_step.items():
            values = {
                number: math.nan if chance.random() < nan else round(chance.gauss(0, 1), digits)
                for number in numbers
            }
            for number in numbers:
                epochs[number] = step
            if step == EPOCHS:
                for number, value in values.items():
                    pools.running[number].report(value, step)
                    pools.end(number, TrialState.COMPLETE, 0.0)
                continue
            for number, stopped in pools.report(step, values).items():
                if stopped:
                    pools.end(number, TrialState.PRUNED)
                elif chance.random() < 0.05:
                    pools.end(number, TrialState.FAIL)


@settings(max_examples=100)
@given(values=st.lists(NUMBERS, min_size=1, max_size=60), percentile=st.floats(0.1, 99.9))
def test_percentile_is_numpys(values: list[float], percentile: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # inf - inf
        expected = float(np.nanpercentile(np.array(values), percentile))
    assert percentile_of(sorted(values), percentile) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def _running(values: dict[int, float], number: int = 0) -> FrozenTrial:
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=values)
    trial.number = number
    return trial


def _table(*trials: FrozenTrial) -> RungTable:
    table = RungTable()
    table.update(trials)
    return table


def test_repetitions_and_strangers_go_on() -> None:
    """A resumed trial repeats epochs that it was let through; who has ended is not ours to judge."""
    rule = build_pool_pruner(AshaSettings(eta=2), EPOCHS, "pools", "maximize")
    trials = [_running({1: value, 2: value}, number) for number, value in enumerate((0.9, 0.1))]
    ended = create_trial(state=TrialState.PRUNED, value=0.0, intermediate_values={1: 0.0, 2: 0.0})
    ended.number = 2
    table = _table(*trials, ended)
    assert rule.verdicts(table, [(0, 2), (1, 2)]) == [False, True]
    assert rule.verdicts(table, [(1, 1), (1, 3), (2, 2), (7, 2)]) == [False] * 4


@pytest.mark.parametrize("rule", [AshaSettings(), MedianSettings(), HyperbandSettings()])
def test_nobody_asked(rule: PrunerSettings) -> None:
    assert build_pool_pruner(rule, EPOCHS, "pools", "minimize").judge(_table(_running({1: 0.5})), []) == []


def test_what_is_finished_may_change_or_vanish() -> None:
    """Another study, or one that was deleted and made anew, under the same table."""
    rule = build_pool_pruner(MedianSettings(n_startup_trials=1), EPOCHS, "pools", "maximize")
    table = RungTable()
    for bar in (0.9, 0.1, 0.9):
        ended = create_trial(state=TrialState.COMPLETE, value=bar, intermediate_values={1: bar})
        table.update([ended, _running({1: 0.5}, 1)])
        assert rule.verdicts(table, [(1, 1)]) == [bar > 0.5]
    table.update([_running({1: 0.5}, 0)])
    assert table.complete == 0
    assert rule.verdicts(table, [(0, 1)]) == [False]


def test_the_list_is_compared_by_identity_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished trials that are the same objects are not looked into again, at 10,000 of them either."""
    compared = 0
    equal = FrozenTrial.__eq__

    def counted(self: FrozenTrial, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(FrozenTrial, "__eq__", counted)
    ended = [
        create_trial(state=TrialState.COMPLETE, value=0.5, intermediate_values={1: 0.5}) for _ in range(50)
    ]
    table = _table(*ended, _running({1: 0.5}, 50))
    table.update([*ended, _running({1: 0.5, 2: 0.4}, 50), _running({}, 51)])
    assert compared == 0
    table.update([copy.copy(trial) for trial in ended] + [_running({1: 0.5, 2: 0.4}, 50)] * 2)
    assert compared == 50
