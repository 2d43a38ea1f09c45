"""Distance to the best known, and random search of another length."""

from __future__ import annotations

import pytest

from search.compare.analysis import analyse
from search.compare.base import Direction
from tests.contracts.comparison_values import comparison, drawn, study, trial

NO_PRUNING = {"pruner": {"name": "none"}}


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_regret_by_hand(direction: Direction) -> None:
    sign = 1 if direction == "maximize" else -1
    found = comparison(
        [
            study("random", 0, [trial(0, sign * 0.2), trial(1, sign * 0.6), trial(2, sign * 0.4)]),
            study("tpe", 0, [trial(0, sign * 0.8)]),
        ],
        direction=direction,
        spec=NO_PRUNING,
    )
    regret = analyse(found, resamples=200).regret
    assert regret is not None
    assert regret.best_known == sign * 0.8
    assert regret.median_random == sign * 0.4
    random, tpe = regret.methods
    assert random.regret.median == pytest.approx(0.2)
    assert random.normalised is not None
    assert random.normalised.median == pytest.approx(0.5)
    assert (tpe.regret.median, tpe.normalised and tpe.normalised.median) == (0, 0)


def test_diverged_trials_are_random_trials_of_the_worst_value() -> None:
    found = comparison(
        [
            study(
                "random",
                0,
                [trial(0, 0.2), trial(1, 0.8), *(trial(n, 0.7, diverged=True) for n in (2, 3, 4))],
            )
        ],
        spec=NO_PRUNING,
    )
    analysis = analyse(found, resamples=200)
    assert analysis.regret is not None
    assert analysis.regret.median_random == 0.2
    assert analysis.expected_best is not None
    assert analysis.expected_best.values[0] == pytest.approx((0.8 + 4 * 0.2) / 5)


def test_where_random_is_as_good_as_the_best_nothing_is_normalised() -> None:
    found = analyse(comparison([study("random", 0, [trial(0, 0.5), trial(1, 0.5)])]), resamples=200).regret
    assert found is not None
    assert found.median_random is None
    assert found.methods[0].normalised is None


def test_no_value_no_regret() -> None:
    assert analyse(comparison([study("random", 0, [])]), resamples=200).regret is None
    diverged = comparison([study("random", 0, [trial(0, 0.1, diverged=True)])])
    assert analyse(diverged, resamples=200).regret is None


def test_expected_best_of_one_is_the_mean_and_of_all_the_best() -> None:
    found = comparison(
        [study("random", r, [trial(n, v) for n, v in enumerate(values)]) for r, values in
         enumerate([(0.1, 0.2, 0.6), (0.4, 0.8, 0.0)])],
        spec=NO_PRUNING,
    )  # fmt: skip
    expected = analyse(found, resamples=200).expected_best
    assert expected is not None
    assert list(expected.values) == pytest.approx([0.35, 0.5666667, 0.7])
    assert (expected.trials, expected.replicates, expected.checkpoints) == (3, 2, (1, 2, 3))


def test_expected_best_takes_random_trials_only_and_none_of_a_pruned_search() -> None:
    assert analyse(drawn(["tpe", "grid"], replicates=2), resamples=200).expected_best is None
    pruned = comparison([study("random", 0, [trial(0, 0.5), trial(1, 0.1, state="pruned")])])
    assert analyse(pruned, resamples=200).expected_best is None


def test_checkpoints_go_by_ones_twos_and_fives() -> None:
    expected = analyse(drawn(["random"], replicates=1, trials=30), resamples=200).expected_best
    assert expected is not None
    assert expected.checkpoints == (1, 2, 5, 10, 20, 30)
