"""Several claims and epochs at once through a broker, and experiments that change meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from objectives.base import TrialFailure
from search.trials.claims import Claim, Reported, Verdict
from search.trials.placing import Load
from search.trials.study import RETRY_KEY
from storage.checker import check_history
from storage.database import Database
from tests.contracts.claims import report_of
from tests.contracts.experiments import Running, prepared, small_spec
from tests.search.trials.broker_steps import all_claims, end_epoch, one_claim


class TestGrowth:
    def test_a_larger_budget_is_noticed_at_the_next_claim(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            first = all_claims(broker)
            assert (len(first), broker.exhausted) == (2, True)
            broker.adopt(small_spec(methods={"random": {}}, budget={"trials": 5}))
            assert len(all_claims(broker)) == 3
            # What was claimed before goes on as if nothing had happened.
            assert end_epoch(broker, first[0], report_of(3), last=True) is Verdict.FINISH

    def test_a_repeated_trial_has_the_seed_of_the_first_and_is_no_part_of_the_budget(
        self, database: Database
    ) -> None:
        spec = small_spec(methods={"random": {}}, budget={"trials": 2})
        later = itertools.count(0, 10)  # so that what others did is always looked up
        with prepared(database, spec) as running, running.broker(clock=lambda: next(later)) as broker:
            failure = TrialFailure(0, "went wrong", "Traceback: here", retryable=False)
            one, other = one_claim(broker), one_claim(broker)
            broker.fail(other, failure)
            broker.flush()
            for _ in range(2):
                (retried,) = running.ledger.retry_failed(running.experiment.id)
                again = one_claim(broker)
                assert again.lease.number == retried.new_number
                assert (again.start.seed, again.values) == (other.start.seed, other.values)
                assert again.start.config == other.start.config
                broker.fail(again, failure)
                broker.flush()
            assert running.trials("random")[3].user_attrs[RETRY_KEY] == 2
            assert end_epoch(broker, one, report_of(3), last=True) is Verdict.FINISH
            assert all_claims(broker) == []
            assert broker.exhausted


class Sleeper:
    """A ledger whose worker is stopped before its first claim, until the server has taken its lock."""

    def __init__(self, ledger: Any, meanwhile: Callable[[], None]) -> None:
        self._ledger = ledger
        self._meanwhile: Callable[[], None] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def claim(self, *asked: Any, **how: Any) -> Any:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return self._ledger.claim(*asked, **how)


def test_who_lost_the_studys_lock_after_counting_overshoots_no_budget(database: Database) -> None:
    holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid <> 0"
    spec = small_spec(methods={"random": {}}, budget={"trials": 2})
    with prepared(database, spec) as running, running.broker("other") as other:
        theirs: list[Claim] = []

        def meanwhile() -> None:
            with database.own_connection() as connection:
                connection.execute(text(holders))
            # In a thread of its own, as another worker: what this one has read is no news to it.
            with ThreadPoolExecutor(1) as pool:
                theirs.extend(pool.submit(all_claims, other).result())

        with running.broker(ledger=Sleeper(running.ledger, meanwhile)) as broker:
            assert broker.claim(2) == []
            assert (len(theirs), len(running.trials("random"))) == (2, 2)
            assert broker.claim(2) == []


def test_who_waits_for_others_reads_the_more_seldom_the_longer_reading_takes(running: Running) -> None:
    now = [0.0]
    read: list[str] = []
    with running.broker(clock=lambda: now[0]) as broker:
        all_claims(broker)
        load = broker._standings._load

        def slowly(name: str) -> Load:
            now[0] += 0.05
            read.append(name)
            return load(name)

        broker._standings._load = slowly  # type: ignore[method-assign]
        now[0] += 10.0
        assert broker.claim(1) == []
        assert len(read) == 2, "both studies, in a tenth of a second"
        for pause, times in ((0.3, 2), (0.6, 2), (0.2, 4)):
            now[0] += pause
            assert broker.claim(1) == []
            assert len(read) == times


class TestBatches:
    def test_several_epochs_of_a_trial_are_stored_at_once(self, running: Running) -> None:
        with running.broker() as broker:
            claim = one_claim(broker)
            begun = [Reported(claim, report_of(epoch), last=False) for epoch in (1, 2)]
            assert broker.store(begun) == {}
            assert broker.judge(begun) == {claim.lease.token: Verdict.CONTINUE}
            other = one_claim(broker)
            whole = [Reported(other, report_of(epoch), last=epoch == 3) for epoch in (1, 2, 3)]
            assert broker.store(whole) == {other.lease.token: Verdict.FINISH}
            ended = running.storage.get_trial(other.trial_id)
            assert (ended.state, sorted(ended.intermediate_values)) == (TrialState.COMPLETE, [1, 2, 3])
            assert check_history(running.database, running.experiment.id) == []

    def test_a_pool_is_claimed_stored_and_judged_at_once(self, database: Database) -> None:
        spec = small_spec(
            methods={"random": {}}, pruner={"name": "asha", "eta": 2}, budget={"trials": 40}, replicates=2
        )
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(32)
            assert len(claims) == 32
            assert len({claim.trial_id for claim in claims}) == 32
            by_study = [claim.lease.study_name for claim in claims]
            assert by_study.count("small/random/0") == by_study.count("small/random/1") == 16
            reports = [
                Reported(claim, report_of(1, place / 100), last=False) for place, claim in enumerate(claims)
            ]
            assert broker.store(reports) == {}
            verdicts = broker.judge(reports)
            broker.flush()
            stopped = [
                place for place, claim in enumerate(claims) if verdicts[claim.lease.token] is Verdict.PRUNE
            ]
            assert len(stopped) == 16, "the worse half of each study's rung"
            states = [trial.state for trial in (*running.trials("random", 0), *running.trials("random", 1))]
            assert states.count(TrialState.PRUNED) == 16
            assert states.count(TrialState.RUNNING) == 16
            assert check_history(database, running.experiment.id) == []

    def test_adaptive_trials_see_each_others_values(self, database: Database) -> None:
        """Claimed together or one after the other, the values are the same: each draw sees those before."""
        values = {}
        for name, batches in (("together", [3]), ("apart", [1, 1, 1])):
            spec = small_spec(
                experiment=name,
                methods={"tpe": {"n_startup_trials": 4, "in_flight": 3}},
                budget={"trials": 9},
            )
            with prepared(database, spec) as running, running.broker() as broker:
                for place in range(6):
                    claim = one_claim(broker)
                    end_epoch(broker, claim, report_of(3, place / 10), last=True)
                claims = [claim for batch in batches for claim in broker.claim(batch)]
                values[name] = [claim.values for claim in claims]
        assert len(values["together"]) == 3
        assert values["together"] == values["apart"]

    def test_a_sampler_that_raises_leaves_nothing_claimed(
        self, running: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a sampler's mistake")

        monkeypatch.setattr("search.trials.study.draw", broken)
        with running.broker() as broker:
            with pytest.raises(RuntimeError, match="mistake"):
                broker.claim(4)
            broker.flush()
            assert len(broker.holdings) == 0
        states = {trial.state for method in ("grid", "random") for trial in running.trials(method)}
        assert TrialState.RUNNING not in states

    @pytest.mark.parametrize("known", [True, False])
    def test_a_deleted_study_is_left_out_and_the_others_go_on(self, database: Database, known: bool) -> None:
        """Whether it was read before or not; its trials under way are refused."""
        spec = small_spec(replicates=2, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            claims = broker.claim(12) if known else []
            optuna.delete_study(study_name="small/random/0", storage=running.storage)
            found = broker.claim(24 - len(claims))
            assert {claim.lease.study_name for claim in found} == {
                "small/grid/0",
                "small/grid/1",
                "small/random/1",
            }
            gone = [claim for claim in claims if claim.lease.study_name == "small/random/0"]
            assert len(claims) + len(found) == 18 + len(gone)
            reported = [Reported(claim, report_of(1, 0.5), last=False) for claim in (*claims, *found)]
            stored = broker.store(reported)
            assert stored == {claim.lease.token: Verdict.TAKEN for claim in gone}
            assert broker.lost() == [claim.lease.token for claim in gone]
            assert len(broker.judge([one for one in reported if one.claim not in gone])) == 18
            assert broker.claim(1) == []
            assert broker.exhausted

    def test_deleted_between_storing_and_judging(self, database: Database) -> None:
        spec = small_spec(methods={"random": {}}, pruner={"name": "asha", "eta": 2})
        with prepared(database, spec) as running, running.broker() as broker:
            reported = [Reported(claim, report_of(1, 0.5), last=False) for claim in broker.claim(4)]
            assert broker.store(reported) == {}
            optuna.delete_study(study_name="small/random/0", storage=running.storage)
            verdicts = broker.judge(reported)
            assert set(verdicts.values()) == {Verdict.CONTINUE}
            stored = broker.store(reported)
            assert set(stored.values()) == {Verdict.TAKEN}
