"""How often a process tries to get a place on a server that is full, and how its threads share one."""

from __future__ import annotations

import math
import random
import threading
from itertools import pairwise
from statistics import mean

import psycopg2
import pytest

from storage import crowds
from storage.crowds import Backoff, Line, NoPlace, Place, due, in_line

FULL = psycopg2.OperationalError("FATAL:  sorry, too many clients already")


class TestBackoff:
    def test_nobody_waits_before_a_server_was_full(self):
        backoff = Backoff()
        backoff.admitted(1.0)
        assert not backoff.crowded(1.0)
        assert backoff.pause(0.99) == 0.0

    def test_each_refusal_doubles_the_wait_up_to_the_longest(self):
        backoff, waits = Backoff(), []
        for now in range(10):
            backoff.refused(now)
            waits.append(backoff.wait)
        assert waits[:4] == [0.25, 0.5, 1.0, 2.0]
        assert waits[-1] == crowds.LONGEST_WAIT

    def test_each_success_adds_the_same_to_the_rate_of_attempts(self):
        backoff = Backoff(wait=8.0, refused_at=0.0)
        rates = []
        for now in range(5):
            rates.append(1 / backoff.wait)
            backoff.admitted(now)
        assert [later - earlier for earlier, later in pairwise(rates)] == pytest.approx([crowds.GAIN] * 4)

    def test_who_gets_one_of_the_last_places_knows_that_others_wait(self):
        backoff = Backoff()
        backoff.squeezed_in(1.0)
        assert backoff.crowded(1.0)
        assert backoff.wait == crowds.FIRST_WAIT
        backoff = Backoff(wait=2.0, refused_at=0.0)
        backoff.squeezed_in(1.0)
        assert backoff.wait == 2.0

    def test_what_was_learned_is_forgotten_once_the_server_was_long_not_full(self):
        backoff = Backoff(wait=8.0, refused_at=0.0)
        assert backoff.crowded(crowds.CROWDED_SECONDS - 0.1)
        backoff.admitted(crowds.CROWDED_SECONDS)
        assert backoff.wait == 0.0
        backoff = Backoff(wait=8.0, refused_at=0.0)
        backoff.refused(crowds.CROWDED_SECONDS)
        assert backoff.wait == crowds.FIRST_WAIT

    def test_pauses_are_spread_around_the_wait(self):
        backoff = Backoff(wait=2.0)
        assert (backoff.pause(0.0), backoff.pause(0.5)) == (1.0, 2.0)

    def test_who_waits_for_long_or_is_in_haste_tries_more_often(self):
        def after(waited: float, haste: float = 1.0) -> float:
            return due(10.0, 6.0, waited=waited, haste=haste) - 10.0

        assert after(0.0) == 6.0
        assert after(crowds.PRESSING_SECONDS) == 3.0
        assert after(1e9) == after(2 * crowds.PRESSING_SECONDS) == 2.0
        assert after(0.0, crowds.HASTE) == 6.0 / crowds.HASTE
        assert after(0.0, crowds.LEISURE) == 12.0


class Crowd:
    """Processes that share so many places: each has one for a second, and wants another at once."""

    def __init__(self, processes: int, places: int) -> None:
        self.chance = random.Random(1).random
        self.places = self.free = places
        self.backoffs = [Backoff() for _ in range(processes)]
        self.last, self.pause, self.wants = ([0.0] * processes for _ in range(3))
        self.until: dict[int, float] = {}
        self.granted, self.refused = [0] * processes, [0] * processes

    def live(self, seconds: int, *, counts_from: int) -> None:
        """In steps of a hundredth of a second, in each of which whoever may try does, in a random order."""
        everybody = range(len(self.backoffs))
        for step in range(100 * seconds):
            now = step / 100
            if now == counts_from:
                self.granted, self.refused = [0] * len(everybody), [0] * len(everybody)
            for i in sorted(everybody, key=lambda _: self.chance()):
                if now >= self.until.get(i, math.inf):
                    del self.until[i]
                    self.free += 1
                    self.wants[i] = now
                    self.rest(i, now)
                elif i not in self.until and now >= self.due(i, now):
                    self.attempt(i, now)

    def due(self, i: int, now: float) -> float:
        return due(self.last[i], self.pause[i], waited=now - self.wants[i])

    def attempt(self, i: int, now: float) -> None:
        if self.free:
            self.free -= 1
            self.granted[i] += 1
            self.until[i] = now + 1.0
            self.backoffs[i].admitted(now)
            if self.free <= self.places // 10:
                self.backoffs[i].squeezed_in(now)
        else:
            self.refused[i] += 1
            self.backoffs[i].refused(now)
        self.rest(i, now)

    def rest(self, i: int, now: float) -> None:
        self.last[i], self.pause[i] = now, self.backoffs[i].pause(self.chance())


