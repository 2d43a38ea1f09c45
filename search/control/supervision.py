"""What a controller decides, and what it hears: pure functions, and the signals that ask it to end."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.ledger import Expired
    from storage.records import StudyProgress

GRACE_SECONDS = 20.0
"""For the end of an epoch after a process was told to go; clusters kill after 30."""
IDLE_SECONDS = 60.0
"""After which a worker on a cluster ends that gets no trial: a machine with a worker is never taken down."""
PENDING_SECONDS = 30.0
"""After which it is said that workers have no place yet."""
NODE_SECONDS = 20.0
"""Until a cluster has noticed that a machine is gone, which its workers' deaths tell sooner."""
MAX_DEATHS = 3
"""Times in a row that workers may die without any progress in between."""
PR_SET_PDEATHSIG = 1
"""Linux's number of that option of prctl(2)."""
ORDERLY = 2
"""Signals that are counted and acted on at the next look; one more ends the controller wherever it waits."""


class Interruption:
    """Counts the signals that ask this process to end."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self._since: float | None = None
        self._prctl: Callable[[int, int], object] | None = None

    def undisturbed(self) -> Callable[[], bool]:
        """What says whether no signal has come since this call."""
        seen = self.count
        return lambda: self.count == seen

    def overdue(self, grace_seconds: float) -> bool:
        """Whether SIGTERM came so long ago: who sends it kills soon. Ctrl-C waits for as long as it takes."""
        return self._since is not None and monotonic() - self._since >= grace_seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM meanwhile; elsewhere than in the main thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM and self._prctl is not None:
            # Whoever is to be told of its parent's death is told by Linux once for each of the parent's
            # threads, one after the other; these are no further signals that ask for haste.
            self._prctl(PR_SET_PDEATHSIG, 0)
        self.count += 1
        self.name = signal.Signals(number).name
        if number == signal.SIGTERM and self._since is None:
            self._since = monotonic()
        if self.count > ORDERLY:
            raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Seen:
    """What the database said at a look."""

    rows: Sequence[StudyProgress]
    running: int = 0
    """Trials that run anywhere; asked only where nobody is at work here."""
    work_left: bool = False
    """Whether one may start; asked only there as well."""
    openings: int | None = None
    """Trials that may start now; None: not asked, for no worker is missing, or it was asked lately."""


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
    pending: int = 0,
    overdue: bool = False,
) -> Move:
    """Decide from what was seen.

    `signals` that asked for the end; `deaths` of workers in a row without progress; workers `alive`,
    of them `pending`: hired, and without a place so far; workers `gone` since the last look although
    there was work; trials `running` anywhere, which is asked only where nobody is at work here;
    `work_left`: a trial may start somewhere; `final`: one left in whose place nobody can be hired;
    `overdue`: whoever asked for the end waits no longer.
    """
    at_work = alive - pending
    if signals > 1 or (overdue and at_work):
        return Move.KILL
    if stopping:
        return Move.WATCH if at_work else Move.STOP
    if final:
        return Move.GIVE_UP
    if deaths >= MAX_DEATHS:
        return Move.GIVE_UP
    if gone or (work_left and not alive):
        return Move.HIRE
    return Move.WATCH if at_work or running or (pending and work_left) else Move.FINISH


@dataclass(slots=True)
class Deaths:
    """Workers' deaths without progress. Those that were seen together are one: what kills may kill many.

    A worker that dies because its machine is gone says nothing of the trials or of our code. That the machine
    is gone shows a while after the death, so on a cluster a death counts once that while is over.
    """

    patience: float
    """Seconds until it shows; 0 where there is one machine."""
    groups: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    """When, and on which machines."""

    @property
    def on_machines(self) -> bool:
        """Whether it matters which machines are gone."""
        return any(nodes for _, nodes in self.groups)

    def note(self, now: float, nodes: Iterable[str]) -> None:
        """Workers died."""
        self.groups.append((now, frozenset(nodes)))

    def clear(self) -> None:
        """An epoch was trained, or a trial ended."""
        self.groups.clear()

    def count(self, now: float, lost: Collection[str]) -> int:
        """How many count now, those on machines of `lost` never."""
        self.groups = [(at, nodes) for at, nodes in self.groups if not nodes or nodes - set(lost)]
        return sum(not nodes or now - at >= self.patience for at, nodes in self.groups)


def hirings(*, alive: int, pending: int, target: int, openings: int, before: int) -> int:
    """How many workers to hire for trials that may start, beside those that are there.

    `target`: the most that may be there; `openings`: trials that may start now, and `before`: that could at
    the look before. What both looks saw, nobody who is there has taken. Those that are `pending` will.
    """
    return max(0, min(target - alive, min(openings, before) - pending))


def deletion(studies: Sequence[str]) -> str:
    """That somebody deleted these studies from Optuna's tables, for whoever runs the experiment."""
    some = ", ".join(studies[:3]) + (f" and {len(studies) - 3} more" if len(studies) > 3 else "")
    return f"deleted from Optuna's tables while the experiment ran: {some}; to run it again makes them anew"


def fate(trial: Expired) -> str:
    """What became of a trial whose worker is gone."""
    name = f"trial {trial.number} of {trial.study_name}"
    if trial.given_up:
        return f"{name} has failed: {trial.attempt} attempts ended without a result"
    return f"{name} is queued again: its worker {trial.worker} ended"


def progress_mark(rows: Sequence[StudyProgress]) -> tuple[int, int]:
    """Changes exactly when an epoch was trained for the first time, or a trial ended."""
    return sum(row.epochs for row in rows), sum(row.complete + row.pruned + row.failed for row in rows)
