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
            job = ours.next(table, paused)
            expected = paper.get_job()
            if expected is None:
                assert job is None
                trials.append(create_trial(state=TrialState.RUNNING))
                trials[-1].number = len(trials) - 1
                busy[trials[-1].number] = ours.first_pause()
            else:
                assert job == Promotion(*expected)
                paused.remove(job.number)
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


def test_nothing_to_promote() -> None:
    table = RungTable()
    assert AshaPromotion(1, 3, 9, maximize=True).next(table, ()) is None
    trials = [create_trial(state=TrialState.RUNNING, intermediate_values={1: value}) for value in (0.1, 0.2)]
    for number, trial in enumerate(trials):
        trial.number = number
    table.update(trials)
    assert AshaPromotion(1, 3, 9, maximize=True).next(table, (0, 1)) is None
    assert AshaPromotion(1, 2, 9, maximize=True).next(table, (0, 1)) == Promotion(1, 2)
