"""What a broker does with trials that pause at rungs, on a database: rests, promotes, and ends them."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.study import Study
from optuna.trial import TrialState

from objectives.base import Scalar
from search.trials.broker import Broker
from search.trials.claims import Claim, Reported, Verdict
from search.trials.openings import Openings
from search.trials.study import draw, has_seed
from storage import queries
from storage.attempts import Attempts
from storage.checker import check_history
from storage.database import Database
from storage.errors import DatabaseUnreachable
from tests.contracts.claims import report_of, save
from tests.contracts.experiments import pausing_spec, prepared


def claim_one(broker: Broker) -> Claim:
    (claim,) = broker.claim(1)
    return claim


def report(broker: Broker, claim: Claim, epoch: int, value: float) -> Verdict:
    """An epoch's end, as a worker says it."""
    last = epoch == claim.start.config.epochs
    one = Reported(claim, report_of(epoch, value), last, leaving=not last and epoch == claim.until)
    verdicts = broker.store([one]) or broker.judge([one])
    broker.flush()
    return verdicts[claim.lease.token]


def train(broker: Broker, claim: Claim, value: float) -> Verdict:
    """To where the trial pauses or ends."""
    for epoch in range((claim.lease.last_step or 0) + 1, claim.leaves_after + 1):
        verdict = report(broker, claim, epoch, value)
    return verdict


def all_rest(broker: Broker, *values: float) -> list[Claim]:
    """New trials, all at once, that come to their first rung."""
    claims = broker.claim(len(values))
    assert len(claims) == len(values)
    for claim, value in zip(claims, values, strict=True):
        assert train(broker, claim, value) is Verdict.PAUSE
    return claims


