"""Figures: ticks, scales and paths from numbers written by hand."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.serve.charts import (
    NARROW,
    WIDE,
    Axis,
    Series,
    Strand,
    Tick,
    line_chart,
    nice_ticks,
    parallel,
    style,
    thin,
    tick_label,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.87, 0.92, [0.87, 0.88, 0.89, 0.9, 0.91, 0.92]),
        (0, 16000, [0, 5000, 10000, 15000]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_lie_within_and_are_few(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert len(ticks) <= 7
    assert all(
        low - 1e-6 * abs(low) - width * 1e-6 <= tick <= low + width * (1 + 1e-6) + 1e-6 * abs(low)
        for tick in ticks
    )
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0, "0"),
        (0.001, "0.001"),
        (1e-5, "1e-5"),
        (15000, "15,000"),
        (2e9, "2e9"),
        (0.30000000000000004, "0.3"),
    ],
)
def test_labels_are_short(value: float, label: str) -> None:
    assert tick_label(value) == label


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5000), st.integers(2, 400))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thin(points, most)
    assert kept == sorted(kept)
    assert set(kept) <= set(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(kept) <= max(len(points) if len(points) <= most else 0, most + 2)
    assert {min(values), max(values)} <= {y for _, y in kept}


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", path)]


def test_a_line_goes_from_corner_to_corner() -> None:
    chart = line_chart(
        [Series("a", [(0, 0.0), (10, 1.0)])], WIDE, x_title="x", y_title="y", y_range=(0.0, 1.0)
    )
    x0, y0, x1, y1 = numbers(chart.lines[0].path)
    assert (x0, x1) == (chart.left, chart.right)
    height = chart.bottom - chart.top
    margin = height * 0.04 / 1.08
    assert (y0, y1) == (
        pytest.approx(chart.bottom - margin, abs=0.1),
        pytest.approx(chart.top + margin, abs=0.1),
    )
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_steps_hold_until_the_next_point_and_bands_do_so_both_ways() -> None:
    band = [(0, 0.0, 1.0), (5, 0.5, 2.0), (10, 0.5, 3.0)]
    line = line_chart(
        [Series("a", [(0, 0.5), (5, 1.0), (10, 1.0)], band, step=True)], WIDE, x_title="x", y_title="y"
    ).lines[0]
    assert re.fullmatch(r"M[\d. ]+(H[\d.]+V[\d.]+){2}", line.path)
    # Forth over the upper edge, steps to the right first; back under the lower one, down first.
    assert re.fullmatch(r"M[\d. ]+(H[\d.]+V[\d.]+){2}L[\d. ]+(V[\d.]+H[\d.]+){2}Z", line.band)


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize(
    "series", [[], [Series("none", [])], [Series("one", [(1, 0.5)])], [Series("flat", [(1, 2.0), (2, 2.0)])]]
)
def test_little_to_show_is_no_error(size, series) -> None:
    chart = line_chart(series, size, x_title="x", y_title="y")
    assert len(chart.lines) == len(series)
    for line in chart.lines:
        assert all(math.isfinite(number) for number in numbers(line.path))
    assert chart.y_ticks


def test_a_single_point_is_a_dot() -> None:
    chart = line_chart([Series("one", [(1, 0.5)])], WIDE, x_title="x", y_title="y")
    ((x, y),) = chart.lines[0].dots
    assert (x, y) == pytest.approx(((chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2))


def test_epochs_are_whole() -> None:
    chart = line_chart([Series("a", [(1, 0.5), (2, 0.6)])], WIDE, x_title="epoch", y_title="y")
    assert [tick.label for tick in chart.x_ticks] == ["0", "1", "2"]


def test_colours_and_dashes_differ_for_36_series() -> None:
    assert len({style(index) for index in range(36)}) == 36


def test_strands_skip_axes_they_lack() -> None:
    axes = [Axis("a", [Tick(0.5, "m")]), Axis("b", []), Axis("c", [])]
    figure = parallel(axes, [Strand("one", "/", "q1", [0.0, None, 1.0])])
    path = numbers(figure.strands[0][1])
    assert path == [figure.axes[0][0], figure.bottom, figure.axes[2][0], figure.top]
    assert figure.ticks[0][0].at == pytest.approx((figure.top + figure.bottom) / 2)
