"""What pages show, from values written by hand."""

from __future__ import annotations

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from search.serve import views
from search.serve.charts import Series
from storage.page_values import Improvement, SampledTrial
from storage.records import EpochRecord, StudyProgress, StudyRecord


def study(number: int, method: str) -> StudyRecord:
    return StudyRecord(
        id=number, experiment_id=1, method=method, replicate=number, name=f"e/{method}/{number}"
    )


def moves(study_id: int, *points: tuple[int, float | None]) -> list[Improvement]:
    return [
        Improvement(study_id=study_id, epochs=epochs, trials=place, best=best)
        for place, (epochs, best) in enumerate(points, 1)
    ]


def test_best_so_far_is_the_median_with_its_range() -> None:
    found = moves(0, (2, None), (4, 0.5), (8, 0.6)) + moves(1, (3, 0.4), (6, 0.8)) + moves(2, (5, None))
    random, tpe = views.best_so_far(
        found, [study(0, "random"), study(1, "random"), study(2, "tpe")], ["random", "tpe"]
    )
    # From 4 on both replicates have a value; the shorter one keeps its best to the end.
    assert [x for x, _ in random.points] == [3, 4, 6, 8]
    assert [y for _, y in random.points] == pytest.approx([0.4, 0.45, 0.65, 0.7])
    assert random.band == [(3, 0.4, 0.4), (4, 0.4, 0.5), (6, 0.5, 0.8), (8, 0.6, 0.8)]
    assert random.step
    assert (tpe.points, tpe.band) == ([], ())


def test_one_replicate_has_no_band() -> None:
    (one,) = views.best_so_far(moves(0, (2, 0.5), (9, 0.5)), [study(0, "gp")], ["gp"])
    assert (one.points, one.band) == ([(2, 0.5), (9, 0.5)], ())


def test_the_axis_leaves_out_early_values_only_where_that_shows_more() -> None:
    assert views.zoomed([Series("a", [(1, 0.1), (20, 0.88), (100, 0.9)])]) is None  # holds from 1 to 20
    assert views.zoomed([Series("a", [(1, 0.1), (5, 0.88), (100, 0.9)])]) == (0.88, 0.9)
    assert views.zoomed([Series("a", [(1, 0.86), (5, 0.88), (100, 0.9)])]) == (0.88, 0.9)
    assert views.zoomed([Series("a", [(1, 0.875), (5, 0.88), (100, 0.9)])]) is None
    assert views.zoomed([]) is None


def test_a_bar_is_as_long_as_its_trials() -> None:
    counts = {"complete": 5, "pruned": 0, "failed": 1, "running": 2, "paused": 0, "waiting": 0}
    assert views.shares(counts, 10) == [
        ("complete", 5, 0.0, 50.0),
        ("failed", 1, 50.0, 10.0),
        ("running", 2, 60.0, 20.0),
    ]
    assert sum(width for *_, width in views.shares(counts, 4)) == pytest.approx(100)
    assert views.shares(dict.fromkeys(counts, 0), 0) == []


def test_a_bar_shows_what_rests_before_what_waits() -> None:
    counts = {"complete": 2, "pruned": 0, "failed": 0, "running": 1, "paused": 4, "waiting": 1}
    assert views.shares(counts, 10) == [
        ("complete", 2, 0.0, 20.0),
        ("running", 1, 20.0, 10.0),
        ("paused", 4, 30.0, 40.0),
        ("waiting", 1, 70.0, 10.0),
    ]


@pytest.mark.parametrize(
    ("state", "method", "trials"),
    [(None, None, 16), ("waiting", None, 4), ("paused", None, 6), ("waiting", "tpe", 1), ("paused", "tpe", 2),
     ("complete", None, 2), ("running", "tpe", 1)],
)  # fmt: skip
def test_a_filter_counts_what_rests_apart_from_what_waits(
    state: str | None, method: str | None, trials: int
) -> None:
    def row(number: int, method: str, **counts: int) -> StudyProgress:
        rest = dict.fromkeys(("running", "complete", "pruned", "failed"), 1) | {"epochs": 9}
        return StudyProgress(study=study(number, method), seconds=1.0, best=None, **rest | counts)

    rows = [row(0, "random", waiting=7, paused=4, pruned=0), row(1, "tpe", waiting=3, paused=2, failed=0)]
    assert views.total_trials(rows, method, state) == trials


@pytest.mark.parametrize(
    ("asked", "number", "first", "last"),
    [("1", 1, 1, 50), ("3", 3, 101, 120), ("99", 3, 101, 120), ("0", 1, 1, 50), ("", 1, 1, 50),
     ("-2", 1, 1, 50), ("x", 1, 1, 50), ("²", 1, 1, 50), ("9" * 5000, 1, 1, 50)],
)  # fmt: skip
def test_pages_that_do_not_exist_lead_to_one_that_does(
    asked: str, number: int, first: int, last: int
) -> None:
    page = views.page_of(asked, 50, 120)
    assert (page.number, page.first, page.last, page.pages) == (number, first, last, 3)


