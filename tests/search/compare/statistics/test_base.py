"""Samples, ties and what is refused at the door."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.compare.statistics.base import Interval, Sample, differences, finite, paired_arrays, two


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_refuses_values_that_are_not_numbers(bad: float) -> None:
    with pytest.raises(ValueError, match=r"'tpe' has no finite value in replicates \[2\]"):
        Sample("tpe", {0: 0.9, 2: bad})


def test_a_sample_needs_a_replicate() -> None:
    with pytest.raises(ValueError, match="no replicate"):
        Sample("tpe", {})


def test_a_sample_keeps_its_own_values() -> None:
    given = {1: 0.5, 0: 0.25}
    sample = Sample("tpe", given)
    given[1] = 9.0
    assert sample.array.tolist() == [0.25, 0.5]


def test_pairing_is_by_replicate_and_leaves_out_what_only_one_has() -> None:
    a = Sample("a", {0: 1.0, 3: 2.0, 5: 3.0})
    b = Sample("b", {5: 30.0, 0: 10.0, 4: 40.0})
    assert [x.tolist() for x in paired_arrays(a, b)] == [[1.0, 3.0], [10.0, 30.0]]


def test_differences_that_rounding_tells_apart_are_ties() -> None:
    assert 0.9 - 0.8 != 0.8 - 0.7
    assert np.unique(differences([0.9, 0.8], [0.8, 0.7])).size == 1
    assert differences([0.1 + 0.2], [0.3]).tolist() == [0.0]


def test_real_differences_survive_rounding_at_every_scale() -> None:
    for scale in (1e-200, 1e-9, 1.0, 1e9, 1e200):
        assert differences(np.array([1.0, 1.00001]) * scale, np.array([1.0, 1.0]) * scale)[1] > 0


def test_zeros_and_tiny_values_are_taken() -> None:
    a, b = two([0.0, 0.0], [0.0])
    assert a.tolist() == [0.0, 0.0]
    assert b.tolist() == [0.0]
    assert two([5e-324], [0.0])[1].tolist() == [0.0]


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="dimensions"):
        finite([[1.0]], "values")
    with pytest.raises(ValueError, match="as many"):
        differences([1.0, 2.0], [1.0])


def test_an_interval_without_ends_is_within_nothing() -> None:
    assert not Interval(0.0, None, None, 0.95, "none").within(1.0)
    assert Interval(0.0, -0.5, 0.5, 0.95, "bca").within(0.5)
    assert not Interval(0.0, -0.5, 0.51, 0.95, "bca").within(0.5)


def test_the_complement_turns_the_interval() -> None:
    turned = Interval(0.7, 0.6, 0.9, 0.95, "percentile").complement()
    assert (turned.estimate, turned.low, turned.high) == pytest.approx((0.3, 0.1, 0.4))
