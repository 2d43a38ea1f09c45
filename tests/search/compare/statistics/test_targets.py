"""Censored times to a target and the speed-up over random search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from search.compare.statistics.anytime import StepCurve, Traces
from search.compare.statistics.targets import (
    Ratio,
    SpeedUp,
    TargetTimes,
    default_target,
    expected_running_time,
    kaplan_meier,
    speed_up_over_random,
    success_rate,
    time_to_target,
)


def times(reached: list[float], censored: list[float]) -> TargetTimes:
    return TargetTimes(0.5, (*reached, *censored), (True,) * len(reached) + (False,) * len(censored))


def steps(positions: list[float], values: list[float], end: float) -> StepCurve:
    return StepCurve(np.array(positions), np.array(values), end)


def test_times_are_censored_at_the_budget_or_where_the_study_ended() -> None:
    curves = [
        steps([1, 4], [0.2, 0.6], 10),
        steps([1, 9], [0.2, 0.6], 10),
        steps([1], [0.2], 3),
        None,
    ]
    found = time_to_target(curves, 0.5, 8, "maximize")
    assert found.times == (4, 8, 3, 8)
    assert found.reached == (True, False, False, False)
    assert (found.n, found.successes) == (4, 1)


def test_reaching_exactly_the_target_at_exactly_the_budget_counts() -> None:
    assert time_to_target([steps([1, 8], [0.2, 0.5], 8)], 0.5, 8, "maximize").reached == (True,)


def test_no_curve_and_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="No curve"):
        time_to_target([], 0.5, 8, "maximize")
    with pytest.raises(ValueError, match="finite"):
        time_to_target([None], float("nan"), 8, "maximize")


def test_the_default_target_is_randoms_median() -> None:
    assert default_target([0.1, 0.9, 0.4]) == 0.4


def test_kaplan_meier_by_hand() -> None:
    """At 3: 1 of 5. At 5, after one left at 4: 1 of 3, so 4/5 · 2/3. At 6: 1 of 2, so half of that."""
    found = kaplan_meier(times([3, 5, 6], [4, 10]))
    at = dict(zip(found.at, found.not_reached, strict=True))
    assert (at[0], at[3], at[4]) == (1, pytest.approx(0.8), pytest.approx(0.8))
    assert (at[5], at[6], at[10]) == pytest.approx((8 / 15, 4 / 15, 4 / 15))
    assert found.median == 6


def test_a_median_time_exists_once_half_have_reached() -> None:
    assert kaplan_meier(times([3, 5], [10, 10])).median == 5
    assert kaplan_meier(times([3], [10, 10])).median is None


def test_all_censored_is_a_flat_line() -> None:
    found = kaplan_meier(times([], [10, 10]))
    assert (set(found.not_reached), found.median) == ({1.0}, None)
    assert expected_running_time(times([], [10, 10])) is None
    rate = success_rate(times([], [10] * 10))
    assert (rate.estimate, rate.low) == (0, 0)
    assert rate.high == pytest.approx(0.2775, abs=1e-4)  # z² / (n + z²)


def test_all_reached_and_a_single_replicate() -> None:
    assert kaplan_meier(times([2, 2, 2], [])).median == 2
    assert kaplan_meier(times([2], [])).not_reached[-1] == 0
    assert success_rate(times([2], [])).estimate == 1


def test_expected_running_time_spreads_the_failures_over_the_successes() -> None:
    assert expected_running_time(times([2, 4], [10])) == 8


AXIS = np.arange(1.0, 41.0)


def linear(replicates: int, noise: float = 0.0) -> Traces:
    """Random search that gains 0.01 a trial, replicates apart by noise."""
    shift = noise * np.random.default_rng(2).normal(size=(replicates, 1))
    return Traces(AXIS, 0.01 * AXIS[None] + shift)


def test_a_speed_up_by_hand() -> None:
    """The method has 0.2 after 10 trials; random has it after 20."""
    found = speed_up_over_random([0.2] * 3, linear(3), 10, "maximize", paired=True, resamples=99)
    assert found.ratio == found.low == found.high == Ratio(2.0)
    assert str(found) == "×2"


def test_a_method_that_random_outpaces_is_worth_less_than_one_trial() -> None:
    found = speed_up_over_random([0.05] * 3, linear(3), 10, "maximize", paired=False, resamples=99)
    assert found.ratio == Ratio(0.5)


def test_what_random_never_reaches_is_told_as_a_bound() -> None:
    found = speed_up_over_random([0.9] * 3, linear(3), 10, "maximize", paired=False, resamples=99)
    assert (found.ratio, str(found)) == (Ratio(4.0, "at_least"), "at least ×4")


def test_what_random_has_from_its_first_position_is_told_as_a_bound_from_above() -> None:
    found = speed_up_over_random([-1.0] * 3, linear(3), 10, "maximize", paired=False, resamples=99)
    assert (found.ratio, found.low, found.high) == (Ratio(0.1, "at_most"),) * 3
    assert str(found) == "at most ×0.1"
    second = speed_up_over_random([0.02] * 3, linear(3), 10, "maximize", paired=False, resamples=99)
    assert second.ratio == Ratio(0.2), "the second position is known exactly"


def faster(times: float) -> Traces:
    """A method that is random search with so many of its trials for each of its own, for 10 trials."""
    return Traces(AXIS[:10], 0.01 * times * AXIS[None, :10].repeat(3, axis=0))


def test_a_faster_method_is_judged_at_randoms_end_where_random_was_run_no_longer() -> None:
    """Random has 0.1 after its 10 trials, the method after 4; at its own end nobody knows random's time."""
    short = Traces(AXIS[:10], linear(3).values[:, :10])
    method = faster(2.5)
    final = method.values[:, -1]
    found = speed_up_over_random(final, short, 10, "maximize", paired=True, method=method, resamples=99)
    assert found.ratio == found.low == found.high == Ratio(2.5)
    alone = speed_up_over_random(final, short, 10, "maximize", paired=True, resamples=99)
    assert str(alone) == "at least ×1"
    longer = speed_up_over_random(final, linear(3), 10, "maximize", paired=True, method=method, resamples=99)
    assert longer.ratio == Ratio(2.5), "random's own time for the method's end, where that is known"
    mirrored = Traces(AXIS[:10], -short.values), Traces(AXIS[:10], -method.values)
    assert (
        speed_up_over_random(
            -final, mirrored[0], 10, "minimize", paired=True, method=mirrored[1], resamples=99
        )
        == found
    )