def test_an_empty_table_has_one_page() -> None:
    page = views.page_of("4", 50, 0)
    assert (page.number, page.first, page.last, page.pages, page.offset) == (1, 0, 0, 1, 0)


@pytest.mark.parametrize(
    ("state", "controlled", "shown"),
    [("running", True, "running"), ("running", False, "interrupted"), ("finished", False, "finished")],
)
def test_an_experiment_that_nobody_runs_is_interrupted(state: str, controlled: bool, shown: str) -> None:
    assert views.shown_state(state, controlled=controlled) == shown


def sampled(number: int, value: float, **drawn: tuple[BaseDistribution, object]) -> SampledTrial:
    return SampledTrial(
        trial_id=number,
        number=number,
        study_id=1,
        method="tpe",
        replicate=0,
        state="complete",
        value=value,
        names=list(drawn),
        numbers=[kind.to_internal_repr(entry) for kind, entry in drawn.values()],
        distributions=[distribution_to_json(kind) for kind, _ in drawn.values()],
    )


def test_parallel_coordinates_place_values_on_their_scales() -> None:
    rate, loss, size = (
        FloatDistribution(1e-4, 1.0, log=True),
        CategoricalDistribution(("mse", "hinge")),
        IntDistribution(0, 100),
    )
    axes, strands = views.parallel_coordinates(
        [
            sampled(1, 0.5, rate=(rate, 1e-2), loss=(loss, "mse"), size=(size, 25)),
            sampled(2, 0.9, rate=(rate, 1.0), loss=(loss, "hinge")),
        ],
        "accuracy",
    )
    assert [axis.name for axis in axes] == ["rate", "loss", "size", "accuracy"]
    assert strands[0].places == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert strands[1].places == [1.0, 0.75, None, 1.0]
    assert [tick.label for tick in axes[0].ticks] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert [tick.label for tick in axes[1].ticks] == ["mse", "hinge"]
    assert (strands[0].style, strands[1].style) == ("q1", "q3")
    assert strands[1].link == "/trials/2"
    assert strands[1].label == "tpe / 0, trial 2: 0.9"


def test_between_whole_numbers_there_is_no_mark() -> None:
    kinds = {"depth": IntDistribution(1, 2), "width": IntDistribution(4, 64), "rate": FloatDistribution(1, 2)}
    axes, _ = views.parallel_coordinates(
        [sampled(1, 0.5, **{name: (kind, 1 if name != "width" else 4) for name, kind in kinds.items()})], "m"
    )
    depth, width, rate = ([tick.label for tick in axis.ticks] for axis in axes[:3])
    assert depth == ["1", "2"]
    assert width == ["20", "40", "60"]
    assert "1.2" in rate


def test_a_dimension_that_grew_has_room_for_all() -> None:
    axes, strands = views.parallel_coordinates(
        [
            sampled(1, 0.5, a=(FloatDistribution(0, 1), 1.0), b=(CategoricalDistribution((1,)), 1)),
            sampled(2, 0.6, a=(FloatDistribution(0, 4), 4.0), b=(CategoricalDistribution((1, 2)), 2)),
        ],
        "m",
    )
    assert [strand.places[:2] for strand in strands] == [[0.25, 0.25], [1.0, 0.75]]
    assert len(axes[1].ticks) == 2


def test_many_choices_are_labelled_in_part_and_long_ones_cut() -> None:
    kind = CategoricalDistribution(tuple("x" * 40 + str(number) for number in range(30)))
    axes, _ = views.parallel_coordinates([sampled(1, 0.5, many=(kind, "x" * 40 + "0"))], "m")
    assert len(axes[0].ticks) <= views.MANY_CHOICES
    assert all(len(tick.label) <= 18 for tick in axes[0].ticks)


def test_a_trials_curves_leave_out_what_was_not_finite() -> None:
    def epoch(number: int, train: float | None, metrics: dict[str, float]) -> EpochRecord:
        return EpochRecord(
            study_name="s", trial_number=0, trial_id=1, attempt=1, epoch=number, train_loss=train,
            validation_loss=None, metrics=metrics, gradient_norm=None, learning_rate=0.1, seconds=1.0,
            images_per_second=1.0, diverged=False,
        )  # fmt: skip

    losses, measured = views.curve_series(
        [epoch(1, 2.0, {"a": 0.1}), epoch(2, None, {}), epoch(3, 1.0, {"a": 0.3})], "a"
    )
    assert [(one.name, one.points) for one in losses] == [("training loss", [(1, 2.0), (3, 1.0)])]
    assert measured[0].points == [(1, 0.1), (3, 0.3)]
    assert views.latest(measured) == [("a", 3, 0.3, 0.3, 0.3)]
