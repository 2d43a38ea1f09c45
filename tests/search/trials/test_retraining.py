"""Which trial of a study is retrained, and with which seeds."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.base import derive_seed
from search.compare.base import TrialOutcome
from search.compare.headline import incumbent
from search.pruning.pruners import Direction
from search.trials import retraining
from search.trials.retraining import INDEX_KEY, WINNER_ID_KEY

WORDS = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def trial(
    number: int, value: float | None, state: TrialState = TrialState.COMPLETE, **marks: Any
) -> FrozenTrial:
    if state == TrialState.FAIL:
        value = None
    made = create_trial(
        state=state,
        value=value,
        params={"lr": 0.1},
        distributions={"lr": FloatDistribution(0, 1)},
        user_attrs=marks,
    )
    made.number = number
    made._trial_id = 100 + number
    return made


class TestWinner:
    def test_ties_go_to_the_earlier(self) -> None:
        trials = [trial(0, 0.1), trial(2, 0.5), trial(1, 0.5)]
        best = retraining.winner(trials, "maximize")
        assert best is not None
        assert best.number == 1

    def test_neither_pruned_nor_diverged(self) -> None:
        trials = [trial(0, 0.9, TrialState.PRUNED), trial(1, 0.8, diverged=True), trial(2, 0.7)]
        best = retraining.winner(trials, "maximize")
        assert best is not None
        assert best.number == 2
        assert retraining.winner(trials[:2], "maximize") is None
        assert retraining.winner([], "minimize") is None

    @pytest.mark.parametrize("direction", ["maximize", "minimize"])
    def test_it_is_the_incumbent_of_the_report(self, direction: Direction) -> None:
        chance = random.Random(5)
        for _ in range(300):
            trials = [
                trial(
                    number,
                    chance.choice([0.1, 0.2, 0.3, float("inf"), -float("inf")]),
                    chance.choice(list(WORDS)),
                    diverged=chance.random() < 0.3,
                )
                for number in range(chance.randrange(8))
            ]
            outcomes = [
                TrialOutcome(
                    number=one.number,
                    state=WORDS[one.state],  # type: ignore[arg-type] # a Literal's words, out of a dict
                    value=one.value,
                    params={},
                    epochs=1,
                    seconds=1.0,
                    diverged=one.user_attrs["diverged"],
                )
                for one in trials
            ]
            ours, theirs = retraining.winner(trials, direction), incumbent(outcomes, direction)
            assert (ours and ours.number) == (theirs and theirs.number)


class TestSeeds:
    def test_all_methods_of_a_replicate_have_the_same(self) -> None:
        seeds = [retraining.retraining_seed(3, 1, index) for index in range(10)]
        assert len(set(seeds)) == 10
        assert seeds[0] == derive_seed(3, 1, "retrain", 0)
        assert seeds != [retraining.retraining_seed(3, 2, index) for index in range(10)]

    def test_no_search_has_them(self) -> None:
        searched = {derive_seed(3, replicate, number) for replicate in range(5) for number in range(1000)}
        fresh = {retraining.retraining_seed(3, replicate, i) for replicate in range(5) for i in range(100)}
        assert len(fresh) == 500
        assert not searched & fresh

    def test_what_is_missing(self) -> None:
        def retrained(winner: int, index: int, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
            return trial(index, 0.5, state, **{WINNER_ID_KEY: winner, INDEX_KEY: index})

        there = [retrained(7, 0), retrained(7, 2, TrialState.FAIL), retrained(8, 1), trial(9, 0.5)]
        assert retraining.missing(7, there, 4) == [1, 3]
        assert retraining.missing(7, there, 0) == []
        assert retraining.missing(9, [], 2) == [0, 1]


class TestDue:
    WINNER = trial(3, 0.5)

    def _retrained(self, index: int, state: TrialState) -> FrozenTrial:
        marks = {WINNER_ID_KEY: self.WINNER._trial_id, INDEX_KEY: index}
        if state in (TrialState.WAITING, TrialState.RUNNING):
            made = create_trial(state=state, user_attrs=marks)
            made.number = index
            return made
        return trial(index, 0.5, state, **marks)

    def test_until_every_seed_has_begun(self) -> None:
        done = [self._retrained(0, TrialState.COMPLETE), self._retrained(1, TrialState.RUNNING)]
        waits = [done[0], self._retrained(1, TrialState.WAITING)]
        assert retraining.is_due([self.WINNER], [], "maximize", 2)
        assert retraining.is_due([self.WINNER], done, "maximize", 3)
        assert retraining.is_due([self.WINNER], waits, "maximize", 2)
        assert not retraining.is_due([self.WINNER], done, "maximize", 2)

    def test_never_without_seeds_or_without_a_winner(self) -> None:
        assert not retraining.is_due([self.WINNER], [], "maximize", 0)
        assert not retraining.is_due([trial(0, 0.5, diverged=True)], [], "maximize", 5)


def test_trials_of_a_study_that_is_not_there() -> None:
    assert retraining.trials_of(optuna.storages.InMemoryStorage(), "nothing")[0] == []
