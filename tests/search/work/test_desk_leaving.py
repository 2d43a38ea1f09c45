"""How a desk ends: told to go, closed, its database away, its engine hung."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from search.trials.claims import Left, Look, Reported, Verdict
from search.trials.holdings import LeasesLost
from search.work.desk import AWAY_SECONDS, LONGEST_PAUSE, LOOK_SECONDS
from storage.errors import DatabaseUnreachable
from tests.contracts.claims import claim_of, report_of
from tests.contracts.experiments import small_spec
from tests.search.work.desk_table import AWAY, Table


class TestStopping:
    def test_what_was_claimed_ahead_is_given_back(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        table.take(1, ahead=2)
        table.look = Look(stop=True)
        table.step(LOOK_SECONDS)
        assert table.desk.stopping
        assert (table.broker.of(1), table.broker.of(2)) == (["release"], ["release"])
        assert table.broker.of(0) == [], "the one that trains leaves by itself"
        assert table.desk.take(1, 0) == []

    def test_the_database_is_asked_now_and_then(self, tmp_path: Path) -> None:
        table = Table(0, tmp_path)
        for _ in range(100):
            table.step(LOOK_SECONDS / 50)
        assert table.looks == 2

    def test_a_signal_needs_no_database(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        table.take(1, ahead=1)
        table.interrupted.set()
        assert table.desk.stopping
        table.step()
        assert table.broker.of(1) == ["release"]

    def test_an_experiment_that_has_grown_is_adopted(self, tmp_path: Path) -> None:
        table = Table(0, tmp_path)
        table.desk.take(1, 0)
        table.step()
        assert table.desk.exhausted
        grown = small_spec(budget={"trials": 9})
        table.look = Look(stop=False, grown=grown)
        table.broker.waiting.append(claim_of(7, tmp_path))
        table.step(LOOK_SECONDS)
        assert table.broker.adopted == [grown]
        assert [claim.trial_id for claim in table.desk.take(1, 0)] == [7]


class TestClosing:
    def test_every_trial_is_accounted_for(self, tmp_path: Path) -> None:
        table = Table(5, tmp_path)
        claims = table.take(3, ahead=2)
        table.desk.end_epoch(claims[0], report_of(3), last=True)
        table.desk.end_epoch(claims[1], report_of(1), last=False, leaving=True)
        table.desk.start()
        table.desk.close()
        assert table.broker.stored == [[0, 1]]
        assert table.broker.of(0) == [], "it has ended"
        assert table.broker.of(1) == [], "the broker gives it back once it is judged"
        assert [table.broker.of(number) for number in (2, 3, 4)] == [["release"]] * 3
        assert table.broker.said[-1] == ("flush", -1)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (RuntimeError("the engine broke"), "retry: its worker ended: RuntimeError: the engine broke"),
            (KeyboardInterrupt(), "release"),
        ],
    )
    def test_an_error_of_the_engine_is_held_against_what_it_trained(
        self, tmp_path: Path, error: BaseException, expected: str
    ) -> None:
        table = Table(2, tmp_path)
        table.take(1, ahead=1)
        table.desk.start()
        table.desk.close(error)
        assert table.broker.of(0) == [expected]
        assert table.broker.of(1) == ["release"]

    @pytest.mark.parametrize("where", ["claim", "store", "judge", "flush"])
    def test_errors_of_the_database_reach_the_engine(self, tmp_path: Path, where: str) -> None:
        table = Table(2, tmp_path)
        (claim,) = table.take(1)
        table.broker.errors[where] = DatabaseUnreachable("wrong password", retryable=False)
        table.desk.end_epoch(claim, report_of(1), last=False)
        table.desk.take(1, 0)
        table.desk.start()

        def train_on() -> None:
            table.desk.verdict(claim, wait=True)
            while True:
                table.desk.wait()

        with pytest.raises(DatabaseUnreachable, match="wrong password"):
            train_on()
        with pytest.raises(DatabaseUnreachable, match="wrong password"):
            table.desk.close()

    def test_the_engine_waits_for_its_verdict(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        stored, may_judge = threading.Event(), threading.Event()
        judge = table.broker.judge

        def slow(reported: Sequence[Reported]) -> dict[int, Verdict]:
            stored.set()
            assert may_judge.wait(60)
            return judge(reported)

        table.broker.judge = slow  # type: ignore[method-assign]
        table.desk.start()
        table.desk.end_epoch(claim, report_of(1), last=False)
        assert stored.wait(60)
        assert table.desk.verdict(claim, wait=False) is None
        may_judge.set()
        assert table.desk.verdict(claim, wait=True) is Verdict.CONTINUE
        table.desk.close()


class TestDatabaseAway:
    def test_an_absence_without_anything_to_write_is_waited_for(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        table.broker.errors["claim"] = AWAY
        table.desk.take(1, 0)
        table.step()
        table.step(LONGEST_PAUSE)
        table.broker.errors.clear()
        table.step(LONGEST_PAUSE)
        assert len(table.desk.take(1, 0)) == 1

    def test_beyond_the_lease_everything_held_is_dropped_and_claimed_anew(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        (claim,) = table.take(1, ahead=1)
        table.broker.errors |= {"store": LeasesLost("away"), "recover": AWAY}
        table.broker.taken = [claim.lease.token, 1]
        table.desk.end_epoch(claim, report_of(1), last=False)
        table.step()
        assert table.desk.verdict(claim, wait=False) is Verdict.TAKEN
        table.desk.part(claim)
        asked = len(table.broker.asked)
        for _ in range(5):
            table.desk.take(1, 0)
            table.step(LONGEST_PAUSE)
        assert len(table.broker.asked) == asked, "nothing is asked while it is away"
        table.broker.errors.clear()
        table.step(LONGEST_PAUSE)
        assert [again.trial_id for again in table.desk.take(1, 0)] == [2]
        assert table.broker.stored == [], "what was said under the old lease is never written"

    def test_it_rests_between_two_attempts_to_go_on(self, tmp_path: Path) -> None:
        """Whether to stop was to be asked long ago; that waits as well."""
        table = Table(1, tmp_path)
        table.broker.errors |= {"flush": LeasesLost("away"), "recover": AWAY}
        table.step(LOOK_SECONDS)
        table.step(10 * LOOK_SECONDS)
        assert table.desk._seconds_to_wait() == LONGEST_PAUSE

    def test_not_for_ever(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        table.broker.errors |= {"flush": LeasesLost("away"), "recover": AWAY}
        table.step()
        table.step(AWAY_SECONDS - 1)
        with pytest.raises(DatabaseUnreachable):
            table.step(1)


class TestEngineAway:
    def test_a_hung_engines_trial_is_tried_again_elsewhere(self, tmp_path: Path) -> None:
        table = Table(2, tmp_path, hang=100)
        table.take(1, ahead=1)
        with table.desk.training():
            table.step(100)
            assert table.abandoned == []
            with pytest.raises(Left, match="hung: the engine did not come back for 101 s"):
                table.step(1)
        assert table.abandoned == ["hung: the engine did not come back for 101 s (--hang-seconds)"]
        assert table.broker.of(0) == [f"retry: {table.abandoned[0]}"]
        assert table.broker.of(1) == ["release"]
        assert table.broker.said[-1] == ("flush", -1)

    def test_of_a_pool_the_newcomers_are_responsible(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        table.take(2)
        with table.desk.training():
            table.step(1)
        table.take(1)
        with table.desk.training(), pytest.raises(Left):
            table.step(1000)
        assert [table.broker.of(number)[0].split(":")[0] for number in range(3)] == [
            "release",
            "release",
            "retry",
        ]

    def test_an_engine_between_its_epochs_does_not_hang(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        table.take(1)
        with table.desk.training():
            table.step(1)
        table.step(10_000)
        assert table.abandoned == []

    def test_a_database_that_is_away_does_not_keep_a_hung_engine(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        table.take(1)
        table.broker.errors["flush"] = DatabaseUnreachable("away", retryable=True)
        with table.desk.training(), pytest.raises(Left):
            table.step(1000)
        assert len(table.abandoned) == 1

    def test_told_to_go_it_has_a_while_for_its_epoch(self, tmp_path: Path) -> None:
        table = Table(2, tmp_path, grace=20)
        table.take(1, ahead=1)
        with table.desk.training():
            table.interrupted.set()
            table.step(5)
            table.step(20)
            assert table.abandoned == []
            with pytest.raises(Left, match="told to leave"):
                table.step(1)
        assert table.broker.of(0) == ["release"], "that is not held against the trial"

    def test_without_a_limit_it_may_take_its_time(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path, hang=1e6)
        table.take(1)
        with table.desk.training():
            table.interrupted.set()
            table.step(5)
            table.step(10_000)
        assert table.abandoned == []
