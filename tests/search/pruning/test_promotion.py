"""Pause and promote: the published algorithm, followed step by step in simulated asynchronous runs."""

from __future__ import annotations

import random

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.pruning.promotion import AshaPromotion, Promotion
from search.pruning.rungs import RungTable


class Paper:
    """Algorithm 2 of Li et al. (2020), with sets as it is written there; s = 0."""

    def __init__(self, first: int, eta: int, longest: int) -> None:
        self.first, self.eta, self.longest = first, eta, longest
        self.rungs: list[dict[int, float]] = []
        self.promoted: list[set[int]] = []
        while first * eta ** len(self.rungs) < longest:
            self.rungs.append({})
            self.promoted.append(set())

    def report(self, number: int, epochs: int, loss: float) -> None:
        for k, rung in enumerate(self.rungs):
            if self.first * self.eta**k == epochs:
                rung[number] = loss

    def get_job(self) -> tuple[int, int] | None:
        for k in reversed(range(len(self.rungs))):
            ordered = sorted(self.rungs[k], key=lambda number: (self.rungs[k][number], number))
            candidates = ordered[: len(ordered) // self.eta]
            promotable = [number for number in candidates if number not in self.promoted[k]]
            if promotable:
                self.promoted[k].add(promotable[0])
                return promotable[0], min(self.first * self.eta ** (k + 1), self.longest)
        return None


@pytest.mark.parametrize("seed", range(40))
def test_follows_the_paper(seed: int) -> None:
    """Workers that end in random order; some trials fail, and stay at the rungs that they reached."""
    chance = random.Random(seed)
    first, eta, longest = chance.randint(1, 2), chance.randint(2, 4), chance.randint(1, 30)
    maximize = chance.random() < 0.5
    ours, paper = AshaPromotion(first, eta, longest, maximize), Paper(first, eta, longest)
    digits = chance.choice([1, 6])  # with ties, and without
    table = RungTable()
    trials: list[FrozenTrial] = []
    busy: dict[int, int] = {}
    paused: set[int] = set()
    promotions = 0
    for _ in range(200):
        while len(busy) < 5:
            table.update(trials)
            jobs = ours.promotions(table, paused)
            expected = paper.get_job()
            if expected is None:
                assert jobs == []
                trials.append(create_trial(state=TrialState.RUNNING))
                trials[-1].number = len(trials) - 1
                busy[trials[-1].number] = ours.pause_after(0)
            else:
                job = jobs[0]
                assert (job.number, job.until) == expected
                assert job.rung == trials[job.number].last_step
                paused.remove(job.number)
                # A promotion makes no other trial better or worse, so all may be made of one reading.
                assert ours.promotions(table, paused) == jobs[1:]
                busy[job.number] = job.until
                promotions += 1
        number = chance.choice(sorted(busy))
        until = busy.pop(number)
        trial = trials[number]
        for epoch in range((trial.last_step or 0) + 1, until + 1):
            loss = round(chance.gauss(0, 1), digits)
            trial.intermediate_values[epoch] = -loss if maximize else loss
            paper.report(number, epoch, loss)
        if until == longest or chance.random() < 0.05:
            if until != longest:
                for promoted in paper.promoted:
                    promoted.add(number)  # it can't go on
            trials[number] = create_trial(
                state=TrialState.COMPLETE if until == longest else TrialState.FAIL,
                value=0.0 if until == longest else None,
                intermediate_values=trial.intermediate_values,
            )
            trials[number].number = number
        else:
            paused.add(number)
    assert promotions or longest <= first


def _table(*curves: dict[int, float]) -> RungTable:
    trials = [create_trial(state=TrialState.WAITING, intermediate_values=curve) for curve in curves]
    for number, trial in enumerate(trials):
        trial.number = number
    table = RungTable()
    table.update(trials)
    return table


def test_nothing_to_promote() -> None:
    assert AshaPromotion(1, 3, 9, maximize=True).promotions(RungTable(), ()) == []
    table = _table({1: 0.1}, {1: 0.2})
    assert AshaPromotion(1, 3, 9, maximize=True).promotions(table, (0, 1)) == []
    assert AshaPromotion(1, 2, 9, maximize=True).promotions(table, (0, 1)) == [Promotion(1, 1, 2)]


def test_where_trials_pause() -> None:
    """At rungs before the end: one at the last epoch would be no pause."""
    rule = AshaPromotion(2, 3, 18, maximize=True)
    assert [rule.pause_after(epoch) for epoch in (0, 1, 2, 5, 6, 17)] == [2, 2, 6, 6, 18, 18]
    assert [epoch for epoch in range(20) if rule.rests_at(epoch)] == [2, 6]


def test_the_best_of_the_highest_rung_is_the_furthest() -> None:
    rule = AshaPromotion(1, 3, 9, maximize=False)
    table = _table({1: 0.1}, {1: 0.5, 3: 0.4}, {1: 0.6, 3: 0.3}, {1: 0.0, 3: 0.1})
    assert rule.promotions(table, (1, 2)) == [], "the best of its rung runs"
    assert rule.furthest(table, (0, 1, 2)) == Promotion(2, 3, 9)
    assert rule.furthest(table, (0,)) == Promotion(0, 1, 3)
    assert rule.furthest(table, ()) is None
