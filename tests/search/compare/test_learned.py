"""What is learned of the space: the right dimensions, from random search's trials alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from search.compare.base import Comparison, Direction, TrialOutcome
from search.compare.figures.files import contents_data
from search.compare.learned.arm import random_arm
from search.compare.learned.dependence import dependence_on, diverged_map
from search.compare.learned.effects import LEAST, effect_of
from search.compare.learned.importance import FOREST_LEAST, TRIALS, Importances
from search.compare.learned.learn import learn, learned_tables
from search.compare.space import named
from search.compare.statistics.expected_best import expected_best
from tests.contracts.comparison_values import comparison, study, trial
from tests.contracts.simulated_experiment import simulated

Value = Callable[[dict[str, object]], float]


def drawn(
    value: Value, *, replicates: int = 5, trials: int = 60, direction: Direction = "maximize", seed: int = 3
) -> Comparison:
    """Random search over x and y from 0 to 1 and level a, b or c."""
    rng = random.Random(seed)
    studies = []
    for replicate in range(replicates):
        found = []
        for number in range(trials):
            params: dict[str, object] = {"x": rng.random(), "y": rng.random(), "level": rng.choice("abc")}
            found.append(trial(number, value(params), params=params))
        studies.append(study("random", replicate, found))
    unit = {"low": 0.0, "high": 1.0}
    return comparison(studies, spec={"space": {"x": unit, "y": unit}}, direction=direction)


def by_x(params: dict[str, object]) -> float:
    return float(str(params["x"]))


def changed(found: Comparison, change: Callable[[TrialOutcome], TrialOutcome]) -> Comparison:
    studies = tuple(replace(s, trials=tuple(change(t) for t in s.trials)) for s in found.studies)
    return replace(found, studies=studies)


def important(found: Comparison) -> Importances:
    made = learn(found).importances
    assert isinstance(made, Importances)
    return made


def test_the_dimension_that_decides_comes_first_by_both_estimators() -> None:
    for direction in ("maximize", "minimize"):
        found = important(drawn(by_x, direction=direction))
        first = found.found[0]
        assert first.axis.name == "x"
        assert first.ped_mean > 0.7
        assert first.fanova_mean is not None
        assert first.fanova_mean > 0.9
        assert all((other.fanova_mean or 0.0) < 0.1 for other in found.found[1:])
        assert first.fanova_sd is not None
        assert first.ped_sd is not None
        assert len(first.ped_anova) == found.replicates == 5
        assert not found.pooled
        for group in range(5):
            assert sum(one.ped_anova[group] for one in found.found) == pytest.approx(1)


def test_estimators_and_directions_differ_where_only_the_best_depend_on_a_dimension() -> None:
    """PED-ANOVA asks for the best tenth: y decides it where large is good, x moves all the rest."""

    def value(params: dict[str, object]) -> float:
        return 2.0 if float(str(params["y"])) > 0.9 else by_x(params)

    found = important(drawn(value, replicates=2, trials=300))
    by_name = {one.axis.name: one for one in found.found}
    assert found.found[0].axis.name == "y"
    assert (by_name["x"].fanova_mean or 0.0) > 0.1 > by_name["x"].ped_mean
    assert important(drawn(value, replicates=2, trials=300, direction="minimize")).found[0].axis.name == "x"


def test_other_methods_teach_nothing_about_the_space() -> None:
    plain = drawn(by_x)
    misleading = [
        study("tpe", r, [trial(n, 5.0, params={"x": 0.5, "y": n / 60, "level": "c"}) for n in range(60)])
        for r in range(5)
    ]
    mixed = replace(plain, studies=(*misleading, *plain.studies))
    assert [one.ped_anova for one in important(mixed).found] == [
        one.ped_anova for one in important(plain).found
    ]
    alone = replace(plain, studies=tuple(misleading))
    assert learned_tables(learn(alone)) == ()
    assert "no random search" in str(learn(alone).importances)


def test_small_replicates_are_put_together_without_a_spread() -> None:
    found = important(drawn(by_x, replicates=4, trials=TRIALS - 1))
    assert found.pooled
    assert found.found[0].ped_sd is None
    (table, *_) = learned_tables(learn(drawn(by_x, replicates=4, trials=TRIALS - 1)))
    assert "put together" in table.caption


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (drawn(by_x, replicates=1, trials=TRIALS - 1), "the least"),
        (drawn(lambda _: 0.5), "same value"),
        (comparison([study("random", 0, [trial(n, n / 9, params={"a": 1}) for n in range(9)])]), "varies"),
    ],
)
def test_what_can_not_be_learned_is_said(found: Comparison, words: str) -> None:
    assert words in str(learn(found).importances)


def test_constant_and_conditional_dimensions_are_named() -> None:
    def conditional(one: TrialOutcome) -> TrialOutcome:
        params = {k: v for k, v in one.params.items() if k != "y" or one.params["level"] == "a"}
        return replace(one, params=params | {"z": 4})

    plain = changed(drawn(by_x), conditional)
    found = replace(plain, spec=dict(plain.spec) | {"space": {"z": {"values": [4]}}})
    made = important(found)
    assert made.constant == ("z",)
    y = next(one for one in made.found if one.axis.name == "y")
    assert y.axis.conditional
    assert (y.fanova, y.fanova_mean) == ((), None), "some trials lack it"
    assert 0 < y.trials < made.trials
    (table, *_) = learned_tables(learn(found))
    assert "z" in table.caption
    assert any("conditional" in row[-1].text for row in table.rows)
    data = contents_data((), (table,))["table-importances"]
    kept = {row[0]: row[data.columns.index("trials.conditional")] for row in data.rows}
    assert kept == {"x": False, "y": True, "level": False}


def test_large_replicates_are_subsampled_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.compare.learned.importance.MOST", 50)
    found = important(drawn(by_x, replicates=2, trials=80))
    assert found.subsampled
    assert found.trials == 100
    assert important(drawn(by_x, replicates=2, trials=80)).found == found.found, "by a fixed seed"


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_shares_have_no_unit(scale: float) -> None:
    plain, scaled = important(drawn(by_x)), important(drawn(lambda params: scale * by_x(params)))
    for one, other in zip(scaled.found, plain.found, strict=True):
        assert one.fanova == pytest.approx(other.fanova, abs=1e-3), "rounding may move a split"
        assert one.ped_anova == pytest.approx(other.ped_anova)


def test_fanova_gives_the_shares_of_a_sum() -> None:
    """Of x + y / 2, x has 4 / 5 of the variance and y 1 / 5; a forest of 100 trials finds most of that."""
    found = important(drawn(lambda p: by_x(p) + 0.5 * float(str(p["y"])), replicates=5, trials=60))
    shares = {one.axis.name: one.fanova_mean or 0.0 for one in found.found}
    assert shares["x"] == pytest.approx(0.8, abs=0.12)
    assert shares["y"] == pytest.approx(0.2, abs=0.12)
    assert shares["level"] < 0.02


@pytest.mark.parametrize(
    ("trials", "forests"),
    [(FOREST_LEAST, (60,)), (2 * FOREST_LEAST, (60, 60)), (300, (100, 100, 100)), (900, (200, 200, 200))],
)
def test_forests_are_of_samples_that_share_no_trial(trials: int, forests: tuple[int, ...]) -> None:
    found = important(drawn(by_x, replicates=1, trials=trials))
    assert found.forests == forests
    assert (found.found[0].fanova_sd is None) is (len(forests) == 1)
    (table, *_) = learned_tables(learn(drawn(by_x, replicates=1, trials=trials)))
    spread = f"mean ± standard deviation over {len(forests)} samples of {forests[-1]} trials"
    assert ("60 trials, so without a spread" if len(forests) == 1 else spread) in table.caption


def test_equal_values_in_a_sample_have_no_variance_to_share() -> None:
    found = drawn(lambda _: 0.5, replicates=1, trials=2 * FOREST_LEAST)
    alone = found.studies[0].trials[0]
    found = changed(found, lambda one: replace(one, value=0.6) if one == alone else one)
    (x, *_) = important(found).found
    assert len(x.fanova) == 2
    assert min(x.fanova) == 0.0, "the sample without that trial"


def levels(
    values: dict[str, list[float]], *, replicates: int = 2, direction: Direction = "maximize"
) -> Comparison:
    """Random trials that differ in one level only; replicates are copies."""
    studies = []
    for replicate in range(replicates):
        pairs = [(level, value) for level, found in values.items() for value in found]
        trials = [trial(n, value, params={"level": level}) for n, (level, value) in enumerate(pairs)]
        studies.append(study("random", replicate, trials))
    return comparison(studies, spec={"space": {}}, direction=direction)


def test_levels_are_ranked_by_their_tuned_best_and_not_by_their_mean() -> None:
    good_when_tuned = [0.1] * 12 + [0.95] * 4
    always_fair = [0.6] * 16
    found = levels({"tuned": good_when_tuned, "fair": always_fair})
    arm = random_arm(found)
    assert arm is not None
    effect = effect_of(arm, arm.axes[0])
    assert np.mean(good_when_tuned) < np.mean(always_fair)
    assert effect.best is not None
    assert effect.best.parts == ("tuned",)
    fair = next(level for level in effect.levels if level.parts == ("fair",))
    assert fair.behind is not None
    assert fair.behind.estimate == pytest.approx(effect.best.best.estimate - 0.6)  # type: ignore[union-attr]


def test_the_tuned_best_is_the_expected_best_of_n() -> None:
    values = [float(k) for k in range(16)]
    for direction in ("maximize", "minimize"):
        arm = random_arm(levels({"a": values, "b": [7.0] * 16}, replicates=1, direction=direction))
        assert arm is not None
        effect = effect_of(arm, arm.axes[0])
        assert effect.n == 4
        best = next(level.best for level in effect.levels if level.parts == ("a",))
        assert best is not None
        wanted = expected_best(values, direction, unbiased=False)[effect.n - 1]
        assert best.estimate == pytest.approx(wanted)
        assert best.low is None, "one replicate carries no interval"


def test_a_level_with_few_trials_is_named_and_not_judged() -> None:
    arm = random_arm(levels({"many": [0.5] * 20, "few": [0.9] * (LEAST // 2 - 1)}))
    assert arm is not None
    effect = effect_of(arm, arm.axes[0])
    assert effect.n == 40 // 4, "the few don't set n"
    few = next(level for level in effect.levels if level.parts == ("few",))
    assert few.best is None
    assert few.behind is None
    assert few.trials == 2 * (LEAST // 2 - 1)


def test_intervals_of_differences_hold_the_truth_and_use_the_same_draws() -> None:
    found = simulated(("random",), replicates=20, trials=60)
    arm = random_arm(found)
    assert arm is not None
    loss = named(arm.axes, "loss")
    assert loss is not None
    effect = effect_of(arm, loss)
    assert effect.best is not None
    assert effect.best.parts == ("cross_entropy",)
    mse = next(level for level in effect.levels if level.parts == ("mse",)).behind
    assert mse is not None
    assert mse.low is not None
    assert mse.high is not None
    assert 0 < mse.low < 0.02 < mse.high + 0.01
    assert effect_of(arm, loss) == effect, "seeded"


def test_cells_of_two_dimensions_know_where_their_best_lies() -> None:
    arm = random_arm(simulated(("random",), replicates=30, trials=60))
    assert arm is not None
    loss, optimizer, rate = (named(arm.axes, name) for name in ("loss", "optimizer", "learning_rate"))
    assert loss is not None
    assert optimizer is not None
    effect = effect_of(arm, loss, optimizer, beside=rate)
    assert [level.parts for level in effect.levels][:2] == [
        ("cross_entropy", "sgd"),
        ("cross_entropy", "momentum"),
    ]
    assert sum(level.trials for level in effect.levels) == arm.n
    for level in effect.levels:
        at = level.at[0]
        assert isinstance(at, float)
        wanted = {"sgd": -0.9, "momentum": -1.6, "adam": -2.7}[level.parts[1]]
        assert abs(math.log10(at) - wanted) < 0.5


def test_dependence_of_hand_made_values() -> None:
    def lost(one: TrialOutcome) -> TrialOutcome:
        return replace(one, diverged=one.params["level"] == "b" and one.number % 2 == 0)

    values = {"a": [1.0, 3.0] * 8, "b": [5.0] * 4}
    arm = random_arm(changed(levels(values), lost))
    assert arm is not None
    a, b = dependence_on(arm, arm.axes[0]).bins
    assert a.mean is not None
    assert b.diverged is not None
    assert (a.trials, a.mean.estimate, a.decile) == (32, 2.0, 3.0)
    assert (a.mean.low, a.mean.high) == (2.0, 2.0), "both replicates are the same"
    assert (b.trials, b.decile, b.diverged.estimate) == (8, None, 0.5)


def test_the_best_tenth_is_the_smallest_where_small_is_good() -> None:
    arm = random_arm(levels({"a": [float(k) for k in range(10)], "b": [5.0] * 10}, direction="minimize"))
    assert arm is not None
    assert dependence_on(arm, arm.axes[0]).bins[0].decile == pytest.approx(1, abs=0.2)


def test_diverged_trials_are_counted_where_they_lie() -> None:
    arm = random_arm(simulated(("random",), replicates=10, trials=60))
    assert arm is not None
    rate, optimizer = named(arm.axes, "learning_rate"), named(arm.axes, "optimizer")
    assert rate is not None
    assert optimizer is not None
    everyone, diverged = diverged_map(arm, rate, optimizer)
    assert everyone.sum() == arm.n
    assert diverged.sum() == arm.diverged.sum() > 0
    adam = optimizer.levels.index("adam")
    assert diverged[adam, -2:].sum() == diverged.sum(), "only adam at high rates"


def test_pruned_trials_stand_with_their_last_report_and_failed_ones_nowhere() -> None:
    trials = [
        trial(0, 0.5, params={"x": 1.0}),
        trial(1, 0.2, state="pruned", params={"x": 2.0}),
        trial(2, None, state="failed", params={"x": 3.0}),
        trial(3, 0.4, state="running", params={"x": 4.0}),
        trial(4, math.nan, params={"x": 5.0}),
    ]
    arm = random_arm(comparison([study("random", 0, trials)]))
    assert arm is not None
    assert arm.values.tolist() == [0.5, 0.2]
    assert arm.pruned == 1


def test_tables_have_numbers_for_programs_and_words_for_people() -> None:
    importance, level_table = learned_tables(learn(simulated(("random",), replicates=12, trials=50)))
    assert importance.rows[0][0].value == "learning_rate"
    assert all(isinstance(row[1].value, float) for row in importance.rows)
    assert "600 trials" in importance.caption
    assert [row[1].value for row in level_table.rows[:3]] == ["cross_entropy", "hinge", "mse"]
    assert level_table.rows[0][-1].text == "best"