@pytest.mark.parametrize(("processes", "places"), [(24, 7), (100, 20)])
def test_of_many_processes_none_starves_few_are_refused_and_places_are_used(processes, places):
    """What comes of the rule when all go by it, and want all the time: a simulation."""
    crowd = Crowd(processes, places)
    crowd.live(seconds=60, counts_from=20)
    assert sum(crowd.refused) < sum(crowd.granted)
    assert sum(crowd.granted) > 0.75 * places * 40
    assert min(crowd.granted) > mean(crowd.granted) / 4
    assert max(crowd.granted) < mean(crowd.granted) * 3


class TestTurns:
    def test_a_place_is_kept_for_a_turn(self):
        assert Place(None, since=0.0).to_keep(crowds.TURN_SECONDS - 0.1)
        assert not Place(None, since=0.0, uses=crowds.TURN_USES).to_keep(crowds.TURN_SECONDS)

    def test_on_a_slow_machine_a_turn_lasts_until_something_was_done_but_not_for_ever(self):
        place = Place(None, since=0.0, uses=crowds.TURN_USES - 1)
        assert place.to_keep(crowds.LONGEST_TURN - 0.1)
        assert not place.to_keep(crowds.LONGEST_TURN)


class Clock:
    """Stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Connection:
    """As little of one as a line needs."""

    closed = 0

    def close(self) -> None:
        self.closed = 1


def refuse() -> None:
    raise FULL


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def line(clock: Clock) -> Line:
    """The line of a process that has just been refused, and may not try again for hours."""
    line = Line(clock)
    with pytest.raises(psycopg2.OperationalError):
        line.connect(refuse)
    assert line.crowded
    line._pause = 3600.0
    return line


class TestLine:
    def test_other_errors_say_nothing_of_a_crowd(self):
        line = Line()
        with pytest.raises(ZeroDivisionError):
            line.connect(lambda: 1 / 0)
        assert not line.crowded

    def test_who_does_not_wait_goes_without(self, line):
        with in_line(None), pytest.raises(NoPlace):
            line.connect(refuse)

    def test_what_one_gives_the_next_has(self, line, clock):
        connection = Connection()
        assert line.give(Place(connection, since=clock.now))
        place = line.connect(refuse)
        assert (place.connection, place.spare, place.uses, line.checkedin()) == (connection, True, 2, 0)

    def test_who_waits_is_given_what_another_thread_leaves(self, line, clock):
        connection, got = Connection(), []
        thread = threading.Thread(target=lambda: got.append(line.connect(refuse)), daemon=True)
        thread.start()
        while thread.is_alive() and not line._changed._waiters:
            pass  # until it has found nothing, and waits
        assert line.give(Place(connection, since=clock.now))
        thread.join(60.0)
        assert [place.connection for place in got] == [connection]

    def test_after_its_turn_a_place_goes_back_to_the_server(self, line, clock):
        assert not line.give(Place(Connection(), since=clock.now - crowds.LONGEST_TURN))

    def test_a_connection_that_must_be_new_is_none_that_lies_spare(self, line, clock):
        line.give(Place(Connection(), since=clock.now))
        line._pause = 0.0
        new = Connection()
        assert line.connect(lambda: new, spares=False).connection is new

    @pytest.mark.parametrize(("haste", "seconds"), [(None, 0.3), (crowds.HASTE, 1.0)])
    def test_what_nobody_uses_is_closed_later_where_leases_are_held(self, line, clock, haste, seconds):
        connection = Connection()
        with in_line(haste):
            line.give(Place(connection, since=clock.now))
        clock.now += seconds - 0.05
        assert line.close_idle()
        assert not connection.closed
        clock.now += 0.1
        assert not line.close_idle()
        assert connection.closed

    def test_pools_hand_in_what_they_have_when_the_server_is_first_full(self):
        line, handed = Line(), []

        class Pool:
            def hand_in(self) -> None:
                handed.append(1)

        pool = Pool()
        line.pools.add(pool)
        for _ in range(2):
            line._last = -1e9
            with pytest.raises(psycopg2.OperationalError):
                line.connect(refuse)
        assert handed == [1]
