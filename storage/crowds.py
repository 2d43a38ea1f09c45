"""A place on a server that is full: how often a process tries to get one, and how its threads share it.

A server that is full answers every attempt to connect with a new process of its own, so hundreds of
clients that try often keep it from what it is there for. Nobody tells a client how many others there are,
but it sees how often it is refused, and is told when it gets one of the last places. So the attempts of a
process get rarer with each refusal and come again with each success, as the senders on a network share a
line whose width none of them knows (additive increase, multiplicative decrease of the rate: Chiu and Jain,
1989). All pools and threads of a process learn together and stand in one line for one server. What one of
them has no use for any more goes to the next, for a while; then it is given back, so that another process
gets a turn.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from storage.urls import FULL

FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"""Seconds between two attempts of a process: after the first refusal, and at most. Who holds trials under a
lease, or has waited for long, tries several times as often."""
GAIN = 0.05
"""How many more attempts per second a process makes after each that succeeded."""
PRESSING_SECONDS, MOST_PRESSING = 5.0, 2.0
"""Who has waited for so long tries twice as often as who begins to wait; after twice as long three times, and
no more often than that."""
HASTE, LEISURE = 8.0, 0.5
"""How many times as often as others those try who hold trials under a lease, and those who want a new one."""
FORGOTTEN_SECONDS = 5.0
"""Who was refused and comes back later than that begins to wait anew."""
CROWDED_SECONDS = 30.0
"""For so long after a refusal a server counts as full."""
TURN_SECONDS, TURN_USES, LONGEST_TURN = 2.0, 50, 10.0
"""A process keeps a connection to a full server for so many seconds, and longer until it has used it so many
times, for one that is made costs as much as a dozen uses; but not for longer than the third."""
SPARE_SECONDS, SPARE_SECONDS_IN_HASTE = 0.3, 1.0
"""A connection to a full server that nobody in the process used for so long is given back; the second, where
the process has just written under a lease, and is to do so again soon."""


@dataclass(slots=True)
class Backoff:
    """How long a process waits between two attempts, learned from those that it made. Decides, does nothing.

    `now` is in seconds, by one clock.
    """

    wait: float = 0.0
    """Seconds; 0: attempts need not wait."""
    refused_at: float = -math.inf

    def crowded(self, now: float) -> bool:
        """Whether the server was full lately."""
        return now - self.refused_at < CROWDED_SECONDS

    def refused(self, now: float) -> None:
        """The server was full: half as many attempts from now on."""
        before = self.wait if self.crowded(now) else 0.0
        self.wait = min(max(2 * before, FIRST_WAIT), LONGEST_WAIT)
        self.refused_at = now

    def admitted(self, now: float) -> None:
        """There was a place: a few more attempts per second."""
        self.wait = self.wait / (1 + GAIN * self.wait) if self.crowded(now) else 0.0

    def squeezed_in(self, now: float) -> None:
        """There was a place, one of the last: others are refused, and who holds places is to take turns."""
        self.wait = max(self.wait, FIRST_WAIT)
        self.refused_at = now

    def pause(self, chance: float) -> float:
        """Seconds to the next attempt, for who begins to wait; `chance` is in [0, 1).

        It is spread, so that those who were refused together don't come back together.
        """
        return self.wait * (0.5 + chance)


def due(last: float, pause: float, *, waited: float, haste: float = 1.0) -> float:
    """When to try again, with that pause since the last attempt, for who has waited so many seconds.

    `haste`: how many times as often as others this one may try.
    """
    return last + pause / (haste * (1 + min(waited / PRESSING_SECONDS, MOST_PRESSING)))


@dataclass(frozen=True, slots=True)
class Place:
    """A connection of the driver to the server."""

    connection: Any
    since: float
    """When it was made."""
    spare: bool = False
    """Whether somebody else in this process had it before."""
    uses: int = 1
    idle_since: float = 0.0

    def to_keep(self, now: float) -> bool:
        """Whether its process may keep it although the server is full."""
        age = now - self.since
        return age < TURN_SECONDS or (self.uses < TURN_USES and age < LONGEST_TURN)


def says_full(error: BaseException) -> bool:
    """Whether an error of the driver says that the server has no connection left."""
    return any(words in str(error) for words in FULL)


class _Wait(threading.local):
    """A thread's wait for a connection, from one attempt to the next."""

    def __init__(self) -> None:
        self.since = -math.inf
        self.refused_at = -math.inf
        """-inf: it does not wait."""


class _Mood(threading.local):
    """How a thread waits."""

    def __init__(self) -> None:
        self.haste: float | None = 1.0
        """How many times as often as others it tries; None: it does not wait."""


_mood = _Mood()


@contextmanager
def in_line(haste: float | None) -> Iterator[None]:
    """Within the block, this thread tries so many times as often as others; None: it rather goes without."""
    before, _mood.haste = _mood.haste, haste
    try:
        yield
    finally:
        _mood.haste = before