def test_a_method_whose_first_trial_beats_randoms_end_is_worth_at_least_that() -> None:
    short, method = Traces(AXIS[:10], linear(3).values[:, :10]), faster(20)
    found = speed_up_over_random(
        method.values[:, -1], short, 10, "maximize", paired=False, method=method, resamples=99
    )
    assert (found.ratio, found.low, found.high) == (Ratio(10.0, "at_least"),) * 3


def test_naming_another_replicate_the_first_changes_no_interval_at_randoms_end() -> None:
    rng = np.random.default_rng(6)
    random, method = (
        Traces(AXIS[:12], np.maximum.accumulate(rng.normal(shift, 1, size=(9, 12)), axis=1))
        for shift in (0.0, 0.5)
    )
    order = rng.permutation(9)

    def told(rows: Sequence[int], paired: bool) -> SpeedUp:
        one = Traces(AXIS[:12], method.values[rows])
        other = Traces(AXIS[:12], random.values[rows])
        return speed_up_over_random(
            one.values[:, -1], other, 12, "maximize", paired=paired, method=one, resamples=199
        )

    for paired in (True, False):
        first = told(range(9), paired)
        assert first == told(order.tolist(), paired)
        assert first.low is not None
        assert first.high is not None
        assert first.low.value < first.ratio.value < first.high.value


def test_unpaired_sides_may_have_other_numbers_of_replicates() -> None:
    """Each side is resampled by itself, also where the method's own traces are asked."""
    short = Traces(AXIS[:10], linear(9, 0.005).values[:, :10])
    method = faster(2.5)
    found = speed_up_over_random(
        method.values[:, -1], short, 10, "maximize", paired=False, method=method, resamples=199
    )
    assert found.low is not None
    assert found.high is not None
    assert found.low.value <= found.ratio.value <= found.high.value
    assert found.low.value < found.high.value


def test_an_interval_may_be_censored_at_one_end_only() -> None:
    final = 0.4 + 0.03 * np.random.default_rng(3).normal(size=15)
    found = speed_up_over_random(final, linear(15, 0.02), 10, "maximize", paired=False, resamples=999)
    assert found.low is not None
    assert found.high is not None
    assert (found.ratio.bound, found.low.bound, found.high.bound) == ("exact", "exact", "at_least")
    assert found.low.value < found.ratio.value
    assert str(found).endswith("to at least ×4)")


def test_pairing_removes_what_replicates_share() -> None:
    """The method is random search with twice the trials, replicate for replicate."""
    traces = linear(15, 0.02)
    final = traces.values[:, 19]
    paired = speed_up_over_random(final, traces, 10, "maximize", paired=True, resamples=499)
    apart = speed_up_over_random(final, traces, 10, "maximize", paired=False, resamples=499)
    assert paired.ratio == paired.low == paired.high == apart.ratio == Ratio(2.0)
    assert apart.low is not None
    assert apart.high is not None
    assert apart.low.value < 2 < apart.high.value


@pytest.mark.parametrize("paired", [True, False])
def test_bisection_finds_what_looking_at_every_position_finds(paired: bool) -> None:
    rng = np.random.default_rng(4)
    traces = np.maximum.accumulate(rng.normal(size=(8, 25)), axis=1)
    final = traces[:, 12] + 0.2
    for column in range(25):
        if np.median(traces[:, column]) >= np.median(final):
            break
    found = speed_up_over_random(
        final, Traces(AXIS[:25], traces), 13, "maximize", paired=paired, resamples=99
    )
    assert found.ratio == Ratio((column + 1) / 13)


def test_smaller_is_better_mirrors_and_order_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    traces = linear(9, 0.05)
    final = 0.2 + 0.05 * rng.normal(size=9)
    one = speed_up_over_random(final, traces, 10, "maximize", paired=True, resamples=199)
    order = rng.permutation(9)
    mirrored = Traces(AXIS, -traces.values[order])
    assert speed_up_over_random(-final[order], mirrored, 10, "minimize", paired=True, resamples=199) == one


def test_one_replicate_has_a_ratio_and_no_interval() -> None:
    found = speed_up_over_random([0.2], linear(1), 10, "maximize", paired=True)
    assert found == SpeedUp(Ratio(2.0), None, None, 0.95)
    assert str(found) == "×2"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        speed_up_over_random([np.nan], linear(1), 10, "maximize", paired=True)
    with pytest.raises(ValueError, match="as many"):
        speed_up_over_random([0.1], linear(2), 10, "maximize", paired=True)
    with pytest.raises(ValueError, match="budget"):
        speed_up_over_random([0.1], linear(1), 0, "maximize", paired=True)
    with pytest.raises(ValueError, match="must end at"):
        speed_up_over_random([0.1], linear(1), 10, "maximize", paired=True, method=linear(1))
    with pytest.raises(ValueError, match="best so far"):
        speed_up_over_random([0.1], linear(1), 10, "minimize", paired=True)
