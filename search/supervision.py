"""What a controller decides, and what it hears: pure functions, and the signals that ask it to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.ledger import Expired
    from storage.records import StudyProgress

MAX_DEATHS = 3
"""Times in a row that workers may die without any progress in between."""
ORDERLY = 2
"""Signals that are counted and acted on at the next look; one more ends the controller wherever it waits."""


class Interruption:
    """Counts the signals that ask this process to end."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM meanwhile; elsewhere than in the main thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.count += 1
        self.name = signal.Signals(number).name
        if self.count > ORDERLY:
            raise KeyboardInterrupt


class Move(Enum):
    """What a controller does after a look."""

    WATCH = "watch"
    HIRE = "hire"
    FINISH = "finish"
    STOP = "stop"
    KILL = "kill"
    GIVE_UP = "give up"


def next_move(
    *,
    signals: int,
    stopping: bool,
    deaths: int,
    alive: int,
    gone: int,
    running: int,
    work_left: bool,
    final: bool = False,
) -> Move:
    """Decide from what was seen.

    `signals` that asked for the end; `deaths` of workers in a row without progress; workers `alive`;
    workers `gone` since the last look although there was work; trials `running` anywhere, which is
    asked only where nobody is alive here; `work_left`: a trial may start somewhere; `final`: one
    left in whose place nobody can be hired.
    """
    if signals > 1:
        return Move.KILL
    if stopping:
        return Move.WATCH if alive else Move.STOP
    if final:
        return Move.GIVE_UP
    if deaths >= MAX_DEATHS:
        return Move.GIVE_UP
    if gone or (work_left and not alive):
        return Move.HIRE
    return Move.WATCH if alive or running else Move.FINISH


def fate(trial: Expired) -> str:
    """What became of a trial whose worker is gone."""
    name = f"trial {trial.number} of {trial.study_name}"
    if trial.given_up:
        return f"{name} has failed: {trial.attempt} attempts ended without a result"
    return f"{name} is queued again: its worker {trial.worker} ended"


def progress_mark(rows: Sequence[StudyProgress]) -> tuple[int, int]:
    """Changes exactly when an epoch was trained for the first time, or a trial ended."""
    return sum(row.epochs for row in rows), sum(row.complete + row.pruned + row.failed for row in rows)