def waits() -> bool:
    """Whether this thread waits for a place on a full server."""
    return _mood.haste is not None


class NoPlace(Exception):  # noqa: N818 (nothing went wrong)
    """The server is full, and who asked did not want to wait."""


class Line:
    """The line of a process for one server. May be shared by threads.

    `pools` hold connections of their own as long as the server is not full; then they hand them in.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.pools: WeakSet[Any] = WeakSet()
        self._clock = clock
        self._backoff = Backoff()
        self._changed = threading.Condition()
        self._spares: list[Place] = []
        self._mine = _Wait()
        self._attempts = 0
        """That are under way."""
        self._last = -math.inf
        """When the last one ended."""
        self._pause = 0.0
        """From then to the next, should the server be full."""
        self._hasty_at = -math.inf
        """When this process wrote under a lease."""

    @property
    def crowded(self) -> bool:
        """Whether the server was full lately."""
        return self._backoff.crowded(self._clock())

    def connect(self, create: Callable[[], Any], *, spares: bool = True) -> Place:
        """A place: one that lies spare, if one of these will do, or a new one, made by `create`.

        On a server that is full threads wait for their turn to try, one at a time, and for what
        another of them gives. Raises what `create` raises; who comes back then has waited since
        the first time. `NoPlace` for who does not wait (`in_line`).
        """
        mine = self._mine
        now = self._clock()
        if now - mine.refused_at > FORGOTTEN_SECONDS:
            mine.since = now
        with self._changed:
            while self.crowded:
                if spares and self._spares:
                    mine.refused_at = -math.inf
                    return self._spares.pop()
                if _mood.haste is None:
                    raise NoPlace
                now = self._clock()
                left = due(self._last, self._pause, waited=now - mine.since, haste=_mood.haste) - now
                if left <= 0 and not self._attempts:
                    break
                self._changed.wait(None if self._attempts else left)
            self._attempts += 1
        full = False
        try:
            place = Place(create(), self._clock())
        except BaseException as error:
            full = says_full(error)
            raise
        else:
            return place
        finally:
            self._note(full=full)
            mine.refused_at = self._clock() if full else -math.inf

    def _note(self, *, full: bool) -> None:
        """Learn from an attempt that is over."""
        with self._changed:
            self._attempts -= 1
            now = self._last = self._clock()
            news = full and not self.crowded
            if full:
                self._backoff.refused(now)
            else:
                self._backoff.admitted(now)
            self._pause = self._backoff.pause(random.random())
            self._changed.notify_all()
        if news:
            self._gather()

    def squeezed_in(self) -> None:
        """The server said that it has hardly a place left after this one."""
        with self._changed:
            news = not self.crowded
            self._backoff.squeezed_in(self._clock())
        if news:
            self._gather()

    def _gather(self) -> None:
        for pool in list(self.pools):
            pool.hand_in()

    def checkedin(self) -> int:
        """How many connections lie spare."""
        return len(self._spares)

    def give(self, place: Place) -> bool:
        """Leave a connection for whoever in this process wants one next; False: its turn is over."""
        now = self._clock()
        if not place.to_keep(now):
            with self._changed:
                # Whoever waits elsewhere has tried by the time we come again.
                self._last, self._pause = now, self._backoff.pause(random.random())
            return False
        if (_mood.haste or 0.0) > 1:
            self._hasty_at = now
        with self._changed:
            self._spares.append(replace(place, spare=True, uses=place.uses + 1, idle_since=now))
            self._changed.notify()
        return True

    def close_idle(self, seconds: float | None = None) -> bool:
        """Close what has lain spare for so long; whether any is left."""
        now = self._clock()
        if seconds is None:
            hasty = now - self._hasty_at < TURN_SECONDS
            seconds = SPARE_SECONDS_IN_HASTE if hasty else SPARE_SECONDS
        with self._changed:
            limit = now - seconds
            old = [place for place in self._spares if place.idle_since <= limit]
            self._spares = [place for place in self._spares if place.idle_since > limit]
            left = bool(self._spares)
        for place in old:
            place.connection.close()
        return left


class _Lines:
    """The lines of this process, by database; a forked one begins without, on connections of its own."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._lines: WeakValueDictionary[str, Line] = WeakValueDictionary()

    def of(self, url: str) -> Line:
        with self._guard:
            line = self._lines.get(url)
            if line is None:
                line = self._lines[url] = Line()
            return line


_lines = _Lines()


def line_of(url: str) -> Line:
    """The line for a database, the same for all who name it by the same URL."""
    return _lines.of(url)


def _begin_anew() -> None:
    global _lines  # noqa: PLW0603 (whoever held the lock at the fork is not here to free it)
    _lines = _Lines()


os.register_at_fork(after_in_child=_begin_anew)
