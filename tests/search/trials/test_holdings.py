"""What is held, when it is prolonged, and what a write says of it: against a ledger in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from search.trials.holdings import BEATS, Holdings, LeasesLost
from storage.errors import DatabaseUnreachable
from storage.ledger import Ending, Lease, Written
from tests.contracts.claims import lease_of

TTL = 30.0


@dataclass
class Ledger:
    """Notes every write; refuses and gives up what it is told to; is away so many times."""

    writes: list[dict[str, list[int]]] = field(default_factory=list)
    refuses: dict[int, str] = field(default_factory=dict)
    gives_up: set[int] = field(default_factory=set)
    away: int = 0
    seconds: float = 0.0
    """What a try takes while it is away."""
    now: float = 0.0
    retryable: bool = True

    def write(self, **said: Any) -> Written:
        if self.away:
            self.away -= 1
            self.now += self.seconds
            raise DatabaseUnreachable("away", retryable=self.retryable)
        tokens = {
            name: [getattr(one, "lease", one).token for one in ones] for name, ones in said.items() if ones
        }
        self.writes.append(tokens)
        named = {token for group in tokens.values() for token in group}
        return Written(
            {token: why for token, why in self.refuses.items() if token in named},
            frozenset(self.gives_up & named),
        )


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def holdings(ledger: Ledger) -> Holdings:
    made = Holdings(ledger, lease_seconds=TTL, clock=lambda: ledger.now)  # type: ignore[arg-type]
    made.take([lease_of(1), lease_of(2)])
    return made


def _end(token: int, state: Any = "released") -> Ending:
    reason = "broken" if state in {"failed", "retry"} else None
    return Ending(lease=lease_of(token), state=state, reason=reason)


class TestBeats:
    def test_all_in_one_write_three_times_in_a_leases_time(self, holdings: Holdings, ledger: Ledger) -> None:
        assert holdings.seconds_to_beat() == TTL / BEATS
        assert not holdings.has_to_write
        ledger.now = TTL / BEATS
        assert holdings.has_to_write
        holdings.write()
        assert ledger.writes == [{"beats": [1, 2]}]
        assert holdings.seconds_to_beat() == TTL / BEATS

    def test_what_goes_out_anyway_takes_along_a_beat_that_is_nearly_due(
        self, holdings: Holdings, ledger: Ledger
    ) -> None:
        ledger.now = 1.0
        holdings.take([lease_of(3)])
        holdings.write(endings=[_end(3)])
        assert holdings.seconds_to_beat() == TTL / BEATS - 1.0, "the others were not prolonged by that"
        ledger.now = TTL / BEATS - 1.0
        holdings.write(endings=[_end(2)])
        assert ledger.writes == [{"endings": [3]}, {"beats": [1, 2], "endings": [2]}]

    def test_the_first_lease_begins_to_count_when_it_is_taken(self, ledger: Ledger) -> None:
        made = Holdings(ledger, lease_seconds=TTL, clock=lambda: ledger.now)  # type: ignore[arg-type]
        ledger.now = 100.0
        made.take([lease_of(1)])
        assert made.seconds_to_beat() == TTL / BEATS

    def test_nothing_is_written_for_nothing(self, ledger: Ledger) -> None:
        made = Holdings(ledger, lease_seconds=TTL, clock=lambda: ledger.now)  # type: ignore[arg-type]
        ledger.now = 1000.0
        assert not made.has_to_write
        assert made.write() == {}
        assert ledger.writes == []


class TestEndings:
    def test_they_wait_for_the_next_write(self, holdings: Holdings, ledger: Ledger) -> None:
        assert holdings.end(_end(1))
        assert ledger.writes == []
        assert holdings.has_to_write
        holdings.write()
        assert ledger.writes == [{"endings": [1]}]
        assert len(holdings) == 1
        assert lease_of(1) not in holdings
        assert not holdings.has_to_write

    def test_a_trial_ends_once_and_what_is_said_first_counts(
        self, holdings: Holdings, ledger: Ledger
    ) -> None:
        assert holdings.end(_end(1, "failed"))
        assert not holdings.end(_end(1))
        holdings.write()
        assert not holdings.end(_end(1))
        holdings.write()
        assert ledger.writes[0] == {"endings": [1]}
        assert all("endings" not in write for write in ledger.writes[1:])

    def test_what_is_not_held_is_not_ended(self, holdings: Holdings) -> None:
        assert not holdings.end(_end(9))

    def test_the_last_attempts_of_trials_are_told(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.gives_up = {1}
        holdings.end(_end(1, "retry"))
        holdings.end(_end(2, "retry"))
        holdings.write()
        assert (holdings.given_up(1), holdings.given_up(2)) == (True, False)
        assert not holdings.given_up(1), "asked once"


class TestLost:
    def _tokens(self, leases: list[Lease]) -> list[int]:
        return sorted(lease.token for lease in leases)

    def test_what_is_refused_is_held_no_more(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.refuses = {2: "the lease ran out"}
        ledger.now = TTL / BEATS
        assert holdings.write() == {2: "the lease ran out"}
        assert self._tokens(holdings.lost()) == [2]
        assert holdings.lost() == []
        assert lease_of(2) not in holdings
        assert lease_of(1) in holdings

    def test_also_by_its_own_ending(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.refuses = {2: "the lease ran out"}
        holdings.end(_end(2))
        holdings.write()
        assert self._tokens(holdings.lost()) == [2]

    def test_a_short_absence_is_waited_for(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.away, ledger.seconds = 3, 5.0
        holdings.end(_end(1))
        assert holdings.write() == {}
        assert ledger.writes == [{"endings": [1], "beats": [1, 2]}], "and prolonged, for it has taken long"

    def test_after_the_leases_time_everything_is_given_up(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.away, ledger.seconds = 99, 10.0
        holdings.end(_end(1))
        with pytest.raises(LeasesLost):
            holdings.write()
        assert 99 - ledger.away == 3, "three tries of ten seconds"
        assert self._tokens(holdings.lost()) == [1, 2]
        ledger.away = 0
        assert holdings.write() == {}
        assert ledger.writes == [], "nothing of it is written when the database is back"

    def test_what_trying_again_will_not_help_is_raised(self, holdings: Holdings, ledger: Ledger) -> None:
        ledger.away, ledger.retryable = 1, False
        with pytest.raises(DatabaseUnreachable):
            holdings.write(endings=[_end(1)])


def test_a_server_that_refuses_at_once_is_not_asked_without_a_pause() -> None:
    """As one does that is down, for who has no patience with it (SHOAL_DATABASE_PATIENCE=0)."""
    ledger = Ledger(away=1_000)
    paused: list[float] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        ledger.now += seconds

    holdings = Holdings(ledger, lease_seconds=TTL, clock=lambda: ledger.now, pause=pause)  # type: ignore[arg-type]
    holdings.take([lease_of(1)])
    with pytest.raises(LeasesLost):
        holdings.write(endings=[_end(1)])
    assert sum(paused) == pytest.approx(TTL, abs=1)
