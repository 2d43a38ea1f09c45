"""The desk, moved by hand: its thread's work is one `step`, its clock and its broker are the test's."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from objectives.base import TrialFailure
from search.trials import sharing
from search.trials.claims import Reported, Verdict
from search.work.desk import LONGEST_PAUSE
from tests.contracts.claims import claim_of, report_of
from tests.search.work.desk_table import AWAY, Table


class TestTaking:
    def test_nothing_is_claimed_before_it_is_asked_for(self, tmp_path: Path) -> None:
        table = Table(5, tmp_path)
        table.step()
        assert table.broker.asked == []
        assert table.desk.take(2, 1) == []
        table.step()
        assert table.broker.asked == [3]
        assert [claim.trial_id for claim in table.desk.take(2, 1)] == [0, 1]
        table.step()
        assert table.broker.asked == [3], "the one ahead lies ready"
        assert [claim.trial_id for claim in table.desk.take(2, 0)] == [2]
        table.step()
        assert table.broker.asked == [3, 1]

    def test_exhausted_once_nothing_is_left_and_nothing_is_under_way(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        assert not table.desk.exhausted
        table.desk.take(1, 0)
        table.step()
        assert table.desk.exhausted
        # A trial that fails may come back: what was known is no longer sure.
        table.desk.fail(claim, TrialFailure(0, "memory", "", retryable=True))
        assert not table.desk.exhausted
        table.step(LONGEST_PAUSE)
        assert table.desk.exhausted

    def test_looks_again_after_longer_and_longer_pauses(self, tmp_path: Path) -> None:
        table = Table(0, tmp_path)
        table.desk.take(1, 0)
        for _ in range(400):
            table.step(0.01)
        assert 8 <= len(table.broker.asked) <= 14, "0.02 s, doubling to 0.5 s, in 4 s"

    def test_idle_when_nothing_came_for_as_long_as_one_may_wait(self, tmp_path: Path) -> None:
        table = Table(2, tmp_path, idle=10.0)
        assert not table.desk.idle
        table.take(1)
        table.now += 100
        assert not table.desk.idle, "it was training"
        table.desk.start()
        began = table.now
        waiting = threading.Thread(target=table.desk.wait)
        waiting.start()
        while waiting.is_alive():
            table.now += 1  # the desk's thread looks meanwhile, and finds nothing
            waiting.join(0.01)
        assert table.now - began >= 10
        assert table.desk.idle
        table.desk.take(1, 0)
        while not (given := table.desk.take(1, 0)):
            pass
        assert [claim.trial_id for claim in given] == [1]
        assert not table.desk.idle, "a trial came after all"
        table.desk.close()

    def test_never_idle_unless_said(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        table.desk.take(1, 0)
        table.step()
        table.desk.wait()
        table.now += 1e6
        assert not table.desk.idle

    def test_at_once_after_a_trial_has_ended(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        table.desk.take(1, 0)
        table.step()
        asked = len(table.broker.asked)
        table.desk.end_epoch(claim, report_of(3), last=True)
        table.step()
        assert len(table.broker.asked) == asked + 1


class TestReports:
    def test_all_that_lies_there_is_one_batch(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        claims = table.take(3)
        table.broker.prune = {1}
        for claim in claims:
            table.desk.end_epoch(claim, report_of(1), last=False)
        assert table.desk.verdict(claims[0], wait=False) is None
        table.step()
        assert table.broker.stored == [[0, 1, 2]]
        verdicts = [table.desk.verdict(claim, wait=False) for claim in claims]
        assert verdicts == [Verdict.CONTINUE, Verdict.PRUNE, Verdict.CONTINUE]
        assert table.desk.verdict(claims[0], wait=False) is None, "a verdict is heard once"

    def test_a_verdict_is_of_all_that_a_trial_reported(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        for epoch in (1, 2):
            table.desk.end_epoch(claim, report_of(epoch), last=False)
        table.step()
        assert table.broker.stored == [[0, 0]]
        table.desk.end_epoch(claim, report_of(3), last=False)
        assert table.desk.verdict(claim, wait=False) is None, "the third is not stored yet"
        judge = table.broker.judge

        def reported_meanwhile(reported: Sequence[Reported]) -> dict[int, Verdict]:
            table.desk.end_epoch(claim, report_of(4), last=False)
            return judge(reported)

        table.broker.judge = reported_meanwhile  # type: ignore[method-assign]
        table.step()
        assert table.desk.verdict(claim, wait=False) is None, "the fourth is not"
        table.broker.judge = judge  # type: ignore[method-assign]
        table.step()
        assert table.desk.verdict(claim, wait=False) is Verdict.CONTINUE

    def test_endings_are_written_before_the_next_claim(self, tmp_path: Path) -> None:
        table = Table(2, tmp_path)
        (claim,) = table.take(1)
        table.broker.said.clear()
        order: list[str] = []
        table.broker.flush = lambda: order.append("flush")  # type: ignore[method-assign]
        claimed = table.broker.claim
        table.broker.claim = lambda wanted: order.append("claim") or claimed(wanted)  # type: ignore
        table.desk.fail(claim, TrialFailure(0, "no", "", retryable=True))
        table.desk.take(1, 0)
        table.step()
        assert table.broker.of(0) == ["fail"]
        assert order == ["flush", "claim"]

    def test_a_reading_that_fails_stores_nothing_twice(self, tmp_path: Path) -> None:
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        table.desk.end_epoch(claim, report_of(1), last=False)
        table.broker.errors["judge"] = AWAY
        table.step()
        table.step()
        assert table.broker.stored == [[0]]
        table.broker.errors.clear()
        table.step()
        assert table.broker.stored == [[0]]
        assert table.desk.verdict(claim, wait=False) is Verdict.CONTINUE

    def test_a_lease_lost_in_the_middle_of_an_epoch_is_told(self, tmp_path: Path) -> None:
        table = Table(3, tmp_path)
        claims = table.take(2, ahead=1)
        table.broker.taken = [claims[1].lease.token, 2]
        table.step()
        assert table.desk.verdict(claims[0], wait=False) is None
        assert table.desk.verdict(claims[1], wait=False) is Verdict.TAKEN
        assert table.desk.take(1, 0) == [], "the one that lay ready is lost as well"

    def test_a_lost_trial_may_come_back(self, tmp_path: Path) -> None:
        """Nothing was left but that: the worker must not leave before it has looked again."""
        table = Table(1, tmp_path)
        (claim,) = table.take(1)
        table.desk.take(1, 0)
        table.step()
        assert table.desk.exhausted
        table.broker.taken = [claim.lease.token]
        table.broker.waiting.append(claim_of(0, tmp_path, token=50, attempt=2))
        table.step()
        assert not table.desk.exhausted
        table.step()
        assert [again.lease.attempt for again in table.desk.take(1, 0)] == [2]


class TestSharing:
    """A trial that waits for another method's takes no slot; what that one says is stored and judged."""

    def _table(self, folder: Path) -> Table:
        table = Table(2, folder)
        first = table.broker.waiting[0]
        table.broker.waiting[0] = replace(first, common=0)
        return table

    def test_its_epochs_are_stored_with_those_of_others(self, tmp_path: Path) -> None:
        table = self._table(tmp_path)
        (other,) = table.take(2)
        assert other.trial_id == 1
        assert not table.desk.exhausted
        table.broker.twins.points = [report_of(1), report_of(2), report_of(3)]
        table.desk.end_epoch(other, report_of(1), last=False)
        table.step(sharing.LOOK_SECONDS)
        assert table.broker.stored == [[1, 0]]
        assert table.desk._seconds_to_wait() == 0.0
        table.step()
        table.step()
        assert table.broker.stored == [[1, 0], [0], [0]]
        table.step()
        assert table.desk.exhausted

    def test_it_is_pruned_as_others_are(self, tmp_path: Path) -> None:
        table = self._table(tmp_path)
        table.take(2)
        table.broker.twins.points = [report_of(1), report_of(2)]
        table.broker.prune = {0}
        for _ in range(3):
            table.step(sharing.LOOK_SECONDS)
        assert table.broker.stored == [[0]]

    def test_it_is_begun_here_once_nobody_else_trains_it(self, tmp_path: Path) -> None:
        table = self._table(tmp_path)
        table.take(2)
        table.broker.twins.leader = None
        table.desk.take(1, 0)
        table.step(sharing.LOOK_SECONDS)
        (claim,) = table.desk.take(1, 0)
        assert claim.trial_id == 0

    def test_told_to_go_it_is_given_back(self, tmp_path: Path) -> None:
        table = self._table(tmp_path)
        table.take(2)
        table.interrupted.set()
        table.broker.twins.points = [report_of(1)]
        table.step(sharing.LOOK_SECONDS)
        assert table.broker.of(0) == ["release"]
        assert table.broker.stored == []

    def test_with_its_lease_it_is_forgotten(self, tmp_path: Path) -> None:
        table = self._table(tmp_path)
        table.take(2)
        table.broker.taken = [0]
        table.step()
        table.broker.twins.points = [report_of(1)]
        table.step(sharing.LOOK_SECONDS)
        assert table.broker.stored == []
