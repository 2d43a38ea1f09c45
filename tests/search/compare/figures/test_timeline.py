"""The arithmetic behind the timeline: units, means over stretches, what a trial has of a device."""

from __future__ import annotations

import numpy as np
import pytest

from search.compare.figures.timeline import BINS, Period, Span, course, period_of, span_of
from tests.contracts.comparison_values import trial


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [
        (0.5, (1, "seconds")),
        (119.9, (1, "seconds")),
        (120, (60, "minutes")),
        (7_199, (60, "minutes")),
        (7_200, (3_600, "hours")),
        (172_800, (86_400, "days")),
    ],
)
def test_a_period_is_told_in_the_largest_unit_of_which_it_has_two(
    seconds: float, unit: tuple[int, str]
) -> None:
    assert Period(1e9, seconds).unit == unit


def test_a_period_holds_all_spans() -> None:
    spans = [Span(20.0, 30.0, 1.0), Span(10.0, 15.0, 1.0), Span(12.0, 40.0, 1.0)]
    assert period_of(spans) == Period(10.0, 30.0)


def test_heights_are_means_over_the_part_of_a_stretch_that_a_span_covers() -> None:
    period = Period(100.0, float(BINS))  # stretches of one second
    means = period.mean_height([(Span(100.0, 101.5, 0.0), 2.0), (Span(101.0, 102.0, 0.0), 1.0)])
    assert means[:4] == pytest.approx([2.0, 2.0, 0.0, 0.0])
    assert not means[4:].any()


def test_a_trial_that_took_no_time_has_no_share_of_a_device() -> None:
    period = Period(0.0, 100.0)
    found = course("random", [Span(0.0, 50.0, 25.0), Span(10.0, 10.0, 3.0)], period)
    width = period.length / BINS
    assert float(np.sum(found.devices)) * width == pytest.approx(25.0)
    assert float(found.devices.max()) == pytest.approx(0.5)
    assert float(found.in_flight.max()) == pytest.approx(1.0)


def test_a_trial_that_does_not_say_when_it_ran_has_no_span() -> None:
    assert span_of(trial(0, None, state="running")) is None
    found = span_of(trial(0, 0.5, ended=2, lasted=60, seconds=30.0))
    assert found is not None
    assert (found.end - found.start, found.device_seconds) == (60.0, 30.0)
