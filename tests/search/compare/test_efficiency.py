"""Times to the target and what a trial is worth, on values written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.contents import contents_of
from search.compare.document import document
from search.compare.efficiency import MethodEfficiency
from search.compare.figures.files import contents_data
from search.compare.page import render_html
from search.compare.render import render_markdown
from search.compare.report_tables import tables_of
from search.compare.statistics.targets import Ratio
from tests.contracts.comparison_values import comparison, study, trial

NO_PRUNING = {"pruner": {"name": "none"}}


def three_replicates(tpe: list[list[float]], random: list[list[float]]) -> Comparison:
    studies = [
        study(method, r, [trial(n, value, epochs=2) for n, value in enumerate(values)])
        for method, of_method in (("random", random), ("tpe", tpe))
        for r, values in enumerate(of_method)
    ]
    return comparison(studies, spec=NO_PRUNING)


RANDOM = [[0.1, 0.2, 0.3, 0.5], [0.1, 0.6, 0.2, 0.1], [0.3, 0.2, 0.4, 0.1]]
"""Ends at 0.5, 0.6 and 0.4: the target is 0.5, reached after 4 and 2 trials, and never."""


def on(axis: str, method: str, found: Comparison) -> MethodEfficiency:
    efficiency = analyse(found, resamples=200).efficiency
    entry = next(entry for entry in efficiency.axes if entry.axis == axis)
    return next(one for one in entry.methods if one.method == method)


def test_the_target_is_the_median_of_randoms_ends() -> None:
    found = three_replicates([[0.1, 0.5, 0.9, 0.9]] * 3, RANDOM)
    assert analyse(found, resamples=200).efficiency.target == 0.5
    random = on("trials", "random", found)
    assert random.times.times == (4, 2, 4)
    assert random.times.reached == (True, True, False)
    assert random.success.estimate == pytest.approx(2 / 3)
    assert random.expected_running_time == pytest.approx(10 / 2)
    assert random.survival.median == 4
    assert random.speed_up is None


@pytest.mark.parametrize(("axis", "factor"), [("trials", 1), ("epochs", 2), ("seconds", 1)])
def test_all_three_axes_are_told(axis: str, factor: int) -> None:
    tpe = on(axis, "tpe", three_replicates([[0.1, 0.5, 0.9, 0.9]] * 3, RANDOM))
    assert tpe.times.times == (2 * factor,) * 3
    assert tpe.expected_running_time == 2 * factor


def test_a_target_never_reached_is_censored_and_printed_so() -> None:
    found = three_replicates([[0.1, 0.2, 0.2, 0.2]] * 3, RANDOM)
    tpe = on("trials", "tpe", found)
    assert (tpe.expected_running_time, tpe.survival.median) == (None, None)
    assert tpe.times.times == (4, 4, 4)
    (table,) = [t for t in tables_of(found, analyse(found, resamples=200)) if t.key == "efficiency"]
    texts = [cell.text for cell in table.rows[1]]
    assert texts[2:5] == ["0 of 3", "> 12", "> 4"]


@pytest.mark.parametrize(("axis", "direction"), [("trials", 1), ("epochs", 1), ("trials", -1)])
def test_speed_over_random_of_a_faster_method_is_told_at_randoms_end(axis: str, direction: int) -> None:
    """Random's median is 0.5 after its four trials; the method has it after two."""

    def turned(of_method: list[list[float]]) -> list[list[float]]:
        return [[direction * value for value in values] for values in of_method]

    found = three_replicates(turned([[0.1, 0.5, 0.9, 0.9]] * 3), turned(RANDOM))
    if direction < 0:
        found = replace(found, direction="minimize")
    speed = on(axis, "tpe", found).speed_up
    assert speed is not None
    assert speed.ratio == Ratio(2.0)


def test_a_first_value_that_is_better_than_randoms_end_is_a_bound() -> None:
    speed = on("trials", "tpe", three_replicates([[0.7, 0.9, 0.9, 0.9]] * 3, RANDOM)).speed_up
    assert speed is not None
    assert str(speed) == "at least ×4"


def test_a_speed_that_is_only_a_bound_is_never_printed_as_a_number() -> None:
    """In the table, in its data file, in the document, in the figure, the Markdown and the page."""
    found = three_replicates([[0.7, 0.9, 0.9, 0.9]] * 3, RANDOM)
    analysis = analyse(found, resamples=200)
    contents = contents_of(found, analysis)
    (table,) = [t for t in contents.tables if t.key == "efficiency"]
    ratio, interval = table.rows[1][-2:]
    assert (ratio.value, ratio.text, interval.text) == (None, "at least ×4", "at least ×4")
    data = contents_data(contents.figures, contents.tables)["table-efficiency"]
    row = dict(zip(data.columns, data.rows[1], strict=True))
    assert (row["speed_up"], row["speed_up.at_least"], row["speed_up_interval.low_at_least"]) == (None, 4, 4)
    body = document(found, analysis, contents.tables)
    told = body["efficiency"]["methods"][1]["speed_up"]  # type: ignore[index]
    assert (told["ratio"]["bound"], told["text"]) == ("at_least", "at least ×4")
    assert "at least ×4" in render_markdown(found, analysis)
    assert "at least ×4" in render_html(found, analysis, contents)
    (figure,) = [f for f in contents.figures if f.key == "time-to-target"]
    assert "tpe at least ×4." in figure.caption
    assert "at least ×4" in [cell.text for cell in figure.table.rows[1]]


def test_speed_over_random_of_a_slower_method() -> None:
    # Its median at the end is 0.3, which random's median trace has after two of four trials.
    speed = on("trials", "tpe", three_replicates([[0.1, 0.1, 0.1, 0.3]] * 3, RANDOM)).speed_up
    assert speed is not None
    assert speed.ratio == Ratio(0.5)


def test_a_study_without_a_value_never_reaches_the_target() -> None:
    found = comparison(
        [
            study("random", 0, [trial(0, 0.5)]), study("tpe", 0, [trial(0, 0.6)]),
            study("random", 1, [trial(0, 0.5)]), study("tpe", 1, [trial(0, None, state="failed")]),
        ],
        spec=NO_PRUNING,
    )  # fmt: skip
    assert on("trials", "tpe", found).times.reached == (True, False)


def test_without_random_search_there_is_no_target() -> None:
    found = analyse(comparison([study("tpe", 0, [trial(0, 0.5)])]), resamples=200).efficiency
    assert (found.target, found.axes) == (None, ())
    assert "no target" in found.text
