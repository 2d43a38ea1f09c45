"""What a controller decides as workers wait for room, leave, die or vanish, and how it hears signals."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.control.supervision import (
    MAX_DEATHS,
    NODE_SECONDS,
    Deaths,
    Interruption,
    Move,
    hirings,
    next_move,
)


def move(**seen: Any) -> Move:
    usual = {
        "signals": 0,
        "stopping": False,
        "deaths": 0,
        "alive": 0,
        "gone": 0,
        "running": 0,
        "work_left": False,
    }
    return next_move(**usual | seen)


class TestNextMove:
    def _move(self, **seen: Any) -> Move:
        return move(**{"alive": 2, "running": 2} | seen)

    def test_watch_while_somebody_works(self) -> None:
        assert self._move() is Move.WATCH
        assert self._move(alive=0, running=1) is Move.WATCH, "workers of a dead controller"

    def test_finish_when_nothing_runs_and_nothing_is_left(self) -> None:
        assert self._move(alive=0, running=0) is Move.FINISH

    def test_hire_for_those_who_went_and_for_what_is_left(self) -> None:
        assert self._move(gone=1) is Move.HIRE
        assert self._move(alive=0, running=0, work_left=True) is Move.HIRE

    def test_nobody_is_hired_while_stopping(self) -> None:
        assert self._move(stopping=True, gone=1) is Move.WATCH
        assert self._move(stopping=True, gone=2, alive=0, running=0) is Move.STOP

    def test_second_signal_kills(self) -> None:
        assert self._move(signals=1, stopping=True) is Move.WATCH
        assert self._move(signals=2, stopping=True) is Move.KILL

    def test_give_up_after_deaths_in_a_row(self) -> None:
        assert self._move(deaths=MAX_DEATHS, gone=1) is Move.GIVE_UP
        assert self._move(deaths=MAX_DEATHS - 1, gone=1) is Move.HIRE


class TestPending:
    def test_one_that_waits_for_room_is_waited_for_while_there_is_work(self) -> None:
        assert move(alive=2, pending=2, work_left=True) is Move.WATCH

    def test_and_dismissed_when_there_is_none(self) -> None:
        assert move(alive=2, pending=2) is Move.FINISH
        assert move(alive=2, pending=2, running=1) is Move.WATCH, "somebody elsewhere is at it"
        assert move(alive=2, pending=1) is Move.WATCH

    def test_nobody_waits_for_one_that_has_not_begun_to_stop(self) -> None:
        assert move(alive=2, pending=2, stopping=True) is Move.STOP
        assert move(alive=2, pending=1, stopping=True) is Move.WATCH

    def test_told_to_go_and_the_time_is_over(self) -> None:
        assert move(signals=1, stopping=True, alive=1, overdue=True) is Move.KILL
        assert move(signals=1, stopping=True, alive=1, pending=1, overdue=True) is Move.STOP
        assert move(signals=1, stopping=True, alive=0, overdue=True) is Move.STOP


class TestDeaths:
    def test_together_they_are_one(self) -> None:
        deaths = Deaths(NODE_SECONDS)
        deaths.note(0.0, [])
        deaths.note(1.0, [])
        assert deaths.count(1.0, ()) == 2
        deaths.clear()
        assert deaths.count(1.0, ()) == 0

    def test_on_a_machine_that_is_gone_they_never_count(self) -> None:
        deaths = Deaths(20.0)
        for at, node in ((0.0, "a"), (5.0, "b"), (10.0, "c")):
            deaths.note(at, [node])
        assert deaths.count(10.0, ()) == 0, "it may still show that their machines are gone"
        assert deaths.count(19.9, {"a"}) == 0
        assert deaths.count(100.0, {"b"}) == 1, "c's machine lives; that a's is gone was seen"
        assert deaths.count(100.0, {"c"}) == 0

    def test_of_those_seen_together_one_on_a_living_machine_is_enough(self) -> None:
        deaths = Deaths(20.0)
        deaths.note(0.0, ["a", "b"])
        assert deaths.count(20.0, {"a"}) == 1

    def test_without_machines_at_once(self) -> None:
        deaths = Deaths(20.0)
        assert not deaths.on_machines
        deaths.note(0.0, [])
        assert (deaths.count(0.0, ()), deaths.on_machines) == (1, False)
        deaths.note(0.0, ["a"])
        assert deaths.on_machines


@pytest.mark.parametrize(
    ("alive", "pending", "target", "openings", "before", "hired"),
    [
        (1, 0, 4, 3, 3, 3),
        (1, 0, 4, 3, 0, 0),  # just opened: who is there may take it
        (1, 0, 4, 3, 1, 1),
        (1, 0, 4, 9, 9, 3),
        (3, 2, 4, 2, 2, 0),  # those that wait for room will take them
        (4, 0, 4, 9, 9, 0),
        (0, 0, 4, 0, 5, 0),
    ],
)
def test_hired_for_what_nobody_took(
    alive: int, pending: int, target: int, openings: int, before: int, hired: int
) -> None:
    assert hirings(alive=alive, pending=pending, target=target, openings=openings, before=before) == hired


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))
def test_never_more_than_wanted(alive: int, pending: int, target: int, openings: int, before: int) -> None:
    pending = min(pending, alive)
    count = hirings(alive=alive, pending=pending, target=target, openings=openings, before=before)
    assert 0 <= count <= max(0, target - alive)


def test_only_sigterm_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    now = [100.0]
    monkeypatch.setattr("search.control.supervision.monotonic", lambda: now[0])
    interruption = Interruption()
    with interruption.listening():
        goes_on = interruption.undisturbed()
        assert goes_on()
        signal.raise_signal(signal.SIGINT)
        assert not goes_on()
        now[0] += 1000
        assert not interruption.overdue(20.0)
        signal.raise_signal(signal.SIGTERM)
        assert not interruption.overdue(20.0)
        now[0] += 20
        assert interruption.overdue(20.0)


class TestInterruption:
    def test_signals_are_counted_and_put_back(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        interruption = Interruption()
        with interruption.listening():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.count == 2
        assert interruption.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_third_signal_ends_what_does_not_look(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), Interruption().listening():  # noqa: PT012 (wherever the third finds it)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_elsewhere_than_in_the_main_thread_signals_are_left_alone(self) -> None:
        seen = []

        def listen() -> None:
            with Interruption().listening():
                seen.append("ran")

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        assert seen == ["ran"]
