"""Which trials rest, go on and are ended, and what twins take over of each other; without a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.pruning.promotion import AshaPromotion
from search.trials import endings, starting
from search.trials.claims import Claim, Reported, Shared, Verdict, pauses
from search.trials.pausing import Pausing
from search.trials.placing import (
    Limits,
    Load,
    Starts,
    begun,
    is_at_rest,
    is_decided,
    may_ever_start,
    may_start,
    shares,
    starts,
)
from search.trials.sharing import Sharing
from search.trials.study import SEED_KEY, Drawn, Tally, has_seed
from storage.twins import Asked, Found, Point
from tests.contracts.claims import claim_of, lease_of, report_of, save
from tests.contracts.experiments import pausing_spec

# What is decided


def a_load(**changes: Any) -> Load:
    fields: dict[str, Any] = {
        "trials": 10,
        "running": 0,
        "interrupted": 0,
        "fresh": 0,
        "epochs": 20,
        "committed": 20,
    }
    return Load(**fields | changes)


OPEN, FULL = Limits(trials=20, epochs=None, in_flight=None), Limits(trials=10, epochs=None, in_flight=None)


class TestPlacing:
    def test_what_was_promoted_comes_before_what_is_new_and_after_what_was_lost(self) -> None:
        load = a_load(interrupted=1, fresh=1, paused=5, promotable=(2, 6))
        assert starts(load, OPEN, 9, 1) == Starts(waiting=2, promoted=2, new=5)
        assert starts(load, OPEN, 1, 1) == Starts(waiting=1, promoted=0, new=0)
        assert starts(load, OPEN, 2, 1) == Starts(waiting=1, promoted=1, new=0)
        assert starts(load, FULL, 9, 1).total == 4

    def test_a_promotion_promises_the_epochs_until_the_next_pause(self) -> None:
        load = begun(a_load(paused=3, promotable=(2, 6)), 1)
        assert (load.running, load.paused, load.promotable, load.committed) == (1, 2, (6,), 22)

    def test_a_budget_of_epochs_that_is_spent_stops_new_trials_alone(self) -> None:
        spent = Limits(trials=20, epochs=20, in_flight=None)
        assert starts(a_load(paused=3, promotable=(2,)), spent, 9, 1) == Starts(0, 0, promoted=1)

    def test_resting_trials_are_to_end_once_nothing_else_is_left(self) -> None:
        assert is_at_rest(a_load(paused=3), FULL)
        for change in ({"running": 1}, {"interrupted": 1}, {"promotable": (2,)}, {"fresh": 1}, {"paused": 0}):
            assert not is_at_rest(a_load(**{"paused": 3} | change), FULL), change
        assert not is_at_rest(a_load(paused=3), OPEN), "new trials may yet promote them"
        assert may_start(a_load(paused=3), FULL)
        assert starts(a_load(paused=3), FULL, 9, 1).total == 0

    def test_a_study_with_resting_trials_is_not_decided(self) -> None:
        assert may_ever_start(a_load(paused=1), FULL)
        assert not is_decided(a_load(paused=1), FULL)
        assert is_decided(a_load(), FULL)
        assert not may_start(a_load(paused=1, running=1), FULL), "the one that runs may yet promote it"

    def test_ending_what_rests_is_one_of_the_trials_that_are_asked_for(self) -> None:
        loads = {"a": a_load(paused=3), "b": a_load(trials=5)}
        assert shares(loads, {"a": FULL, "b": FULL}, 9, 1) == {"a": 1, "b": 5}


def a_trial(number: int, state: TrialState, curve: Mapping[int, float], **user: Any) -> FrozenTrial:
    done = state == TrialState.COMPLETE
    trial = create_trial(
        state=state, value=0.5 if done else None, intermediate_values=dict(curve), user_attrs=user
    )
    trial.number = number
    trial.params = {"x": 1.0}
    return trial


class TestLoad:
    def load(self, *trials: FrozenTrial, limits: Limits = OPEN) -> tuple[Load, Pausing]:
        pausing = Pausing(AshaPromotion(1, 2, 8, maximize=True), limits, has_seed)
        return pausing.load(Tally(8).update(trials), trials), pausing

    def test_tells_what_rests_from_what_was_lost(self) -> None:
        fresh = a_trial(4, TrialState.WAITING, {})
        fresh.params = {}
        load, pausing = self.load(
            a_trial(0, TrialState.WAITING, {1: 0.1}),
            a_trial(1, TrialState.WAITING, {1: 0.9, 2: 0.9, 3: 0.9}),
            a_trial(2, TrialState.WAITING, {}),
            a_trial(3, TrialState.RUNNING, {1: 0.8, 2: 0.2}, **{SEED_KEY: 1}),
            fresh,
        )
        queue = pausing.queue
        assert (queue.interrupted, queue.resting, queue.promoted, queue.fresh) == ((1, 2), (0,), (), (4,))
        assert (load.running, load.interrupted, load.paused, load.fresh) == (1, 2, 1, 1)
        # 1 goes on to epoch 4, 2 to the first rung, 3 from the second to the third.
        assert (load.epochs, load.committed) == (1 + 3 + 2, 6 + 1 + 1 + 2)

    def test_who_is_promoted_and_how_far(self) -> None:
        resting = [a_trial(n, TrialState.WAITING, {1: n / 10}) for n in range(4)]
        load, pausing = self.load(*resting, a_trial(4, TrialState.PRUNED, {1: 0.05}))
        assert pausing.queue.promoted == (3, 2)
        assert load.promotable == (1, 1)
        assert pausing.queue.taken(Starts(waiting=0, new=3, promoted=1)) == [3]

    def test_a_study_without_a_winner_sends_its_best_to_the_end(self) -> None:
        alone = a_trial(0, TrialState.WAITING, {1: 0.5, 2: 0.5})
        load, pausing = self.load(alone, limits=Limits(trials=1, epochs=None, in_flight=None))
        assert (pausing.queue.promoted, load.promotable) == ((0,), (2,))
        lost = a_trial(1, TrialState.COMPLETE, {1: 0.0}, diverged=True)
        assert self.load(alone, lost, limits=FULL)[0].promotable == (), "there are new ones to try first"
        two = Limits(trials=2, epochs=None, in_flight=None)
        assert self.load(alone, lost, limits=two)[0].promotable == (2,)
        found = a_trial(1, TrialState.COMPLETE, {1: 0.0})
        assert self.load(alone, found, limits=two)[0].promotable == ()

    def test_another_clients_trial_is_not_waited_for(self) -> None:
        theirs = a_trial(1, TrialState.RUNNING, {})
        done = a_trial(2, TrialState.COMPLETE, {1: 1.0})
        limits = Limits(trials=3, epochs=None, in_flight=None)
        load, _ = self.load(a_trial(0, TrialState.WAITING, {1: 0.1}), theirs, done, limits=limits)
        assert is_at_rest(load, limits)


# Trials of several methods that are the same trial


class KnownTwins:
    """Stands for the database: one twin, which trained nine epochs and is complete."""

    def look(self, asked: Iterable[Asked]) -> dict[int, Found]:
        points = [
            Point(epoch, 1.0, 1.0, {"accuracy": epoch / 10}, 1.0, 0.1, 0.1, 1.0, False)
            for epoch in range(1, 10)
        ]
        return {
            one.token: Found(None, "small/random/0", tuple(points[one.after :]), complete=True)
            for one in asked
        }


@pytest.mark.parametrize("judged", [True, False])
def test_of_a_twin_no_more_is_taken_over_than_to_where_a_trial_pauses(tmp_path: Path, judged: bool) -> None:
    """However far the twin was promoted, and although it has ended."""
    sharing = Sharing(KnownTwins(), judged=judged)  # type: ignore[arg-type]
    claim = replace(claim_of(1, tmp_path, epochs=9), common=0, until=3)
    assert sharing.sift([claim]) == []
    said = []
    while taken := sharing.replay():
        said += taken
        over = any(map(pauses, taken))
        sharing.heard({claim.lease.token: Verdict.PAUSE if over else Verdict.CONTINUE})
    assert [one.report.epoch for one in said] == [1, 2, 3]
    assert not any(one.last for one in said)
    assert [pauses(one) for one in said] == [False, False, True]
    assert len(sharing) == 0, "what rests is held no more"


def test_epochs_that_were_taken_over_before_a_pause_are_counted_with_those_after_it(tmp_path: Path) -> None:
    claim = replace(claim_of(1, tmp_path, epochs=9), until=1, shared=Shared("small/random/0", 1))
    first = endings.paused(Reported(claim, report_of(1), last=False))
    assert (first.state, first.attributes["shoal:shared_epochs"]) == ("released", 1)
    lease = lease_of(1, attempt=2, attributes=first.attributes, last_step=1)
    later = replace(claim, lease=lease, until=3, shared=Shared("small/random/0", 2))
    assert endings.paused(Reported(later, report_of(3), last=False)).attributes == {
        "shoal:shared_with": "small/random/0",
        "shoal:shared_epochs": 3,
    }
    alone = replace(later, shared=None)
    assert endings.paused(Reported(alone, report_of(3), last=False)).attributes == {}


def test_a_trial_that_rested_on_taken_over_epochs_goes_on_from_its_twins_checkpoint(tmp_path: Path) -> None:
    spec = pausing_spec(methods={"random": {}, "tpe": {}})
    drawn = Drawn({"learning_rate": 0.1, "lambda": 0.0}, 17, None, common=0)
    lease = lease_of(1, number=0, last_step=2)

    def claimed(method: str, until: int | None) -> Claim:
        return starting.claim_of(
            spec, tmp_path, lease, drawn, place=(method, 0), retraining=None, until=until
        )

    save(claimed("random", 4), 1)
    save(claimed("random", 4), 2)
    checkpoint = claimed("tpe", 4).start.checkpoint
    assert checkpoint is not None
    assert checkpoint.read_text() == "state 2"
    save(claimed("tpe", 4), 1)
    own = claimed("tpe", 4).start.checkpoint
    assert own is not None
    assert own.read_text() == "state 1", "its own goes before"