class TestBroker:
    def test_a_trial_rests_and_is_promoted_before_a_new_one_begins(self, database: Database) -> None:
        with prepared(database, pausing_spec()) as running, running.broker() as broker:
            first = claim_one(broker)
            assert first.until == 1
            save(first, 1)
            assert train(broker, first, 0.9) is Verdict.PAUSE
            trial = running.trials("random")[0]
            assert (trial.state, trial.last_step) == (TrialState.WAITING, 1)
            second = claim_one(broker)
            assert second.lease.number == 1, "one of one is not the better half"
            train(broker, second, 0.1)
            again = claim_one(broker)
            assert (again.lease.number, again.lease.attempt, again.until) == (0, 2, 2)
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"
            assert claim_one(broker).lease.number == 2
            states = [attempt.state for attempt in Attempts(database).of_trial(first.trial_id)]
            assert states == ["released", "running"]

    def test_what_rests_is_left_where_it_is(self, database: Database) -> None:
        """It has values, as what was interrupted, which goes on before anything else."""
        with prepared(database, pausing_spec(5)) as running, running.broker() as broker:
            all_rest(broker, 0.5)
            lost = claim_one(broker)
            assert report(broker, lost, 1, 0.1) is Verdict.PAUSE
            promoted = claim_one(broker)
            assert promoted.lease.number == 0
            broker.release(promoted)
            broker.flush()
            new = broker.claim(3)
            assert [claim.lease.number for claim in new] == [0, 2, 3], "0 is promoted again, 1 is not"

    def test_a_trial_that_was_lost_between_two_rungs_goes_on_first(self, database: Database) -> None:
        with prepared(database, pausing_spec(6, epochs=8)) as running, running.broker() as broker:
            all_rest(broker, 0.4, 0.2, 0.3, 0.1)
            up = broker.claim(2)
            assert sorted(claim.lease.number for claim in up) == [0, 2]
            assert [train(broker, claim, 0.5) for claim in up] == [Verdict.PAUSE] * 2
            further = claim_one(broker)
            assert (further.lease.number, further.until) == (0, 4)
            report(broker, further, 3, 0.6)
            broker.release(further)
            broker.flush()
            again = claim_one(broker)
            assert (again.lease.number, again.lease.last_step, again.until) == (0, 3, 4)

    def test_a_trial_that_begins_anew_does_not_rest_where_it_rested(self, database: Database) -> None:
        """Its checkpoint is gone: it goes through all of its epochs again."""
        with prepared(database, pausing_spec(2)) as running, running.broker() as broker:
            all_rest(broker, 0.9, 0.1)
            again = claim_one(broker)
            assert again.start.checkpoint is None
            assert report(broker, again, 1, 0.9) is Verdict.CONTINUE
            assert report(broker, again, 2, 0.9) is Verdict.PAUSE
            (row,) = [row for row in queries.trials(database, running.experiment.id) if row.number == 0]
            assert row.epochs == 2

    def test_nothing_is_ended_while_a_trial_runs_that_may_promote_it(self, database: Database) -> None:
        with prepared(database, pausing_spec(2)) as running, running.broker() as broker:
            first, second = broker.claim(2)
            train(broker, first, 0.1)
            assert broker.claim(1) == []
            assert not broker.exhausted
            assert Openings(running.storage, running.spec).now(9) == 0
            assert running.trials("random")[0].state == TrialState.WAITING
            train(broker, second, 0.2)
            assert claim_one(broker).lease.number == 1

    def test_what_is_never_promoted_ends_as_pruned_where_it_rests(self, database: Database) -> None:
        with prepared(database, pausing_spec(4)) as running, running.broker() as broker:
            resting = all_rest(broker, 0.1, 0.2, 0.4, 0.3)
            for claim in resting:
                save(claim, 1)
            for _ in range(3):  # 2 and 3 to the second rung, 2 to the end
                claim = claim_one(broker)
                train(broker, claim, claim.lease.number / 10)
            openings = Openings(running.storage, running.spec)
            progress = queries.progress(database, running.experiment.id)
            assert openings.now(9) == 1, "somebody has to be hired to end it"
            assert openings.ever(progress)
            assert broker.claim(1) == []
            assert broker.claim(1) == []
            assert broker.exhausted
            assert openings.now(9) == 0
            trials = running.trials("random")
            ends = [(trial.state.name, trial.last_step, trial.value) for trial in trials]
            assert ends == [
                ("PRUNED", 1, 0.1),
                ("PRUNED", 1, 0.2),
                ("PRUNED", 2, 0.2),
                ("COMPLETE", 4, 0.3),
            ]
            assert [trial.user_attrs["epochs"] for trial in trials] == [trial.last_step for trial in trials]
            assert all(has_seed(trial.user_attrs) for trial in trials)
            assert not any(claim.folder.path.exists() for claim in resting)
        assert check_history(database, running.experiment.id, at_rest=True) == []

    def test_who_is_killed_while_it_ends_them_leaves_them_to_another(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with prepared(database, pausing_spec(2, epochs=2)) as running:
            with running.broker("killed") as broker:
                all_rest(broker, 0.2, 0.1)
                train(broker, claim_one(broker), 0.3)

                def cut(**_: object) -> None:
                    raise DatabaseUnreachable("killed here", retryable=False)

                monkeypatch.setattr(broker.holdings, "write", cut)
                with pytest.raises(DatabaseUnreachable):
                    broker.claim(1)
            dead = list(database.scalar("SELECT array_agg(id) FROM shoal.workers") or [])
            (taken,) = running.ledger.expire(running.experiment.id, dead_workers=dead)
            assert taken.number == 1
            assert running.trials("random")[1].state == TrialState.WAITING
            with running.broker("next") as broker:
                assert broker.claim(1) == broker.claim(1) == []
                assert broker.exhausted
            assert [trial.state.name for trial in running.trials("random")] == ["COMPLETE", "PRUNED"]
            assert check_history(database, running.experiment.id, at_rest=True) == []

    def test_too_few_trials_for_a_promotion_still_find_a_winner(self, database: Database) -> None:
        with prepared(database, pausing_spec(1)) as running, running.broker() as broker:
            seen = []
            while claims := broker.claim(1):
                seen.append(claims[0].until)
                train(broker, claims[0], 0.5)
            assert seen == [1, 2, 4]
            assert [trial.state for trial in running.trials("random")] == [TrialState.COMPLETE]

    def test_a_budget_of_epochs_counts_those_after_a_pause_alone(self, database: Database) -> None:
        spec = pausing_spec(50, budget={"trials": 50, "epochs": 6})
        with prepared(database, spec) as running, running.broker() as broker:
            while claims := broker.claim(1):
                train(broker, claims[0], 0.01 * claims[0].lease.number)
            assert broker.claim(1) == []
            # After 1 + 2 + 1 epochs the third is promised two to the second rung, then two to its end.
            ends = [(trial.state.name, trial.last_step) for trial in running.trials("random")]
            assert ends == [("PRUNED", 1), ("PRUNED", 2), ("COMPLETE", 4)]

    def test_a_sampler_learns_from_what_rests(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown: list[list[tuple[str, float | None]]] = []

        def noted(seen: Study, *asked: Any, **how: Any) -> dict[str, Scalar]:
            others = [trial for trial in seen.get_trials() if trial.state != TrialState.RUNNING]
            shown.append([(trial.state.name, trial.value) for trial in others])
            return draw(seen, *asked, **how)

        monkeypatch.setattr("search.trials.study.draw", noted)
        with prepared(database, pausing_spec(3, methods={"tpe": {}})) as running, running.broker() as broker:
            train(broker, claim_one(broker), 0.2)
            claim_one(broker)
        assert shown == [[], [("PRUNED", 0.2)]]
