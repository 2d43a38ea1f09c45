"""Leases outlive a desk that is busy: moved by hand, and with a sampler that takes longer than a lease."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.trials.broker import Broker
from search.trials.claims import Reported
from search.trials.holdings import Holdings
from search.work.pulse import LATE, LONGEST_SECONDS, Pulse
from storage.checker import check_history
from storage.database import Database
from storage.errors import DatabaseUnreachable
from storage.ledger import Ending, Lease, Written
from tests.contracts.claims import claim_of, report_of
from tests.contracts.experiments import prepared, small_spec
from tests.contracts.processes import PATIENCE, until

LEASE = 30.0


class Ledger:
    """Notes what is written, and may be away."""

    def __init__(self) -> None:
        self.beats: list[list[int]] = []
        self.away = False
        self.refused: dict[int, str] = {}

    def write(self, *, beats: Collection[Lease] = (), **_: Any) -> Written:
        if self.away:
            raise DatabaseUnreachable("away", retryable=True)
        self.beats.append([lease.token for lease in beats])
        return Written(refused=self.refused)


class Moved:
    """A pulse with its holdings, and a clock that the test moves."""

    def __init__(self, folder: Path, trials: int = 2) -> None:
        self.now = 0.0
        self.ledger = Ledger()
        self.pulse = Pulse(self.ledger, lease_seconds=LEASE, clock=lambda: self.now)  # type: ignore[arg-type]
        self.holdings = Holdings(self.pulse, lease_seconds=LEASE, clock=lambda: self.now)
        self.leases = [claim_of(number, folder).lease for number in range(trials)]
        self.tokens = [lease.token for lease in self.leases]
        self.holdings.take(self.leases)

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.pulse.beat(self.holdings)


def test_it_beats_only_where_the_desk_is_late(tmp_path: Path) -> None:
    moved = Moved(tmp_path)
    assert not moved.after(LEASE * LATE - 1)
    assert moved.after(2)
    assert moved.ledger.beats == [moved.tokens]
    assert not moved.after(LEASE * LATE - 1), "from then on it is not late"
    moved.holdings.write()
    assert moved.ledger.beats == [moved.tokens] * 2, "the desk beat by itself"
    assert not moved.after(LEASE * LATE - 1)


def test_the_desk_is_not_told_that_its_leases_are_lost_while_they_live(tmp_path: Path) -> None:
    """A hiccup of the database after a long draw, during which the pulse beat."""
    moved = Moved(tmp_path)
    for _ in range(5):
        assert moved.after(LEASE * LATE + 1)
    assert moved.holdings.seconds_to_beat() > 0
    assert len(moved.holdings) == 2


def test_what_has_ended_or_was_lost_is_not_beaten_for(tmp_path: Path) -> None:
    moved = Moved(tmp_path, trials=3)
    ended, lost, kept = moved.leases
    moved.ledger.refused = {lost.token: "the lease ran out"}
    moved.pulse.write(endings=[Ending(lease=ended, state="complete", value=0.5)])
    assert moved.after(LEASE * LATE + 1), "although the holdings have not taken note of it yet"
    assert moved.ledger.beats[-1] == [kept.token]


def test_nothing_is_beaten_for_once_everything_is_given_up(tmp_path: Path) -> None:
    moved = Moved(tmp_path)
    moved.holdings.forget()
    assert not moved.after(LEASE)
    assert moved.ledger.beats == []


def test_a_desk_that_hangs_loses_its_leases(tmp_path: Path) -> None:
    moved = Moved(tmp_path)
    beaten = 0
    while moved.after(LEASE * LATE + 1):
        beaten += 1
        assert beaten < 1000
    assert LONGEST_SECONDS - LEASE <= beaten * (LEASE * LATE + 1) <= LONGEST_SECONDS


def test_a_database_that_is_away_is_no_end(tmp_path: Path) -> None:
    moved = Moved(tmp_path)
    moved.ledger.away = True
    assert not moved.after(LEASE * LATE + 1)
    moved.ledger.away = False
    assert moved.after(1)


@pytest.mark.parametrize("beats", [True, False])
def test_a_draw_that_takes_longer_than_a_lease(
    database: Database, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    """The trial that trains meanwhile, and the one that is drawn, stay with their worker: with a pulse."""
    lease = 8.0 if beats else 3.0  # so long that a busy machine comes round to the beat
    monkeypatch.setenv("SHOAL_LEASE_SECONDS", str(lease))
    drawing, drawn = threading.Event(), threading.Event()
    suggest = BaseSampler.before_trial

    def slow(sampler: BaseSampler, *arguments: Any) -> None:
        if threading.current_thread().name == "asks":
            drawing.set()
            assert drawn.wait(PATIENCE)
        suggest(sampler, *arguments)

    spec = small_spec(methods={"random": {}}, budget={"trials": 2})
    monkeypatch.setattr(BaseSampler, "before_trial", slow)
    with prepared(database, spec) as running:
        pulse = Pulse(running.ledger, lease_seconds=lease)
        worker = pulse.register("w")
        broker = Broker(database, running.storage, running.experiment, spec, ledger=pulse, worker_id=worker)
        (training,) = broker.claim(1)
        broker.store([Reported(training, report_of(1, 0.5), last=False)])
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.extend(broker.claim(1)), name="asks")

        def expired() -> int:
            return len(running.ledger.expire(running.experiment.id))

        def has_lived(seconds: float) -> bool:
            statement = (
                f"SELECT min(clock_timestamp() - started_at) > interval '{seconds} s' FROM shoal.attempts"
            )
            return bool(database.scalar(statement))

        if beats:
            with pulse.beating(broker.holdings):
                asking.start()
                assert drawing.wait(PATIENCE)
                until(lambda: expired() or has_lived(lease + 1))
                drawn.set()
                asking.join(PATIENCE)
        else:
            asking.start()
            assert drawing.wait(PATIENCE)
            until(lambda: expired() or has_lived(lease + 1))
            drawn.set()
            asking.join(PATIENCE)
        lost = broker.lost()
        if not beats:
            assert training.lease.token in lost, "without one the leases run out"
            return
        assert lost == []
        (second,) = found
        broker.store([Reported(claim, report_of(3, 0.5), last=True) for claim in (training, second)])
        assert [trial.state for trial in running.trials("random")] == [TrialState.COMPLETE] * 2
        assert check_history(database, running.experiment.id) == []
        refused = "SELECT count(*) FROM shoal.events WHERE kind IN ('refused', 'expired')"
        assert database.scalar(refused) == 0
