"""What became of trials and what they cost; winners on the edge of the space."""

from __future__ import annotations

import pytest

from search.compare.analysis import analyse
from search.compare.outcomes import Edge, count, edges
from tests.contracts.comparison_values import comparison, study, trial


def test_counts_keep_diverged_trials_apart() -> None:
    counts = count(
        [
            trial(0, 0.5),
            trial(1, 0.0, diverged=True, attempts=3),
            trial(2, 0.3, state="pruned"),
            trial(3, None, state="failed", attempts=2),
            trial(4, None, state="running"),
            trial(5, None, state="waiting", attempts=0),
        ]
    )
    assert (counts.complete, counts.diverged, counts.pruned, counts.failed) == (1, 1, 1, 1)
    assert (counts.running, counts.waiting, counts.total, counts.finished) == (1, 1, 6, 4)
    assert counts.retried == 3


def test_costs_are_those_of_all_replicates_and_of_failed_trials_too() -> None:
    found = comparison(
        [
            study(
                "tpe",
                r,
                [
                    trial(0, 0.5, epochs=5, seconds=2, sampler_seconds=0.25, lasted=6, shared_with="x"),
                    trial(1, None, state="failed", epochs=1, seconds=1, lasted=0.5),
                    trial(2, None, state="running", epochs=4, seconds=9, lasted=9),
                ],
            )
            for r in range(2)
        ]
    )
    (outcome,) = analyse(found, resamples=200).outcomes
    assert (outcome.epochs, outcome.shared) == (12, 2)
    assert outcome.train_seconds == pytest.approx(6)
    assert outcome.sampler_seconds == pytest.approx(0.5)
    # Four seconds of the first trial's six were not training; the second's clock ran behind.
    assert outcome.idle_seconds == pytest.approx(8)


def test_without_beginnings_nothing_is_known_of_waiting() -> None:
    (outcome,) = analyse(comparison([study("tpe", 0, [trial(0, 0.5)])]), resamples=200).outcomes
    assert outcome.idle_seconds is None


SPACE = {
    "rate": {"low": 1e-4, "high": 1.0, "log": True, "type": "float"},
    "momentum": {"low": 0.0, "high": 1.0, "type": "float"},
    "width": {"low": 8, "high": 64, "type": "int"},
    "batch": {"values": [16, 64, 256]},
    "two": {"values": [1, 2]},
    "mixed": {"values": [16, 64, "full"]},
    "loss": {"values": ["hinge", "mse", "x"]},
}


def test_edges_are_the_outermost_hundredth_or_value() -> None:
    def winner(**params: object) -> object:
        return trial(0, 0.5, params=dict(params))

    winners = [
        winner(rate=1.05e-4, momentum=0.5, width=8, batch=256, two=1, mixed=16, loss="hinge"),
        winner(rate=0.95, momentum=0.005, width=9, batch=256, two=2, mixed=64, loss="mse"),
        winner(rate=0.01, momentum=1.0, width=64, batch=64, two=1, mixed=16, loss="mse"),
        winner(rate=1.2e-4, momentum=0.02, batch=16),
    ]
    assert edges(winners, SPACE) == (  # type: ignore[arg-type]
        Edge(dimension="rate", low=1, high=1, n=4),
        Edge(dimension="momentum", low=1, high=1, n=4),
        Edge(dimension="width", low=1, high=1, n=3),
        Edge(dimension="batch", low=1, high=2, n=4),
    )


@pytest.mark.parametrize("space", [None, {}, {"rate": "odd"}, {"rate": {"low": 1, "high": 1}}, [1]])
def test_odd_spaces_have_no_edges(space: object) -> None:
    assert edges([trial(0, 0.5, params={"rate": 1.0})], space) == ()
