"""The desk, moved by hand: its thread's work is one `step`, its clock and its broker are the test's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from objectives.base import EpochReport, TrialFailure
from search.experiment.spec import ExperimentSpec
from search.trials import sharing
from search.trials.claims import Claim, Left, Look, Patience, Reported, Verdict, ends
from search.trials.holdings import LeasesLost
from search.trials.sharing import Sharing
from search.work.desk import AWAY_SECONDS, LONGEST_PAUSE, LOOK_SECONDS, Desk
from storage.errors import DatabaseUnreachable
from storage.twins import Asked, Found
from tests.contracts.claims import claim_of, report_of
from tests.contracts.experiments import small_spec

AWAY = DatabaseUnreachable("away", retryable=True)


class Holdings:
    """How many leases are held, and when to beat."""

    def __init__(self) -> None:
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def seconds_to_beat(self) -> float:
        return 10.0


class Twins:
    """What other methods' trials have for those of `Broker` that may be shared."""

    def __init__(self) -> None:
        self.points: list[EpochReport] = []
        self.leader: int | None = 99

    def look(self, asked: Iterable[Asked]) -> dict[int, Found]:
        return {
            one.token: Found(
                self.leader, "s/other/0", tuple(point for point in self.points if point.epoch > one.after)
            )
            for one in asked
        }


class Broker:
    """Trials 0 … `trials` − 1, what is said of them, and errors on demand."""

    def __init__(self, trials: int, folder: Path, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.waiting = deque(claim_of(number, folder) for number in range(trials))
        self.holdings = Holdings()
        self.twins = Twins()
        self.sharing = Sharing(self.twins, judged=True, clock=clock)  # type: ignore[arg-type]
        self.said: list[tuple[str, int]] = []
        self.prune: set[int] = set()
        self.stored: list[list[int]] = []
        self.errors: dict[str, Exception] = {}
        self.taken: list[int] = []
        self.adopted: list[ExperimentSpec] = []
        self.asked: list[int] = []

    def _raise(self, name: str) -> None:
        if name in self.errors:
            raise self.errors[name]

    @property
    def exhausted(self) -> bool:
        return not self.waiting and not self.sharing

    def adopt(self, spec: ExperimentSpec) -> None:
        self.adopted.append(spec)

    def claim(self, wanted: int) -> list[Claim]:
        self._raise("claim")
        self.asked.append(wanted)
        freed = self.sharing.freed(wanted)
        missing = min(wanted - len(freed), len(self.waiting))
        freed += self.sharing.sift(self.waiting.popleft() for _ in range(missing))
        return freed + self.sharing.freed(wanted - len(freed))

    def store(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        self._raise("store")
        self.stored.append([one.claim.trial_id for one in reported])
        verdicts = {one.claim.lease.token: Verdict.FINISH for one in reported if ends(one)}
        self.sharing.heard(verdicts)
        return verdicts

    def judge(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        self._raise("judge")
        verdicts = {
            one.claim.lease.token: Verdict.PRUNE if one.claim.trial_id in self.prune else Verdict.CONTINUE
            for one in reported
        }
        self.sharing.heard(verdicts)
        return verdicts

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        self.said.append(("fail", claim.trial_id))

    def retry(self, claim: Claim, reason: str, traceback: str | None = None) -> None:
        self.said.append((f"retry: {reason}", claim.trial_id))

    def release(self, claim: Claim) -> None:
        self.said.append(("release", claim.trial_id))

    def flush(self) -> None:
        self._raise("flush")
        self.said.append(("flush", -1))

    def lost(self) -> list[int]:
        lost, self.taken = self.taken, []
        self.sharing.drop(lost)
        return lost

    def recover(self) -> None:
        self._raise("recover")

    def of(self, trial_id: int) -> list[str]:
        return [what for what, who in self.said if who == trial_id]


class Table:
    """A desk with everything that it is told."""

    def __init__(
        self,
        trials: int,
        folder: Path,
        *,
        hang: float = 100.0,
        grace: float | None = None,
        idle: float | None = None,
    ) -> None:
        self.now = 0.0
        self.broker = Broker(trials, folder, lambda: self.now)
        self.look = Look(stop=False)
        self.looks = 0
        self.interrupted = threading.Event()
        self.abandoned: list[str] = []
        self.desk = Desk(
            self.broker,  # type: ignore[arg-type]
            look=self._look,
            interrupted=self.interrupted,
            patience=Patience(hang=hang, grace=grace),
            abandon=self.abandoned.append,
            idle_seconds=idle,
            clock=lambda: self.now,
        )

    def _look(self) -> Look:
        self.looks += 1
        return self.look

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.desk.step()

    def take(self, free: int, ahead: int = 0) -> list[Claim]:
        """Ask, let the desk work, take."""
        self.desk.take(0, free + ahead)
        self.step()
        return self.desk.take(free, ahead)


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
